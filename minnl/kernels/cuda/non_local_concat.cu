// Concatenation without pairs of positions: docs/kernels/cuda_non_local_concat.md.
//
// Keys stand on a line at b_j, queries at -a_i. f_ij = max(a_i + b_j, 0) is not 0 where the key stands right of the
// query, so what a query receives is a running sum over the line from its right end, and what a key receives is one
// over the queries from the left. Each element of the batch has a line of its own, of n = keys + queries places: keys
// are numbered first, then queries.

constexpr int TILE = 256;   // places that one block sorts
constexpr int LANES = 32;   // channels of a warp that walks along the line


// --- the order of the line: tiles are sorted, then runs are merged, two at a time, until one is left ------------------

// What the k-th stands for is put at its rank, the number of those of its tile that come before it. Of equals the one
// with the lower number does: a key before its query, which therefore does not see it. NaN goes where it spreads most.
template <typename T>
__global__ void sort_tiles(const T* __restrict__ a, const T* __restrict__ b, index_t batch, index_t queries,
                           index_t keys, T* __restrict__ places, index_t* __restrict__ order) {
    __shared__ T tile[TILE];
    const index_t n = keys + queries, tiles = (n + TILE - 1) / TILE;
    for (index_t step = blockIdx.x; step < batch * tiles; step += gridDim.x) {
        const index_t element = step / tiles, start = step % tiles * TILE, k = start + threadIdx.x;
        const int size = n - start < TILE ? n - start : TILE;
        T mine = 0;
        if (k < n) mine = k < keys ? b[element * keys + k] : -a[element * queries + k - keys];
        if (mine != mine) mine = k < keys ? infinity<T>() : -infinity<T>();
        __syncthreads();  // the step before may still be reading
        tile[threadIdx.x] = mine;
        __syncthreads();
        if (k >= n) continue;
        int rank = 0;
        for (int m = 0; m < size; ++m) rank += tile[m] < mine || (tile[m] == mine && m < (int)threadIdx.x);
        places[element * n + start + rank] = mine;
        order[element * n + start + rank] = k;
    }
}

// Runs of a length are sorted; of each two of them one is made. Everyone finds its own place: behind those of its own
// run that come before it, and those of the other run. Of equals the left run's come first.
template <typename T>
__global__ void merge_runs(const T* __restrict__ places, const index_t* __restrict__ order, index_t batch, index_t n,
                           index_t run, T* __restrict__ merged_places, index_t* __restrict__ merged_order) {
    for (index_t at = first(); at < batch * n; at += stride()) {
        const index_t k = at % n, pair = k / (2 * run) * (2 * run);
        const bool left = k < pair + run;
        const T mine = places[at];
        const T* line = places + (at - k);
        index_t low = left ? pair + run : pair, high = low + run;
        if (low > n) low = n;
        if (high > n) high = n;
        const index_t start = low;
        while (low < high) {  // bisection: where in the other run mine belongs
            const index_t middle = (low + high) / 2;
            if (left ? line[middle] < mine : line[middle] <= mine)
                low = middle + 1;
            else
                high = middle;
        }
        const index_t to = (at - k) + (left ? k : k - run) + (low - start);
        merged_places[to] = mine;
        merged_order[to] = order[at];
    }
}


// --- running sums: those of each slice of the line, then of all slices before one, then along it ---------------------
//
// One side gives and the other takes: keys give from the right end, or queries from the left. A giver has a row of x
// (channels) and a factor. A warp has one slice of one line and 32 channels, so all of its threads stand at one place.

// The sums of x and of factor x over the givers of each slice: partial (batch, slices, channels).
template <typename T>
__global__ void slice_sums(const index_t* __restrict__ order, const T* __restrict__ x, const T* __restrict__ factor,
                           bool keys_give, index_t batch, index_t queries, index_t keys, index_t channels,
                           index_t length, Sums<T>* partial) {
    const index_t n = keys + queries, slices = (n + length - 1) / length, givers = keys_give ? keys : queries;
    const index_t c = channel();
    if (c >= channels) return;
    for (index_t unit = first_row(); unit < batch * slices; unit += row_stride()) {
        const index_t element = unit / slices, start = unit % slices * length;
        const index_t end = start + length < n ? start + length : n;
        Sums<T> seen = {0, 0};
        for (index_t place = start; place < end; ++place) {
            const index_t who = order[element * n + place];
            if ((who < keys) != keys_give) continue;
            const index_t row = element * givers + (keys_give ? who : who - keys);
            const T value = x[row * channels + c];
            seen.a += value;
            seen.b += factor[row] * value;
        }
        partial[unit * channels + c] = seen;
    }
}

// Each slice's sums -> those of all slices before it on the way. In double: there are few of them, and this is where
// numbers of one size would be added to ever larger ones.
template <typename T>
__global__ void sums_before(Sums<T>* partial, bool keys_give, index_t batch, index_t slices, index_t channels) {
    const index_t c = channel();
    if (c >= channels) return;
    for (index_t element = first_row(); element < batch; element += row_stride()) {
        Sums<double> before = {0, 0};
        for (index_t k = 0; k < slices; ++k) {
            const index_t slice = keys_give ? slices - 1 - k : k;
            Sums<T>& here = partial[(element * slices + slice) * channels + c];
            const Sums<double> sums = {here.a, here.b};
            here = {T(before.a), T(before.b)};
            before.merge(sums);
        }
    }
}

// What each taker receives: share (own X + F), where X and F are the sums of x and factor x over those that give to it,
// into out (batch, takers, channels); and share other^T X, other being its own row, into dots, the sum over 32 channels
// each (channels / 32, batch, takers). Either may be null.
template <typename T>
__global__ void walk(const index_t* __restrict__ order, const T* __restrict__ x, const T* __restrict__ factor,
                     const Sums<T>* __restrict__ before, const T* __restrict__ own, const T* __restrict__ other,
                     bool keys_give, index_t batch, index_t queries, index_t keys, index_t channels, index_t length,
                     double share, T* __restrict__ out, T* __restrict__ dots) {
    const index_t n = keys + queries, slices = (n + length - 1) / length;
    const index_t givers = keys_give ? keys : queries, takers = n - givers;
    const index_t c = channel();
    const bool live = c < channels;  // the others go along, for the exchange within the warp
    for (index_t unit = first_row(); unit < batch * slices; unit += row_stride()) {
        const index_t element = unit / slices, start = unit % slices * length;
        const index_t end = start + length < n ? start + length : n;
        // Apart until they are needed: a slice's small numbers would be rounded to the spacing of what came before.
        Sums<T> earlier = {0, 0}, seen = {0, 0};
        if (live) earlier = before[unit * channels + c];
        for (index_t k = start; k < end; ++k) {
            const index_t who = order[element * n + (keys_give ? start + end - 1 - k : k)];
            const bool gives = (who < keys) == keys_give;
            const index_t row = element * (gives ? givers : takers) + (who < keys ? who : who - keys);
            if (gives) {
                const T value = live ? x[row * channels + c] : T(0);
                seen.a += value;
                seen.b += factor[row] * value;
                continue;
            }
            const T sum = earlier.a + seen.a, weighted = earlier.b + seen.b;
            if (out && live) out[row * channels + c] = (own[row] * sum + weighted) * T(share);
            if (!dots) continue;
            T dot = live ? other[row * channels + c] * sum * T(share) : T(0);
            for (int mask = LANES / 2; mask > 0; mask /= 2) dot += __shfl_xor_sync(FULL, dot, mask);
            if (threadIdx.x == 0) dots[blockIdx.x * batch * takers + row] = dot;
        }
    }
}
