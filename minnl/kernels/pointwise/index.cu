// The gradient of an index that may name an element several times: docs/kernels/cuda_pointwise.md.

// gx[j] = the sum of gy[i] over the i that picked j, in ascending order. keys (count), sorted, holds j * count + i.
template <typename T>
__global__ void sum_picked(const T* __restrict__ gy, const index_t* __restrict__ keys, index_t count, index_t n,
                           T* __restrict__ gx) {
    for (index_t j = first(); j < n; j += stride()) {
        index_t low = 0, high = count;
        while (low < high) {  // bisection: the first key of j
            const index_t middle = (low + high) / 2;
            if (keys[middle] < j * count)
                low = middle + 1;
            else
                high = middle;
        }
        T sum = 0;
        for (; low < count && keys[low] < (j + 1) * count; ++low) sum += gy[keys[low] - j * count];
        gx[j] = sum;
    }
}
