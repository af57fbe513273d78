// Dropout's mask from a seed, and the product with it: docs/kernels/cuda_pointwise.md.

// The hash of minnl/ops/dropout.py: 32 bits that depend on the seed (its two words) and i alone.
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

// The mask of n elements, and what it leaves of x; without x (null) the mask alone.
template <typename T>
__global__ void draw(const T* __restrict__ x, index_t low, index_t high, index_t least, double scale, index_t n,
                     bool* __restrict__ stays, T* __restrict__ y) {
    for (index_t i = first(); i < n; i += stride()) {
        const bool stay = uniform_bits(unsigned(i), unsigned(low), unsigned(high)) >= unsigned(least);
        stays[i] = stay;
        if (x) y[i] = x[i] * T(stay) * T(scale);  // 0 times NaN or infinity is NaN, as in the textbook
    }
}

// y = x * stays * scale, element by element.
template <typename T>
__global__ void mask(const T* __restrict__ x, const bool* __restrict__ stays, double scale, index_t n,
                     T* __restrict__ y) {
    for (index_t i = first(); i < n; i += stride()) y[i] = x[i] * T(stays[i]) * T(scale);
}

// The same for x (clips, positions, channels) and stays (clips, channels); `rows` are clips times positions.
template <typename T>
__global__ void mask_channels(const T* __restrict__ x, const bool* __restrict__ stays, double scale, index_t rows,
                              index_t positions, index_t channels, T* __restrict__ y) {
    const index_t c = channel();
    if (c >= channels) return;
    for (index_t i = first_row(); i < rows; i += row_stride()) {
        const index_t at = i * channels + c;
        y[at] = x[at] * T(stays[i / positions * channels + c]) * T(scale);
    }
}
