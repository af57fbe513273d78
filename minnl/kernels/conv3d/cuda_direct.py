"""Convolution of few channels a group, depth-wise above all, without an im2col matrix: docs/kernels/conv3d.md."""

from __future__ import annotations

import math

from minnl import backend
from minnl.kernels.runtime.cuda import MAX_BLOCKS_Y, Source, ceil_div
from minnl.kernels.runtime.row_tiles import column_sums, tile

DIRECT = Source("conv3d/direct.cu", "correlate<T>", "weight_sums<T>")
RUN = 4  # A thread computes 4 outputs at once, as RUN of direct.cu says.
TAPS = 4  # A thread sums the gradients of 4 taps at once, as TAPS of direct.cu says.
LINES = 4  # A thread sums 4 lines of gy, and more where that would make too many slices (not timed).
MAX_SLICES = 128  # The weight's gradient is the sum of at most 128 partial gradients (not timed).
MAX_PARTIAL = 2**22  # The partial gradients together have at most 4 M numbers, 16 MB in float32, or are one.


def correlate(x, weight, groups, windows, y, bias=None):
    """y = windows of x times weight (kT, kH, kW, C // groups, K), plus bias."""
    threads, across = tile(y.shape[-1])
    runs = math.prod(y.shape[:3]) * ceil_div(y.shape[3], RUN)
    blocks = across, min(ceil_div(runs, threads[1]), MAX_BLOCKS_Y)
    DIRECT.launch(
        "correlate<T>", x.dtype, blocks, threads,
        x, weight, bias, windows.record(x, y), len(x), groups, x.shape[-1] // groups, y.shape[-1], y,
    )  # fmt: skip


def weight_gradient(x, gy, groups, windows, gw):
    """gw = windows of x, transposed, times gy: a partial gradient for each slice of gy's lines, then their sum."""
    *taps, kw, channels, outputs = gw.shape
    threads, across = tile(outputs)
    slices = min(ceil_div(math.prod(gy.shape[:3]), LINES * threads[1]), MAX_SLICES, max(1, MAX_PARTIAL // gw.size))
    partial = backend.load_cupy().empty((slices, *gw.shape), gw.dtype)
    blocks = across * math.prod(taps) * ceil_div(kw, TAPS) * channels, slices
    DIRECT.launch(
        "weight_sums<T>", x.dtype, blocks, threads,
        x, gy, windows.record(x, gy), len(x), groups, channels, outputs, partial,
    )  # fmt: skip
    column_sums(partial.reshape(slices, gw.size), gw)
