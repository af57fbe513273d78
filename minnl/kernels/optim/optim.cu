// A step of an optimiser for many parameters in one launch: docs/kernels/cuda_optim.md.
//
// Which arrays belong to a parameter stands in a table that is passed by value, as the arguments of a launch are: it
// needs no memory on the GPU, no copy, and nobody has to keep it. All fields are of 8 bytes, so that a NumPy record
// (optim.py) has the same layout. A block works on EACH elements of one parameter, and looks up of which one.

constexpr int MOST = 64;    // parameters of a launch, whose arguments may take 4 KB
constexpr int EACH = 2048;  // elements of a block

template <typename T>
struct Part {
    T* w;
    const T* gw;
    T *first, *second;    // what the optimiser keeps: AdamW's two moments; SGD's velocity, or null
    index_t size, block;  // elements, and the first of the blocks that work on them
    double decay;
};

template <typename T>
struct Parts {
    index_t count;
    Part<T> of[MOST];
};
static_assert(sizeof(Parts<float>) == 8 + 56 * MOST && sizeof(Parts<double>) == 8 + 56 * MOST, "PARTS of optim.py");

// The part that this block works on: the last one whose first block is not behind it.
template <typename T>
__device__ int part_of_block(const Parts<T>& parts) {
    int low = 0, high = int(parts.count);
    while (high - low > 1) {
        const int middle = (low + high) / 2;
        (parts.of[middle].block <= blockIdx.x ? low : high) = middle;
    }
    return low;
}

// decay is what w is multiplied by; rate is the learning rate corrected for the bias of the first moment, bias the root
// of that of the second. The square of a large gradient alone would be infinite, b * g * g need not be.
template <typename T>
__global__ void adamw(const Parts<T> parts, double beta1, double beta2, double rate, double bias, double eps) {
    const Part<T> part = parts.of[part_of_block(parts)];
    const index_t start = (blockIdx.x - part.block) * EACH, end = min(start + EACH, part.size);
    const T b1 = T(beta1), b2 = T(beta2), a = T(1 - beta1), b = T(1 - beta2);
    const T r = T(rate), c = T(bias), e = T(eps), keep = T(part.decay);
    for (index_t i = start + threadIdx.x; i < end; i += blockDim.x) {
        const T g = part.gw[i], w = part.w[i];
        const T m = b1 * part.first[i] + a * g, v = b2 * part.second[i] + b * g * g;
        part.first[i] = m;
        part.second[i] = v;
        part.w[i] = w * keep - r * m / (sqrt(v) / c + e);
    }
}

// decay is the weight decay, 0 for none: then w is not asked, which may be infinite.
template <typename T>
__global__ void sgd(const Parts<T> parts, double rate, double momentum, bool nesterov) {
    const Part<T> part = parts.of[part_of_block(parts)];
    const index_t start = (blockIdx.x - part.block) * EACH, end = min(start + EACH, part.size);
    const T r = T(rate), mu = T(momentum), decay = T(part.decay);
    for (index_t i = start + threadIdx.x; i < end; i += blockDim.x) {
        const T w = part.w[i];
        T d = part.decay != 0 ? part.gw[i] + decay * w : part.gw[i];
        if (part.first) {
            const T v = mu * part.first[i] + d;
            part.first[i] = v;
            d = nesterov ? d + mu * v : v;
        }
        part.w[i] = w - r * d;
    }
}
