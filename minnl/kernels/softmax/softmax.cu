// Softmax, its logarithm and cross-entropy along an axis, and back: docs/kernels/cuda_softmax.md.
//
// A line is what one softmax goes over: n numbers, `inner` apart. Some threads of a block share a line. Along the last
// axis (ROWS; inner is 1) these are neighbours along x, up to a warp of them or the whole block. Along other axes they
// are neighbours along y, and neighbours along x have lines that lie side by side.

template <bool ROWS>
struct Place {  // of a thread: in which of the block's lines, and as which of those that share it
    const int line = ROWS ? threadIdx.y : threadIdx.x, lines = ROWS ? blockDim.y : blockDim.x;
    const int member = ROWS ? threadIdx.x : threadIdx.y, members = ROWS ? blockDim.x : blockDim.y;
};

__device__ inline index_t start_of(index_t line, index_t n, index_t inner) {
    return line / inner * n * inner + line % inner;
}

// Merges what the threads of a line hold; each of them gets the result. Every thread of the block has to call.
template <bool ROWS, typename T, typename Merge>
__device__ T line_reduce(T value, T neutral, Merge merge) {
    if constexpr (ROWS) {
        if (blockDim.x > 32) return block_reduce(value, neutral, merge);
        for (int mask = blockDim.x / 2; mask > 0; mask /= 2) value = merge(value, __shfl_xor_sync(FULL, value, mask));
        return value;
    } else {
        __shared__ T values[MOST_THREADS];
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

// Passes NaN over, which reaches the sum of the exponentials all the same, and from there every result.
template <bool ROWS, typename T>
__device__ T line_max(T value) {
    return line_reduce<ROWS>(value, -infinity<T>(), [](T a, T b) { return fmax(a, b); });
}

// This thread's numbers of a line, which it needs several times. They are kept in shared memory if that was given, and
// so read once; without it they are read again. Number k of each thread lies beside number k of the others.
template <typename T>
struct Kept {
    T* mine;

    __device__ explicit Kept(bool room) {
        extern __shared__ __align__(16) unsigned char bytes[];
        mine = room ? reinterpret_cast<T*>(bytes) + threadIdx.y * blockDim.x + threadIdx.x : nullptr;
    }

    __device__ T first(const T* from, index_t k) const {
        const T value = *from;
        if (mine) mine[k * (blockDim.x * blockDim.y)] = value;
        return value;
    }

    __device__ T again(const T* from, index_t k) const { return mine ? mine[k * (blockDim.x * blockDim.y)] : *from; }
};

// y = exp(x - top) / total, or with `logarithm` y = x - top - log(total).
template <typename T, bool ROWS>
__global__ void softmax(const T* __restrict__ x, index_t lines, index_t n, index_t inner, bool logarithm, bool room,
                        T* __restrict__ y) {
    const Place<ROWS> at;
    const Kept<T> kept(room);
    for (index_t line = (index_t)blockIdx.x * at.lines; line < lines; line += (index_t)gridDim.x * at.lines) {
        const index_t l = line + at.line, start = start_of(l, n, inner), end = l < lines ? n : 0;
        T top = -infinity<T>();
        for (index_t i = at.member, k = 0; i < end; i += at.members, ++k)
            top = fmax(top, kept.first(x + start + i * inner, k));
        top = line_max<ROWS>(top);
        double seen = 0;
        for (index_t i = at.member, k = 0; i < end; i += at.members, ++k)
            seen += exp(kept.again(x + start + i * inner, k) - top);
        const T total = line_sum<ROWS>(seen);
        const T log_total = log(total);
        for (index_t i = at.member, k = 0; i < end; i += at.members, ++k) {
            const T v = kept.again(x + start + i * inner, k) - top;
            y[start + i * inner] = logarithm ? v - log_total : exp(v) / total;
        }
    }
}

// gx = y (gy - sum gy y), or with `logarithm` gx = gy - exp(y) sum gy.
template <typename T, bool ROWS>
__global__ void gradient(const T* __restrict__ y, const T* __restrict__ gy, index_t lines, index_t n, index_t inner,
                         bool logarithm, T* __restrict__ gx) {
    const Place<ROWS> at;
    for (index_t line = (index_t)blockIdx.x * at.lines; line < lines; line += (index_t)gridDim.x * at.lines) {
        const index_t l = line + at.line, start = start_of(l, n, inner), end = l < lines ? n : 0;
        double seen = 0;
        for (index_t i = at.member; i < end; i += at.members)
            seen += logarithm ? gy[start + i * inner] : gy[start + i * inner] * y[start + i * inner];
        const T sum = line_sum<ROWS>(seen);
        for (index_t i = at.member; i < end; i += at.members) {
            const index_t here = start + i * inner;
            gx[here] = logarithm ? gy[here] - exp(y[here]) * sum : y[here] * (gy[here] - sum);
        }
    }
}

// What the probabilities of a row are compared with: q_k = w_k ((1 - s) [k is the label] + s / K), or 0 if the row is
// ignored.
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
    const bool there = row < rows;
    return {there ? labels[row] : 0, there && !ignored[row], weight, T(1 - smoothing), T(smoothing / classes)};
}

// The loss of each row and the weight of its label (0 if it is ignored); for the way back (unless null) the
// exponentials e, and their sums.
template <typename T>
__global__ void cross_entropy(const T* __restrict__ x, const index_t* __restrict__ labels,
                              const bool* __restrict__ ignored, const T* __restrict__ weight, index_t rows,
                              index_t classes, double smoothing, bool room, T* __restrict__ e, T* __restrict__ totals,
                              T* __restrict__ losses, T* __restrict__ weights) {
    const Place<true> at;
    const Kept<T> kept(room);
    for (index_t line = (index_t)blockIdx.x * at.lines; line < rows; line += (index_t)gridDim.x * at.lines) {
        const index_t row = line + at.line, start = row * classes, end = row < rows ? classes : 0;
        const Target<T> target = target_of(row, rows, labels, ignored, weight, smoothing, classes);
        T top = -infinity<T>(), loss = 0;
        for (index_t i = at.member, k = 0; i < end; i += at.members, ++k)
            top = fmax(top, kept.first(x + start + i, k));
        top = line_max<true>(top);
        double seen = 0;
        for (index_t i = at.member, k = 0; i < end; i += at.members, ++k) {
            const T power = exp(kept.again(x + start + i, k) - top);
            if (e) e[start + i] = power;
            seen += power;
        }
        const T total = line_sum<true>(seen);
        const T log_total = log(total);
        for (index_t i = at.member, k = 0; i < end; i += at.members, ++k) {
            const T q = target(i);  // where it is 0 the logarithm may be -infinity
            if (q != 0) loss -= q * (kept.again(x + start + i, k) - top - log_total);
        }
        loss = line_sum<true>(loss);
        if (row >= rows || at.member != 0) continue;
        if (e) totals[row] = total;
        losses[row] = loss;
        weights[row] = target.counts ? target.weight_of(target.label) : T(0);
    }
}

// Sums over the rows, by a single block; with `mean` the loss is divided by that of the weights.
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

// gx = gy (e / total sum q - q), or 0 where the row is ignored; gy is one number for all rows, or with `each` one for
// each. It is divided by the divisor, unless that is null.
template <typename T>
__global__ void cross_entropy_gradient(const T* __restrict__ e, const T* __restrict__ totals,
                                       const index_t* __restrict__ labels, const bool* __restrict__ ignored,
                                       const T* __restrict__ weight, const T* __restrict__ gy,
                                       const T* __restrict__ divisor, bool each, index_t rows, index_t classes,
                                       double smoothing, T* __restrict__ gx) {
    const Place<true> at;
    for (index_t line = (index_t)blockIdx.x * at.lines; line < rows; line += (index_t)gridDim.x * at.lines) {
        const index_t row = line + at.line, start = row * classes, end = row < rows ? classes : 0;
        const Target<T> target = target_of(row, rows, labels, ignored, weight, smoothing, classes);
        T sum = 0;
        for (index_t i = at.member; i < end; i += at.members) sum += target(i);
        sum = line_sum<true>(sum);
        if (row >= rows) continue;
        const T g = gy[each ? row : 0] / (divisor ? *divisor : T(1)), scale = sum / totals[row];
        for (index_t i = at.member; i < end; i += at.members)
            gx[start + i] = target.counts ? (e[start + i] * scale - target(i)) * g : T(0);
    }
}
