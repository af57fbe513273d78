"""Convolution as one matrix product for each tap: docs/kernels/conv_taps.md.

What the textbook body does, with three differences. Only outputs whose tap falls on the input take part, so padding
costs nothing: on a 4 x 4 map a 3 x 3 window would spend a third of its multiplications on zeros. The products are taken
in blocks, on all threads. And windows of one pixel need no copy: a run of positions is a matrix as it lies.
"""

from __future__ import annotations

import itertools
import math

import numpy as np

from minnl.kernels.runtime import memory, threads
from minnl.kernels.runtime.matmul import add_product, added, multiply

BLOCK_ELEMENTS = 64 * 1024  # positions * channels at once: taps are added up in a block, which so stays in the cache
SUM_ROWS = 480  # positions at once in the gradient of a small weight; and more for
SUM_PRODUCTS = 1024 * 1024  # a tiny matrix: so many multiply-adds are worth a call
ROWS = 192  # positions that a task has at least; rather than fewer it gets fewer channels
LARGE = 128 * 1024  # elements of one tap's matrix, from which on copying it costs more than it saves
GOOD = 4 * 1024  # elements of one tap's matrix from which on its gradient is a good product by itself
VECTOR = 16  # channels that a vector of the processor holds: they are cut at multiples of it
SUM_ELEMENTS = 256 * 1024  # of a weight whose gradient each task sums up for itself, 1 MB


def correlate(x, weight, y, stride, pads, dilation):
    """y (N, T', H', W', K) = windows of x (N, T, H, W, C) times weight (kT, kH, kW, C, K)."""
    x, y = _merged(x, y, weight.shape, stride, pads)
    meet = Meeting(x.shape, y.shape, weight.shape, stride, pads, dilation)
    c, k = weight.shape[3:]
    if c * k < LARGE:
        weight = np.ascontiguousarray(weight)

    def one(tasks):
        for block, some in tasks:
            out = y[block][..., some]
            taps = meet.taps
            if taps and meet(taps[0], block)[1] == block:  # it sees every output: its product is all there is so far
                first, *taps = taps
                rows = x[meet(first, block)[0]].reshape(-1, c)
                multiply(rows, weight[first][:, some], memory.view(out, -1, out.shape[-1]))  # a run of positions
            else:
                out[...] = 0
            for tap in taps:
                theirs, ours = meet(tap, block)
                rows, target = x[theirs].reshape(-1, c), y[ours][..., some]
                product = memory.empty((len(rows), target.shape[-1]), x.dtype)
                target += multiply(rows, weight[tap][:, some], product).reshape(target.shape)

    positions = math.prod(y.shape[:4])
    parts = threads.tasks_for(2 * positions * weight.size)
    if c * k >= LARGE:  # each task packs the matrix anew, so it should have many rows for it
        parts = min(parts, 4)
        down = max(1, min(parts, positions // (2 * ROWS)))
        longest = -(-positions // down)
    else:
        down = max(1, min(parts, positions // ROWS))
        longest = min(-(-positions // down), max(ROWS, BLOCK_ELEMENTS // max(c, k)))
    channels = threads.shares(k, -(-parts // down), multiple=VECTOR)
    every = list(itertools.product(channels, threads.blocks(y.shape[:4], longest)))
    threads.run(one, [[(b, some) for some, b in every[share]] for share in threads.shares(len(every), parts)])


def weight_gradient(x, gy, gw, stride, pads, dilation):
    """gw: for each tap, what it saw of x, transposed, times gy."""
    x, gy = _merged(x, gy, gw.shape, stride, pads)
    meet = Meeting(x.shape, gy.shape, gw.shape, stride, pads, dilation)
    c, k = gw.shape[3:]
    parts = threads.tasks_for(2 * math.prod(gy.shape[:4]) * gw.size)

    def add_up(taps, inside, out, blocks, total):
        """total[i] = the gradient of a part of tap i's matrix, from some blocks of positions."""
        fresh = set(range(len(taps)))
        for block in blocks:
            for i, tap in enumerate(taps):
                theirs, ours = meet(tap, block)
                rows = x[theirs][..., inside].reshape(-1, total.shape[1])
                if len(rows):
                    add_product(rows.T, gy[ours][..., out].reshape(-1, total.shape[2]), total[i], i in fresh)
                    fresh.discard(i)
        for i in fresh:
            total[i] = 0
        return total

    whole = slice(0, c), slice(0, k)
    if c * k < GOOD and gw.size <= SUM_ELEMENTS:  # each task has the whole weight, from some positions, read once
        every = threads.blocks(gy.shape[:4], max(SUM_ROWS, SUM_PRODUCTS // (c * k)))
        shares = [every[share] for share in threads.shares(len(every), parts)]
        shape = len(meet.taps), c, k
        sums = threads.run(lambda some: add_up(meet.taps, *whole, some, memory.empty(shape, x.dtype)), shares)
        gw[...] = 0
        for tap, total in zip(meet.taps, added(sums), strict=True):
            gw[tap] = total
        return
    # each has a part of one tap's matrix to itself; sums as long as may be, since there is much to add to
    every = threads.blocks(gy.shape[:4], 2 * SUM_ELEMENTS // min(c, k))
    parts = -(-min(parts, 4) // gw[..., 0, 0].size) if gw[..., 0, 0].size < 4 else 2
    some = threads.shares(max(c, k), parts, multiple=VECTOR)
    inside, out = (some, whole[1:]) if c >= k else (whole[:1], some)
    tasks = itertools.product(np.ndindex(*gw.shape[:3]), inside, out)
    threads.run(lambda task: add_up(task[:1], *task[1:], every, gw[task[0]][task[1:]][None]), tasks)


class Meeting:
    """Which outputs and inputs a tap brings together: ``theirs, ours = meet(tap, block)``, index tuples of slices.

    `taps` begins with the one that sees most.
    """

    def __init__(self, x, y, weight, stride, pads, dilation):
        self.x, self.stride, self.pads, self.dilation = x[1:4], stride, pads, dilation
        everything = tuple(slice(0, n) for n in y[:4])
        sees = {tap: math.prod(s.stop - s.start for s in self(tap, everything)[1]) for tap in np.ndindex(*weight[:3])}
        self.taps = sorted((tap for tap in sees if sees[tap]), key=lambda tap: -sees[tap])

    def __call__(self, tap, block):
        theirs, ours = [block[0]], [block[0]]
        for k, size, s, (before, _), d, out in zip(
            tap, self.x, self.stride, self.pads, self.dilation, block[1:], strict=True
        ):
            shift = k * d - before  # output o sees input o * s + shift
            first = max(out.start, -(shift // s))
            last = max(first, min(out.stop, (size - 1 - shift) // s + 1))
            ours.append(slice(first, last))
            theirs.append(slice(first * s + shift, max(0, (last - 1) * s + shift + 1) if last > first else 0, s))
        if any(o.stop <= o.start for o in ours[1:]):  # nothing: both empty, wherever that is
            ours[1:], theirs[1:] = [slice(0, 0)] * 3, [slice(0, 0)] * 3
        return tuple(theirs), tuple(ours)


def _merged(x, y, weight, stride, pads):
    """Axes along which the window is one position become one axis, so that blocks can cut it anywhere."""
    flat = [
        k == s == 1 and before == 0 and n == out
        for k, s, (before, _), n, out in zip(weight[:3], stride, pads, x.shape[1:4], y.shape[1:4], strict=True)
    ]
    if flat[1] and flat[2]:
        x, y = (memory.view(a, *a.shape[:2], -1, 1, a.shape[4]) for a in (x, y))
    return x, y
