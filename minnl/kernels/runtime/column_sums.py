"""Sums down the columns of a matrix, a bias's gradient for instance: docs/kernels/cuda_conv.md."""

from __future__ import annotations

from minnl import backend
from minnl.kernels.runtime.cuda import Source, ceil_div

SUMS = Source("runtime/column_sums.cu", "column_sums<T>")
THREADS = 256
ROWS, MOST_SLICES = 16, 512  # rows that a thread goes through, more where there would be too many slices of them


def column_sums(matrix, out=None):
    """The sums (columns,) of a contiguous matrix (rows, columns), written to `out` if that is given.

    CuPy leaves a few columns to one block, however many rows they have. Here slices of the rows are summed side by
    side, and a second launch sums what they leave.
    """
    rows, columns = matrix.shape
    threads, across = tile(columns)
    slices = min(ceil_div(rows, ROWS * threads[1]), MOST_SLICES)
    if out is None:
        out = backend.load_cupy().empty(columns, matrix.dtype)
    if slices > 1:
        partial = backend.load_cupy().empty((slices, columns), matrix.dtype)
        SUMS.launch("column_sums<T>", matrix.dtype, (across, slices), threads, matrix, rows, columns, partial)
        matrix, rows = partial, slices
    SUMS.launch("column_sums<T>", matrix.dtype, (across, 1), threads, matrix, rows, columns, out)
    return out


def tile(columns):
    """(width, height) of a block of threads, as wide as there are columns, up to a warp; and how many cover them."""
    width = min(32, 1 << (columns - 1).bit_length())
    return (width, THREADS // width), ceil_div(columns, width)
