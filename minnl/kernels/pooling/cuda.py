"""Pooling in one launch forward and one back: docs/kernels/cuda_pool.md."""

from __future__ import annotations

import math

from minnl import backend
from minnl.kernels.pooling.cuda_axis import adaptive, sliding
from minnl.kernels.runtime.cuda import Source, ceil_div, contiguous
from minnl.kernels.runtime.cuda_kernel import CudaKernel
from minnl.ops.adaptive_pool import AdaptiveAvgPool3d, AdaptiveMaxPool3d
from minnl.ops.pool import AvgPool3d, MaxPool3d

POOL = Source(
    "pooling/pooling.cu",
    "largest<T, unsigned char, true>", "largest<T, index_t, false>", "mean<T>",
    "gradient<T, unsigned char>", "gradient<T, index_t>",
)  # fmt: skip
THREADS = 256
ENOUGH = 1 << 17  # threads that keep a GPU busy: with fewer outputs some threads share a window
MOST_LINES = 65535  # blocks along y
MOST_COUNTED = 2**31 - 1  # what the tables of windows hold


class GpuPool(CudaKernel):
    """What all pooling does; ``windows_of_axes(device)`` gives the windows along each axis.

    `winner_dtype` is the dtype of what forward saves, None for a mean.
    """

    forward_kernel, gradient_kernel, winner_dtype = "mean<T>", "gradient<T, unsigned char>", None

    @classmethod
    def suits(cls, op, arrays):
        _, *positions, channels = arrays[0].shape
        return CudaKernel.suits(op, arrays) and max(math.prod(positions), channels) <= MOST_COUNTED

    def forward(self, x):
        (x,), self.shape, xp = contiguous(x), x.shape, backend.load_cupy()
        axes = self.windows_of_axes(backend.device_of(x))
        y = xp.empty((x.shape[0], *(a.windows for a in axes), x.shape[4]), dtype=x.dtype)
        results = [y]
        if self.winner_dtype:
            self.winner = xp.empty(y.shape, dtype=self.winner_dtype) if self.needs[0] else None
            results.append(self.winner)
        sizes = *x.shape[1:], lines(y), *y.shape[1:4]
        launch(self.forward_kernel, y.shape, axes[0].taps * axes[1].taps, x, *(a.table for a in axes), *sizes, *results)
        return y

    def backward(self, gy):
        (gy,) = contiguous(gy)
        axes, gx = self.windows_of_axes(backend.device_of(gy)), backend.load_cupy().empty(self.shape, dtype=gy.dtype)
        tables = *(a.table for a in axes), *(a.seen for a in axes)
        sizes = lines(gx), *gx.shape[1:], *gy.shape[1:4]
        launch(self.gradient_kernel, gx.shape, 1, gy, self.winner if self.winner_dtype else None, *tables, *sizes, gx)
        return (gx,)


class Sliding(GpuPool):
    """`counted()` says, for each axis, how many taps of a window count."""

    def windows_of_axes(self, device):
        before, _ = zip(*self.pads, strict=True)
        sizes = self.sizes(self.shape)
        along = self.shape[1:4], sizes, self.kernel, self.stride, self.dilation, before, self.counted()
        return [sliding(device, *numbers) for numbers in zip(*along, strict=True)]


class Adaptive(GpuPool):
    def windows_of_axes(self, device):
        return [adaptive(device, size, cells) for size, cells in zip(self.shape[1:4], self.sizes, strict=True)]


class CudaMaxPool3d(Sliding, MaxPool3d):
    forward_kernel, winner_dtype = "largest<T, unsigned char, true>", "uint8"

    def counted(self):
        return self.kernel


class CudaAvgPool3d(Sliding, AvgPool3d):
    @classmethod
    def suits(cls, op, arrays):
        return super().suits(op, arrays) and abs(op.divisor_override or 1) <= MOST_COUNTED

    def counted(self):
        if self.divisor_override is not None:
            return 1, 1, self.divisor_override  # the product of the three is what a sum is divided by
        if self.count_include_pad:
            return [(-before, size + after) for size, (before, after) in zip(self.shape[1:4], self.pads, strict=True)]
        return [(0, size) for size in self.shape[1:4]]


class CudaAdaptiveMaxPool3d(Adaptive, AdaptiveMaxPool3d):
    forward_kernel, gradient_kernel, winner_dtype = "largest<T, index_t, false>", "gradient<T, index_t>", "int64"


class CudaAdaptiveAvgPool3d(Adaptive, AdaptiveAvgPool3d):
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
