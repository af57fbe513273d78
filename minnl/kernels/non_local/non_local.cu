// The softmax of the non-local operation, between the products of a block of queries: docs/kernels/cuda_non_local.md.
//
// A row holds a query's logits, one for each key. It belongs to the threads of a block that share a threadIdx.y:
// blockDim.x of them, a power of two up to a warp, or the whole block. They go over it several times; each thread
// comes back to its own numbers, so it may write where it read. Every thread of a block takes part in every step of
// the rows, for they exchange values: past the last row with nothing.


// Merges the values that the threads of a row hold: all of them get the result.
template <typename T, typename Merge>
__device__ T merge_row(T value, T neutral, Merge merge) {
    if (blockDim.x > 32) return block_reduce(value, neutral, merge);
    for (int mask = blockDim.x / 2; mask > 0; mask /= 2) value = merge(value, __shfl_xor_sync(FULL, value, mask));
    return value;
}

template <typename T>
__device__ T row_sum(T value) {
    return merge_row(value, T(0), [](T a, T b) { return a + b; });
}

// The softmax of each row of s, in its place. What it takes to find it again goes to `scales` (rows, 2), if there is
// such: the largest logit, and 1 / the sum of e^(s - largest). Two numbers and not their logarithm in one, for in
// float32 that is off by up to 5e-4 beside a logit of 10,000, and all weights of the row with it.
template <typename T>
__global__ void softmax(T* s, index_t rows, index_t keys, T* scales) {
    const auto larger = [](T a, T b) { return a > b || a != a ? a : b; };  // NaN wins
    for (index_t step = (index_t)blockIdx.y * blockDim.y; step < rows; step += row_stride()) {
        const index_t row = step + threadIdx.y, mine = row < rows ? keys : 0;
        T* of_row = s + row * keys;
        T top = -infinity<T>(), total = 0;
        for (index_t j = threadIdx.x; j < mine; j += blockDim.x) top = larger(top, of_row[j]);
        top = merge_row(top, -infinity<T>(), larger);
        for (index_t j = threadIdx.x; j < mine; j += blockDim.x) total += exp(of_row[j] - top);
        const T scale = 1 / row_sum(total);
        for (index_t j = threadIdx.x; j < mine; j += blockDim.x) of_row[j] = exp(of_row[j] - top) * scale;
        if (scales && row < rows && threadIdx.x == 0) {
            scales[2 * row] = top;
            scales[2 * row + 1] = scale;
        }
    }
}

// Backward. From logits the weights p, in their place; without scales they are weights already. And from
// gp = gy^T g the gradient of the logits, p (gp - gy^T y), in its place, unless there is no gp. What rounding leaves of
// its sum, which is 0, is taken off: where a weight is nearly 1 its gradient is small and would be lost in that.
template <typename T>
__global__ void gradient(T* s, const T* __restrict__ scales, const T* __restrict__ gy, const T* __restrict__ y,
                         index_t rows, index_t keys, index_t depth, T* gp) {
    for (index_t step = (index_t)blockIdx.y * blockDim.y; step < rows; step += row_stride()) {
        const index_t row = step + threadIdx.y, mine = row < rows ? keys : 0;
        T* of_row = s + row * keys;
        T gy_y = 0, left = 0;
        if (gp && row < rows)
            for (index_t c = threadIdx.x; c < depth; c += blockDim.x) gy_y += gy[row * depth + c] * y[row * depth + c];
        gy_y = row_sum(gy_y);
        const T top = scales && row < rows ? scales[2 * row] : T(0);
        const T scale = scales && row < rows ? scales[2 * row + 1] : T(0);
        for (index_t j = threadIdx.x; j < mine; j += blockDim.x) {
            T p = of_row[j];
            if (scales) of_row[j] = p = exp(p - top) * scale;
            if (gp) left += p * (gp[row * keys + j] -= gy_y);
        }
        left = row_sum(left);
        for (index_t j = threadIdx.x; gp && j < mine; j += blockDim.x)
            gp[row * keys + j] = of_row[j] * (gp[row * keys + j] - left);
    }
}
