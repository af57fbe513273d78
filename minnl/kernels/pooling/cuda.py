"""Pooling in one launch forward and one backward: docs/kernels/pooling.md."""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import numpy as np

from minnl import backend
from minnl.kernels.runtime.cuda import MAX_BLOCKS_Y, THREADS, CudaKernel, Source, ceil_div, contiguous, power_of_two
from minnl.ops.adaptive_pool import AdaptiveAvgPool3d, AdaptiveMaxPool3d
from minnl.ops.pool import AvgPool3d, MaxPool3d

POOL = Source(
    "pooling/pooling.cu",
    "pool<T, unsigned char, Argmax<T, true>>", "pool<T, index_t, Argmax<T, false>>", "pool<T, unsigned char, Mean>",
    "gradient<T, unsigned char>", "gradient<T, index_t>",
)  # fmt: skip
ENOUGH_THREADS = 1 << 17  # 131,072 threads keep a GPU busy; with fewer outputs several threads share a window.
MAX_COUNT = 2**31 - 1  # The tables of windows hold numbers of 32 bits.


class _Pool(CudaKernel):
    """Pooling over any windows. ``axes(device)`` gives the windows along T, H and W as an :class:`Axis` each.

    `argmax_dtype` is the dtype of the argmax that forward saves, None for a mean.
    """

    forward_kernel, gradient_kernel, argmax_dtype = "pool<T, unsigned char, Mean>", "gradient<T, unsigned char>", None

    @classmethod
    def suits(cls, op, arrays):
        _, *positions, channels = arrays[0].shape
        return CudaKernel.suits(op, arrays) and max(math.prod(positions), channels) <= MAX_COUNT

    def forward(self, x):
        (x,), self.shape, xp = contiguous(x), x.shape, backend.load_cupy()
        axes = self.axes(backend.device_of(x))
        y = xp.empty((x.shape[0], *(a.out for a in axes), x.shape[4]), dtype=x.dtype)
        argmax = xp.empty(y.shape, dtype=self.argmax_dtype) if self.argmax_dtype and self.needs[0] else None
        if self.argmax_dtype:
            self.argmax = argmax
        sizes = *x.shape[1:], lines(y), *y.shape[1:4]
        windows = [a.windows for a in axes]
        launch(self.forward_kernel, y.shape, axes[0].taps * axes[1].taps, x, *windows, *sizes, y, argmax)
        return y

    def backward(self, gy):
        (gy,) = contiguous(gy)
        axes, gx = self.axes(backend.device_of(gy)), backend.load_cupy().empty(self.shape, dtype=gy.dtype)
        tables = *(a.windows for a in axes), *(a.covering for a in axes)
        sizes = lines(gx), *gx.shape[1:], *gy.shape[1:4]
        argmax = self.argmax if self.argmax_dtype else None
        launch(self.gradient_kernel, gx.shape, 1, gy, argmax, *tables, *sizes, gx)
        return (gx,)


class _Sliding(_Pool):
    """Windows of one size. ``counted()`` gives, for each axis, how many taps of a window count."""

    def axes(self, device):
        sizes, padding = self.sizes(self.shape), [before for before, _ in self.pads]
        along = self.shape[1:4], sizes, self.kernel, self.stride, self.dilation, padding, self.counted()
        return [sliding(device, *numbers) for numbers in zip(*along, strict=True)]


class _Adaptive(_Pool):
    def axes(self, device):
        return [adaptive(device, size, cells) for size, cells in zip(self.shape[1:4], self.sizes, strict=True)]


class CudaMaxPool3d(_Sliding, MaxPool3d):
    forward_kernel, argmax_dtype = "pool<T, unsigned char, Argmax<T, true>>", "uint8"

    def counted(self):
        return self.kernel


class CudaAvgPool3d(_Sliding, AvgPool3d):
    @classmethod
    def suits(cls, op, arrays):
        return super().suits(op, arrays) and abs(op.divisor_override or 1) <= MAX_COUNT

    def counted(self):
        if self.divisor_override is not None:
            return 1, 1, self.divisor_override  # the kernel divides by the product of the three
        if self.count_include_pad:
            return [(-before, size + after) for size, (before, after) in zip(self.shape[1:4], self.pads, strict=True)]
        return [(0, size) for size in self.shape[1:4]]


class CudaAdaptiveMaxPool3d(_Adaptive, AdaptiveMaxPool3d):
    forward_kernel, gradient_kernel = "pool<T, index_t, Argmax<T, false>>", "gradient<T, index_t>"
    argmax_dtype = "int64"


class CudaAdaptiveAvgPool3d(_Adaptive, AdaptiveAvgPool3d):
    pass


class Axis(NamedTuple):
    """The windows along an axis of the input. The two tables lie on the GPU."""

    out: int  # the number of windows
    taps: int  # of the largest window
    windows: object  # (out, 5) int32: the struct Window of pooling.cu
    covering: object  # (size, 2) int32: the struct Covering of pooling.cu


@functools.lru_cache(1024)
def sliding(device, size, out, kernel, stride, dilation, padding, counted):
    """Windows that move by `stride`. The first one begins `padding` positions before position 0.

    `counted` is the number of taps that each window counts, or a pair (low, high): taps from low to high count.
    """
    start = np.arange(out) * stride - padding
    if isinstance(counted, tuple):
        counted = np.clip(start + kernel, *counted) - np.clip(start, *counted)
    step = dilation if kernel > 1 else 1  # the dilation of a single tap may be any number, and says nothing
    return _axis(device, size, start, step, np.full(out, kernel), counted)


@functools.lru_cache(1024)
def adaptive(device, size, cells):
    """Cell i covers the positions from floor(i * size / cells) to ceil((i + 1) * size / cells)."""
    i = np.arange(cells)
    start = i * size // cells
    taps = -(-(i + 1) * size // cells) - start
    return _axis(device, size, start, 1, taps, taps)


def _axis(device, size, start, step, taps, counted):
    first = np.clip(-(start // step), 0, taps - 1)
    last = np.minimum(-((start - size) // step), taps)
    windows = np.empty((len(start), 5), np.int32)
    for column, values in enumerate((start, step, first, last, counted)):
        windows[:, column] = values
    # No window starts or ends before the previous window does, so two searches tell which windows cover a position.
    position, end = np.arange(size), start + (taps - 1) * step + 1
    covering = np.stack([np.searchsorted(a, position, "right") for a in (end, start)], 1).astype(np.int32)
    return Axis(len(start), int(taps.max()), *(backend.to_device(a, device) for a in (windows, covering)))


def lines(array):
    """The number of lines of an array (N, T, H, W, C); a line is W * C numbers."""
    return math.prod(array.shape[:3])


def launch(kernel, shape, most, *arguments):
    """Launch a kernel with a thread, or up to `most` threads, for each number of a result of that shape.

    The number of threads depends on the shape alone, so sums have the same bits on any GPU.
    """
    line = shape[3] * shape[4]
    across, share = power_of_two(line), 1
    while 2 * share <= min(most, THREADS // across) and math.prod(shape) * share < ENOUGH_THREADS:
        share *= 2
    across = max(power_of_two(line, THREADS // share), 32 // share)
    blocks = ceil_div(line, across), min(math.prod(shape[:3]), MAX_BLOCKS_Y)
    POOL.launch(kernel, arguments[0].dtype, blocks, (across, share), *arguments)
