"""Convolution of few channels a group, depth-wise above all, without columns: docs/kernels/cuda_conv.md."""

from __future__ import annotations

import math

from minnl import backend
from minnl.kernels.runtime.column_sums import column_sums, tile
from minnl.kernels.runtime.cuda import Source, ceil_div

DIRECT = Source("conv3d/direct.cu", "correlate<T>", "weight_sums<T>")
RUN, TAPS = 4, 4  # outputs, or taps, of a thread at once, as in conv_direct.cu
MOST_BLOCKS = 32768  # along the rows; a grid may have 65,535 there
LINES, MOST_SLICES = 4, 128  # lines of gy that a thread sums, more where there would be too many slices of them,
PARTIAL = 2**22  # or too many numbers in the sums of them all


def correlate(x, weight, groups, windows, y, bias=None):
    """y = windows of x times weight (kT, kH, kW, C // groups, K), plus bias."""
    threads, across = tile(y.shape[-1])
    runs = math.prod(y.shape[:3]) * ceil_div(y.shape[3], RUN)
    blocks = across, min(ceil_div(runs, threads[1]), MOST_BLOCKS)
    DIRECT.launch(
        "correlate<T>", x.dtype, blocks, threads,
        x, weight, bias, windows.record(x, y), len(x), groups, x.shape[-1] // groups, y.shape[-1], y,
    )  # fmt: skip


def weight_gradient(x, gy, groups, windows, gw):
    """gw = windows of x, transposed, times gy: a sum for each slice of gy's lines, then the sum of those."""
    *taps, kw, channels, outputs = gw.shape
    threads, across = tile(outputs)
    slices = min(ceil_div(math.prod(gy.shape[:3]), LINES * threads[1]), MOST_SLICES, max(1, PARTIAL // gw.size))
    partial = backend.load_cupy().empty((slices, *gw.shape), gw.dtype)
    blocks = across * math.prod(taps) * ceil_div(kw, TAPS) * channels, slices
    DIRECT.launch(
        "weight_sums<T>", x.dtype, blocks, threads,
        x, gy, windows.record(x, gy), len(x), groups, channels, outputs, partial,
    )  # fmt: skip
    column_sums(partial.reshape(slices, gw.size), gw)
