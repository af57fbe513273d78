"""Softmax, its logarithm and cross-entropy in one or two launches: docs/kernels/softmax.md."""

from __future__ import annotations

import math

from minnl import backend
from minnl.kernels.runtime.cuda import MAX_BLOCKS, THREADS, CudaKernel, Source, ceil_div, contiguous, power_of_two
from minnl.ops.loss import CrossEntropy
from minnl.ops.softmax import LogSoftmax, Softmax

SOFTMAX = Source(
    "softmax/softmax.cu",
    "softmax<T, true>", "softmax<T, false>", "gradient<T, true>", "gradient<T, false>",
    "cross_entropy<T>", "sum_rows<T>", "cross_entropy_gradient<T>",
)  # fmt: skip
LONG_LINE = 1024  # A line of more than 1,024 numbers along the last axis takes a block, a shorter one a warp or less.
SHARING = 8  # Along another axis 8 threads share a line, so a warp reads 32 neighbouring lines (not timed).
MAX_SHARED = 40 * 1024  # A block keeps at most 40 KB of numbers in shared memory, of 48 KB; sums take the rest.


class _AlongAxis(CudaKernel):
    """Softmax or its logarithm along any axis."""

    logarithm = False

    def forward(self, x):
        (x,) = contiguous(x)
        lines = Lines(x, self.axis)
        self.y = backend.load_cupy().empty_like(x)
        lines.launch("softmax", x, *lines.sizes, self.logarithm, lines.shared > 0, self.y, shared=lines.shared)
        return self.y

    def backward(self, gy):
        y, gy = contiguous(self.y, gy)
        lines, gx = Lines(y, self.axis), backend.load_cupy().empty_like(y)
        lines.launch("gradient", y, gy, *lines.sizes, self.logarithm, gx)
        return (gx,)


class CudaSoftmax(_AlongAxis, Softmax):
    pass


class CudaLogSoftmax(_AlongAxis, LogSoftmax):
    logarithm = True


class CudaCrossEntropy(CudaKernel, CrossEntropy):
    def forward(self, x):
        (x,), rows = contiguous(x), math.prod(x.shape[:-1])
        lines, new = Lines(x, x.ndim - 1), backend.load_cupy().empty
        self.e = self.total = None
        if self.needs[0]:
            self.e, self.total = new(x.shape, dtype=x.dtype), new((*x.shape[:-1], 1), dtype=x.dtype)
        losses, weights = new(x.shape[:-1], dtype=x.dtype), new(rows, dtype=x.dtype)
        SOFTMAX.launch(
            "cross_entropy<T>", x.dtype, lines.blocks, lines.threads,
            x, *self.target_arrays(), rows, x.shape[-1], self.smoothing, lines.shared > 0,
            self.e, self.total, losses, weights, shared=lines.shared,
        )  # fmt: skip
        if self.reduction == "none":
            return losses
        loss, self.divisor = new((), dtype=x.dtype), new((), dtype=x.dtype)
        mean = self.reduction == "mean"
        SOFTMAX.launch("sum_rows<T>", x.dtype, 1, 1024, losses, weights, rows, mean, loss, self.divisor)
        return loss

    def backward(self, gy):
        (gy,), gx = contiguous(gy), backend.load_cupy().empty_like(self.e)
        lines = Lines(gx, gx.ndim - 1)
        SOFTMAX.launch(
            "cross_entropy_gradient<T>", gx.dtype, lines.blocks, lines.threads,
            self.e, self.total, *self.target_arrays(), gy, self.divisor if self.reduction == "mean" else None,
            self.reduction == "none", self.total.size, gx.shape[-1], self.smoothing, gx,
        )  # fmt: skip
        return (gx,)

    def target_arrays(self):
        return contiguous(self.labels, self.ignored, self.weight)


class Lines:
    """The lines of an array along an axis, and how threads share them.

    Along the last axis the smallest power of two that covers a line, up to a warp, or else a block. The shape alone
    decides, so sums have the same bits on any GPU.
    """

    def __init__(self, array, axis):
        self.dtype, n = array.dtype, array.shape[axis]
        inner, lines = math.prod(array.shape[axis + 1 :]), array.size // n
        self.sizes, self.rows = (lines, n, inner), inner == 1
        size = THREADS if self.rows and n > LONG_LINE else power_of_two(n, 32 if self.rows else SHARING)
        self.threads = (size, THREADS // size) if self.rows else (THREADS // size, size)
        self.blocks = min(ceil_div(lines, THREADS // size), MAX_BLOCKS)
        shared = ceil_div(n, size) * THREADS * array.itemsize
        self.shared = shared if shared <= MAX_SHARED else 0  # bytes

    def launch(self, kernel, *arguments, shared=0):
        name = f"{kernel}<T, {'true' if self.rows else 'false'}>"
        SOFTMAX.launch(name, self.dtype, self.blocks, self.threads, *arguments, shared=shared)
