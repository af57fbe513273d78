// Windows of a clip as rows of the im2col matrix: docs/kernels/conv3d.md.
//
// A thread stays in one column, that is a group, a tap and a channel, and unravels the column's index once. The thread
// goes down the rows, the output positions. The block computes once for all its threads where each row's window begins.

constexpr int TILE = 64;  // A block gathers 64 rows at a time.

// N numbers that a thread moves at once.
template <typename T, int N>
struct __align__(N == 1 ? sizeof(T) : 16) Pack {
    T values[N];
};

// The first corner of a window: its index into x, and its coordinates, which may lie in the padding.
struct Corner {
    index_t at;
    int t, h, w;
};

// matrix (groups, rows, taps, channels): the windows of the output positions begin, begin + 1, ... over x (samples, T,
// H, W, groups * channels), zero in the padding. N divides channels.
template <typename T, int N>
__global__ void gather(const T* __restrict__ x, const Windows windows, index_t groups, index_t channels, index_t begin,
                       index_t rows, T* __restrict__ matrix) {
    __shared__ Corner corners[TILE];
    const Axis t = windows.t, h = windows.h, w = windows.w;
    const index_t width = (index_t)t.taps * h.taps * w.taps * channels, all = groups * channels;
    const bool active = first() < groups * width / N;

    index_t group = first();
    const int c = unravel(group, channels / N) * N;
    const int right = unravel(group, w.taps) * w.dilation;
    const int down = unravel(group, h.taps) * h.dilation;
    const int later = unravel(group, t.taps) * t.dilation;
    const T* from = x + (((index_t)later * h.size + down) * w.size + right) * all + group * channels + c;
    T* to = matrix + group * rows * width + (first() * N - group * width);

    for (index_t start = (index_t)blockIdx.y * TILE; start < rows; start += (index_t)gridDim.y * TILE) {
        const int size = min((index_t)TILE, rows - start);
        __syncthreads();  // other threads may still be reading the corners of the previous tile
        for (int i = threadIdx.y * blockDim.x + threadIdx.x; i < size; i += blockDim.x * blockDim.y) {
            index_t sample = begin + start + i;
            const int left = w.at(unravel(sample, w.out), 0);
            const int top = h.at(unravel(sample, h.out), 0);
            const int frame = t.at(unravel(sample, t.out), 0);
            corners[i] = {(((sample * t.size + frame) * h.size + top) * w.size + left) * all, frame, top, left};
        }
        __syncthreads();
        if (!active) continue;
        for (int i = threadIdx.y; i < size; i += blockDim.y) {
            const Corner corner = corners[i];
            const bool inside = t.holds(corner.t + later) && h.holds(corner.h + down) && w.holds(corner.w + right);
            Pack<T, N> pack = {};
            if (inside) pack = *reinterpret_cast<const Pack<T, N>*>(from + corner.at);
            *reinterpret_cast<Pack<T, N>*>(to + (start + i) * width) = pack;
        }
    }
}
