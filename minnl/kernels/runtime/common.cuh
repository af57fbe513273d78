// What the kernels share. runtime/cuda.py puts this text before each .cu file.
//
// Every run gives the same bits: the shape of the launch alone decides the order of a sum. A thread adds in double
// where a sum may have very many terms, because a running sum of floats is rounded, at every step, to the spacing of
// floats of the sum's size.

typedef long long index_t;  // a product of sizes may exceed 2^31

constexpr unsigned FULL = 0xffffffffu;  // The mask of all 32 lanes of a warp.
constexpr int MAX_THREADS = 256;        // A block that calls merge_rows has at most 256 threads.

// NVRTC compiles without the host's headers, which define INFINITY.
template <typename T>
__device__ inline T infinity() {
    return T(__longlong_as_double(0x7ff0000000000000LL));
}


// --- one axis: the threads stride over n elements -------------------------------------------------------------------
//     for (index_t i = first(); i < n; i += stride()) ...

__device__ inline index_t first() { return (index_t)blockIdx.x * blockDim.x + threadIdx.x; }
__device__ inline index_t stride() { return (index_t)gridDim.x * blockDim.x; }


// --- a matrix (rows, channels): neighbouring threads have neighbouring channels and stride over the rows ------------

__device__ inline index_t channel() { return first(); }
__device__ inline index_t first_row() { return (index_t)blockIdx.y * blockDim.y + threadIdx.y; }
__device__ inline index_t row_stride() { return (index_t)gridDim.y * blockDim.y; }

// Merges the values of the threads with the same threadIdx.x. The thread with threadIdx.y = 0 gets the result, the
// others an intermediate value. V is a plain struct with merge(V), blockDim.y is a power of two, and every thread has
// to call.
template <typename V>
__device__ V merge_rows(V value) {
    __shared__ V values[MAX_THREADS];
    const int i = threadIdx.y * blockDim.x + threadIdx.x;
    __syncthreads();  // an earlier call may still be reading
    values[i] = value;
    for (int half = blockDim.y / 2; half > 0; half /= 2) {
        __syncthreads();
        if (threadIdx.y < half) values[i].merge(values[i + half * blockDim.x]);
    }
    return values[i];
}

// Number, mean and sum of squared distances from the mean. The only large numbers that are subtracted from each other
// are values and means, so a large mean costs no digits (Welford 1962; Chan, Golub, LeVeque 1983).
template <typename T>
struct Moments {
    T count, mean, squares;

    __device__ void add(T x) {
        const T delta = x - mean;
        count += 1;
        mean += delta / count;
        squares += delta * (x - mean);
    }

    __device__ void merge(const Moments& other) {
        if (other.count == 0) return;
        if (count == 0) {
            *this = other;
            return;
        }
        const T total = count + other.count, delta = other.mean - mean, share = other.count / total;
        mean += delta * share;
        squares += other.squares + delta * delta * count * share;
        count = total;
    }
};

// Two sums at once.
template <typename T>
struct Sums {
    T a, b;

    __device__ void merge(const Sums& other) {
        a += other.a;
        b += other.b;
    }
};


// --- windows that slide over (T, H, W) ------------------------------------------------------------------------------

// Along one axis tap k of output o reads position at(o, k) of the input, which may lie in the padding.
struct Axis {
    int size, out, taps, stride, padding, dilation;  // padding: that before position 0

    __device__ int at(int o, int k) const { return o * stride - padding + k * dilation; }
    __device__ bool holds(int i) const { return (unsigned)i < (unsigned)size; }  // a negative i is a large unsigned
};

struct Windows {
    Axis t, h, w;
};
static_assert(sizeof(Windows) == 72, "WINDOWS of conv3d/cuda.py");

// Splits the last coordinate, along an axis of n, off a flat index: returns the coordinate, and `index` becomes the
// flat index along the other axes. A division of 64 bits costs several of 32, so small indices are divided in 32 bits.
__device__ inline int unravel(index_t& index, int n) {
    const index_t whole = index;
    if (whole == (int)whole) {
        index = (int)whole / n;
        return (int)whole % n;
    }
    index = whole / n;
    return (int)(whole % n);
}


// --- sums and maxima: every thread has to call and gets the result --------------------------------------------------

// Over groups of `width` neighbouring lanes of a warp; the width is a power of two up to 32.
template <typename T, typename Merge>
__device__ T warp_reduce(T value, int width, Merge merge) {
    for (int mask = width / 2; mask > 0; mask /= 2) value = merge(value, __shfl_xor_sync(FULL, value, mask));
    return value;
}

// Over a block of one axis; the number of threads is a multiple of 32.
template <typename T, typename Merge>
__device__ T block_reduce(T value, T neutral, Merge merge) {
    __shared__ T of_warp[32];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
    value = warp_reduce(value, 32, merge);
    __syncthreads();  // an earlier call may still be reading
    if (lane == 0) of_warp[warp] = value;
    __syncthreads();
    value = lane < warps ? of_warp[lane] : neutral;
    return warp_reduce(value, 32, merge);
}

// Over the threads of a block that share a threadIdx.y. blockDim.x is a power of two up to 32, or blockDim.y is 1.
template <typename T, typename Merge>
__device__ T row_reduce(T value, T neutral, Merge merge) {
    return blockDim.x > 32 ? block_reduce(value, neutral, merge) : warp_reduce(value, blockDim.x, merge);
}

template <typename T>
__device__ T row_sum(T value) {
    return row_reduce(value, T(0), [](T a, T b) { return a + b; });
}

template <typename T>
__device__ T block_sum(T value) {
    return block_reduce(value, T(0), [](T a, T b) { return a + b; });
}

// A NaN makes the maximum NaN, as in NumPy.
template <typename T>
__device__ T block_max(T value) {
    return block_reduce(value, -infinity<T>(), [](T a, T b) { return a > b || a != a ? a : b; });
}
