// Convolution of few channels a group, tap by tap, without columns: docs/kernels/cuda_conv.md.
//
// Threads that are neighbours have neighbouring output channels: they read neighbouring weights and, depth-wise,
// neighbouring numbers of x.

constexpr int RUN = 4;   // outputs along the width that a thread makes at once: a weight is read once for all
constexpr int TAPS = 4;  // taps along the width that a thread sums at once: an output's gradient is read once for all

// y (samples, T', H', W', outputs) = windows of x (samples, T, H, W, groups * channels) times weight (kT, kH, kW,
// channels, outputs), plus bias, or without it (null).
template <typename T>
__global__ void correlate(const T* __restrict__ x, const T* __restrict__ weight, const T* __restrict__ bias,
                          const Windows windows, index_t samples, index_t groups, index_t channels, index_t outputs,
                          T* __restrict__ y) {
    // A weight has fewer than 2^31 numbers, so channels can be counted in 32 bits, which takes fewer registers.
    const int k = channel(), width = outputs, each = channels, all = groups * channels;
    if (k >= width) return;
    const Axis t = windows.t, h = windows.h, w = windows.w;
    const T* of_group = x + k / (width / (int)groups) * each;
    const int runs = (w.out + RUN - 1) / RUN;
    for (index_t run = first_row(); run < samples * t.out * h.out * runs; run += row_stride()) {
        index_t line = run;
        const int begin = take(line, runs) * RUN;
        index_t sample = line;
        const int upper = h.at(take(sample, h.out), 0), frame = t.at(take(sample, t.out), 0), left = w.at(begin, 0);
        T sums[RUN];
        for (int i = 0; i < RUN; i++) sums[i] = bias ? bias[k] : T(0);
        for (int kt = 0; kt < t.taps; kt++) {
            const int at_t = frame + kt * t.dilation;
            if (!t.holds(at_t)) continue;
            for (int kh = 0; kh < h.taps; kh++) {
                const int at_h = upper + kh * h.dilation;
                if (!h.holds(at_h)) continue;
                const T* seen = of_group + ((sample * t.size + at_t) * h.size + at_h) * w.size * all;
                const T* factors = weight + ((index_t)kt * h.taps + kh) * w.taps * each * width + k;
                for (int kw = 0; kw < w.taps; kw++) {
                    for (int c = 0; c < each; c++, factors += width) {
                        const T factor = *factors;
                        for (int i = 0; i < RUN; i++) {
                            const int at_w = left + i * w.stride + kw * w.dilation;
                            if (w.holds(at_w)) sums[i] += seen[(index_t)at_w * all + c] * factor;
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
    T of[TAPS];

    __device__ void merge(const TapSums& other) {
        for (int i = 0; i < TAPS; i++) of[i] += other.of[i];
    }
};

// Partial gradients of the weight (slices, kT, kH, kW, channels, outputs). A block has one tap in time and height, TAPS
// along the width, one channel of each group, and a slice of the lines of gy.
template <typename T>
__global__ void weight_sums(const T* __restrict__ x, const T* __restrict__ gy, const Windows windows, index_t samples,
                            index_t groups, index_t channels, index_t outputs, T* __restrict__ partial) {
    const Axis t = windows.t, h = windows.h, w = windows.w;
    index_t rest = blockIdx.x;
    const index_t k = take(rest, (outputs + blockDim.x - 1) / blockDim.x) * blockDim.x + threadIdx.x;
    const int c = take(rest, channels);
    const int kw = take(rest, (w.taps + TAPS - 1) / TAPS) * TAPS;
    const int kh = take(rest, h.taps), kt = rest;
    const index_t all = groups * channels;
    TapSums<T> sums = {};
    if (k < outputs) {
        const T* of_group = x + k / (outputs / groups) * channels + c;
        for (index_t line = first_row(); line < samples * t.out * h.out; line += row_stride()) {
            index_t sample = line;
            const int at_h = h.at(take(sample, h.out), kh);
            const int at_t = t.at(take(sample, t.out), kt);
            if (!t.holds(at_t) || !h.holds(at_h)) continue;
            const T* seen = of_group + ((sample * t.size + at_t) * h.size + at_h) * w.size * all;
            for (int o = 0; o < w.out; o++) {
                const T factor = gy[(line * w.out + o) * outputs + k];
                for (int i = 0; i < TAPS; i++) {
                    const int at_w = w.at(o, kw + i);
                    if (w.holds(at_w)) sums.of[i] += seen[at_w * all] * factor;
                }
            }
        }
    }
    sums = merge_rows(sums);
    if (k >= outputs || threadIdx.y != 0) return;
    const index_t tap = (((index_t)blockIdx.y * t.taps + kt) * h.taps + kh) * w.taps + kw;
    for (int i = 0; i < TAPS && kw + i < w.taps; i++) partial[((tap + i) * channels + c) * outputs + k] = sums.of[i];
}
