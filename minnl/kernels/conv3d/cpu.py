"""Convolution in float32: which method computes which shape. docs/kernels/conv.md has the measured table.

The three passes of a convolution are one computation, the correlation of a clip with a weight, and its transpose:
forward correlates x with the weight, the input's gradient correlates the output's with the mirrored weight, and the
weight's gradient is the transpose. So each method, a module conv_*.py, has two functions,
``correlate`` and ``weight_gradient``.
"""

from __future__ import annotations

import functools
import itertools
import math

import numpy as np

from minnl.kernels.conv3d import im2col as conv_columns
from minnl.kernels.conv3d import im2col_blocks as columns
from minnl.kernels.conv3d import points as conv_points
from minnl.kernels.conv3d import taps as conv_taps
from minnl.kernels.conv3d import winograd as conv_winograd
from minnl.kernels.runtime import memory, threads
from minnl.kernels.runtime.cpu_kernel import CpuKernel
from minnl.kernels.runtime.strided import in_runs
from minnl.kernels.runtime.sums import column_sums
from minnl.ops.conv import Conv3d

ONE = (1, 1, 1)
GFLOPS = 90  # floating point operations per ns and core: matrix products,
COPY = 0.25  # and ns for a number that is gathered, added or scattered; the ratio of the two is what counts
SHORT = 400_000_000  # floating point operations of a pass, 4 ms
POSITIONS = 784  # of the output for each task of a strided input gradient, or a half: each packs every tap's matrix
TILE = 4  # side of Winograd tiles: 2 has a digit more and takes half as long again, 5 loses most of one


class CpuConv3d(CpuKernel, Conv3d):
    """The kernel for float32 on NumPy, all but strided dilation, which the textbook body does."""

    @staticmethod
    def suits(op, arrays):
        return CpuKernel.suits(op, arrays) and arrays[0].size > 0 and ONE in (op.stride, op.dilation)

    def forward(self, x, weight, bias=None):
        self.x, self.weight = x, weight
        y = memory.empty(self.out_shape(x, weight), x.dtype)
        for inside, out in self.group_slices(x, weight):
            correlate(_channels(x, inside), weight[..., out], y[..., out], self.stride, self.pads, self.dilation)
        if bias is not None:
            y += bias
        return y

    def backward(self, gy):
        gx = memory.empty(self.x.shape, gy.dtype) if self.needs[0] else None
        gw = memory.empty(self.weight.shape, gy.dtype) if self.needs[1] else None
        passes, how = [], (self.stride, self.pads, self.dilation)
        for inside, out in self.group_slices(self.x, self.weight):
            part = _channels(gy, out)
            if self.needs[0]:
                passes.append((input_gradient, part, self.weight[..., out], gx[..., inside], *how))
            if self.needs[1]:
                passes.append((weight_gradient, _channels(self.x, inside), part, gw[..., out], *how))
        _call(passes, 2 * gy.size * math.prod(self.weight.shape[:4]))
        gb = (column_sums(gy),) if len(self.needs) == 3 else ()
        return gx, gw, *gb


def _call(passes, flops):
    """Call each (function, arguments): one after the other on all threads, or short ones side by side on one each.

    They know nothing of each other, and a thread waits less for the others in one long task than in several short ones.
    """
    if flops < SHORT:
        threads.run(lambda call: call[0](*call[1:]), passes)
    else:
        for function, *arguments in passes:
            function(*arguments)


def correlate(x, weight, y, stride, pads, dilation):
    """y = windows of x times weight, by the method that is quickest for the shapes."""
    method, *arguments = choose(x.shape, weight.shape, y.shape, stride, tuple(pads), dilation)
    method.correlate(x, weight, y, stride, pads, dilation, *arguments)


def weight_gradient(x, gy, gw, stride, pads, dilation):
    """gw = windows of x, transposed, times gy, by the method that is quickest for the shapes."""
    method, *arguments = choose(x.shape, gw.shape, gy.shape, stride, tuple(pads), dilation, gradient=True)
    method.weight_gradient(x, gy, gw, stride, pads, dilation, *arguments)


def input_gradient(gy, weight, gx, stride, pads, dilation):
    """gx = gy spread by the weight: a correlation of gy with the mirrored weight, for each phase of the stride one.

    With stride s output p sees input s * p + k - padding by tap k, so inputs s * j + phase meet every s-th tap only,
    and at these, output and input step together: a correlation of stride 1. Each thread has samples of its own, and
    takes them through all phases.
    """
    gaps = any(s > k for s, k in zip(stride, weight.shape, strict=False))  # there are phases that no tap meets
    phases = []
    for phase in itertools.product(*map(range, stride)):
        taps, before = [], []
        for k, s, d, first, (padding, _) in zip(weight.shape[:3], stride, dilation, phase, pads, strict=True):
            tap = (first + padding) % s
            taps.append(slice(tap, None, s))
            before.append((d * (len(range(tap, k, s)) - 1) - (first + padding - tap) // s, 0))
        where = tuple(slice(first, None, s) for first, s in zip(phase, stride, strict=True))
        phases.append((where, weight[tuple(taps)][::-1, ::-1, ::-1].swapaxes(3, 4), before))

    def one(samples):
        if gaps:
            gx[samples] = 0
        for where, mirrored, before in phases:
            positions = gx[(samples, *where)]
            if positions.size and mirrored.size:
                apart = memory.empty(positions.shape, gx.dtype)
                correlate(gy[samples], mirrored, apart, ONE, before, dilation)
                in_runs(positions)[...] = in_runs(apart)

    if stride == ONE:
        (_, mirrored, before), *_ = phases
        correlate(gy, mirrored, gx, ONE, before, dilation)
    else:
        tasks = threads.tasks_for(2 * gy.size * math.prod(weight.shape[:4]))
        tasks = min(tasks, max(2, math.prod(gy.shape[:4]) // POSITIONS))
        threads.run(one, threads.shares(len(gy), tasks))


@functools.lru_cache(4096)
def choose(x, weight, y, stride, pads, dilation, gradient=False):
    """The method for these shapes, a module and what else it wants to know: the least of the estimated times."""
    met = tuple((n - 1) // s + 1 for n, s in zip(x[1:4], stride, strict=True))
    if weight[:3] == ONE and y[1:4] == met and not any(before or after for before, after in pads):
        return (conv_points,)
    estimates = {(conv_taps,): taps_time(x, weight, y, stride, pads, dilation, gradient)}
    if math.prod(weight) <= (conv_columns.SUM_ELEMENTS if gradient else conv_columns.WEIGHT_ELEMENTS):
        estimates[(conv_columns,)] = columns_time(x, weight, y, stride, pads, dilation)
    if weight[1:3] == (3, 3) and stride == dilation == ONE and (weight[0] > 1 or x[1] == y[1]):
        axes = zip(x[1:4], y[1:4], weight, pads, strict=False)  # `all`: no output sees padding alone
        if all(before < taps and out <= size + before for size, out, taps, (before, _) in axes):
            estimates[conv_winograd, TILE] = winograd_time(TILE, x, weight, y, pads)
    return min(estimates, key=estimates.get)


def columns_time(x, weight, y, stride, pads, dilation):
    """Estimated ns on one core: every window is gathered and multiplied; or lines, and what meets no padding."""
    x, weight, y, stride, pads, dilation = columns.upright_shapes(x, weight, y, stride, pads, dilation)
    row, k, outputs = math.prod(weight[:4]), weight[4], math.prod(y[:4])
    if not columns.shares_lines(weight, stride, dilation, y[3]):
        return outputs * row * (COPY + 2 * k / GFLOPS)
    line, places = row // weight[1], outputs // y[2]
    met = _met(x[2], y[2], weight[1], stride[1], pads[1], 1)
    copied = 0 if columns.by_frames(weight, stride, y[3]) else 2 * y[2] * k
    return places * (line * (x[2] * COPY + 2 * k * met / GFLOPS) + COPY * copied)


def taps_time(x, weight, y, stride, pads, dilation, gradient):
    """As `columns_time`, but without the windows' parts in the padding; products of several taps are added up.

    Not in a weight's gradient, if a tap's matrix is large enough for long sums of its own.
    """
    *kernel, c, k = weight
    met = y[0] * math.prod(map(_met, x[1:4], y[1:4], kernel, stride, pads, dilation))
    added = 0 if kernel == [1, 1, 1] or gradient and c * k >= conv_taps.GOOD else 3 * k
    gathered = c if kernel[1:] != [1, 1] else 0
    return met * (COPY * (added + gathered) + 2 * c * k / GFLOPS)


def winograd_time(m, x, weight, y, pads):
    """As `columns_time`: tiles are gathered, transformed, multiplied, transformed back, written; the weight as well.

    Transforms take as long as copies do: each number is read and written twice, and little is done with it.
    """
    taps, *_, c, k = weight
    n, tiles = (m + 2) ** 2, y[0] * -(-y[2] // m) * -(-y[3] // m)
    frames = _met(x[1], y[1], taps, 1, pads[0], 1)
    moved = x[1] * n * c + y[1] * m * m * k
    return tiles * (3 * COPY * moved + 2 * n * frames * c * k / GFLOPS) + 3 * COPY * n * taps * c * k


def _met(size, out, taps, stride, pads, dilation):
    """How many pairs of an output and a tap fall on the input, along one axis."""
    met = 0
    for tap in range(taps):
        shift = tap * dilation - pads[0]  # output o sees input o * stride + shift
        met += max(0, min(out, (size - 1 - shift) // stride + 1) - max(0, -(shift // stride)))
    return met


def _channels(array, part):
    """The channels of a group, contiguous."""
    return np.ascontiguousarray(array[..., part])
