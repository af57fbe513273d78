"""Convolution in float32: which method computes which shape. docs/kernels/conv3d.md has the idea and the figures.

The three passes of a convolution are one computation, the correlation of a clip with a weight, and its transpose:
forward correlates x with the weight, the input's gradient correlates gy with the mirrored weight, and the weight's
gradient is the transpose. So each method is a module with two functions, ``correlate`` and ``weight_gradient``.
"""

from __future__ import annotations

import functools
import itertools
import math

import numpy as np

from minnl.dispatch import CpuKernel
from minnl.kernels.conv3d import im2col, taps, winograd
from minnl.kernels.runtime import memory, threads
from minnl.kernels.runtime.memory import in_runs
from minnl.kernels.runtime.sums import column_sums
from minnl.ops.conv import Conv3d

ONE = (1, 1, 1)
GFLOPS = 65  # Floating point operations per ns of a core in matrix products, fitted to the table in conv3d.md.
COPY = 0.3  # Nanoseconds for a number that is gathered, added or written, fitted to the same table.
TRANSFORM = 1.8  # Nanoseconds for a number of Winograd's tiles, from gather to last write, fitted to the same table.
SHORT = 400_000_000  # Floating point operations of a short pass, 4 ms.
POSITIONS = 784  # Output positions of a task of a strided input gradient, or half: each task packs the weight.


class CpuConv3d(CpuKernel, Conv3d):
    """The kernel for float32 on NumPy. The textbook body computes strides together with dilations."""

    saved_for_backward = (*Conv3d.saved_for_backward, "lost")

    @staticmethod
    def suits(op, arrays):
        return CpuKernel.suits(op, arrays) and arrays[0].size > 0 and ONE in (op.stride, op.dilation)

    def forward(self, x, weight, bias=None):
        self.x, self.weight, self.lost = x, weight, None
        y = memory.empty(self.out_shape(x, weight), x.dtype)
        how = self.stride, self.pads, self.dilation
        for inputs, outputs in self.group_slices(x, weight):
            lost = correlate(_channels(x, inputs), weight[..., outputs], y[..., outputs], *how)
        if self.groups == 1:
            self.lost = lost
        if bias is not None:
            y += bias
        return y

    def backward(self, gy):
        gx = memory.empty(self.x.shape, gy.dtype) if self.needs[0] else None
        gw = memory.empty(self.weight.shape, gy.dtype) if self.needs[1] else None
        passes, how = [], (self.stride, self.pads, self.dilation)
        for inputs, outputs in self.group_slices(self.x, self.weight):
            part = _channels(gy, outputs)
            if self.needs[0]:
                passes.append((input_gradient, part, self.weight[..., outputs], gx[..., inputs], *how))
            if self.needs[1]:
                x = _channels(self.x, inputs)
                passes.append((weight_gradient, x, part, gw[..., outputs], *how, self.lost))
        _call(passes, 2 * gy.size * math.prod(self.weight.shape[:4]))
        gb = (column_sums(gy),) if len(self.needs) == 3 else ()
        return gx, gw, *gb

    def infer(self, *arrays):
        self.lost = None
        return super().infer(*arrays)


def _call(passes, flops):
    """Call each (function, arguments): one after the other on all threads, or short ones side by side on one each.

    The passes are independent, and a thread waits less for the others in one long task than in several short ones.
    """
    if flops < SHORT:
        threads.run(lambda call: call[0](*call[1:]), passes)
    else:
        for function, *arguments in passes:
            function(*arguments)


def correlate(x, weight, y, stride, pads, dilation):
    """y = windows of x times weight, by the method that is quickest for the shapes. Returns what the method returns."""
    method = choose(x.shape, weight.shape, y.shape, stride, tuple(pads), dilation)
    return method.correlate(x, weight, y, stride, pads, dilation)


def weight_gradient(x, gy, gw, stride, pads, dilation, lost=None):
    """gw = windows of x, transposed, times gy, by the method that is quickest for the shapes.

    `lost` is what `correlate` returned for x.
    """
    method = choose(x.shape, gw.shape, gy.shape, stride, tuple(pads), dilation)
    method.weight_gradient(x, gy, gw, stride, pads, dilation, *([lost] if method is winograd else []))


def input_gradient(gy, weight, gx, stride, pads, dilation):
    """gx = gy spread by the weight: a correlation of gy with the mirrored weight, for each phase of the stride one.

    With stride s, tap k connects output p and input s * p + k - padding, so inputs s * j + phase meet every s-th tap
    only. At these, output and input step together: a correlation of stride 1. Each task takes some samples through all
    phases.
    """
    phases = []
    for phase in itertools.product(*map(range, stride)):
        slices, before = [], []
        for k, s, d, start, (padding, _) in zip(weight.shape[:3], stride, dilation, phase, pads, strict=True):
            first = (start + padding) % s
            slices.append(slice(first, None, s))
            before.append((d * (len(range(first, k, s)) - 1) - (start + padding - first) // s, 0))
        where = tuple(slice(start, None, s) for start, s in zip(phase, stride, strict=True))
        phases.append((where, weight[tuple(slices)][::-1, ::-1, ::-1].swapaxes(3, 4), tuple(before)))

    def run(samples):
        for where, mirrored, before in phases:
            part = gx[(samples, *where)]
            if mirrored.size == 0:
                part[...] = 0  # no tap reaches inputs of this phase
            elif part.size:
                dense = memory.empty(part.shape, gx.dtype)
                correlate(gy[samples], mirrored, dense, ONE, before, dilation)
                in_runs(part)[...] = in_runs(dense)

    if stride == ONE:
        (_, mirrored, before), *_ = phases
        correlate(gy, mirrored, gx, ONE, before, dilation)
    else:
        tasks = threads.tasks_for(2 * gy.size * math.prod(weight.shape[:4]))
        tasks = min(tasks, max(2, math.prod(gy.shape[:4]) // POSITIONS))
        threads.run(run, threads.split(len(gy), tasks))


@functools.lru_cache(4096)
def choose(x, weight, y, stride, pads, dilation):
    """The method for these shapes, a module: the one with the least estimated time."""
    estimates = {taps: taps_time(x, weight, y, stride, pads, dilation)}
    if dilation == ONE and math.prod(weight) <= im2col.WEIGHT_ELEMENTS:
        estimates[im2col] = im2col_time(x, weight, y, stride, pads)
    if weight[1:3] == (3, 3) and stride == dilation == ONE and (weight[0] > 1 or x[1] == y[1]):
        axes = zip(x[1:4], y[1:4], weight, pads, strict=False)  # `all`: every output reads some of the input
        if all(before < k and out <= size + before for size, out, k, (before, _) in axes):
            estimates[winograd] = winograd_time(x, weight, y, pads)
    return min(estimates, key=estimates.get)


def im2col_time(x, weight, y, stride, pads):
    """Estimated ns on one core: lines are gathered and multiplied, the weight packed, outputs brought in y's order."""
    axis = 0 if weight[0] > weight[1] == 1 else 1  # the height, see im2col.upright
    line, k, height = math.prod(weight[:4]) // weight[axis], weight[4], y[1 + axis]
    places = math.prod(y[:4]) // height
    row = line * min(x[1 + axis], (height - 1) * stride[axis] + weight[axis])
    packed = height * -(-places // max(im2col.ROWS, im2col.BLOCK_ELEMENTS // row)) * math.prod(weight)
    copied = 0 if axis == 0 or y[3] >= im2col.WIDE else 2 * math.prod(y[:4]) * k
    products = places * line * k * _pairs(x[1 + axis], height, weight[axis], stride[axis], pads[axis], 1)
    return COPY * (places * row + packed + copied) + 2 * products / GFLOPS


def taps_time(x, weight, y, stride, pads, dilation):
    """As `im2col_time`, without any padding; windows wider than a position are gathered, products of taps added up."""
    *kernel, c, k = weight
    pairs = y[0] * math.prod(map(_pairs, x[1:4], y[1:4], kernel, stride, pads, dilation))
    added, gathered = 3 * k * (kernel != [1, 1, 1]), c * (kernel[1:] != [1, 1])
    return pairs * (COPY * (added + gathered) + 2 * c * k / GFLOPS)


def winograd_time(x, weight, y, pads):
    """As `im2col_time`: the numbers of all tiles, of x, y and the weight, are moved and transformed."""
    (kt, *_, c, k), points = weight, winograd.SIDE**2
    tiles = y[0] * math.prod(-(-n // winograd.TILE) for n in y[2:4])
    moved = tiles * (x[1] * points * c + y[1] * winograd.TILE**2 * k) + points * kt * c * k
    return TRANSFORM * moved + 2 * tiles * points * _pairs(x[1], y[1], kt, 1, pads[0], 1) * c * k / GFLOPS


def _pairs(size, out, k, stride, pads, dilation):
    """How many pairs of an output and a tap lie on the input, along one axis."""
    pairs = 0
    for tap in range(k):
        shift = tap * dilation - pads[0]  # output o reads input o * stride + shift
        pairs += max(0, min(out, (size - 1 - shift) // stride + 1) - max(0, -(shift // stride)))
    return pairs


def _channels(array, part):
    """The channels of a group, contiguous."""
    return np.ascontiguousarray(array[..., part])
