// The softmax of the non-local operation, between the products of a block of queries: docs/kernels/non_local.md.
//
// A row holds the logits of a query, one for each key. The threads of a block that share a threadIdx.y share a row:
// blockDim.x of them, a power of two up to a warp, or the whole block. They go over the row several times. Each thread
// returns to its own numbers, so a thread may write where it has read. Every thread of a block takes part in every step
// over the rows, even past the last row, because the threads exchange values.

// The softmax of each row of s, in place. `scales` (rows, 2; null: not wanted) gets what backward needs to compute the
// softmax again: the largest logit, and 1 / the sum of e^(s - largest). Their logarithm in one number would be off by
// up to 5e-4 in float32 beside a logit of 10,000, and so would all weights of the row.
template <typename T>
__global__ void softmax(T* s, index_t rows, index_t keys, T* scales) {
    const auto larger = [](T a, T b) { return a > b || a != a ? a : b; };  // a NaN makes the maximum NaN
    for (index_t start = (index_t)blockIdx.y * blockDim.y; start < rows; start += row_stride()) {
        const index_t row = start + threadIdx.y, end = row < rows ? keys : 0;
        T* s_row = s + row * keys;
        T top = -infinity<T>(), total = 0;
        for (index_t j = threadIdx.x; j < end; j += blockDim.x) top = larger(top, s_row[j]);
        top = row_reduce(top, -infinity<T>(), larger);
        for (index_t j = threadIdx.x; j < end; j += blockDim.x) total += exp(s_row[j] - top);
        const T scale = 1 / row_sum(total);
        for (index_t j = threadIdx.x; j < end; j += blockDim.x) s_row[j] = exp(s_row[j] - top) * scale;
        if (scales && row < rows && threadIdx.x == 0) {
            scales[2 * row] = top;
            scales[2 * row + 1] = scale;
        }
    }
}

// Backward, in place: from the logits s the weights p (scales null: s holds the weights already), and from gp = gy^T g
// (null: not wanted) the gradient of the logits, p (gp - gy^T y). This gradient sums to 0 over a row; the sum that
// rounding leaves is subtracted, because the small gradient of a weight near 1 would be lost in it.
template <typename T>
__global__ void gradient(T* s, const T* __restrict__ scales, const T* __restrict__ gy, const T* __restrict__ y,
                         index_t rows, index_t keys, index_t depth, T* gp) {
    for (index_t start = (index_t)blockIdx.y * blockDim.y; start < rows; start += row_stride()) {
        const index_t row = start + threadIdx.y, end = row < rows ? keys : 0;
        T* s_row = s + row * keys;
        T gy_y = 0, remainder = 0;
        if (gp && row < rows)
            for (index_t c = threadIdx.x; c < depth; c += blockDim.x) gy_y += gy[row * depth + c] * y[row * depth + c];
        gy_y = row_sum(gy_y);
        const T top = scales && row < rows ? scales[2 * row] : T(0);
        const T scale = scales && row < rows ? scales[2 * row + 1] : T(0);
        for (index_t j = threadIdx.x; j < end; j += blockDim.x) {
            T p = s_row[j];
            if (scales) s_row[j] = p = exp(p - top) * scale;
            if (gp) remainder += p * (gp[row * keys + j] -= gy_y);
        }
        remainder = row_sum(remainder);
        for (index_t j = threadIdx.x; gp && j < end; j += blockDim.x)
            gp[row * keys + j] = s_row[j] * (gp[row * keys + j] - remainder);
    }
}
