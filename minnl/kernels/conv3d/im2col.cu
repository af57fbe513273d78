// Windows of a clip as rows of a matrix, for a matrix product to sum over: docs/kernels/cuda_conv.md.
//
// A thread keeps to one column, that is a group, a tap and a channel of it, which it takes apart once. It walks down
// rows, the output positions; where a row's window begins in x is worked out once for all threads of the block.

constexpr int TILE = 64;  // rows of a block at a time

// N numbers that are moved at once.
template <typename T, int N>
struct __align__(N == 1 ? sizeof(T) : 16) Pack {
    T values[N];
};

// The first corner of a window: its place in x, and its coordinates, which may lie in the padding.
struct Corner {
    index_t at;
    int t, h, w;
};

// columns (groups, rows, taps, channels): what the windows of the output positions begin, begin + 1, ... see of x
// (samples, T, H, W, groups * channels); zero in the padding. N divides channels.
template <typename T, int N>
__global__ void gather(const T* __restrict__ x, const Windows windows, index_t groups, index_t channels, index_t begin,
                       index_t rows, T* __restrict__ columns) {
    __shared__ Corner corners[TILE];
    const Axis t = windows.t, h = windows.h, w = windows.w;
    const index_t row = (index_t)t.taps * h.taps * w.taps * channels, all = groups * channels;
    const bool works = first() < groups * row / N;

    index_t rest = first();
    const int c = take(rest, channels / N) * N;
    const int right = take(rest, w.taps) * w.dilation;
    const int down = take(rest, h.taps) * h.dilation;
    const int later = take(rest, t.taps) * t.dilation;
    const index_t group = rest;
    const T* from = x + (((index_t)later * h.size + down) * w.size + right) * all + group * channels + c;
    T* to = columns + group * rows * row + (first() * N - group * row);

    for (index_t top = (index_t)blockIdx.y * TILE; top < rows; top += (index_t)gridDim.y * TILE) {
        const int size = min((index_t)TILE, rows - top);
        __syncthreads();  // the corners before may still be read
        for (int i = threadIdx.y * blockDim.x + threadIdx.x; i < size; i += blockDim.x * blockDim.y) {
            index_t sample = begin + top + i;
            const int left = w.at(take(sample, w.out), 0);
            const int upper = h.at(take(sample, h.out), 0);
            const int frame = t.at(take(sample, t.out), 0);
            corners[i] = {(((sample * t.size + frame) * h.size + upper) * w.size + left) * all, frame, upper, left};
        }
        __syncthreads();
        if (!works) continue;
        for (int i = threadIdx.y; i < size; i += blockDim.y) {
            const Corner corner = corners[i];
            const bool inside = t.holds(corner.t + later) && h.holds(corner.h + down) && w.holds(corner.w + right);
            Pack<T, N> seen = {};
            if (inside) seen = *reinterpret_cast<const Pack<T, N>*>(from + corner.at);
            *reinterpret_cast<Pack<T, N>*>(to + (top + i) * row) = seen;
        }
    }
}
