"""Convolution by im2col: slices of the im2col matrix are gathered, and multiplied by cuBLAS. docs/kernels/conv3d.md."""

from __future__ import annotations

import math

from minnl import backend
from minnl.kernels.runtime.cublas import multiply
from minnl.kernels.runtime.cuda import MAX_BLOCKS_Y, THREADS, Source, ceil_div, power_of_two

GATHER = Source("conv3d/im2col.cu", "gather<T, 1>", "gather<T, 4>")
SLICE = 2**26  # A slice has at most 64 M numbers, 256 MB in float32: as much as the activations of a large layer.
MAX_ROWS = 2**30  # A matrix has at most 2^30 rows, because cuBLAS counts rows in 32 bits.
NARROWEST = 8  # A block gathers at least 8 columns, so that a warp covers at most 4 rows (not timed).
TILE = 64  # A block gathers 64 rows at a time, as TILE of im2col.cu says.


def correlate(x, weight, groups, windows, y, bias=None):
    """y = windows of x times weight (kT, kH, kW, C // groups, K), plus bias."""
    xp, channels = backend.load_cupy(), y.shape[-1]
    weights = by_group(weight.reshape(-1, channels), groups)
    for rows, matrix in slices(x, groups, windows, y):
        out = y.reshape(-1, channels)[rows]
        products = out[None] if groups == 1 else xp.empty((groups, len(out), channels // groups), y.dtype)
        multiply(matrix, weights, products)
        if groups > 1:
            out.reshape(len(out), groups, -1)[...] = products.transpose(1, 0, 2)
        if bias is not None:
            out += bias


def weight_gradient(x, gy, groups, windows, gw):
    """gw = windows of x, transposed, times gy: the sum over the slices, in their order."""
    xp, channels = backend.load_cupy(), gw.shape[-1]
    out = gw.reshape(-1, channels)
    sums = out[None] if groups == 1 else xp.empty((groups, len(out), channels // groups), gw.dtype)
    for rows, matrix in slices(x, groups, windows, gy):
        gradients = by_group(gy.reshape(-1, channels)[rows], groups)
        multiply(matrix.swapaxes(1, 2), gradients, sums, add=rows.start > 0)
    if groups > 1:
        out.reshape(len(out), groups, -1)[...] = sums.transpose(1, 0, 2)


def slices(x, groups, windows, y):
    """The im2col matrix in slices: (which rows, that is positions of y; the slice (groups, rows, taps * C // groups)).

    The slices share their memory. With several groups a slice is smaller, by a copy of its rows of y.
    """
    count, width = math.prod(y.shape[:-1]), math.prod(windows.taps) * x.shape[-1]
    numbers = slice_numbers(x.shape, groups, windows, y.shape)
    if not numbers:
        for rows in row_slices(count, MAX_ROWS):
            yield rows, x.reshape(count, width)[None, rows]
        return
    memory = backend.load_cupy().empty(numbers, x.dtype)
    for rows in row_slices(count, numbers // width):
        size = rows.stop - rows.start
        matrix = memory[: size * width].reshape(groups, size, width // groups)
        gather(x, windows, y, rows.start, matrix)
        yield rows, matrix


def slice_numbers(x, groups, windows, y):
    """How many numbers a slice of the im2col matrix has, for arrays of shapes x and y; 0 where x is the matrix."""
    if groups == 1 and windows.are_points(x, y):
        return 0
    width = math.prod(windows.taps) * x[-1]
    most = SLICE // (width + (y[-1] if groups > 1 else 0))
    return max(1, min(math.prod(y[:-1]), most, MAX_ROWS)) * width


def row_slices(n, most):
    return [slice(start, min(start + most, n)) for start in range(0, n, most)]


def gather(x, windows, y, begin, matrix):
    """Gather the rows of the im2col matrix from position `begin` of y on: as many as `matrix` has."""
    groups, rows, width = matrix.shape
    channels = x.shape[-1] // groups
    pack = 4 if channels % 4 == 0 and x.data.ptr % 16 == 0 else 1  # numbers that a thread moves at once
    across = groups * width // pack
    threads = max(power_of_two(across, THREADS), NARROWEST)
    blocks = ceil_div(across, threads), min(ceil_div(rows, TILE), MAX_BLOCKS_Y)
    GATHER.launch(
        f"gather<T, {pack}>", x.dtype, blocks, (threads, THREADS // threads),
        x, windows.record(x, y), groups, channels, begin, rows, matrix,
    )  # fmt: skip


def by_group(matrix, groups):
    """The columns of each group as a matrix: (rows, groups * n) -> (groups, rows, n)."""
    if groups == 1:
        return matrix[None]
    return backend.load_cupy().ascontiguousarray(matrix.reshape(len(matrix), groups, -1).transpose(1, 0, 2))
