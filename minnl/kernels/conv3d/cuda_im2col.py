"""Convolution by columns: windows gathered into a matrix, in slices, and multiplied. docs/kernels/cuda_conv.md."""

from __future__ import annotations

import math

from minnl import backend
from minnl.kernels.runtime.cublas import multiply
from minnl.kernels.runtime.cuda import Source, ceil_div

GATHER = Source("conv3d/im2col.cu", "gather<T, 1>", "gather<T, 4>")
SLICE = 2**26  # numbers of a slice: 256 MB in float32, as much as the activations of a layer
MOST_ROWS = 2**30  # of a matrix that cuBLAS gets, which counts in 32 bits
WIDTHS = (8, 256)  # of a block: columns; it has 256 threads
TILE = 64  # rows of a block at a time, as in conv_columns.cu
MOST_TILES = 32768  # blocks along the rows; a grid may have 65,535 there


def correlate(x, weight, groups, windows, y, bias=None):
    """y = windows of x times weight (kT, kH, kW, C // groups, K), plus bias."""
    xp, channels = backend.load_cupy(), y.shape[-1]
    matrices = by_group(weight.reshape(-1, channels), groups)
    for rows, columns in slices(x, groups, windows, y):
        part = y.reshape(-1, channels)[rows]
        products = part[None] if groups == 1 else xp.empty((groups, len(part), channels // groups), y.dtype)
        multiply(columns, matrices, products)
        if groups > 1:
            part.reshape(len(part), groups, -1)[...] = products.transpose(1, 0, 2)
        if bias is not None:
            part += bias


def weight_gradient(x, gy, groups, windows, gw):
    """gw = windows of x, transposed, times gy: slice after slice, in their order."""
    xp, channels = backend.load_cupy(), gw.shape[-1]
    whole = gw.reshape(-1, channels)
    sums = whole[None] if groups == 1 else xp.empty((groups, len(whole), channels // groups), gw.dtype)
    for rows, columns in slices(x, groups, windows, gy):
        gradients = by_group(gy.reshape(-1, channels)[rows], groups)
        multiply(columns.swapaxes(1, 2), gradients, sums, add=rows.start > 0)
    if groups > 1:
        whole.reshape(len(whole), groups, -1)[...] = sums.transpose(1, 0, 2)


def slices(x, groups, windows, y):
    """For some rows (positions) of y after the other: which, and their columns (groups, rows, taps * C // groups).

    The memory is used again for the next slice. With several groups it leaves room for a copy of those rows of y.
    """
    count, width = math.prod(y.shape[:-1]), math.prod(windows.taps) * x.shape[-1]
    numbers = room(x.shape, groups, windows, y.shape)
    if not numbers:
        for rows in pieces(count, MOST_ROWS):
            yield rows, x.reshape(count, width)[None, rows]
        return
    memory = backend.load_cupy().empty(numbers, x.dtype)
    for rows in pieces(count, numbers // width):
        size = rows.stop - rows.start
        columns = memory[: size * width].reshape(groups, size, width // groups)
        gather(x, windows, y, rows.start, columns)
        yield rows, columns


def room(x, groups, windows, y):
    """Numbers of a slice's columns, for arrays of these shapes; 0 where x itself is the matrix."""
    if groups == 1 and windows.see_one_position_each(x, y):
        return 0
    width = math.prod(windows.taps) * x[-1]
    most = SLICE // (width + (y[-1] if groups > 1 else 0))
    return max(1, min(math.prod(y[:-1]), most, MOST_ROWS)) * width


def pieces(n, most):
    return [slice(start, min(start + most, n)) for start in range(0, n, most)]


def gather(x, windows, y, begin, columns):
    """What windows see of x, from that position of y on: as many rows as there are of columns."""
    groups, rows, width = columns.shape
    channels = x.shape[-1] // groups
    pack = 4 if channels % 4 == 0 and x.data.ptr % 16 == 0 else 1  # numbers that a thread moves at once
    across = groups * width // pack
    threads = min(max(1 << (across - 1).bit_length(), WIDTHS[0]), WIDTHS[1])
    blocks = ceil_div(across, threads), min(ceil_div(rows, TILE), MOST_TILES)
    GATHER.launch(
        f"gather<T, {pack}>", x.dtype, blocks, (threads, WIDTHS[1] // threads),
        x, windows.record(x, y), groups, channels, begin, rows, columns,
    )  # fmt: skip


def by_group(matrix, groups):
    """The columns of each group as a matrix of its own: (rows, groups * n) -> (groups, rows, n)."""
    if groups == 1:
        return matrix[None]
    parts = matrix.reshape(len(matrix), groups, -1).transpose(1, 0, 2)
    return backend.load_cupy().ascontiguousarray(parts)
