"""What the non-local kernels share: positions as lists, and how the work on them is cut up."""

from __future__ import annotations

import numpy as np

from minnl.kernels import threads
from minnl.kernels.memory import empty

SHORTEST_RUN = 256  # positions that are worth a task of their own
LONG = 2**27  # multiply-adds of an operation that is worth eight tasks; a shorter one gets four


def fold(op, theta, phi, g):
    """The inputs as lists of positions, which the op keeps; returns memory for y, such a list too."""
    op.shapes(theta, phi, g)
    op.theta, op.phi, op.g = (np.ascontiguousarray(op.fold(x)) for x in (theta, phi, g))
    return empty((*op.theta.shape[:2], g.shape[-1]), g.dtype)


class Gradients:
    """gy, and memory for the gradients of theta, phi and g, as `lists` of positions; `unfolded`: as the inputs."""

    def __init__(self, op, gy):
        self.op = op
        self.whole = [empty(shape, op.g.dtype) for shape in (op.theta_shape, op.phi_shape, op.g_shape)]
        # Of the gradients these are views, except for axes="time".
        self.lists = [np.ascontiguousarray(op.fold(x)) for x in (gy, *self.whole)]

    def unfolded(self):
        if self.op.axes == "time":
            return [self.op.unfold(x, whole.shape) for x, whole in zip(self.lists[1:], self.whole, strict=True)]
        return self.whole


def division(op):
    """How the work is shared out: runs of batch elements, and into how many runs each one's positions are cut."""
    (batch, length, inner), (_, keys, depth) = op.theta.shape, op.g.shape
    most = 8 if batch * length * keys * (inner + depth) >= LONG else 4
    if batch >= most:
        return threads.shares(batch, most), 1
    return threads.shares(batch, batch), even(min(-(-most // max(1, batch)), length // SHORTEST_RUN))


def even(runs):
    """So many runs, or one less: of three, two threads would take two and one. At least one."""
    return max(1, runs - runs % 2)


def summed(op, x, task, *shapes):
    """``task(elements, positions, *parts)`` for all positions of x; returns the sums of the parts.

    A part has one of the shapes, behind the batch, and belongs to one task. They are added up in order.
    """
    elements, runs = division(op)
    pieces = list(enumerate(threads.shares(x.shape[1], runs)))
    parts = [empty((len(pieces), len(x), *shape), x.dtype) for shape in shapes]
    calls = [(e, i, *(part[k, e] for part in parts)) for e in elements for k, i in pieces]
    threads.run(lambda call: task(*call), calls)
    return [part[0] if len(pieces) == 1 else part.sum(axis=0) for part in parts]


def turned(keys, factor, ones=False):
    """factor * keys, transposed: (B, P, C) -> (B, C, P); with `ones` factor * [keys, 1].

    Many channels go by way of a copy with longer rows: of rows that lie powers of 2 apart a column falls into very few
    places of the cache, and would be fetched anew for each of its neighbours.
    """
    batch, rows, channels = keys.shape
    out = empty((batch, channels + ones, rows), keys.dtype)

    def run(task):
        part, turned = keys[task], out[task[0], :, task[1]]
        if channels >= 128:
            apart = empty((*part.shape[:2], channels + 16), keys.dtype)[..., :channels]
            np.copyto(apart, part)
            part = apart
        np.multiply(part.swapaxes(1, 2), factor, out=turned[:, :channels])
        turned[:, channels:] = factor

    runs = 1 if batch >= 4 else even(rows // SHORTEST_RUN)
    threads.run(run, [(b, j) for b in threads.shares(batch, 4) for j in threads.shares(rows, runs)])
    return out
