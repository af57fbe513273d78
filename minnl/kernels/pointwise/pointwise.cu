// Functions whose textbook body is a chain of launches, as one: docs/kernels/cuda_pointwise.md.

template <typename T>
__global__ void relu_gradient(const T* __restrict__ gy, const T* __restrict__ y, index_t n, T* __restrict__ gx) {
    for (index_t i = first(); i < n; i += stride()) gx[i] = y[i] <= 0 ? T(0) : gy[i];  // of NaN too
}

// From e^-|x|, which overflows at neither end.
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

// Every array is a matrix (rows, channels); a thread keeps to one channel.
template <typename T>
__global__ void affine(const T* __restrict__ x, const T* __restrict__ scale, const T* __restrict__ shift, index_t rows,
                       index_t channels, T* __restrict__ y) {
    const index_t c = channel();
    if (c >= channels) return;
    const T s = scale[c], b = shift[c];
    for (index_t i = first_row(); i < rows; i += row_stride()) y[i * channels + c] = x[i * channels + c] * s + b;
}
