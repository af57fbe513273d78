"""Max pooling in blocks that stay in the cache: docs/kernels/pooling.md."""

from __future__ import annotations

import functools
import math

import numpy as np

from minnl import windows
from minnl.kernels.pooling.pool_plan import BLOCK_ELEMENTS, LONG, Desk, cuts, plan_of
from minnl.kernels.pooling.pool_steps import Steps
from minnl.kernels.runtime import memory, threads
from minnl.kernels.runtime.cpu_kernel import CpuKernel
from minnl.kernels.runtime.strided import in_runs
from minnl.ops.pool import MaxPool3d

FEW_TAPS = 4  # up to here the winners are found sooner tap by tap than axis by axis
PLACES = 64 * 1024  # winners whose places are listed at once: 512 KB


class CpuMaxPool3d(CpuKernel, MaxPool3d):
    @staticmethod
    def suits(op, arrays):
        """Not for a dilation wider than the input: a window of it may see no input at all."""
        x = arrays[0]
        narrow = all(d <= n for d, n in zip(op.dilation, x.shape[1:4], strict=True))
        return CpuKernel.suits(op, arrays) and x.size > 0 and narrow

    def forward(self, x):
        plan = plan_of(self, x.shape)
        x, y = np.ascontiguousarray(x), memory.empty(plan.out_shape, x.dtype)
        winner = memory.empty(plan.out_shape, np.uint8) if self.needs[0] else None
        if winner is not None and 1 < len(plan.taps) <= FEW_TAPS and plan.inside and not plan.axes[2].trivial:
            make = functools.partial(tap_by_tap, plan, x, y, winner, Desk())
        else:
            make = Steps(plan, x, y, np.maximum, -np.inf, winner)

        def task(block):
            make(block)
            return winner is None or y[block.out].min() > -math.inf  # where there is only that, or NaN, others win

        if not all(plan.run(task, plan.blocks)):
            return super().forward(x)
        self.shape, self.winner = x.shape, winner
        return y

    def backward(self, gy):
        plan = plan_of(self, self.shape)
        gx = memory.empty(self.shape, gy.dtype)
        fill = selected if plan.apart else scattered
        fill(plan, gx, np.ascontiguousarray(gy), self.winner)
        return (gx,)


def tap_by_tap(plan, x, y, winner, desk, block):
    """A block by the textbook's loop; what a tap sees is compared where it lies, or, of few channels, in a copy."""
    x, y, winner = x[block.seen], y[block.out], winner[block.out]
    hit, best = desk("hit", y.shape, np.uint8), None
    strides, dilations = ([getattr(axis, name) for axis in plan.axes] for name in ("stride", "dilation"))
    for n, tap in enumerate(plan.taps):
        value = windows.view(x, tap, strides, dilations, y.shape[1:4])
        if y.shape[-1] < LONG:
            copy = y if n == 0 else desk("value", y.shape)
            in_runs(copy)[...] = in_runs(value)
            value = copy
        if n == 0:
            best = value
            continue
        if n == 1:
            np.greater(value, best, out=winner.view(bool))
        else:
            np.greater(value, best, out=hit.view(bool))
            np.multiply(hit, n, out=hit)
            np.maximum(winner, hit, out=winner)  # a later tap has a higher number
        best = np.maximum(best, value, out=y)


def selected(plan, gx, gy, winner):
    """Windows that are apart: each tap takes what it won, and 0 where it did not."""
    t, h, w = plan.axes
    columns = plan.columns
    gx, gy = gx.view(np.int32), gy.view(np.int32)  # bits, of which a product with 0 is 0, even for NaN
    if w.trivial:  # rows lie side by side: as if each were one position
        columns = [(slice(0, 1), slice(0, 1))]
        gx, gy, winner = (memory.view(a, *a.shape[:3], 1, -1) for a in (gx, gy, winner))
    desk = Desk()

    def task(block):
        samples, frames, rows = block.out
        if not (t.tiled and h.tiled and w.tiled):
            gx[samples, t.own(frames), h.own(rows)] = 0
        for n, (i, j, k) in enumerate(plan.taps):
            some, places = ((samples, *met) for met in zip(t.met(i, frames), h.met(j, rows), columns[k], strict=True))
            won = winner[some]
            hit = np.equal(won, n, out=desk("hit", won.shape, bool))
            np.multiply(gy[some], hit, out=gx[places])

    plan.run(task, plan.blocks)


def scattered(plan, gx, gy, winner):
    """Windows that may share inputs: a list of the places in memory where the winners lie, and there gy is added."""
    t, h, w = plan.axes
    steps = [stride // gx.itemsize for stride in gx.strides]
    line = w.windows * gx.shape[4]
    table = jumps(plan, steps, pairs=line % 2 == 0)
    width = table.shape[1]
    desk = Desk()

    @functools.cache
    def grid(samples, frames, rows):
        """Where the first taps of so many windows lie, counted from the first of all."""
        apart = steps[0], t.stride * steps[1], h.stride * steps[2]
        i, j, k = (np.arange(n) * step for n, step in zip((samples, frames, rows), apart, strict=True))
        columns = (np.arange(w.windows) * (w.stride * steps[3]))[:, None] + np.arange(gx.shape[4])
        return ((i[:, None, None] + j[:, None] + k).reshape(-1, 1) + columns.reshape(-1)).reshape(-1)

    # on one thread: NumPy keeps the others waiting while it adds
    for samples in threads.pieces(gx.shape[0], BLOCK_ELEMENTS // (gx.shape[1] * plan.frame)):
        g, won = gy[samples], winner[samples]
        for piece in cuts(g.shape[:3], (g.shape[1] * h.windows * line, h.windows * line, line), PLACES):
            first, last, row = piece[1].start, piece[1].stop, piece[2].start
            to = gx[samples][piece[0]]
            if row == 0:  # frames that none before has seen
                low = t.seen(slice(0, first)).stop if first else 0
                to[:, low : t.size if last == t.windows else t.seen(slice(0, last)).stop] = 0
            start = t.position(first) * steps[1] + h.position(row) * steps[2] - w.before * steps[3]
            taps = won[piece].reshape(-1)
            places = desk("places", taps.shape, np.intp)
            entries, items = taps.view(f"<u{width}"), f"V{width * table.itemsize}"
            np.take((table + start).view(items)[:, 0], entries, out=places.view(items), mode="clip")
            places += grid(*g[piece].shape[:3])
            np.add.at(memory.view(to, -1), places, g[piece].reshape(-1))


def jumps(plan, steps, pairs):
    """How far each tap lies from the first of its window, an array (taps, 1).

    For `pairs` of bytes read as one number, the second in the high byte: an array (256 * taps, 2) with both answers.
    """
    far = [sum(a.dilation * j * s for a, j, s in zip(plan.axes, tap, steps[1:4], strict=True)) for tap in plan.taps]
    one = np.array(far, np.intp)[:, None]
    if not pairs:
        return one
    two = np.zeros((len(far), 256, 2), np.intp)
    two[:, : len(far), 0], two[:, :, 1] = far, one
    return two.reshape(-1, 2)
