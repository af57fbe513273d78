"""Batch norm with residual and ReLU in few launches: docs/kernels/cuda_batch_norm.md."""

from __future__ import annotations

from minnl import backend
from minnl.engine import hollow
from minnl.kernels.runtime.cuda import Source, ceil_div, contiguous, grid
from minnl.kernels.runtime.cuda_kernel import CudaKernel
from minnl.ops.norm import BatchNorm, FrozenBatchNorm

NORM = Source(
    "batch_norm/batch_norm.cu",
    "moments<T>", "merge_moments<T>", "invert<T>", "normalise<T>", "sums<T>", "merge_sums<T>", "gradient<T>",
)  # fmt: skip
THREADS = 256
SUMMED, WRITTEN = 16, 4  # rows that a thread goes through if it sums, or writes
MOST_SUMMED, MOST_WRITTEN = 512, 32768  # blocks along the rows; a grid may have 65,535 there


class CudaBatchNorm(CudaKernel, BatchNorm):
    """With the statistics of the batch."""

    keeps = (*BatchNorm.keeps, "left")

    @staticmethod
    def suits(op, arrays):
        return CudaKernel.suits(op, arrays) and all(a.flags.c_contiguous for a in op.running or ())

    def forward(self, x, weight, bias, *residual):
        self.x, self.weight, bias, *residual = contiguous(x, weight, bias, *residual)
        walk, xp = Walk(self.x), backend.load_cupy()
        self.mean, self.left, self.rstd = (xp.empty_like(self.weight) for _ in range(3))
        partial = walk.partial(3)
        walk.sum("moments<T>", self.x, *walk.sizes, partial)
        walk.merge(
            "merge_moments<T>", partial, self.x, len(partial), walk.channels, self.eps, self.momentum,
            self.mean, self.left, self.rstd, *(self.running or (None, None)),
        )  # fmt: skip
        y = normalised(self, walk, self.x, self.weight, bias, *residual)
        self.y = y if self.relu else None
        return y

    def backward(self, gy):
        (gy,) = contiguous(gy)
        walk = Walk(gy)
        gweight, gbias = gradients_of_channels(self, walk, gy)
        gx, gresidual = gradients(self, walk, gy, gbias, gweight)
        return (gx, gweight, gbias, gresidual)[: len(self.needs)]

    def workspace(self):
        """The partial results of the sums over positions: see :meth:`CudaKernel.workspace`."""
        walk = Walk(self.x)
        bytes_ = walk.slices(SUMMED, MOST_SUMMED) * walk.channels * self.x.itemsize
        return [[3 * bytes_]], [], [[2 * bytes_]]

    def infer(self, x, weight, *others):
        self.left = hollow(weight.shape, x.dtype)
        return super().infer(x, weight, *others)


class CudaFrozenBatchNorm(CudaKernel, FrozenBatchNorm):
    """With given statistics."""

    keeps = (*FrozenBatchNorm.keeps, "left")

    def forward(self, x, weight, bias, *residual):
        x, weight, bias, self.mean, var, *residual = contiguous(x, weight, bias, self.mean, self.var, *residual)
        walk, self.left, self.rstd = Walk(x), None, backend.load_cupy().empty_like(weight)
        NORM.launch("invert<T>", x.dtype, *grid(var.size), var, var.size, self.eps, self.rstd)
        y = normalised(self, walk, x, weight, bias, *residual)
        self.keep(x, weight, y)
        return y

    def backward(self, gy):
        (gy,) = contiguous(gy)
        walk = Walk(gy)
        gweight, gbias = gradients_of_channels(self, walk, gy) if any(self.needs[1:3]) else (None, None)
        gx, gresidual = gradients(self, walk, gy)
        return (gx, gweight if self.needs[1] else None, gbias, gresidual)[: len(self.needs)]

    def infer(self, *inputs):
        self.left = None
        return super().infer(*inputs)


class Walk:
    """How threads go over an array of positions (rows) and channels: a block is a tile of both, as wide as it can be.

    It depends on the shape alone, so sums have the same bits on any GPU.
    """

    def __init__(self, array):
        self.dtype, self.channels = array.dtype, array.shape[-1]
        self.rows = array.size // self.channels
        width = min(32, 1 << (self.channels - 1).bit_length())
        self.threads = width, THREADS // width
        self.across = ceil_div(self.channels, width)
        self.sizes = self.rows, self.channels

    def slices(self, rows_each, most):
        return min(ceil_div(self.rows, rows_each * self.threads[1]), most)

    def partial(self, numbers):
        """Memory for what each slice of rows leaves of each channel."""
        shape = self.slices(SUMMED, MOST_SUMMED), self.channels, numbers
        return backend.load_cupy().empty(shape, dtype=self.dtype)

    def sum(self, kernel, *arguments):
        NORM.launch(kernel, self.dtype, (self.across, self.slices(SUMMED, MOST_SUMMED)), self.threads, *arguments)

    def merge(self, kernel, *arguments):
        NORM.launch(kernel, self.dtype, (self.across, 1), self.threads, *arguments)

    def write(self, kernel, *arguments):
        NORM.launch(kernel, self.dtype, (self.across, self.slices(WRITTEN, MOST_WRITTEN)), self.threads, *arguments)


def normalised(op, walk, x, weight, bias, residual=None):
    y = backend.load_cupy().empty_like(x)
    walk.write("normalise<T>", x, op.mean, op.left, op.rstd, weight, bias, residual, op.relu, *walk.sizes, y)
    return y


def gradients_of_channels(op, walk, gy):
    """gweight and gbias; of no use is gweight if the op kept no x."""
    xp = backend.load_cupy()
    gweight, gbias, partial = xp.empty_like(op.weight), xp.empty_like(op.weight), walk.partial(2)
    walk.sum("sums<T>", gy, op.y, op.x, op.mean, op.left, op.rstd, *walk.sizes, partial)
    walk.merge("merge_sums<T>", partial, len(partial), walk.channels, gbias, gweight)
    return gweight, gbias


def gradients(op, walk, gy, gbias=None, gweight=None):
    """Those of x and of the residual, in one launch; without gbias and gweight the statistics were given."""
    xp = backend.load_cupy()
    gx = xp.empty_like(gy) if op.needs[0] else None
    apart = any(op.needs[3:]) and op.relu  # without ReLU the residual's gradient is gy
    gresidual = xp.empty_like(gy) if apart else gy
    if gx is not None or apart:
        x = None if gbias is None else op.x
        walk.write(
            "gradient<T>", gy, op.y, x, op.mean, op.left, op.rstd, op.weight, gbias, gweight, *walk.sizes, gx,
            gresidual if apart else None,
        )  # fmt: skip
    return gx, gresidual
