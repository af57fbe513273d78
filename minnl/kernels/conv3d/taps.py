"""Convolution as one matrix product for each tap: docs/kernels/conv3d.md.

The textbook body does the same, with three differences. Only outputs whose tap lies on the input take part, so padding
costs nothing. The taps are added up in blocks, which stay in the cache, on all threads. And a window of one position
copies nothing: consecutive positions are a matrix as they lie in memory. A 1 x 1 x 1 window is one such product.
"""

from __future__ import annotations

import itertools
import math

import numpy as np

from minnl.kernels.runtime import memory, threads
from minnl.kernels.runtime.matmul import add_product, added, multiply

BLOCK_ELEMENTS = 64 * 1024  # A block has so many positions * channels, 256 KB, while several taps are added up in it.
LONG_ELEMENTS = 1024 * 1024  # A block has so many, 4 MB, where one tap makes the whole sum, so that BLAS packs less.
ROWS = 192  # A task of a small product has at least so many positions.
PACKED = 784  # A task of a large product has so many positions or channels, or half: BLAS packs the other factor anew.
LARGE = 128 * 1024  # Elements of one tap's matrix from which on packing it costs more than a short block saves.
GOOD = 4 * 1024  # Elements of one tap's matrix from which on its gradient is a good product by itself.
SUM_ELEMENTS = 256 * 1024  # Elements of the largest weight, 1 MB, whose gradient each task sums up for itself.
SUM_ROWS = 480  # Positions at least in one sum of a small weight's gradient.
SUM_PRODUCTS = 1024 * 1024  # Multiply-adds at least in such a sum, so that a tiny matrix is worth a call of matmul.
FEW = 4  # Tasks sum up one tap's gradient for themselves if there are so many times more positions than channels.
VECTOR = 16  # Channels are cut at multiples of this, the float32 numbers in the longest vector of a processor.


def correlate(x, weight, y, stride, pads, dilation):
    """y (N, T', H', W', K) = windows of x (N, T, H, W, C) times weight (kT, kH, kW, C, K)."""
    x, y = _merged(x, y, weight.shape, stride, pads)
    ranges = Ranges(x.shape, y.shape, weight.shape, stride, pads, dilation)
    (c, k), positions = weight.shape[3:], math.prod(y.shape[:4])
    if c * k < LARGE:
        weight = np.ascontiguousarray(weight)

    def run(task):
        channels, block = task
        out, taps = y[block][..., channels], ranges.taps
        if taps and ranges(taps[0], block)[1] == block:  # the tap reaches every output of the block: write, don't add
            first, *taps = taps
            rows = x[ranges(first, block)[0]].reshape(-1, c)
            multiply(rows, weight[first][:, channels], memory.view(out, -1, out.shape[-1]))
        else:
            out[...] = 0
        for tap in taps:
            of_x, of_y = ranges(tap, block)
            rows, target = x[of_x].reshape(-1, c), y[of_y][..., channels]
            product = memory.empty((len(rows), target.shape[-1]), x.dtype)
            target += multiply(rows, weight[tap][:, channels], product).reshape(target.shape)

    tasks, longest = threads.tasks_for(2 * positions * weight.size), BLOCK_ELEMENTS // max(c, k)
    if positions < k:
        down, across = 1, min(tasks, max(2, k // PACKED))
    elif len(ranges.taps) == 1 or c * k >= LARGE:
        down, across, longest = min(tasks, max(2, positions // PACKED)), 1, LONG_ELEMENTS // max(c, k)
    else:
        down, across = min(tasks, max(1, positions // ROWS)), 1
    blocks = threads.position_blocks(y.shape[:4], min(-(-positions // down), max(ROWS, longest)))
    threads.run(run, itertools.product(threads.split(k, across, multiple=VECTOR), blocks))


def weight_gradient(x, gy, gw, stride, pads, dilation):
    """gw: for each tap, the rows of x that it reaches, transposed, times gy."""
    x, gy = _merged(x, gy, gw.shape, stride, pads)
    ranges = Ranges(x.shape, gy.shape, gw.shape, stride, pads, dilation)
    (c, k), positions, one_tap = gw.shape[3:], math.prod(gy.shape[:4]), math.prod(gw.shape[:3]) == 1
    tasks = threads.tasks_for(2 * positions * gw.size)
    long, whole = threads.position_blocks(gy.shape[:4], LONG_ELEMENTS // max(c, k)), (slice(0, c), slice(0, k))

    def add_up(taps, inputs, outputs, blocks, total):
        """total[i] = the gradient of a part of tap i's matrix, from some blocks of positions."""
        fresh = set(range(len(taps)))
        for block in blocks:
            for i, tap in enumerate(taps):
                of_x, of_y = ranges(tap, block)
                rows = x[of_x][..., inputs].reshape(-1, total.shape[1])
                if len(rows):
                    add_product(rows.T, gy[of_y][..., outputs].reshape(-1, total.shape[2]), total[i], i in fresh)
                    fresh.discard(i)
        for i in fresh:
            total[i] = 0
        return total

    if gw.size <= SUM_ELEMENTS and (c * k < GOOD or one_tap and positions >= FEW * max(c, k)):
        # Each task sums up all taps from some of the positions: everything is read once.
        if one_tap:
            tasks = min(tasks, max(2, positions // (2 * PACKED)))
        rows = -(-positions // tasks) if one_tap else max(SUM_ROWS, SUM_PRODUCTS // (c * k))
        blocks = threads.position_blocks(gy.shape[:4], min(rows, LONG_ELEMENTS // max(c, k)))
        shares = [blocks[share] for share in threads.split(len(blocks), tasks)]
        shape = len(ranges.taps), c, k
        sums = threads.run(lambda share: add_up(ranges.taps, *whole, share, memory.empty(shape, x.dtype)), shares)
        gw[...] = 0
        for tap, total in zip(ranges.taps, added(sums), strict=True):
            gw[tap] = total
    else:  # each task makes a part of one tap's matrix from all positions: no copies of the gradient are added up
        shares = threads.split(max(c, k), min(tasks, 4) if one_tap else 2, multiple=VECTOR)
        inputs, outputs = (shares, whole[1:]) if c >= k else (whole[:1], shares)
        parts = itertools.product(np.ndindex(*gw.shape[:3]), inputs, outputs)
        threads.run(lambda part: add_up(part[:1], *part[1:], long, gw[part[0]][part[1:]][None]), parts)


class Ranges:
    """Which inputs and outputs a tap connects: ``of_x, of_y = ranges(tap, block)``, tuples of four slices.

    `taps` are the taps that reach any input, first the tap that reaches most.
    """

    def __init__(self, x, y, weight, stride, pads, dilation):
        self.axes = list(zip(x[1:4], stride, pads, dilation, strict=True))
        everything = tuple(slice(0, n) for n in y[:4])
        counts = {tap: math.prod(s.stop - s.start for s in self(tap, everything)[1]) for tap in np.ndindex(*weight[:3])}
        self.taps = sorted((tap for tap in counts if counts[tap]), key=lambda tap: -counts[tap])

    def __call__(self, tap, block):
        of_x, of_y = [block[0]], [block[0]]
        for k, out, (size, s, (before, _), d) in zip(tap, block[1:], self.axes, strict=True):
            shift = k * d - before  # by this tap output o reads input o * s + shift
            first = max(out.start, -(shift // s))
            last = min(out.stop, (size - 1 - shift) // s + 1)
            if last <= first:
                return (slice(0, 0),) * 4, (slice(0, 0),) * 4
            of_y.append(slice(first, last))
            of_x.append(slice(first * s + shift, (last - 1) * s + shift + 1, s))
        return tuple(of_x), tuple(of_y)


def _merged(x, y, weight, stride, pads):
    """x and y with those axes as one along which the window is one position, so that blocks can be cut anywhere."""
    flat = [
        k == s == 1 and before == 0 and n == out
        for k, s, (before, _), n, out in zip(weight[:3], stride, pads, x.shape[1:4], y.shape[1:4], strict=True)
    ]
    if not (flat[1] and flat[2]):
        return x, y
    return (memory.view(a, *((1, 1) if flat[0] else a.shape[:2]), -1, 1, a.shape[4]) for a in (x, y))
