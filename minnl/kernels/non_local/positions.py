"""What the non-local kernels share: positions as lists, and how the work on them is cut up."""

from __future__ import annotations

import functools
import itertools
import math

import numpy as np

from minnl.kernels.runtime import panels, threads
from minnl.kernels.runtime.memory import empty

SHORTEST_RUN = 256  # positions that are worth a task of their own
PARTS = 4  # tasks of a copy, if it has
SHARED = 256 * 1024  # elements: to hand over less takes longer than to copy it
COSTS = 2**22, 2**25, 2**27  # multiply-adds that are worth two, four and eight tasks


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


def division(op, cost=None):
    """How the work is shared out: runs of batch elements, and into how many runs each one's positions are cut.

    cost, in multiply-adds: that of all pairs unless it is given.
    """
    (batch, length, inner), (_, keys, depth) = op.theta.shape, op.g.shape
    cost = batch * length * keys * (inner + depth) if cost is None else cost
    most = 2 ** sum(cost >= least for least in COSTS)
    if batch >= most:
        return threads.shares(batch, most), 1
    return threads.shares(batch, batch), even(min(-(-most // max(1, batch)), length // SHORTEST_RUN))


def even(runs):
    """So many runs, or one less: of three, two threads would take two and one. At least one."""
    return max(1, runs - runs % 2)


def summed(op, x, task, *shapes, cost=None):
    """``task(elements, positions, *parts)`` for all positions of x; returns the sums of the parts.

    A part has one of the shapes, behind the batch, and belongs to one task. They are added up in order.
    """
    elements, runs = division(op, cost)
    pieces = list(enumerate(threads.shares(x.shape[1], runs)))
    parts = [empty((len(pieces), len(x), *shape), x.dtype) for shape in shapes]
    calls = [(e, i, *(part[k, e] for part in parts)) for e in elements for k, i in pieces]
    threads.run(lambda call: task(*call), calls)
    return [part[0] if len(pieces) == 1 else part.sum(axis=0) for part in parts]


class Copies:
    """Second factors of products, in panels: ``with Copies() as copies``.

    Each method returns memory, which is filled at the end of the block, all of it at once on all threads.
    """

    def __init__(self):
        self.tasks, self.elements = [], 0

    def __enter__(self):
        return self

    def __exit__(self, error, *_):
        if error is None:
            calls = [functools.partial(*task) for task in self.tasks]
            run = threads.run if self.elements >= SHARED else map  # little is sooner done than shared out
            list(run(lambda call: call(), calls))

    def turned(self, keys, factor, ones=False):
        """factor * keys, transposed: (B, P, C) -> (B, P / width, C, width); with `ones` factor * [keys, 1].

        Many channels go by way of a copy with longer rows: of rows that lie powers of 2 apart a column falls into very
        few places of the cache, and would be fetched anew for each of its neighbours.
        """
        batch, positions, channels = keys.shape
        width = panels.width(channels + ones, positions)
        out = empty((batch, positions // width, channels + ones, width), keys.dtype)
        keys = keys.reshape(*out.shape[:2], width, channels)

        def turn(part):
            some, to = keys[part], out[(*part[:2], slice(None), part[2])]
            if channels >= 128:
                apart = empty((*some.shape[:3], channels + 16), keys.dtype)[..., :channels]
                np.copyto(apart, some)
                some = apart
            np.multiply(some.swapaxes(2, 3), factor, out=to[:, :, :channels])
            to[:, :, channels:] = factor

        self.later(turn, keys.shape)
        return out

    def upright(self, x, longest, rows, turned=False):
        """x for sums over up to so many of its positions: (B, P, C) -> (B, C / width, P, width).

        A view, of one panel, if too few rows are to be multiplied with it. `turned`: these are a transposed view.
        """
        batch, positions, channels = x.shape
        width = panels.width(longest, channels, turned) if rows >= panels.ROWS else channels
        x = x.reshape(batch, positions, channels // width, width).swapaxes(1, 2)
        if width == channels:
            return x
        out = empty(x.shape, x.dtype)
        self.later(lambda part: np.copyto(out[part], x[part]), out.shape)
        return out

    def later(self, task, shape):
        """At the end, ``task(part)`` for parts of an array of that shape: slices of all axes but the last."""
        size = math.prod(shape)
        parts, cuts = PARTS if size >= SHARED else 1, []
        for length in shape[:-1]:
            cuts.append(threads.shares(length, parts))
            parts = -(-parts // len(cuts[-1]))
        self.tasks += [(task, part) for part in itertools.product(*cuts)]
        self.elements += size
