// Sums down the columns of a matrix: docs/gpu.md.

struct Sum {
    double value;

    __device__ void merge(const Sum& other) { value += other.value; }
};

// sums (slices, channels) of x (rows, channels), one slice for each row of the grid. One slice gives the result.
template <typename T>
__global__ void column_sums(const T* __restrict__ x, index_t rows, index_t channels, T* __restrict__ sums) {
    const index_t c = channel();
    Sum sum = {0};
    if (c < channels)
        for (index_t i = first_row(); i < rows; i += row_stride()) sum.value += x[i * channels + c];
    sum = merge_rows(sum);
    if (c < channels && threadIdx.y == 0) sums[blockIdx.y * channels + c] = sum.value;
}
