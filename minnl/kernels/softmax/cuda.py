"""Softmax, its logarithm and cross-entropy in one or two launches: docs/kernels/softmax.md."""

from __future__ import annotations

import math

from minnl import backend
from minnl.kernels.runtime.cuda import THREADS, CudaKernel, Source, ceil_div, contiguous, row_grid
from minnl.ops.loss import CrossEntropy
from minnl.ops.softmax import LogSoftmax, Softmax

SOFTMAX = Source(
    "softmax/softmax.cu",
    "softmax<T>", "gradient<T>", "cross_entropy<T>", "sum_rows<T>", "cross_entropy_gradient<T>",
)  # fmt: skip
MAX_SHARED = 40 * 1024  # A block keeps at most 40 KB of numbers in shared memory, of 48 KB; sums take the rest.


class _AlongAxis(CudaKernel):
    """Softmax or its logarithm. Another axis than the last is swapped with the last one."""

    logarithm = False

    def forward(self, x):
        (x,) = contiguous(x.swapaxes(self.axis, -1))
        y, (rows, n) = backend.load_cupy().empty_like(x), rows_of(x)
        shared = shared_bytes(x)
        SOFTMAX.launch(
            "softmax<T>", x.dtype, *row_grid(rows, n), x, rows, n, self.logarithm, shared > 0, y, shared=shared
        )
        (self.y,) = contiguous(y.swapaxes(self.axis, -1))
        return self.y

    def backward(self, gy):
        y, gy = contiguous(*(a.swapaxes(self.axis, -1) for a in (self.y, gy)))
        gx, (rows, n) = backend.load_cupy().empty_like(y), rows_of(y)
        SOFTMAX.launch("gradient<T>", y.dtype, *row_grid(rows, n), y, gy, rows, n, self.logarithm, gx)
        return contiguous(gx.swapaxes(self.axis, -1))


class CudaSoftmax(_AlongAxis, Softmax):
    pass


class CudaLogSoftmax(_AlongAxis, LogSoftmax):
    logarithm = True


class CudaCrossEntropy(CudaKernel, CrossEntropy):
    def forward(self, x):
        (x,), (rows, classes), new = contiguous(x), rows_of(x), backend.load_cupy().empty
        self.e = self.total = None
        if self.needs[0]:
            self.e, self.total = new(x.shape, dtype=x.dtype), new((*x.shape[:-1], 1), dtype=x.dtype)
        losses, weights = new(x.shape[:-1], dtype=x.dtype), new(rows, dtype=x.dtype)
        shared = shared_bytes(x)
        SOFTMAX.launch(
            "cross_entropy<T>", x.dtype, *row_grid(rows, classes),
            x, *self.target_arrays(), rows, classes, self.smoothing, shared > 0,
            self.e, self.total, losses, weights, shared=shared,
        )  # fmt: skip
        if self.reduction == "none":
            return losses
        loss, self.divisor = new((), dtype=x.dtype), new((), dtype=x.dtype)
        mean = self.reduction == "mean"
        SOFTMAX.launch("sum_rows<T>", x.dtype, 1, 1024, losses, weights, rows, mean, loss, self.divisor)
        return loss

    def backward(self, gy):
        (gy,), gx, (rows, classes) = contiguous(gy), backend.load_cupy().empty_like(self.e), rows_of(self.e)
        SOFTMAX.launch(
            "cross_entropy_gradient<T>", gx.dtype, *row_grid(rows, classes),
            self.e, self.total, *self.target_arrays(), gy, self.divisor if self.reduction == "mean" else None,
            self.reduction == "none", rows, classes, self.smoothing, gx,
        )  # fmt: skip
        return (gx,)

    def target_arrays(self):
        return contiguous(self.labels, self.ignored, self.weight)


def rows_of(x):
    """(rows, numbers of a row) of an array as a matrix."""
    return math.prod(x.shape[:-1]), x.shape[-1]


def shared_bytes(x):
    """Shared memory of a block for its numbers, or 0 where the rows of x are too long for that."""
    _, (width, _) = row_grid(*rows_of(x))
    needed = ceil_div(x.shape[-1], width) * THREADS * x.itemsize
    return needed if needed <= MAX_SHARED else 0
