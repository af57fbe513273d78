// A step of an optimiser for many parameters in one launch: docs/kernels/optim.md.
//
// A table of the parameters' arrays is passed by value, like every argument of a launch. So the table needs no memory
// on the GPU, no copy, and need not outlive the launch. All fields have 8 bytes, so that a NumPy record (optim/cuda.py)
// has the same layout. A block updates ELEMENTS elements of one parameter, and searches the table for the parameter.

constexpr int MAX_PARAMETERS = 64;  // A launch updates at most 64 parameters, whose table fits the 4 KB of arguments.
constexpr int ELEMENTS = 2048;      // A block updates 2,048 elements, 8 a thread.

template <typename T>
struct Parameter {
    T* w;
    const T* gw;
    T *first, *second;    // the optimiser's state: AdamW's two moments; SGD's velocity, or null
    index_t size, block;  // elements, and the number of the first block that updates them
    double decay;
};

template <typename T>
struct Parameters {
    index_t count;
    Parameter<T> of[MAX_PARAMETERS];
};
static_assert(sizeof(Parameters<float>) == 8 + 56 * MAX_PARAMETERS, "PARAMETERS of optim/cuda.py");
static_assert(sizeof(Parameters<double>) == 8 + 56 * MAX_PARAMETERS, "PARAMETERS of optim/cuda.py");

// The parameter of this block: the last one whose first block is not after this one.
template <typename T>
__device__ int parameter_of_block(const Parameters<T>& parameters) {
    int low = 0, high = int(parameters.count);
    while (high - low > 1) {
        const int middle = (low + high) / 2;
        (parameters.of[middle].block <= blockIdx.x ? low : high) = middle;
    }
    return low;
}

// decay is the factor of w. rate is the learning rate, corrected for the bias of the first moment; bias is the root of
// the correction of the second moment. The square of a large gradient may be infinite where b * g * g is finite.
template <typename T>
__global__ void adamw(const Parameters<T> parameters, double beta1, double beta2, double rate, double bias,
                      double eps) {
    const Parameter<T> p = parameters.of[parameter_of_block(parameters)];
    const index_t start = (blockIdx.x - p.block) * ELEMENTS, end = min(start + ELEMENTS, p.size);
    const T b1 = T(beta1), b2 = T(beta2), a = T(1 - beta1), b = T(1 - beta2);
    const T r = T(rate), c = T(bias), e = T(eps), keep = T(p.decay);
    for (index_t i = start + threadIdx.x; i < end; i += blockDim.x) {
        const T g = p.gw[i], w = p.w[i];
        const T m = b1 * p.first[i] + a * g, v = b2 * p.second[i] + b * g * g;
        p.first[i] = m;
        p.second[i] = v;
        p.w[i] = w * keep - r * m / (sqrt(v) / c + e);
    }
}

// decay is the weight decay. With 0 the gradient does not depend on w, which may be infinite.
template <typename T>
__global__ void sgd(const Parameters<T> parameters, double rate, double momentum, bool nesterov) {
    const Parameter<T> p = parameters.of[parameter_of_block(parameters)];
    const index_t start = (blockIdx.x - p.block) * ELEMENTS, end = min(start + ELEMENTS, p.size);
    const T r = T(rate), mu = T(momentum), decay = T(p.decay);
    for (index_t i = start + threadIdx.x; i < end; i += blockDim.x) {
        const T w = p.w[i];
        T d = p.decay != 0 ? p.gw[i] + decay * w : p.gw[i];
        if (p.first) {
            const T v = mu * p.first[i] + d;
            p.first[i] = v;
            d = nesterov ? d + mu * v : v;
        }
        p.w[i] = w - r * d;
    }
}
