"""Softmax, its logarithm and cross-entropy in one or two launches: docs/kernels/cuda_softmax.md."""

from __future__ import annotations

import math

from minnl import backend
from minnl.kernels.runtime.cuda import MOST_BLOCKS, Source, ceil_div, contiguous
from minnl.kernels.runtime.cuda_kernel import CudaKernel
from minnl.ops.loss import CrossEntropy
from minnl.ops.softmax import LogSoftmax, Softmax

SOFTMAX = Source(
    "softmax/softmax.cu",
    "softmax<T, true>", "softmax<T, false>", "gradient<T, true>", "gradient<T, false>",
    "cross_entropy<T>", "sum_rows<T>", "cross_entropy_gradient<T>",
)  # fmt: skip
THREADS = 256
WARP = 1024  # numbers of a line of the last axis that a warp goes through; more take a block
SHARING = 8  # threads of a block that share a line along another axis
ROOM = 40 * 1024  # bytes that a block may keep its lines in; 48 KB are what it has, sums take some


class _AlongAxis(CudaKernel):
    """Along any axis."""

    logarithm = False

    def forward(self, x):
        (x,) = contiguous(x)
        lines = Lines(x, self.axis)
        self.y = backend.load_cupy().empty_like(x)
        lines.launch("softmax", x, *lines.sizes, self.logarithm, lines.room > 0, self.y, shared=lines.room)
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
            x, *target(self), rows, x.shape[-1], self.smoothing, lines.room > 0,
            self.e, self.total, losses, weights, shared=lines.room,
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
            "cross_entropy_gradient<T>", gx.dtype, lines.blocks, lines.threads, self.e, self.total, *target(self), gy,
            self.divisor if self.reduction == "mean" else None, self.reduction == "none", self.total.size, gx.shape[-1],
            self.smoothing, gx,
        )  # fmt: skip
        return (gx,)


def target(op):
    return contiguous(op.labels, op.ignored, op.weight)


class Lines:
    """The lines of an array along an axis, and how threads share them: by the shape alone, for the same bits.

    Along the last axis the smallest power of two that covers a line, up to a warp, or else a block.
    """

    def __init__(self, array, axis):
        self.dtype, n = array.dtype, array.shape[axis]
        inner, lines = math.prod(array.shape[axis + 1 :]), array.size // n
        self.sizes, self.rows = (lines, n, inner), inner == 1
        members = THREADS if self.rows and n > WARP else min(32 if self.rows else SHARING, 1 << (n - 1).bit_length())
        self.threads = (members, THREADS // members) if self.rows else (THREADS // members, members)
        self.blocks = min(ceil_div(lines, THREADS // members), MOST_BLOCKS)
        kept = ceil_div(n, members) * THREADS * array.itemsize
        self.room = kept if kept <= ROOM else 0

    def launch(self, kernel, *arguments, shared=0):
        name = f"{kernel}<T, {'true' if self.rows else 'false'}>"
        SOFTMAX.launch(name, self.dtype, self.blocks, self.threads, *arguments, shared=shared)
