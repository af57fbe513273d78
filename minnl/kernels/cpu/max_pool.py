"""Max pooling in blocks that stay in the cache: docs/kernels/pooling.md."""

from __future__ import annotations

import functools
import math

import numpy as np

from minnl import windows
from minnl.kernels import memory
from minnl.kernels.cpu.gather import in_runs
from minnl.kernels.cpu.kernel import Float32Kernel
from minnl.kernels.cpu.pool_plan import BLOCK_ELEMENTS, Desk, cuts, plan_of
from minnl.kernels.cpu.pool_steps import Steps

FEW_TAPS = 4  # up to here the winners are found sooner tap by tap than axis by axis
PLACES = 64 * 1024  # winners whose places are listed at once: 512 KB


class BlockedMaxPool(Float32Kernel):
    @staticmethod
    def suits(op, arrays):
        x = arrays[0]
        met = all(
            d <= n for d, n in zip(op.dilation, x.shape[1:4], strict=True)
        )  # else windows may see no input at all
        return Float32Kernel.suits(op, arrays) and x.size > 0 and met

    @staticmethod
    def forward(op, x):
        plan = plan_of(op, x.shape)
        t, h, w = plan.axes
        x, y = np.ascontiguousarray(x), memory.empty(plan.out_shape, x.dtype)
        winner = memory.empty(plan.out_shape, np.uint8) if op.needs[0] else None
        if (
            winner is not None
            and 1 < len(plan.taps) <= FEW_TAPS
            and w.kernel > 1
            and t.inside
            and h.inside
            and w.inside
        ):
            make = functools.partial(tap_by_tap, plan, x, y, winner, Desk())
        else:
            make = Steps(plan, x, y, np.maximum, -np.inf, winner)

        def task(block):
            make(block)
            return winner is None or y[block.out].min() > -math.inf  # where there is only that, or NaN, others win

        if not all(plan.run(task, plan.blocks)):
            return op.forward(x)
        op.shape, op.winner = x.shape, winner
        return y

    @staticmethod
    def backward(op, gy):
        plan = plan_of(op, op.shape)
        t, h, w = plan.axes
        gx = memory.empty(op.shape, gy.dtype)
        fill = selected if w.trivial and t.apart and h.apart else scattered
        fill(plan, gx, np.ascontiguousarray(gy), op.winner)
        return (gx,)


def tap_by_tap(plan, x, y, winner, desk, block):
    """A block by the textbook's loop; what a tap sees is gathered from a copy that is near."""
    y, winner, near = y[block.out], winner[block.out], desk("near", x[block.seen].shape)
    near[...] = x[block.seen]
    value, hit = desk("value", y.shape), desk("hit", y.shape, np.uint8)
    strides, dilations = ([getattr(axis, name) for axis in plan.axes] for name in ("stride", "dilation"))
    for n, tap in enumerate(plan.taps):
        seen = in_runs(windows.view(near, tap, strides, dilations, y.shape[1:4]))
        if n == 0:
            in_runs(y)[...] = seen
            continue
        in_runs(value)[...] = seen
        if n == 1:
            np.greater(value, y, out=winner.view(bool))
        else:
            np.greater(value, y, out=hit.view(bool))
            np.multiply(hit, n, out=hit)
            np.maximum(winner, hit, out=winner)  # a later tap has a higher number
        np.maximum(y, value, out=y)


def selected(plan, gx, gy, winner):
    """Frames and rows in windows that are apart: each tap takes what it won, and 0 where it did not."""
    t, h, _ = plan.axes
    gx, gy, winner, desk = (*(a.reshape(*a.shape[:3], -1) for a in (gx, gy, winner)), Desk())

    def task(block):
        samples, frames, rows = block.out
        if not (t.tiled and h.tiled):
            gx[samples, t.own(frames), h.own(rows)] = 0
        for n, (i, j, _) in enumerate(plan.taps):
            some, places = zip(t.met(i, frames), h.met(j, rows), strict=True)
            won = winner[(samples, *some)]
            hit = np.equal(won, n, out=desk("hit", won.shape, bool))
            np.multiply(gy[(samples, *some)], hit, out=gx[(samples, *places)])

    plan.run(task, plan.blocks)


def scattered(plan, gx, gy, winner):
    """Any windows: the places of the winners in memory, and there gy is added."""
    t, h, w = plan.axes
    steps = [stride // gx.itemsize for stride in gx.strides]
    jumps = [sum(a.dilation * j * s for a, j, s in zip(plan.axes, tap, steps[1:4], strict=True)) for tap in plan.taps]
    line = w.windows * gx.shape[4]
    table, together = jump_table(jumps, line)
    desk = Desk()

    @functools.cache
    def grid(samples, frames, rows):
        """Where the first taps of so many windows lie, counted from the first of them."""
        counts, apart = (samples, frames, rows), (steps[0], t.stride * steps[1], h.stride * steps[2])
        i, j, k = (np.arange(n) * step for n, step in zip(counts, apart, strict=True))
        columns = (np.arange(w.windows) * (w.stride * steps[3]))[:, None] + np.arange(gx.shape[4])
        starts = i[:, None, None] + j[:, None] + k
        return (starts.reshape(-1, 1) + columns.reshape(-1)).reshape(-1)

    def task(part):
        samples, frames, _ = part
        g, won, own = gy[samples, frames], winner[samples, frames], t.own(frames)
        for piece in cuts(g.shape[:3], (g.shape[1] * h.windows * line, h.windows * line, line), PLACES):
            i, j = frames.start + piece[1].start, piece[2].start
            some = gx[samples][piece[0]]
            if j == 0:  # frames that no window before has seen
                last = frames.start + piece[1].stop
                low = own.start if i == frames.start else t.seen(slice(0, i)).stop
                some[:, low : own.stop if last == frames.stop else t.seen(slice(0, last)).stop] = 0
            taps = won[piece].reshape(-1)
            places = desk("places", taps.shape, np.intp)
            start = t.position(i) * steps[1] + h.position(j) * steps[2] - w.before * steps[3]
            np.take(table(start), taps.view(f"<u{together}"), out=places.view(f"V{8 * together}"), mode="clip")
            places += grid(*g[piece].shape[:3])
            if plan.apart:
                some.reshape(-1)[places] = g[piece].reshape(-1)
            else:
                np.add.at(some.reshape(-1), places, g[piece].reshape(-1))

    cost = math.prod(gx.shape[1:])
    if plan.apart:
        plan.run(task, cuts((gx.shape[0], t.windows, 1), (cost, *[t.stride * plan.frame] * 2), BLOCK_ELEMENTS))
    else:  # NumPy does not let other threads run while it adds
        for part in cuts((gx.shape[0], 1, 1), (cost, 0, 0), BLOCK_ELEMENTS):
            task((part[0], slice(0, t.windows), None))


def jump_table(jumps, line):
    """ """
    if line % 2:
        table = np.array(jumps, np.intp)
        return (lambda start: (table + start).view("V8")), 1
    table = np.zeros((len(jumps), 256, 2), np.intp)
    table[:, : len(jumps), 0] = jumps
    table[:, :, 1] = np.array(jumps)[:, None]
    return (lambda start: (table + start).view("V16").reshape(-1)), 2
