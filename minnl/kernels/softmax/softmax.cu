// Softmax, its logarithm and cross-entropy along the last axis, forward and backward: docs/kernels/softmax.md.
//
// A row holds the n numbers of one softmax. The threads of a block that share a threadIdx.y share a row: blockDim.x of
// them, a power of two up to a warp, or the whole block. Every thread of a block takes part in every step over the
// rows, even past the last row, because the threads exchange values.

// Ignores NaN. A NaN still reaches the sum of the exponentials, and through the sum every result of the row.
template <typename T>
__device__ T row_max(T value) {
    return row_reduce(value, -infinity<T>(), [](T a, T b) { return fmax(a, b); });
}

// The numbers of a row that this thread needs several times. With `shared` they stay in shared memory after the first
// reading, else they are read again. Number k of each thread lies beside number k of the other threads.
template <typename T>
struct Cache {
    T* own;

    __device__ explicit Cache(bool shared) {
        extern __shared__ __align__(16) unsigned char bytes[];
        own = shared ? reinterpret_cast<T*>(bytes) + threadIdx.y * blockDim.x + threadIdx.x : nullptr;
    }

    __device__ T load(const T* from, index_t k) const {
        const T value = *from;
        if (own) own[k * (blockDim.x * blockDim.y)] = value;
        return value;
    }

    __device__ T reload(const T* from, index_t k) const { return own ? own[k * (blockDim.x * blockDim.y)] : *from; }
};

// y = exp(x - top) / total, or with `logarithm` y = x - top - log(total).
template <typename T>
__global__ void softmax(const T* __restrict__ x, index_t rows, index_t n, bool logarithm, bool shared,
                        T* __restrict__ y) {
    const Cache<T> cache(shared);
    for (index_t start = (index_t)blockIdx.y * blockDim.y; start < rows; start += row_stride()) {
        const index_t row = start + threadIdx.y, begin = row * n, end = row < rows ? begin + n : begin;
        T top = -infinity<T>();
        for (index_t i = begin + threadIdx.x, k = 0; i < end; i += blockDim.x, ++k)
            top = fmax(top, cache.load(x + i, k));
        top = row_max(top);
        double sum = 0;
        for (index_t i = begin + threadIdx.x, k = 0; i < end; i += blockDim.x, ++k)
            sum += exp(cache.reload(x + i, k) - top);
        const T total = row_sum(sum);
        const T log_total = log(total);
        for (index_t i = begin + threadIdx.x, k = 0; i < end; i += blockDim.x, ++k) {
            const T v = cache.reload(x + i, k) - top;
            y[i] = logarithm ? v - log_total : exp(v) / total;
        }
    }
}

// gx = y (gy - sum gy y), or with `logarithm` gx = gy - exp(y) sum gy.
template <typename T>
__global__ void gradient(const T* __restrict__ y, const T* __restrict__ gy, index_t rows, index_t n, bool logarithm,
                         T* __restrict__ gx) {
    for (index_t start = (index_t)blockIdx.y * blockDim.y; start < rows; start += row_stride()) {
        const index_t row = start + threadIdx.y, begin = row * n, end = row < rows ? begin + n : begin;
        double total = 0;
        for (index_t i = begin + threadIdx.x; i < end; i += blockDim.x) total += logarithm ? gy[i] : gy[i] * y[i];
        const T sum = row_sum(total);
        for (index_t i = begin + threadIdx.x; i < end; i += blockDim.x)
            gx[i] = logarithm ? gy[i] - exp(y[i]) * sum : y[i] * (gy[i] - sum);
    }
}

// The target of a row's probabilities: q_k = w_k ((1 - s) [k is the label] + s / K), or 0 if the row is ignored.
template <typename T>
struct Target {
    index_t label;
    bool counts;
    const T* weight;  // null: all 1
    T hit, rest;

    __device__ T weight_of(index_t k) const { return weight ? weight[k] : T(1); }
    __device__ T operator()(index_t k) const {
        return counts ? weight_of(k) * (k == label ? hit + rest : rest) : T(0);
    }
};

template <typename T>
__device__ Target<T> target_of(index_t row, index_t rows, const index_t* labels, const bool* ignored, const T* weight,
                               double smoothing, index_t classes) {
    const bool exists = row < rows;
    return {exists ? labels[row] : 0, exists && !ignored[row], weight, T(1 - smoothing), T(smoothing / classes)};
}

// The loss of each row, and the weight of the row's label (0 if the row is ignored). For backward (unless null) the
// exponentials e and their sums.
template <typename T>
__global__ void cross_entropy(const T* __restrict__ x, const index_t* __restrict__ labels,
                              const bool* __restrict__ ignored, const T* __restrict__ weight, index_t rows,
                              index_t classes, double smoothing, bool shared, T* __restrict__ e, T* __restrict__ totals,
                              T* __restrict__ losses, T* __restrict__ weights) {
    const Cache<T> cache(shared);
    for (index_t start = (index_t)blockIdx.y * blockDim.y; start < rows; start += row_stride()) {
        const index_t row = start + threadIdx.y, begin = row * classes, end = row < rows ? begin + classes : begin;
        const Target<T> target = target_of(row, rows, labels, ignored, weight, smoothing, classes);
        T top = -infinity<T>(), loss = 0;
        for (index_t i = begin + threadIdx.x, k = 0; i < end; i += blockDim.x, ++k)
            top = fmax(top, cache.load(x + i, k));
        top = row_max(top);
        double sum = 0;
        for (index_t i = begin + threadIdx.x, k = 0; i < end; i += blockDim.x, ++k) {
            const T power = exp(cache.reload(x + i, k) - top);
            if (e) e[i] = power;
            sum += power;
        }
        const T total = row_sum(sum);
        const T log_total = log(total);
        for (index_t i = begin + threadIdx.x, k = 0; i < end; i += blockDim.x, ++k) {
            const T q = target(i - begin);  // where q is 0 the logarithm may be -infinity
            if (q != 0) loss -= q * (cache.reload(x + i, k) - top - log_total);
        }
        loss = row_sum(loss);
        if (row >= rows || threadIdx.x != 0) continue;
        if (e) totals[row] = total;
        losses[row] = loss;
        weights[row] = target.counts ? target.weight_of(target.label) : T(0);
    }
}

// Sums over the rows, by a single block. With `mean` the loss is divided by the sum of the weights.
template <typename T>
__global__ void sum_rows(const T* __restrict__ losses, const T* __restrict__ weights, index_t rows, bool mean,
                         T* __restrict__ loss, T* __restrict__ divisor) {
    double sum = 0, total = 0;
    for (index_t i = threadIdx.x; i < rows; i += blockDim.x) {
        sum += losses[i];
        total += weights[i];
    }
    sum = block_sum(sum);
    total = block_sum(total);
    if (threadIdx.x != 0) return;
    *loss = mean ? sum / total : sum;
    *divisor = total;
}

// gx = gy (e / total sum q - q), or 0 where the row is ignored. gy is one number for all rows, or with `each` one
// number a row, and is divided by the divisor unless the divisor is null.
template <typename T>
__global__ void cross_entropy_gradient(const T* __restrict__ e, const T* __restrict__ totals,
                                       const index_t* __restrict__ labels, const bool* __restrict__ ignored,
                                       const T* __restrict__ weight, const T* __restrict__ gy,
                                       const T* __restrict__ divisor, bool each, index_t rows, index_t classes,
                                       double smoothing, T* __restrict__ gx) {
    for (index_t start = (index_t)blockIdx.y * blockDim.y; start < rows; start += row_stride()) {
        const index_t row = start + threadIdx.y, begin = row * classes, end = row < rows ? classes : 0;
        const Target<T> target = target_of(row, rows, labels, ignored, weight, smoothing, classes);
        T sum = 0;
        for (index_t k = threadIdx.x; k < end; k += blockDim.x) sum += target(k);
        sum = row_sum(sum);
        if (row >= rows) continue;
        const T g = gy[each ? row : 0] / (divisor ? *divisor : T(1)), scale = sum / totals[row];
        for (index_t k = threadIdx.x; k < end; k += blockDim.x)
            gx[begin + k] = target.counts ? (e[begin + k] * scale - target(k)) * g : T(0);
    }
}
