"""Windows reduced along one axis after the other: docs/kernels/pooling.md.

The largest of a window is the largest of its rows' largest, and its sum is the sum of its rows' sums. So frames are
reduced first, then rows, then columns: few operations on long runs of numbers, a block of the input at a time.
"""

from __future__ import annotations

import numpy as np

from minnl.kernels.pooling.pool_plan import LONG, Desk
from minnl.kernels.runtime import memory
from minnl.kernels.runtime.strided import in_runs


class Steps:
    """The arrays of one call, and how a block of the output is made.

    `combine` is np.maximum or np.add, `beside` what a tap beside the input counts. With a `winner` each value has a
    rank, a byte: the number of taps less the tap that it came from. Of equal values the one of the highest rank wins.
    """

    def __init__(self, plan, x, y, combine, beside, winner=None):
        self.plan, self.combine, self.beside, self.desk = plan, combine, beside, Desk()
        self.x, self.y = (
            memory.view(a, *a.shape[:3], -1) for a in (x, y)
        )  # (N, T, H, W * C): rows are runs of numbers
        self.winner = None if winner is None else memory.view(winner, *self.y.shape)
        t, h, w = plan.axes
        self.dims = [dim for dim, axis in ((1, t), (2, h)) if not axis.trivial] or [1] * w.trivial
        self.apart = {1: h.kernel * w.kernel, 2: w.kernel, 3: 1}  # the taps of an axis lie so far apart in a window

    def __call__(self, block):
        """Make a block, and return it."""
        values, ranks = self.x[block.seen], None
        y, winner = self.y[block.out], None if self.winner is None else self.winner[block.out]
        w = self.plan.axes[2]
        for dim in self.dims:
            out, out_ranks = y, winner
            if not (w.trivial and dim == self.dims[-1]):
                count = block.out[dim].stop - block.out[dim].start
                shape = (*values.shape[:dim], count, *values.shape[dim + 1 :])
                out = self.desk(("values", dim), shape)
                out_ranks = None if winner is None else self.desk(("ranks", dim), shape, np.uint8)
            for look in block.looks[dim - 1]:
                self.along(dim, look, values, ranks, out, out_ranks)
            values, ranks = out, out_ranks
        if not w.trivial and self.plan.shape[4] >= LONG:
            arrays = (values, ranks, y, winner)
            by_columns = [a if a is None else memory.view(a, *a.shape[:3], -1, self.plan.shape[4]) for a in arrays]
            for look in self.plan.looks:
                self.along(3, look, *by_columns)
        elif not w.trivial:
            self.columns(values, ranks, y, winner)
        if winner is not None:
            np.subtract(len(self.plan.taps), winner, out=winner)
        return y

    def along(self, dim, look, values, ranks, out, out_ranks):
        """Reduce frames (dim 1), rows (2) or long columns (3) of windows that have the same taps on the input."""
        some, taps, places = look
        before = (slice(None),) * dim

        def seen(array):
            return [array[(*before, place)] for place in places]

        vs, out = seen(values), out[(*before, some)]
        if out_ranks is None:
            self.combined(vs, out)
        else:
            lower, out_ranks = [tap * self.apart[dim] for tap in taps], out_ranks[(*before, some)]
            if ranks is None:
                self.first(vs, lower, out, out_ranks)
            else:
                self.highest(vs, seen(ranks), lower, out, out_ranks)

    def columns(self, values, ranks, y, winner):
        """Reduce columns. What a tap sees is gathered, so that windows lie side by side."""
        split = (*values.shape[:3], -1, self.plan.shape[4])

        def seen(array, name, beside):
            runs, gathered = in_runs(array.reshape(split)), []
            for tap, (some, places) in enumerate(self.plan.columns):
                out = self.desk((name, tap), y.shape, array.dtype)
                columns = memory.view(out, *split)
                in_runs(columns)[..., some] = runs[..., places]
                if some.start > 0:
                    columns[..., : some.start, :] = beside(tap)
                if some.stop < columns.shape[3]:
                    columns[..., some.stop :, :] = beside(tap)
                gathered.append(out)
            return gathered

        vs = seen(values, "value", lambda tap: self.beside)
        if winner is None:
            self.combined(vs, y)
            return
        if ranks is None:
            ranks = self.desk("ranks", values.shape, np.uint8)
            ranks.fill(len(self.plan.taps))
        self.highest(vs, seen(ranks, "rank", lambda tap: tap), range(len(vs)), y, winner)

    def combined(self, values, out):
        best = values[0]
        for value in values[1:]:
            best = self.combine(best, value, out=out)
        if best is not out:
            out[...] = best

    def first(self, values, lower, out, out_ranks):
        """The largest of values that have no ranks yet, and the rank of the first of them that is as large."""
        best, hit = values[-1], self.desk("hit", out.shape, np.uint8)
        if len(values) == 1:
            out[...] = best
            out_ranks.fill(0)
        for i in range(len(values) - 2, -1, -1):  # from the last one on: each replaces what is not larger
            np.greater_equal(values[i], best, out=hit.view(bool))
            if best is values[-1]:
                np.multiply(hit, lower[-1] - lower[i], out=out_ranks)
            else:
                np.multiply(hit, lower[-1] - lower[i], out=hit)
                np.maximum(out_ranks, hit, out=out_ranks)
            best = np.maximum(values[i], best, out=out)
        np.add(out_ranks, len(self.plan.taps) - lower[-1], out=out_ranks)

    def highest(self, values, ranks, lower, out, out_ranks):
        """The largest of values, and the highest rank of those that are as large; ranks are lowered first."""
        self.combined(values, out)
        hit, lowered = self.desk("hit", out.shape, np.uint8), self.desk("lowered", out.shape, np.uint8)
        for i, (value, rank) in enumerate(zip(values, ranks, strict=True)):
            np.equal(value, out, out=hit.view(bool))
            if lower[i]:
                rank = np.subtract(rank, lower[i], out=lowered)
            if i == 0:
                np.multiply(hit, rank, out=out_ranks)
            else:
                np.multiply(hit, rank, out=hit)
                np.maximum(out_ranks, hit, out=out_ranks)
