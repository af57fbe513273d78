"""Convolution on a GPU: the choice of the method, and the input's gradient. docs/kernels/conv3d.md.

As on the CPU the three passes are one computation, the correlation of a clip with a weight, and its transpose. So
cuda_im2col and cuda_direct have two functions each, ``correlate`` and ``weight_gradient``.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np

from minnl import backend
from minnl.kernels.conv3d import cuda_direct, cuda_im2col
from minnl.kernels.runtime.cuda import CudaKernel, contiguous
from minnl.kernels.runtime.row_tiles import column_sums
from minnl.ops.conv import Conv3d

SMALL = 256  # A tap whose matrix has at most 256 numbers a group, 16 x 16, is too small for cuBLAS (not timed).
MAX_COORDINATE = 2**31 - 1  # Kernels hold a coordinate in 32 bits, and an index into an array in 64.
UNIT = (1, 1, 1)
AXIS = np.dtype([(name, np.int32) for name in ("size", "out", "taps", "stride", "padding", "dilation")])
WINDOWS = np.dtype([(axis, AXIS) for axis in "thw"])


class CudaConv3d(CudaKernel, Conv3d):
    """Any stride, padding, dilation and number of groups."""

    @staticmethod
    def suits(op, arrays):
        x, weight, *_ = arrays
        padded = [n + sum(pads) for n, pads in zip(x.shape[1:4], op.pads, strict=True)]
        largest = max(*padded, *op.stride, *op.dilation, weight.size)
        return CudaKernel.suits(op, arrays) and largest <= MAX_COORDINATE

    def forward(self, x, weight, bias=None):
        self.x, self.weight, bias = contiguous(x, weight, bias)
        y = backend.load_cupy().empty(self.out_shape(x, weight), x.dtype)
        self.method().correlate(self.x, self.weight, self.groups, self.windows(), y, bias)
        return y

    def backward(self, gy):
        (gy,), gx, gw = contiguous(gy), None, None
        if self.needs[0]:
            gx = self.input_gradient(gy)
        if self.needs[1]:
            gw = backend.load_cupy().empty_like(self.weight)
            self.method().weight_gradient(self.x, gy, self.groups, self.windows(), gw)
        gb = (column_sums(gy.reshape(-1, gy.shape[-1])) if self.needs[2] else None,) if len(self.needs) == 3 else ()
        return gx, gw, *gb

    def input_gradient(self, gy):
        """gy spread by the weight: for each phase of the stride a correlation of gy with some taps, mirrored.

        With stride s tap k of output o reads input s o + k d - padding. So the inputs s j + phase meet a regular subset
        of the taps only, and along these taps output and input move together: a correlation of stride 1.
        """
        xp, (*kernel, channels, outputs) = backend.load_cupy(), self.weight.shape
        axes = self.phases()
        complete = all(len(p) == min(s, n) for p, s, n in zip(axes, self.stride, self.x.shape[1:4], strict=True))
        gx = (xp.empty if complete else xp.zeros)(self.x.shape, gy.dtype)
        weight = self.weight.reshape(*kernel, channels, self.groups, outputs // self.groups)
        for phase in itertools.product(*axes):
            first, taps, padding, dilation = zip(*phase, strict=True)
            mirrored = xp.ascontiguousarray(weight[taps][::-1, ::-1, ::-1].swapaxes(3, 5))
            mirrored = mirrored.reshape(*mirrored.shape[:4], -1)  # (taps, K // groups, C): from gy's channels to x's
            view = gx[(slice(None), *(slice(f, None, s) for f, s in zip(first, self.stride, strict=True)))]
            out = gx if self.stride == UNIT else xp.empty(view.shape, gx.dtype)
            windows = Windows(mirrored.shape[:3], UNIT, padding, dilation)
            self.method().correlate(gy, mirrored, self.groups, windows, out)
            if out is not gx:
                view[...] = out
        return gx

    def workspace(self):
        """Slices of im2col matrices, and the weight and output of each phase: see :meth:`CudaKernel.workspace`."""
        if self.method() is cuda_direct:
            return [], [], []
        (*kernel, channels, outputs), size = self.weight.shape, self.x.itemsize
        y = self.out_shape(self.x, self.weight)
        matrix = cuda_im2col.slice_numbers(self.x.shape, self.groups, self.windows(), y) * size
        of_x = []
        for phase in itertools.product(*self.phases()) if self.needs[0] else ():
            first, taps, padding, dilation = zip(*phase, strict=True)
            taps = tuple(len(range(n)[subset]) for n, subset in zip(kernel, taps, strict=True))
            sizes = [len(range(f, n, s)) for f, n, s in zip(first, self.x.shape[1:4], self.stride, strict=True)]
            out = (len(self.x), *sizes, self.x.shape[4])
            copy = 0 if self.stride == UNIT else math.prod(out) * size
            slice_ = cuda_im2col.slice_numbers(y, self.groups, Windows(taps, UNIT, padding, dilation), out) * size
            of_x.append([math.prod(taps) * channels * outputs * size, copy, slice_])
        return [[matrix]], of_x, [[matrix]] if self.needs[1] else []

    def method(self):
        """The module that computes: im2col unless the matrices of the groups are too small."""
        channels, outputs = self.weight.shape[3], self.weight.shape[4] // self.groups
        return cuda_direct if self.groups > 1 and channels * outputs <= SMALL else cuda_im2col

    def windows(self):
        return Windows(self.weight.shape[:3], self.stride, tuple(before for before, _ in self.pads), self.dilation)

    def phases(self):
        """The phases of each axis, as :func:`phases_of_axis` lists them."""
        axes = zip(self.x.shape[1:4], self.weight.shape[:3], self.stride, self.dilation, self.pads, strict=True)
        return [list(phases_of_axis(*axis)) for axis in axes]


def phases_of_axis(size, kernel, stride, dilation, pads):
    """(phase, the taps that meet it, padding, dilation) for every phase of one axis that some tap meets.

    Tap k of output o = j + (phase + padding - k d) / s reads input s j + phase, if the fraction is whole. That
    is so for every s / gcd(s, d)-th tap from the first one on, and from tap to tap o falls by d / gcd(s, d).
    """
    common = math.gcd(stride, dilation)
    every, step = stride // common, dilation // common
    for phase in range(min(stride, size)):
        for tap in range(min(every, kernel)):
            ahead, remainder = divmod(phase + pads[0] - tap * dilation, stride)
            if remainder == 0:
                count = len(range(tap, kernel, every))
                yield phase, slice(tap, None, every), step * (count - 1) - ahead, step


@dataclass(frozen=True)
class Windows:
    """Windows over (T, H, W): taps, stride, the padding before position 0, and dilation, each for the three axes.

    Positions beyond the input are zero, so the padding after the input needs no number.
    """

    taps: tuple
    stride: tuple
    padding: tuple
    dilation: tuple

    def record(self, x, y):
        """The struct Windows of common.cuh for an input x (N, T, H, W, ...) and an output y (N, T', H', W', ...)."""
        axes = zip(x.shape[1:4], y.shape[1:4], self.taps, self.stride, self.padding, self.dilation, strict=True)
        return np.array(tuple(axes), WINDOWS)[()]

    def are_points(self, x, y):
        """Whether each output, of shape y, reads the input, of shape x, at its own position alone."""
        return self.taps == self.stride == UNIT and not any(self.padding) and x[:4] == y[:4]
