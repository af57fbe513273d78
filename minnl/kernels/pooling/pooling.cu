// Max pooling and average pooling, forward and backward: docs/kernels/pooling.md.
//
// The host computes where the windows lie, in a table for each axis (pooling/cuda.py). So one kernel serves windows
// that slide, overlap, are dilated or hang over the end, and the cells of adaptive pooling. Arrays are (N, T, H, W, C).
// A line is one row of a frame, W * C numbers; neighbouring threads along x have neighbouring numbers of a line.

struct Window {  // along one axis
    int start, step;  // tap j lies at start + j * step
    int first, last;  // the taps first <= j < last lie on the input
    int count;        // the number of taps, by which taps are numbered, or by which a sum is divided
};

struct Covering {  // a position along one axis: no windows but first <= i < last cover the position
    int first, last;
};

// The tap of a window that lies on a position, or -1.
__device__ inline int tap_on(const Window& window, int position) {
    const int offset = position - window.start;
    if (window.step == 1) return offset;
    return offset % window.step ? -1 : offset / window.step;
}

// Calls f(position within the sample, number of the tap) for the taps of a window that lie on the input, in row-major
// order. The threads of a block that have the same threadIdx.x share the pairs of frame and row.
template <typename F>
__device__ void each_tap(const Window& t, const Window& h, const Window& w, index_t rows, index_t columns, F f) {
    const int high = h.last - h.first, pairs = w.first < w.last ? (t.last - t.first) * high : 0;
    for (int pair = threadIdx.y; pair < pairs; pair += blockDim.y) {
        const int i = t.first + pair / high, j = h.first + pair % high;
        const index_t row = (index_t(t.start + i * t.step) * rows + h.start + j * h.step) * columns + w.start;
        const index_t number = (index_t(i) * h.count + j) * w.count;
        for (int k = w.first; k < w.last; ++k) f(row + k * w.step, number + k);
    }
}

// The largest value and the number of its tap: the first tap of equal ones; of several NaN the first tap or the last.
template <typename T, bool LAST_NAN>
struct Argmax {
    T value;
    index_t tap;

    __device__ static Argmax start(index_t first_tap) { return {-infinity<T>(), first_tap}; }
    __device__ void add(T other, index_t other_tap) {
        const bool sooner = other_tap < tap, nan = value != value;
        const bool better = other != other ? !nan || sooner != LAST_NAN : other > value || (other == value && sooner);
        if (better) {
            value = other;
            tap = other_tap;
        }
    }
    __device__ void merge(const Argmax& other) { add(other.value, other.tap); }
    __device__ T result(index_t) const { return value; }
};

struct Mean {
    double sum;
    index_t tap;  // unused: a mean has no argmax

    __device__ static Mean start(index_t first_tap) { return {0, first_tap}; }
    __device__ void add(double value, index_t) { sum += value; }
    __device__ void merge(const Mean& other) { sum += other.sum; }
    __device__ double result(index_t count) const { return sum / count; }
};

// y, and the number of the largest tap (null: not wanted). out_... are sizes of y, the others of x.
template <typename T, typename N, typename Accumulator>
__global__ void pool(const T* __restrict__ x, const Window* __restrict__ along_t, const Window* __restrict__ along_h,
                     const Window* __restrict__ along_w, index_t frames, index_t rows, index_t columns,
                     index_t channels, index_t out_lines, index_t out_frames, index_t out_rows, index_t out_columns,
                     T* __restrict__ y, N* __restrict__ argmax) {
    const index_t place = channel(), width = out_columns * channels;
    const bool idle = place >= width;  // an idle thread takes part in merge_rows all the same
    index_t column = place;
    const int c = unravel(column, channels);
    const Window w = along_w[idle ? 0 : column];
    for (index_t line = blockIdx.y; line < out_lines; line += gridDim.y) {
        index_t sample = line;
        const Window h = along_h[unravel(sample, out_rows)], t = along_t[unravel(sample, out_frames)];
        const T* values = x + sample * frames * rows * columns * channels + c;
        Accumulator all = Accumulator::start((index_t(t.first) * h.count + h.first) * w.count + w.first);
        if (!idle)
            each_tap(t, h, w, rows, columns, [&](index_t at, index_t tap) { all.add(values[at * channels], tap); });
        if (blockDim.y > 1) all = merge_rows(all);
        if (idle || threadIdx.y != 0) continue;
        y[line * width + place] = all.result(index_t(t.count) * h.count * w.count);
        if (argmax) argmax[line * width + place] = N(all.tap);
    }
}

// Each position of x gathers from the windows that cover it: gy of the windows whose argmax is the position, or without
// argmax (null) its share of gy. out_... are sizes of y, the others of x.
template <typename T, typename N>
__global__ void gradient(const T* __restrict__ gy, const N* __restrict__ argmax, const Window* __restrict__ along_t,
                         const Window* __restrict__ along_h, const Window* __restrict__ along_w,
                         const Covering* __restrict__ over_t, const Covering* __restrict__ over_h,
                         const Covering* __restrict__ over_w, index_t lines, index_t frames, index_t rows,
                         index_t columns, index_t channels, index_t out_frames, index_t out_rows, index_t out_columns,
                         T* __restrict__ gx) {
    const index_t place = channel(), width = columns * channels;
    if (place >= width) return;
    index_t column = place;
    const int c = unravel(column, channels);
    const Covering ws = over_w[column];
    for (index_t line = blockIdx.y; line < lines; line += gridDim.y) {
        index_t sample = line;
        const int row = unravel(sample, rows), frame = unravel(sample, frames);
        const Covering ts = over_t[frame], hs = over_h[row];
        T sum = 0;
        for (int i = ts.first; i < ts.last; ++i) {
            const Window t = along_t[i];
            const int t_tap = tap_on(t, frame);
            for (int j = hs.first; t_tap >= 0 && j < hs.last; ++j) {
                const Window h = along_h[j];
                const int h_tap = tap_on(h, row);
                const index_t out_line = ((sample * out_frames + i) * out_rows + j) * out_columns;
                for (int k = ws.first; h_tap >= 0 && k < ws.last; ++k) {
                    const Window w = along_w[k];
                    const int w_tap = tap_on(w, column);
                    const index_t at = (out_line + k) * channels + c;
                    if (!argmax)
                        sum += gy[at] / T(index_t(t.count) * h.count * w.count);
                    else if (w_tap >= 0 && argmax[at] == (index_t(t_tap) * h.count + h_tap) * w.count + w_tap)
                        sum += gy[at];
                }
            }
        }
        gx[line * width + place] = sum;
    }
}
