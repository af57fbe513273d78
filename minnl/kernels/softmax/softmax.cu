// Softmax, its logarithm and cross-entropy along an axis, forward and backward: docs/kernels/softmax.md.
//
// A line is the n numbers of one softmax, `inner` apart. Several threads of a block share a line. Along the last axis
// (ROWS; inner is 1) these threads are neighbours along x, up to a warp of them or the whole block. Along other axes
// they are neighbours along y, and neighbours along x have neighbouring lines.

template <bool ROWS>
struct Thread {  // its line among those of the block; its rank among the threads that share the line, and their number
    const int line = ROWS ? threadIdx.y : threadIdx.x, lines = ROWS ? blockDim.y : blockDim.x;
    const int rank = ROWS ? threadIdx.x : threadIdx.y, size = ROWS ? blockDim.x : blockDim.y;
};

__device__ inline index_t start_of(index_t line, index_t n, index_t inner) {
    return line / inner * n * inner + line % inner;
}

// Merges the values of the threads that share a line; all of them get the result. Every thread of the block has to
// call.
template <bool ROWS, typename T, typename Merge>
__device__ T line_reduce(T value, T neutral, Merge merge) {
    if constexpr (ROWS) {
        return row_reduce(value, neutral, merge);
    } else {
        __shared__ T values[MAX_THREADS];
        T* mine = values + threadIdx.y * blockDim.x + threadIdx.x;
        __syncthreads();  // an earlier call may still be reading
        *mine = value;
        for (int half = blockDim.y / 2; half > 0; half /= 2) {
            __syncthreads();
            if (threadIdx.y < half) *mine = merge(*mine, mine[half * blockDim.x]);
        }
        __syncthreads();
        return values[threadIdx.x];
    }
}

template <bool ROWS, typename T>
__device__ T line_sum(T value) {
    return line_reduce<ROWS>(value, T(0), [](T a, T b) { return a + b; });
}

// Ignores NaN. A NaN still reaches the sum of the exponentials, and through the sum every result of the line.
template <bool ROWS, typename T>
__device__ T line_max(T value) {
    return line_reduce<ROWS>(value, -infinity<T>(), [](T a, T b) { return fmax(a, b); });
}

// The numbers of a line that this thread needs several times. With `shared` they stay in shared memory after the first
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
template <typename T, bool ROWS>
__global__ void softmax(const T* __restrict__ x, index_t lines, index_t n, index_t inner, bool logarithm, bool shared,
                        T* __restrict__ y) {
    const Thread<ROWS> at;
    const Cache<T> cache(shared);
    for (index_t line = (index_t)blockIdx.x * at.lines; line < lines; line += (index_t)gridDim.x * at.lines) {
        const index_t l = line + at.line, start = start_of(l, n, inner), end = l < lines ? n : 0;
        T top = -infinity<T>();
        for (index_t i = at.rank, k = 0; i < end; i += at.size, ++k)
            top = fmax(top, cache.load(x + start + i * inner, k));
        top = line_max<ROWS>(top);
        double sum = 0;
        for (index_t i = at.rank, k = 0; i < end; i += at.size, ++k)
            sum += exp(cache.reload(x + start + i * inner, k) - top);
        const T total = line_sum<ROWS>(sum);
        const T log_total = log(total);
        for (index_t i = at.rank, k = 0; i < end; i += at.size, ++k) {
            const T v = cache.reload(x + start + i * inner, k) - top;
            y[start + i * inner] = logarithm ? v - log_total : exp(v) / total;
        }
    }
}

// gx = y (gy - sum gy y), or with `logarithm` gx = gy - exp(y) sum gy.
template <typename T, bool ROWS>
__global__ void gradient(const T* __restrict__ y, const T* __restrict__ gy, index_t lines, index_t n, index_t inner,
                         bool logarithm, T* __restrict__ gx) {
    const Thread<ROWS> at;
    for (index_t line = (index_t)blockIdx.x * at.lines; line < lines; line += (index_t)gridDim.x * at.lines) {
        const index_t l = line + at.line, start = start_of(l, n, inner), end = l < lines ? n : 0;
        double total = 0;
        for (index_t i = at.rank; i < end; i += at.size)
            total += logarithm ? gy[start + i * inner] : gy[start + i * inner] * y[start + i * inner];
        const T sum = line_sum<ROWS>(total);
        for (index_t i = at.rank; i < end; i += at.size) {
            const index_t here = start + i * inner;
            gx[here] = logarithm ? gy[here] - exp(y[here]) * sum : y[here] * (gy[here] - sum);
        }
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
    const Thread<true> at;
    const Cache<T> cache(shared);
    for (index_t line = (index_t)blockIdx.x * at.lines; line < rows; line += (index_t)gridDim.x * at.lines) {
        const index_t row = line + at.line, start = row * classes, end = row < rows ? classes : 0;
        const Target<T> target = target_of(row, rows, labels, ignored, weight, smoothing, classes);
        T top = -infinity<T>(), loss = 0;
        for (index_t i = at.rank, k = 0; i < end; i += at.size, ++k)
            top = fmax(top, cache.load(x + start + i, k));
        top = line_max<true>(top);
        double sum = 0;
        for (index_t i = at.rank, k = 0; i < end; i += at.size, ++k) {
            const T power = exp(cache.reload(x + start + i, k) - top);
            if (e) e[start + i] = power;
            sum += power;
        }
        const T total = line_sum<true>(sum);
        const T log_total = log(total);
        for (index_t i = at.rank, k = 0; i < end; i += at.size, ++k) {
            const T q = target(i);  // where q is 0 the logarithm may be -infinity
            if (q != 0) loss -= q * (cache.reload(x + start + i, k) - top - log_total);
        }
        loss = line_sum<true>(loss);
        if (row >= rows || at.rank != 0) continue;
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
    const Thread<true> at;
    for (index_t line = (index_t)blockIdx.x * at.lines; line < rows; line += (index_t)gridDim.x * at.lines) {
        const index_t row = line + at.line, start = row * classes, end = row < rows ? classes : 0;
        const Target<T> target = target_of(row, rows, labels, ignored, weight, smoothing, classes);
        T sum = 0;
        for (index_t i = at.rank; i < end; i += at.size) sum += target(i);
        sum = line_sum<true>(sum);
        if (row >= rows) continue;
        const T g = gy[each ? row : 0] / (divisor ? *divisor : T(1)), scale = sum / totals[row];
        for (index_t i = at.rank; i < end; i += at.size)
            gx[start + i] = target.counts ? (e[start + i] * scale - target(i)) * g : T(0);
    }
}
