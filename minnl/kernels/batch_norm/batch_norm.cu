// Batch norm of the last axis, with residual and ReLU: docs/kernels/batch_norm.md.
//
// Every array is a matrix (rows, channels). A thread stays in one channel, holds the channel's numbers in registers and
// goes down the rows. Neighbouring threads have neighbouring channels, so a warp reads and writes whole cache lines.
// Statistics and sums take two launches: each slice of rows leaves a partial result, then the partial results are
// merged.


// Partial moments (slices, channels) of x minus its first row. So however large the mean is, the numbers are of the
// size of the standard deviation, and are not rounded to the spacing of large floats.
template <typename T>
__global__ void moments(const T* __restrict__ x, index_t rows, index_t channels, Moments<T>* partial) {
    const index_t c = channel();
    Moments<T> moments = {0, 0, 0};
    if (c < channels) {
        const T shift = x[c];
        for (index_t i = first_row(); i < rows; i += row_stride()) moments.add(x[i * channels + c] - shift);
    }
    moments = merge_rows(moments);
    if (c < channels && threadIdx.y == 0) partial[blockIdx.y * channels + c] = moments;
}

// The mean of each channel, the mean's rounding error, and 1 / std. The running statistics (null: none) move towards
// the statistics of the batch.
template <typename T>
__global__ void merge_moments(const Moments<T>* __restrict__ partial, const T* __restrict__ x, index_t slices,
                              index_t channels, double eps, double momentum, T* mean, T* mean_error,
                              T* rstd, T* running_mean, T* running_var) {
    const index_t c = channel();
    Moments<T> all = {0, 0, 0};
    if (c < channels)
        for (index_t i = first_row(); i < slices; i += row_stride()) all.merge(partial[i * channels + c]);
    all = merge_rows(all);
    if (c >= channels || threadIdx.y != 0) return;
    mean[c] = x[c] + all.mean;
    mean_error[c] = x[c] - mean[c] + all.mean;
    rstd[c] = 1 / sqrt(all.squares / all.count + T(eps));
    if (running_mean) {
        const T share = momentum, rest = 1 - momentum;
        running_mean[c] = rest * running_mean[c] + share * mean[c];
        running_var[c] = rest * running_var[c] + share * (all.squares / (all.count - 1));
    }
}

// 1 / std from a given variance.
template <typename T>
__global__ void inverse_std(const T* __restrict__ var, index_t channels, double eps, T* rstd) {
    for (index_t c = first(); c < channels; c += stride()) rstd[c] = 1 / sqrt(var[c] + T(eps));
}

// Subtracts the mean from x, then the mean's rounding error (null: 0).
template <typename T>
struct Centre {
    const T mean, error;

    __device__ Centre(const T* mean, const T* error, index_t c) : mean(mean[c]), error(error ? error[c] : T(0)) {}
    __device__ T operator()(T x) const { return x - mean - error; }
};

// y = max((x - mean) rstd weight + bias + residual, 0). Without `relu` there is no maximum; the residual may be null.
template <typename T>
__global__ void normalise(const T* __restrict__ x, const T* __restrict__ mean, const T* __restrict__ mean_error,
                          const T* __restrict__ rstd, const T* __restrict__ weight, const T* __restrict__ bias,
                          const T* __restrict__ residual, bool relu, index_t rows, index_t channels,
                          T* __restrict__ y) {
    const index_t c = channel();
    if (c >= channels) return;
    const Centre<T> centred(mean, mean_error, c);
    const T scale = rstd[c] * weight[c], b = bias[c];
    for (index_t i = first_row(); i < rows; i += row_stride()) {
        const index_t at = i * channels + c;
        T z = centred(x[at]) * scale + b;
        if (residual) z += residual[at];
        y[at] = relu && z < 0 ? T(0) : z;  // NaN stays NaN
    }
}

// Partial sums (slices, channels) of gz and of gz x-hat. gz is gy, but 0 where y <= 0 (y null: gy everywhere). Without
// x the second sum is 0.
template <typename T>
__global__ void sums(const T* __restrict__ gy, const T* __restrict__ y, const T* __restrict__ x,
                     const T* __restrict__ mean, const T* __restrict__ mean_error, const T* __restrict__ rstd,
                     index_t rows, index_t channels, Sums<T>* partial) {
    const index_t c = channel();
    Sums<double> sums = {0, 0};
    if (c < channels) {
        const Centre<T> centred(mean, mean_error, c);
        const T r = rstd[c];
        for (index_t i = first_row(); i < rows; i += row_stride()) {
            const index_t at = i * channels + c;
            const T gz = y && y[at] <= 0 ? T(0) : gy[at];  // gy where y is NaN
            sums.a += gz;
            if (x) sums.b += gz * (centred(x[at]) * r);
        }
    }
    sums = merge_rows(sums);
    if (c < channels && threadIdx.y == 0) partial[blockIdx.y * channels + c] = {T(sums.a), T(sums.b)};
}

template <typename T>
__global__ void merge_sums(const Sums<T>* __restrict__ partial, index_t slices, index_t channels, T* gbias,
                           T* gweight) {
    const index_t c = channel();
    Sums<double> sums = {0, 0};
    if (c < channels)
        for (index_t i = first_row(); i < slices; i += row_stride()) {
            const Sums<T> slice = partial[i * channels + c];
            sums.merge({slice.a, slice.b});
        }
    sums = merge_rows(sums);
    if (c >= channels || threadIdx.y != 0) return;
    gbias[c] = sums.a;
    gweight[c] = sums.b;
}

// gx = weight rstd (gz - gbias / rows - x-hat gweight / rows), or with given statistics (x null) gx = weight rstd gz.
// The residual's gradient is gz. Either gradient may be null: not wanted.
template <typename T>
__global__ void gradient(const T* __restrict__ gy, const T* __restrict__ y, const T* __restrict__ x,
                         const T* __restrict__ mean, const T* __restrict__ mean_error, const T* __restrict__ rstd,
                         const T* __restrict__ weight, const T* __restrict__ gbias, const T* __restrict__ gweight,
                         index_t rows, index_t channels, T* __restrict__ gx, T* __restrict__ gresidual) {
    const index_t c = channel();
    if (c >= channels) return;
    const Centre<T> centred(mean, mean_error, c);
    const T r = rstd[c], scale = weight[c] * r;
    const T constant = x ? gbias[c] / rows : T(0), slope = x ? gweight[c] / rows * r : T(0);
    for (index_t i = first_row(); i < rows; i += row_stride()) {
        const index_t at = i * channels + c;
        const T gz = y && y[at] <= 0 ? T(0) : gy[at];
        if (gresidual) gresidual[at] = gz;
        if (gx) gx[at] = (gz - constant - (x ? centred(x[at]) * slope : T(0))) * scale;
    }
}
