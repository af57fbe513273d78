// What the kernels share. Put before each .cu file by source.py.
//
// All of it gives the same bits in every run: sums are taken in an order that the shape of the launch alone decides. A
// thread adds up in double whatever may have very many terms, for a running sum of floats is rounded, at every step, to
// the spacing of numbers of its own size.

typedef long long index_t;  // a product of sizes may pass 2^31

constexpr unsigned FULL = 0xffffffffu;  // every lane of a warp
constexpr int MOST_THREADS = 256;       // of a block that calls merge_rows

// Compiled by NVRTC there are no headers of the host's, and no INFINITY.
template <typename T>
__device__ inline T infinity() {
    return T(__longlong_as_double(0x7ff0000000000000LL));
}


// --- one axis: threads stride over n elements -----------------------------------------------------------------------
//     for (index_t i = first(); i < n; i += stride()) ...

__device__ inline index_t first() { return (index_t)blockIdx.x * blockDim.x + threadIdx.x; }
__device__ inline index_t stride() { return (index_t)gridDim.x * blockDim.x; }


// --- a matrix (rows, channels): neighbouring threads are neighbouring channels, rows are strided over ----------------

__device__ inline index_t channel() { return first(); }
__device__ inline index_t first_row() { return (index_t)blockIdx.y * blockDim.y + threadIdx.y; }
__device__ inline index_t row_stride() { return (index_t)gridDim.y * blockDim.y; }

// Merges the values that the rows of a block hold for a channel: the threads of its row 0 get the result, the others
// something in between. V is a plain struct with merge(V). blockDim.y is a power of two; every thread has to call.
template <typename V>
__device__ V merge_rows(V value) {
    __shared__ V values[MOST_THREADS];
    const int here = threadIdx.y * blockDim.x + threadIdx.x;
    __syncthreads();  // an earlier call may still be reading
    values[here] = value;
    for (int half = blockDim.y / 2; half > 0; half /= 2) {
        __syncthreads();
        if (threadIdx.y < half) values[here].merge(values[here + half * blockDim.x]);
    }
    return values[here];
}

// Number, mean and sum of squared deviations of some values. Neither step subtracts large numbers that are nearly the
// same but the means themselves, so a large mean costs no digits (Welford 1962; Chan, Golub, LeVeque 1983).
template <typename T>
struct Moments {
    T count, mean, squares;

    __device__ void add(T x) {
        const T off = x - mean;
        count += 1;
        mean += off / count;
        squares += off * (x - mean);
    }

    __device__ void merge(const Moments& other) {
        if (other.count == 0) return;
        if (count == 0) {
            *this = other;
            return;
        }
        const T total = count + other.count, off = other.mean - mean, share = other.count / total;
        mean += off * share;
        squares += other.squares + off * off * count * share;
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


// --- windows that slide over (T, H, W) -------------------------------------------------------------------------------

// Along one axis output o sees by tap k position at(o, k) of the input, which may lie in the padding.
struct Axis {
    int size, out, taps, stride, before, dilation;  // before: the padding there

    __device__ int at(int o, int k) const { return o * stride - before + k * dilation; }
    __device__ bool holds(int i) const { return (unsigned)i < (unsigned)size; }  // below 0 is, unsigned, a large number
};

struct Windows {
    Axis t, h, w;
};
static_assert(sizeof(Windows) == 72, "WINDOWS of windows.py");

// The last of the coordinates that an index along several axes stands for, there are n; `rest` keeps those before. A
// division of 64 bits takes several of 32, so it is only done where it has to be.
__device__ inline int take(index_t& rest, int n) {
    const index_t whole = rest;
    if (whole == (int)whole) {
        rest = (int)whole / n;
        return (int)whole % n;
    }
    rest = whole / n;
    return (int)(whole % n);
}


// --- all threads of a block, along one axis, a multiple of 32 of them: every thread gets the result -------------------

template <typename T, typename Merge>
__device__ T block_reduce(T value, T neutral, Merge merge) {
    __shared__ T of_warp[32];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
    for (int mask = 16; mask > 0; mask /= 2) value = merge(value, __shfl_xor_sync(FULL, value, mask));
    __syncthreads();  // an earlier call may still be reading
    if (lane == 0) of_warp[warp] = value;
    __syncthreads();
    value = lane < warps ? of_warp[lane] : neutral;
    for (int mask = 16; mask > 0; mask /= 2) value = merge(value, __shfl_xor_sync(FULL, value, mask));
    return value;
}

template <typename T>
__device__ T block_sum(T value) {
    return block_reduce(value, T(0), [](T a, T b) { return a + b; });
}

// NaN wins, as in NumPy.
template <typename T>
__device__ T block_max(T value) {
    return block_reduce(value, -infinity<T>(), [](T a, T b) { return a > b || a != a ? a : b; });
}
