"""Softmax, its logarithm and cross-entropy in one or two launches: docs/kernels/cuda_softmax.md."""

from __future__ import annotations

import math

from minnl import backend
from minnl.kernels.cuda.kernel import GpuKernel
from minnl.kernels.cuda.source import MOST_BLOCKS, Source, ceil_div, contiguous

SOFTMAX = Source(
    "softmax.cu",
    "softmax<T, true>", "softmax<T, false>", "gradient<T, true>", "gradient<T, false>",
    "cross_entropy<T>", "sum_rows<T>", "cross_entropy_gradient<T>",
)  # fmt: skip
THREADS = 256
WARP = 1024  # numbers of a line of the last axis that a warp goes through; more take a block
SHARING = 8  # threads of a block that share a line along another axis
ROOM = 40 * 1024  # bytes that a block may keep its lines in; 48 KB are what it has, sums take some


class OneLaunchSoftmax(GpuKernel):
    """Along any axis."""

    logarithm = False

    @classmethod
    def forward(cls, op, x):
        (x,) = contiguous(x)
        lines = Lines(x, op.axis)
        op.y = backend.load_cupy().empty_like(x)
        lines.launch("softmax", x, *lines.sizes, cls.logarithm, lines.room > 0, op.y, shared=lines.room)
        return op.y

    @classmethod
    def backward(cls, op, gy):
        y, gy = contiguous(op.y, gy)
        lines, gx = Lines(y, op.axis), backend.load_cupy().empty_like(y)
        lines.launch("gradient", y, gy, *lines.sizes, cls.logarithm, gx)
        return (gx,)


class OneLaunchLogSoftmax(OneLaunchSoftmax):
    logarithm = True


class GpuCrossEntropy(GpuKernel):
    @staticmethod
    def forward(op, x):
        (x,), rows = contiguous(x), math.prod(x.shape[:-1])
        lines, new = Lines(x, x.ndim - 1), backend.load_cupy().empty
        op.e = op.total = None
        if op.needs[0]:
            op.e, op.total = new(x.shape, dtype=x.dtype), new((*x.shape[:-1], 1), dtype=x.dtype)
        losses, weights = new(x.shape[:-1], dtype=x.dtype), new(rows, dtype=x.dtype)
        SOFTMAX.launch(
            "cross_entropy<T>", x.dtype, lines.blocks, lines.threads, x, *target(op), rows, x.shape[-1], op.smoothing,
            lines.room > 0, op.e, op.total, losses, weights, shared=lines.room,
        )  # fmt: skip
        if op.reduction == "none":
            return losses
        loss, op.divisor = new((), dtype=x.dtype), new((), dtype=x.dtype)
        mean = op.reduction == "mean"
        SOFTMAX.launch("sum_rows<T>", x.dtype, 1, 1024, losses, weights, rows, mean, loss, op.divisor)
        return loss

    @staticmethod
    def backward(op, gy):
        (gy,), gx = contiguous(gy), backend.load_cupy().empty_like(op.e)
        lines = Lines(gx, gx.ndim - 1)
        SOFTMAX.launch(
            "cross_entropy_gradient<T>", gx.dtype, lines.blocks, lines.threads, op.e, op.total, *target(op), gy,
            op.divisor if op.reduction == "mean" else None, op.reduction == "none", op.total.size, gx.shape[-1],
            op.smoothing, gx,
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
