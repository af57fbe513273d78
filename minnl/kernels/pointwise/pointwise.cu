// Functions whose textbook body is a chain of launches, in one launch: docs/kernels/pointwise.md.

template <typename T>
__global__ void relu_gradient(const T* __restrict__ gy, const T* __restrict__ y, index_t n, T* __restrict__ gx) {
    for (index_t i = first(); i < n; i += stride()) gx[i] = y[i] <= 0 ? T(0) : gy[i];  // gy where y is NaN
}

// From e^-|x|, which never overflows.
template <typename T>
__global__ void sigmoid(const T* __restrict__ x, index_t n, T* __restrict__ y) {
    for (index_t i = first(); i < n; i += stride()) {
        const T e = exp(-fabs(x[i]));
        y[i] = (x[i] >= 0 ? T(1) : e) / (1 + e);
    }
}

template <typename T>
__global__ void sigmoid_gradient(const T* __restrict__ gy, const T* __restrict__ y, index_t n, T* __restrict__ gx) {
    for (index_t i = first(); i < n; i += stride()) gx[i] = gy[i] * y[i] * (1 - y[i]);
}

template <typename T>
__global__ void tanh_gradient(const T* __restrict__ gy, const T* __restrict__ y, index_t n, T* __restrict__ gx) {
    for (index_t i = first(); i < n; i += stride()) gx[i] = gy[i] * (1 - y[i] * y[i]);
}

// x and y are matrices (rows, channels); a thread stays in one channel.
template <typename T>
__global__ void affine(const T* __restrict__ x, const T* __restrict__ scale, const T* __restrict__ shift, index_t rows,
                       index_t channels, T* __restrict__ y) {
    const index_t c = channel();
    if (c >= channels) return;
    const T s = scale[c], b = shift[c];
    for (index_t i = first_row(); i < rows; i += row_stride()) y[i * channels + c] = x[i * channels + c] * s + b;
}

// The hash of minnl/ops/dropout.py: 32 bits that depend on i and the two words of the seed alone.
__device__ inline unsigned uniform_bits(unsigned i, unsigned low, unsigned high) {
    unsigned x = i;
    for (int round = 0; round < 2; round++) {
        x ^= round == 0 ? low : high;
        x ^= x >> 16;
        x *= 0x7feb352d;
        x ^= x >> 15;
        x *= 0x846ca68b;
        x ^= x >> 16;
    }
    return x;
}

// The mask of n elements, and y = x * mask * scale; without x (null) the mask alone.
template <typename T>
__global__ void draw_mask(const T* __restrict__ x, index_t low, index_t high, index_t least, double scale, index_t n,
                          bool* __restrict__ mask, T* __restrict__ y) {
    for (index_t i = first(); i < n; i += stride()) {
        const bool keep = uniform_bits(unsigned(i), unsigned(low), unsigned(high)) >= unsigned(least);
        mask[i] = keep;
        if (x) y[i] = x[i] * T(keep) * T(scale);  // 0 times NaN or infinity is NaN, as in the textbook body
    }
}

// y = x * mask * scale, element by element.
template <typename T>
__global__ void apply_mask(const T* __restrict__ x, const bool* __restrict__ mask, double scale, index_t n,
                           T* __restrict__ y) {
    for (index_t i = first(); i < n; i += stride()) y[i] = x[i] * T(mask[i]) * T(scale);
}

// The same for x (clips, positions, channels) and mask (clips, channels); `rows` is clips times positions.
template <typename T>
__global__ void apply_channel_mask(const T* __restrict__ x, const bool* __restrict__ mask, double scale, index_t rows,
                                   index_t positions, index_t channels, T* __restrict__ y) {
    const index_t c = channel();
    if (c >= channels) return;
    for (index_t i = first_row(); i < rows; i += row_stride()) {
        const index_t at = i * channels + c;
        y[at] = x[at] * T(mask[i / positions * channels + c]) * T(scale);
    }
}

// gx[j] = the sum of gy[i], in ascending order, over the i that picked j. The sorted keys (count) are j * count + i.
template <typename T>
__global__ void index_gradient(const T* __restrict__ gy, const index_t* __restrict__ keys, index_t count, index_t n,
                               T* __restrict__ gx) {
    for (index_t j = first(); j < n; j += stride()) {
        index_t low = 0, high = count;
        while (low < high) {  // bisection: the first key of j
            const index_t middle = (low + high) / 2;
            if (keys[middle] < j * count)
                low = middle + 1;
            else
                high = middle;
        }
        T sum = 0;
        for (; low < count && keys[low] < (j + 1) * count; ++low) sum += gy[keys[low] - j * count];
        gx[j] = sum;
    }
}
