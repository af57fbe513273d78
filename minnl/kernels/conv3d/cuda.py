"""Convolution: which method computes which shape, and the input's gradient. docs/kernels/cuda_conv.md.

As on the CPU the three passes are one computation, the correlation of a clip with a weight, and its transpose:
conv_columns and conv_direct have two functions each, ``correlate`` and ``weight_gradient``.
"""

from __future__ import annotations

import itertools
import math

from minnl import backend
from minnl.kernels.conv3d import cuda_direct as conv_direct
from minnl.kernels.conv3d import cuda_im2col as conv_columns
from minnl.kernels.conv3d.cuda_windows import LARGEST, ONE, Windows, fits
from minnl.kernels.runtime.column_sums import column_sums
from minnl.kernels.runtime.cuda import contiguous
from minnl.kernels.runtime.cuda_kernel import CudaKernel
from minnl.ops.conv import Conv3d

SMALL = 256  # numbers of a group's matrix in a tap: 16 x 16 and less are too few for a matrix product


class CudaConv3d(CudaKernel, Conv3d):
    """Any stride, padding, dilation and number of groups."""

    @staticmethod
    def suits(op, arrays):
        return CudaKernel.suits(op, arrays) and fits(op, arrays[0]) and arrays[1].size <= LARGEST

    def forward(self, x, weight, bias=None):
        self.x, self.weight, bias = contiguous(x, weight, bias)
        y = backend.load_cupy().empty(self.out_shape(x, weight), x.dtype)
        method(self).correlate(self.x, self.weight, self.groups, windows(self), y, bias)
        return y

    def backward(self, gy):
        (gy,), gx, gw = contiguous(gy), None, None
        if self.needs[0]:
            gx = input_gradient(self, gy)
        if self.needs[1]:
            gw = backend.load_cupy().empty_like(self.weight)
            method(self).weight_gradient(self.x, gy, self.groups, windows(self), gw)
        gb = (column_sums(gy.reshape(-1, gy.shape[-1])) if self.needs[2] else None,) if len(self.needs) == 3 else ()
        return gx, gw, *gb

    def workspace(self):
        """Columns of a slice, and what the phases of the input's gradient need: see :meth:`CudaKernel.workspace`."""
        if method(self) is conv_direct:
            return [], [], []
        (*taps, channels, outputs), size = self.weight.shape, self.x.itemsize
        y = self.out_shape(self.x, self.weight)
        columns = conv_columns.room(self.x.shape, self.groups, windows(self), y) * size
        of_x = []
        for phase in itertools.product(*phases_of(self)) if self.needs[0] else ():
            first, some, before, steps = zip(*phase, strict=True)
            some = tuple(len(range(n)[taken]) for n, taken in zip(taps, some, strict=True))
            places = [len(range(f, n, s)) for f, n, s in zip(first, self.x.shape[1:4], self.stride, strict=True)]
            places = (len(self.x), *places, self.x.shape[4])
            apart = 0 if self.stride == ONE else math.prod(places) * size
            again = conv_columns.room(y, self.groups, Windows(some, ONE, before, steps), places) * size
            of_x.append([math.prod(some) * channels * outputs * size, apart, again])
        return [[columns]], of_x, [[columns]] if self.needs[1] else []


def method(op):
    """Columns, where their product is worth the name."""
    channels, outputs = op.weight.shape[3], op.weight.shape[4] // op.groups
    return conv_direct if op.groups > 1 and channels * outputs <= SMALL else conv_columns


def windows(op):
    return Windows(op.weight.shape[:3], op.stride, tuple(before for before, _ in op.pads), op.dilation)


def input_gradient(op, gy):
    """gy spread by the weight: for each phase of the stride a correlation of gy with some taps, mirrored.

    With stride s output o sees by tap k input s o + k d - padding. The inputs s j + phase meet every so many-th tap
    only, and at these, output and input step together: a correlation of stride 1.
    """
    xp, (*kernel, channels, outputs) = backend.load_cupy(), op.weight.shape
    sizes, phases = op.x.shape[1:4], phases_of(op)
    everywhere = all(len(p) == min(s, n) for p, s, n in zip(phases, op.stride, sizes, strict=True))
    gx = (xp.empty if everywhere else xp.zeros)(op.x.shape, gy.dtype)
    weight = op.weight.reshape(*kernel, channels, op.groups, outputs // op.groups)
    for phase in itertools.product(*phases):
        first, taps, before, steps = zip(*phase, strict=True)
        mirrored = xp.ascontiguousarray(weight[taps][::-1, ::-1, ::-1].swapaxes(3, 5))
        mirrored = mirrored.reshape(*mirrored.shape[:4], -1)  # (taps, K // groups, C): gy's channels to those of x
        places = gx[(slice(None), *(slice(f, None, s) for f, s in zip(first, op.stride, strict=True)))]
        apart = gx if op.stride == ONE else xp.empty(places.shape, gx.dtype)
        method(op).correlate(gy, mirrored, op.groups, Windows(mirrored.shape[:3], ONE, before, steps), apart)
        if apart is not gx:
            places[...] = apart
    return gx


def phases_of(op):
    """Along each axis what :func:`met` says."""
    axes = zip(op.x.shape[1:4], op.weight.shape[:3], op.stride, op.dilation, op.pads, strict=True)
    return [list(met(*axis)) for axis in axes]


def met(size, kernel, stride, dilation, padding):
    """Along one axis (phase, the taps that meet it, padding, dilation) of every phase that some tap meets.

    Input s j + phase is seen by tap k of output o = j + (phase + padding - k d) / s, if that is whole: by every
    s / gcd(s, d)-th tap from the first that it holds for, and from tap to tap o falls by d / gcd(s, d).
    """
    common = math.gcd(stride, dilation)
    every, step = stride // common, dilation // common
    for phase in range(min(stride, size)):
        for tap in range(min(every, kernel)):
            ahead, rest = divmod(phase + padding[0] - tap * dilation, stride)
            if rest == 0:
                count = len(range(tap, kernel, every))
                yield phase, slice(tap, None, every), step * (count - 1) - ahead, step
