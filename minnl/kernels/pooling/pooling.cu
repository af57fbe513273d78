// Pooling, the largest of each window or its mean, and back: docs/kernels/cuda_pool.md.
//
// Where windows lie is worked out on the host, in a table an axis (pool_axis.py). So one kernel serves windows that
// slide, overlap, have holes or hang over the end, and the cells of adaptive pooling. Arrays are (N, T, H, W, C). A
// line, what one row of a frame holds, is W * C numbers: neighbours along x of a block's threads are neighbours there.

struct Window {  // along one axis
    int start, step;  // tap j lies at start + j * step
    int first, last;  // the taps first <= j < last lie on the input
    int count;        // of the window's taps: winners are numbered by it, or sums divided
};

struct Seen {  // a position along one axis: it may lie in the windows first <= i < last, and in no others
    int first, last;
};

// The tap of a window that lies on a position, or -1.
__device__ inline int tap_on(const Window& window, int position) {
    const int off = position - window.start;
    if (window.step == 1) return off;
    return off % window.step ? -1 : off / window.step;
}

// Calls f(position within the sample, number of the tap) for those taps of a window that lie on the input, in row-major
// order. The threads of a block that have the same x share the pairs of frame and row.
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

// The largest so far and the number of its tap: of several the first, of several NaN the first or the last.
template <typename T, bool LAST_NAN>
struct Best {
    T value;
    index_t tap;

    __device__ void take(T other, index_t at) {
        const bool sooner = at < tap, nan = value != value;
        const bool better = other != other ? !nan || sooner != LAST_NAN : other > value || (other == value && sooner);
        if (better) {
            value = other;
            tap = at;
        }
    }

    __device__ void merge(const Best& other) { take(other.value, other.tap); }
};

struct Total {
    double sum;

    __device__ void merge(const Total& other) { sum += other.sum; }
};

// y, and the winners' taps (null: not wanted). Sizes are those of x, and those of y from `out` on.
template <typename T, typename N, bool LAST_NAN>
__global__ void largest(const T* __restrict__ x, const Window* __restrict__ along_t,
                        const Window* __restrict__ along_h, const Window* __restrict__ along_w, index_t frames,
                        index_t rows, index_t columns, index_t channels, index_t out_lines, index_t out_frames,
                        index_t out_rows, index_t out_columns, T* __restrict__ y, N* __restrict__ winner) {
    const index_t place = channel(), width = out_columns * channels;
    const bool idle = place >= width;  // it has to come along where threads of a block meet
    index_t column = place;
    const int c = take(column, channels);
    const Window w = along_w[idle ? 0 : column];
    for (index_t line = blockIdx.y; line < out_lines; line += gridDim.y) {
        index_t sample = line;
        const Window h = along_h[take(sample, out_rows)], t = along_t[take(sample, out_frames)];
        const T* seen = x + sample * frames * rows * columns * channels + c;
        Best<T, LAST_NAN> best = {-infinity<T>(), (index_t(t.first) * h.count + h.first) * w.count + w.first};
        if (!idle)
            each_tap(t, h, w, rows, columns, [&](index_t at, index_t tap) { best.take(seen[at * channels], tap); });
        if (blockDim.y > 1) best = merge_rows(best);
        if (idle || threadIdx.y != 0) continue;
        y[line * width + place] = best.value;
        if (winner) winner[line * width + place] = N(best.tap);
    }
}

template <typename T>
__global__ void mean(const T* __restrict__ x, const Window* __restrict__ along_t, const Window* __restrict__ along_h,
                     const Window* __restrict__ along_w, index_t frames, index_t rows, index_t columns,
                     index_t channels, index_t out_lines, index_t out_frames, index_t out_rows, index_t out_columns,
                     T* __restrict__ y) {
    const index_t place = channel(), width = out_columns * channels;
    const bool idle = place >= width;
    index_t column = place;
    const int c = take(column, channels);
    const Window w = along_w[idle ? 0 : column];
    for (index_t line = blockIdx.y; line < out_lines; line += gridDim.y) {
        index_t sample = line;
        const Window h = along_h[take(sample, out_rows)], t = along_t[take(sample, out_frames)];
        const T* seen = x + sample * frames * rows * columns * channels + c;
        Total total = {0};
        if (!idle) each_tap(t, h, w, rows, columns, [&](index_t at, index_t) { total.sum += seen[at * channels]; });
        if (blockDim.y > 1) total = merge_rows(total);
        if (idle || threadIdx.y != 0) continue;
        y[line * width + place] = total.sum / (index_t(t.count) * h.count * w.count);
    }
}

// A position gathers from the windows that it lies in: from those that it won, if there are winners, else its share of
// each. Sizes are those of x, and those of y from `out` on.
template <typename T, typename N>
__global__ void gradient(const T* __restrict__ gy, const N* __restrict__ winner, const Window* __restrict__ along_t,
                         const Window* __restrict__ along_h, const Window* __restrict__ along_w,
                         const Seen* __restrict__ from_t, const Seen* __restrict__ from_h,
                         const Seen* __restrict__ from_w, index_t lines, index_t frames, index_t rows, index_t columns,
                         index_t channels, index_t out_frames, index_t out_rows, index_t out_columns,
                         T* __restrict__ gx) {
    const index_t place = channel(), width = columns * channels;
    if (place >= width) return;
    index_t column = place;
    const int c = take(column, channels);
    const Seen ws = from_w[column];
    for (index_t line = blockIdx.y; line < lines; line += gridDim.y) {
        index_t sample = line;
        const int row = take(sample, rows), frame = take(sample, frames);
        const Seen ts = from_t[frame], hs = from_h[row];
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
                    if (!winner)
                        sum += gy[at] / T(index_t(t.count) * h.count * w.count);
                    else if (w_tap >= 0 && winner[at] == (index_t(t_tap) * h.count + h_tap) * w.count + w_tap)
                        sum += gy[at];
                }
            }
        }
        gx[line * width + place] = sum;
    }
}
