// Batch norm of the last axis, with residual and ReLU: docs/kernels/cuda_batch_norm.md.
//
// Every array is a matrix (rows, channels). A thread keeps to one channel, whose numbers it holds in registers, and
// walks down the rows; a warp's neighbours are neighbouring channels, so its reads and writes are of whole lines.
// Statistics and sums take two launches: every slice of rows leaves a partial result, then these are merged.


// Partial moments (slices, channels) of x less its first row: however large a mean is, what is left of it is of the size
// of the deviations, and is not rounded to the spacing of large numbers.
template <typename T>
__global__ void moments(const T* __restrict__ x, index_t rows, index_t channels, Moments<T>* partial) {
    const index_t c = channel();
    Moments<T> seen = {0, 0, 0};
    if (c < channels) {
        const T shift = x[c];
        for (index_t i = first_row(); i < rows; i += row_stride()) seen.add(x[i * channels + c] - shift);
    }
    seen = merge_rows(seen);
    if (c < channels && threadIdx.y == 0) partial[blockIdx.y * channels + c] = seen;
}

// Mean, what it lost when it was rounded, and 1 / deviation of each channel; moves the running statistics, if there are
// any, towards those of this batch.
template <typename T>
__global__ void merge_moments(const Moments<T>* __restrict__ partial, const T* __restrict__ x, index_t slices,
                              index_t channels, double eps, double momentum, T* mean, T* left, T* rstd,
                              T* running_mean, T* running_var) {
    const index_t c = channel();
    Moments<T> seen = {0, 0, 0};
    if (c < channels)
        for (index_t i = first_row(); i < slices; i += row_stride()) seen.merge(partial[i * channels + c]);
    seen = merge_rows(seen);
    if (c >= channels || threadIdx.y != 0) return;
    mean[c] = x[c] + seen.mean;
    left[c] = x[c] - mean[c] + seen.mean;
    rstd[c] = 1 / sqrt(seen.squares / seen.count + T(eps));
    if (running_mean) {
        const T share = momentum, rest = 1 - momentum;
        running_mean[c] = rest * running_mean[c] + share * mean[c];
        running_var[c] = rest * running_var[c] + share * (seen.squares / (seen.count - 1));
    }
}

// 1 / deviation, where the variance is given.
template <typename T>
__global__ void invert(const T* __restrict__ var, index_t channels, double eps, T* rstd) {
    for (index_t c = first(); c < channels; c += stride()) rstd[c] = 1 / sqrt(var[c] + T(eps));
}

// What is to be taken off x, in two steps: the mean, and what that lost (null: nothing).
template <typename T>
struct Centre {
    const T mean, left;

    __device__ Centre(const T* mean, const T* left, index_t c) : mean(mean[c]), left(left ? left[c] : T(0)) {}
    __device__ T off(T x) const { return x - mean - left; }
};

// y = max((x - mean) rstd weight + bias + residual, 0), or without the maximum, or without the residual (null).
template <typename T>
__global__ void normalise(const T* __restrict__ x, const T* __restrict__ mean, const T* __restrict__ left,
                          const T* __restrict__ rstd, const T* __restrict__ weight, const T* __restrict__ bias,
                          const T* __restrict__ residual, bool relu, index_t rows, index_t channels,
                          T* __restrict__ y) {
    const index_t c = channel();
    if (c >= channels) return;
    const Centre<T> centre(mean, left, c);
    const T scale = rstd[c] * weight[c], b = bias[c];
    for (index_t i = first_row(); i < rows; i += row_stride()) {
        const index_t at = i * channels + c;
        T z = centre.off(x[at]) * scale + b;
        if (residual) z += residual[at];
        y[at] = relu && z < 0 ? T(0) : z;  // so that NaN stays NaN
    }
}

// Partial sums (slices, channels) of gz and gz x-hat. gz is gy but where y <= 0, or gy itself if y is null; without x the
// second sum is 0.
template <typename T>
__global__ void sums(const T* __restrict__ gy, const T* __restrict__ y, const T* __restrict__ x,
                     const T* __restrict__ mean, const T* __restrict__ left, const T* __restrict__ rstd, index_t rows,
                     index_t channels, Sums<T>* partial) {
    const index_t c = channel();
    Sums<double> seen = {0, 0};
    if (c < channels) {
        const Centre<T> centre(mean, left, c);
        const T r = rstd[c];
        for (index_t i = first_row(); i < rows; i += row_stride()) {
            const index_t at = i * channels + c;
            const T gz = y && y[at] <= 0 ? T(0) : gy[at];  // where y is NaN too
            seen.a += gz;
            if (x) seen.b += gz * (centre.off(x[at]) * r);
        }
    }
    seen = merge_rows(seen);
    if (c < channels && threadIdx.y == 0) partial[blockIdx.y * channels + c] = {T(seen.a), T(seen.b)};
}

template <typename T>
__global__ void merge_sums(const Sums<T>* __restrict__ partial, index_t slices, index_t channels, T* gbias,
                           T* gweight) {
    const index_t c = channel();
    Sums<double> seen = {0, 0};
    if (c < channels)
        for (index_t i = first_row(); i < slices; i += row_stride()) {
            const Sums<T> some = partial[i * channels + c];
            seen.merge({some.a, some.b});
        }
    seen = merge_rows(seen);
    if (c >= channels || threadIdx.y != 0) return;
    gbias[c] = seen.a;
    gweight[c] = seen.b;
}

// gx = weight rstd (gz - gbias / rows - x-hat gweight / rows), with given statistics (no x) gx = weight rstd gz; and
// the residual's gradient, which is gz. Either may be null: not wanted.
template <typename T>
__global__ void gradient(const T* __restrict__ gy, const T* __restrict__ y, const T* __restrict__ x,
                         const T* __restrict__ mean, const T* __restrict__ left, const T* __restrict__ rstd,
                         const T* __restrict__ weight, const T* __restrict__ gbias, const T* __restrict__ gweight, index_t rows, index_t channels,
                         T* __restrict__ gx, T* __restrict__ gresidual) {
    const index_t c = channel();
    if (c >= channels) return;
    const Centre<T> centre(mean, left, c);
    const T r = rstd[c], scale = weight[c] * r;
    const T constant = x ? gbias[c] / rows : T(0), slope = x ? gweight[c] / rows * r : T(0);
    for (index_t i = first_row(); i < rows; i += row_stride()) {
        const index_t at = i * channels + c;
        const T gz = y && y[at] <= 0 ? T(0) : gy[at];
        if (gresidual) gresidual[at] = gz;
        if (gx) gx[at] = (gz - constant - (x ? centre.off(x[at]) * slope : T(0))) * scale;
    }
}
