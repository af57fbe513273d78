"""Average pooling, one axis after the other, forward and back: docs/kernels/pooling.md."""

from __future__ import annotations

import numpy as np

from minnl.kernels import memory, threads
from minnl.kernels.cpu.gather import in_runs
from minnl.kernels.cpu.kernel import Float32Kernel
from minnl.kernels.cpu.pool_plan import BLOCK_ELEMENTS, Desk, plan_of
from minnl.kernels.cpu.pool_steps import Steps

MOST_TAPS = 32  # one after another, along the three axes together


class BlockedAvgPool(Float32Kernel):
    @staticmethod
    def suits(op, arrays):
        """Not for very large windows: their running sums would lose digits, the textbook body's are in float64."""
        return Float32Kernel.suits(op, arrays) and arrays[0].size > 0 and sum(op.kernel) <= MOST_TAPS

    @staticmethod
    def forward(op, x):
        op.shape = x.shape
        plan = plan_of(op, x.shape)
        x, y = np.ascontiguousarray(x), memory.empty(plan.out_shape, x.dtype)
        share, make = shares(op, plan), Steps(plan, x, y, np.add, 0)

        def task(block):
            make(block)
            part = y[block.out]
            np.multiply(part, share[block.out[1:]] if share.ndim else share, out=part)

        plan.run(task, plan.blocks)
        return y

    @staticmethod
    def backward(op, gy):
        """Gradients are spread along columns, then rows, then frames: the steps of forward, back."""
        plan = plan_of(op, op.shape)
        t, h, w = plan.axes
        gx, desk, share = memory.empty(op.shape, gy.dtype), Desk(), shares(op, plan)

        def task(samples):
            part, done = gx[samples], 0  # frames that hold something
            for i in range(t.windows):
                g = gy[samples, i]
                g = np.multiply(g, share[i] if share.ndim else share, out=desk("g", g.shape))
                g = spread(h, 1, spread(w, 2, g, desk), desk)
                for frame in range(*t.seen(slice(i, i + 1)).indices(t.size)):
                    if frame < done:
                        part[:, frame] += g
                    else:
                        part[:, done:frame] = 0
                        part[:, frame] = g
                        done = frame + 1
            part[:, done:] = 0

        cost = t.kernel * plan.frame
        plan.run(task, threads.shares(op.shape[0], most=-(-op.shape[0] * cost // BLOCK_ELEMENTS)))
        return (gx,)


def shares(op, plan):
    """What the sum of each window is multiplied with, of shape (T', H', W', 1); or the one number for all windows."""
    divisor = np.asarray(op.divisor(plan.out_shape[1:4], np.float32))
    if divisor.ndim and divisor.min() == divisor.max():
        divisor = divisor[0, 0, 0, 0]
    return np.asarray(1 / divisor, np.float32)


def spread(axis, dim, g, desk):
    """What windows along one axis give to its positions, each the same to all its taps."""
    if axis.trivial:
        return g
    out = desk(("spread", dim), (*g.shape[:dim], axis.size, *g.shape[dim + 1 :]))
    if not axis.tiled:
        out.fill(0)
    before, runs, of = (slice(None),) * dim, *(in_runs(memory.view(a, *a.shape[: dim + 1], -1)) for a in (out, g))
    for tap in range(axis.kernel):
        some, places = axis.met(tap, slice(0, axis.windows))
        if axis.apart:
            runs[(*before, places)] = of[(*before, some)]
        else:
            out[(*before, places)] += g[(*before, some)]
    return out
