"""Pooling in one launch forward and one back: docs/kernels/cuda_pool.md."""

from __future__ import annotations

import math

from minnl import backend
from minnl.kernels.cuda.kernel import GpuKernel
from minnl.kernels.cuda.pool_axis import adaptive, sliding
from minnl.kernels.cuda.source import Source, ceil_div, contiguous

POOL = Source(
    "pool.cu",
    "largest<T, unsigned char, true>", "largest<T, index_t, false>", "mean<T>",
    "gradient<T, unsigned char>", "gradient<T, index_t>",
)  # fmt: skip
THREADS = 256
ENOUGH = 1 << 17  # threads that keep a GPU busy: with fewer outputs some threads share a window
MOST_LINES = 65535  # blocks along y
MOST_COUNTED = 2**31 - 1  # what the tables of windows hold


class GpuPool(GpuKernel):
    """What all pooling does; ``axes(op, device)`` gives the windows along each axis.

    `kernel` goes forward, `gradient` back; `winner` is the dtype of what the first keeps, None for a mean.
    """

    kernel, gradient, winner = "mean<T>", "gradient<T, unsigned char>", None

    @classmethod
    def suits(cls, op, arrays):
        _, *positions, channels = arrays[0].shape
        return GpuKernel.suits(op, arrays) and max(math.prod(positions), channels) <= MOST_COUNTED

    @classmethod
    def forward(cls, op, x):
        (x,), op.shape, xp = contiguous(x), x.shape, backend.load_cupy()
        axes = cls.axes(op, backend.device_of(x))
        y = xp.empty((x.shape[0], *(a.windows for a in axes), x.shape[4]), dtype=x.dtype)
        results = [y]
        if cls.winner:
            op.winner = xp.empty(y.shape, dtype=cls.winner) if op.needs[0] else None
            results.append(op.winner)
        sizes = *x.shape[1:], lines(y), *y.shape[1:4]
        launch(cls.kernel, y.shape, axes[0].taps * axes[1].taps, x, *(a.table for a in axes), *sizes, *results)
        return y

    @classmethod
    def backward(cls, op, gy):
        (gy,) = contiguous(gy)
        axes, gx = cls.axes(op, backend.device_of(gy)), backend.load_cupy().empty(op.shape, dtype=gy.dtype)
        tables = *(a.table for a in axes), *(a.seen for a in axes)
        sizes = lines(gx), *gx.shape[1:], *gy.shape[1:4]
        launch(cls.gradient, gx.shape, 1, gy, op.winner if cls.winner else None, *tables, *sizes, gx)
        return (gx,)


class Sliding(GpuPool):
    """`counted(op)` says, for each axis, how many taps of a window count."""

    @classmethod
    def axes(cls, op, device):
        before, _ = zip(*op.pads, strict=True)
        along = op.shape[1:4], op.sizes(op.shape), op.kernel, op.stride, op.dilation, before, cls.counted(op)
        return [sliding(device, *numbers) for numbers in zip(*along, strict=True)]


class Adaptive(GpuPool):
    @staticmethod
    def axes(op, device):
        return [adaptive(device, size, cells) for size, cells in zip(op.shape[1:4], op.sizes, strict=True)]


class GpuMaxPool(Sliding):
    kernel, winner = "largest<T, unsigned char, true>", "uint8"

    @staticmethod
    def counted(op):
        return op.kernel


class GpuAvgPool(Sliding):
    @classmethod
    def suits(cls, op, arrays):
        return super().suits(op, arrays) and abs(op.divisor_override or 1) <= MOST_COUNTED

    @staticmethod
    def counted(op):
        if op.divisor_override is not None:
            return 1, 1, op.divisor_override  # the product of the three is what a sum is divided by
        if op.count_include_pad:
            return [(-before, size + after) for size, (before, after) in zip(op.shape[1:4], op.pads, strict=True)]
        return [(0, size) for size in op.shape[1:4]]


class GpuAdaptiveMaxPool(Adaptive):
    kernel, gradient, winner = "largest<T, index_t, false>", "gradient<T, index_t>", "int64"


class GpuAdaptiveAvgPool(Adaptive):
    pass


def lines(array):
    """How many lines of columns and channels an array (N, T, H, W, C) has."""
    return math.prod(array.shape[:3])


def launch(kernel, shape, shared, *arguments):
    """A thread for each place of a line; `shared` is how many threads could work for one place at most.

    It depends on the shape alone, so sums have the same bits on any GPU.
    """
    line, many = shape[3] * shape[4], math.prod(shape[:3])
    across, share = power(line, 32), 1
    while 2 * share <= min(shared, THREADS // across) and math.prod(shape) * share < ENOUGH:
        share *= 2
    across = max(power(line, THREADS // share), 32 // share)
    blocks = ceil_div(line, across), min(many, MOST_LINES)
    POOL.launch(kernel, arguments[0].dtype, blocks, (across, share), *arguments)


def power(n, most):
    """The first power of two that is n or more, but at most `most`, which is one."""
    return min(1 << (n - 1).bit_length(), most)
