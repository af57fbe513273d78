// Convolution of few channels a group, tap by tap, without an im2col matrix: docs/kernels/conv3d.md.
//
// Neighbouring threads have neighbouring output channels, so they read neighbouring weights and, in depth-wise
// convolution, neighbouring numbers of x.

constexpr int RUN = 4;   // A thread computes 4 outputs along the width at once, so that it reads each weight once.
constexpr int TAPS = 4;  // A thread sums 4 taps along the width at once, so that it reads each number of gy once.

// y (samples, T', H', W', outputs) = windows of x (samples, T, H, W, groups * channels) times weight (kT, kH, kW,
// channels, outputs), plus bias (null: none).
template <typename T>
__global__ void correlate(const T* __restrict__ x, const T* __restrict__ weight, const T* __restrict__ bias,
                          const Windows windows, index_t samples, index_t groups, index_t channels, index_t outputs,
                          T* __restrict__ y) {
    // A weight has fewer than 2^31 numbers, so 32 bits are enough for channels, and cost fewer registers.
    const int k = channel(), width = outputs, each = channels, all = groups * channels;
    if (k >= width) return;
    const Axis t = windows.t, h = windows.h, w = windows.w;
    const T* of_group = x + k / (width / (int)groups) * each;
    const int runs = (w.out + RUN - 1) / RUN;
    for (index_t run = first_row(); run < samples * t.out * h.out * runs; run += row_stride()) {
        index_t line = run;
        const int begin = unravel(line, runs) * RUN;
        index_t sample = line;
        const int top = h.at(unravel(sample, h.out), 0), frame = t.at(unravel(sample, t.out), 0), left = w.at(begin, 0);
        T sums[RUN];
        for (int i = 0; i < RUN; i++) sums[i] = bias ? bias[k] : T(0);
        for (int kt = 0; kt < t.taps; kt++) {
            const int at_t = frame + kt * t.dilation;
            if (!t.holds(at_t)) continue;
            for (int kh = 0; kh < h.taps; kh++) {
                const int at_h = top + kh * h.dilation;
                if (!h.holds(at_h)) continue;
                const T* row = of_group + ((sample * t.size + at_t) * h.size + at_h) * w.size * all;
                const T* weights = weight + ((index_t)kt * h.taps + kh) * w.taps * each * width + k;
                for (int kw = 0; kw < w.taps; kw++) {
                    for (int c = 0; c < each; c++, weights += width) {
                        const T factor = *weights;
                        for (int i = 0; i < RUN; i++) {
                            const int at_w = left + i * w.stride + kw * w.dilation;
                            if (w.holds(at_w)) sums[i] += row[(index_t)at_w * all + c] * factor;
                        }
                    }
                }
            }
        }
        for (int i = 0; i < RUN; i++)
            if (begin + i < w.out) y[(line * w.out + begin + i) * outputs + k] = sums[i];
    }
}

template <typename T>
struct TapSums {
    T sums[TAPS];

    __device__ void merge(const TapSums& other) {
        for (int i = 0; i < TAPS; i++) sums[i] += other.sums[i];
    }
};

// Partial gradients of the weight (slices, kT, kH, kW, channels, outputs). A block sums one tap in time and height,
// TAPS taps along the width, and one channel of each group, over one slice of the lines of gy.
template <typename T>
__global__ void weight_sums(const T* __restrict__ x, const T* __restrict__ gy, const Windows windows, index_t samples,
                            index_t groups, index_t channels, index_t outputs, T* __restrict__ partial) {
    const Axis t = windows.t, h = windows.h, w = windows.w;
    index_t rest = blockIdx.x;
    const index_t k = unravel(rest, (outputs + blockDim.x - 1) / blockDim.x) * blockDim.x + threadIdx.x;
    const int c = unravel(rest, channels);
    const int kw = unravel(rest, (w.taps + TAPS - 1) / TAPS) * TAPS;
    const int kh = unravel(rest, h.taps), kt = rest;
    const index_t all = groups * channels;
    TapSums<T> total = {};
    if (k < outputs) {
        const T* of_group = x + k / (outputs / groups) * channels + c;
        for (index_t line = first_row(); line < samples * t.out * h.out; line += row_stride()) {
            index_t sample = line;
            const int at_h = h.at(unravel(sample, h.out), kh);
            const int at_t = t.at(unravel(sample, t.out), kt);
            if (!t.holds(at_t) || !h.holds(at_h)) continue;
            const T* row = of_group + ((sample * t.size + at_t) * h.size + at_h) * w.size * all;
            for (int o = 0; o < w.out; o++) {
                const T factor = gy[(line * w.out + o) * outputs + k];
                for (int i = 0; i < TAPS; i++) {
                    const int at_w = w.at(o, kw + i);
                    if (w.holds(at_w)) total.sums[i] += row[at_w * all] * factor;
                }
            }
        }
    }
    total = merge_rows(total);
    if (k >= outputs || threadIdx.y != 0) return;
    const index_t tap = (((index_t)blockIdx.y * t.taps + kt) * h.taps + kh) * w.taps + kw;
    for (int i = 0; i < TAPS && kw + i < w.taps; i++) partial[((tap + i) * channels + c) * outputs + k] = total.sums[i];
}
