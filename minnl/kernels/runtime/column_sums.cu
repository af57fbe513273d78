// Sums down the columns of a matrix: docs/kernels/cuda_conv.md.

struct Sum {
    double value;

    __device__ void merge(const Sum& other) { value += other.value; }
};

// sums (slices, columns) of x (rows, columns), a slice for each row of the grid. With one slice they are the result.
template <typename T>
__global__ void column_sums(const T* __restrict__ x, index_t rows, index_t columns, T* __restrict__ sums) {
    const index_t c = channel();
    Sum seen = {0};
    if (c < columns)
        for (index_t i = first_row(); i < rows; i += row_stride()) seen.value += x[i * columns + c];
    seen = merge_rows(seen);
    if (c < columns && threadIdx.y == 0) sums[blockIdx.y * columns + c] = seen.value;
}
