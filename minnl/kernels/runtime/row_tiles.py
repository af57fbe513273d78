"""How threads cover a matrix of rows (positions) and channels, and sums down its columns: docs/gpu.md."""

from __future__ import annotations

from minnl import backend
from minnl.kernels.runtime.cuda import MAX_BLOCKS_Y, THREADS, Source, ceil_div, power_of_two

SUMS = Source("runtime/column_sums.cu", "column_sums<T>")
SUMMED_ROWS = 16  # A thread that sums takes 16 rows: not timed, no GPU was there.
WRITTEN_ROWS = 4  # A thread that writes takes 4 rows: not timed, no GPU was there.
MAX_SLICES = 512  # Rows are summed in at most 512 slices, so that the second launch over partial sums stays short.


class RowTiles:
    """An array (..., C) as a matrix (rows, channels), covered by blocks of threads. A block is a tile of the matrix.

    A tile is as wide as the channels, up to a warp, and has 256 threads. The tiles depend on the shape alone, so sums
    have the same bits on any GPU.
    """

    def __init__(self, array):
        self.dtype, self.channels = array.dtype, array.shape[-1]
        self.rows = array.size // self.channels
        self.threads, self.across = tile(self.channels)
        self.slices = min(ceil_div(self.rows, SUMMED_ROWS * self.threads[1]), MAX_SLICES)

    def partial(self, numbers):
        """Memory for the partial results: `numbers` numbers for each slice of rows and each channel."""
        return backend.load_cupy().empty((self.slices, self.channels, numbers), dtype=self.dtype)

    def sum(self, source, kernel, *arguments):
        """Launch a kernel that leaves a partial result for each slice of rows and each channel."""
        source.launch(kernel, self.dtype, (self.across, self.slices), self.threads, *arguments)

    def merge(self, source, kernel, *arguments):
        """Launch a kernel that merges the partial results of each channel."""
        source.launch(kernel, self.dtype, (self.across, 1), self.threads, *arguments)

    def write(self, source, kernel, *arguments):
        """Launch a kernel that writes every element."""
        blocks = min(ceil_div(self.rows, WRITTEN_ROWS * self.threads[1]), MAX_BLOCKS_Y)
        source.launch(kernel, self.dtype, (self.across, blocks), self.threads, *arguments)


def tile(channels):
    """(width, height) of a block of threads, and the number of blocks that cover the channels."""
    width = power_of_two(channels)
    return (width, THREADS // width), ceil_div(channels, width)


def column_sums(matrix, out=None):
    """The sums (channels,) of a contiguous matrix (rows, channels), written to `out` if given.

    CuPy's sum gives few channels to one block, whatever the number of rows. Here the slices of rows are summed side by
    side, and a second launch sums the partial sums.
    """
    tiles = RowTiles(matrix)
    if out is None:
        out = backend.load_cupy().empty(tiles.channels, matrix.dtype)
    rows = tiles.rows
    if tiles.slices > 1:
        partial = tiles.partial(1)
        tiles.sum(SUMS, "column_sums<T>", matrix, rows, tiles.channels, partial)
        matrix, rows = partial, tiles.slices
    tiles.merge(SUMS, "column_sums<T>", matrix, rows, tiles.channels, out)
    return out
