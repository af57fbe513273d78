"""What the pooling kernels share: where windows lie, and how their work is cut into blocks."""

from __future__ import annotations

import contextlib
import functools
import math
import threading
from dataclasses import dataclass

import numpy as np

from minnl import windows
from minnl.kernels.runtime import memory, threads

BLOCK_ELEMENTS = 1024 * 1024  # of the input, 4 MB: threads that work in shorter steps keep each other waiting
ALONE = 1024 * 1024  # elements of the input up to which one thread is sooner done than two
BUFFER = 1024  # elements
LONG = 64  # channels that are worth a loop of NumPy's; shorter runs are sooner copied side by side first


@dataclass(frozen=True)
class Axis:
    """One axis of a pooling: window i has its tap j on position ``stride * i + dilation * j - before`` of the input."""

    size: int  # positions of the input
    windows: int
    kernel: int
    stride: int
    dilation: int
    before: int

    @property
    def trivial(self):
        """Whether windows are single positions, one beside the other."""
        return self.kernel == self.stride == 1

    @property
    def apart(self):
        """Whether no position lies between the first and the last tap of two windows."""
        return self.dilation * (self.kernel - 1) < self.stride

    @property
    def inside(self):
        """Whether no window hangs over the input."""
        return not self.before and self.position(self.windows - 1, self.kernel - 1) < self.size

    @property
    def tiled(self):
        """Whether each position lies in exactly one window."""
        return self.inside and self.apart and self.kernel == self.stride and self.windows * self.stride == self.size

    def position(self, window, tap=0):
        return self.stride * window + self.dilation * tap - self.before

    def seen(self, some):
        """The positions of the input from the first to the last that a slice of windows sees."""
        first, last = self.position(some.start), self.position(some.stop - 1, self.kernel - 1)
        return slice(max(0, first), min(last + 1, self.size))

    def own(self, some):
        """The positions that belong to a slice of windows, if windows are apart; those between go to the one before."""
        low = max(0, self.position(some.start)) if some.start else 0
        return slice(low, self.size if some.stop == self.windows else self.position(some.stop))

    def taken(self, some, tap, origin=0):
        """The positions, counted from `origin`, that one tap of a slice of windows sees; all are on the input."""
        first = self.position(some.start, tap) - origin
        return slice(first, first + max(0, (some.stop - some.start - 1) * self.stride + 1), self.stride)

    def met(self, tap, some):
        """The windows, of a slice of them, that have this tap on the input, and the positions it sees: two slices."""
        first = self.position(0, tap)
        low = max(some.start, -(first // self.stride))
        on = slice(low, max(low, min(some.stop, -((first - self.size) // self.stride))))
        return on, self.taken(on, tap)

    def looks(self, some):
        """A slice of windows in runs that have the same taps on the input.

        Triples (windows, taps, what each tap sees), counted from the first window and from the first position seen.
        """
        runs, origin = [], self.seen(some).start
        for i in range(some.start, some.stop):
            first = self.position(i)
            taps = range(max(0, -(first // self.dilation)), min(self.kernel, -((first - self.size) // self.dilation)))
            if runs and runs[-1][1] == taps:
                runs[-1] = slice(runs[-1][0].start, i + 1), taps
            else:
                runs.append((slice(i, i + 1), taps))
        return [
            (slice(run.start - some.start, run.stop - some.start), taps, [self.taken(run, tap, origin) for tap in taps])
            for run, taps in runs
        ]


@dataclass(frozen=True)
class Block:
    """A part of the output, and the part of the input that it sees: samples, frames and rows."""

    out: tuple[slice, slice, slice]
    seen: tuple[slice, slice, slice]
    looks: tuple[list, list]  # Axis.looks of the frames, and of the rows


class Plan:
    """Axes, sizes and blocks of a pooling."""

    def __init__(self, name, shape, kernel, stride, dilation, pads, ceil_mode):
        sizes = windows.out_sizes(name, shape[1:4], kernel, stride, dilation, pads, ceil_mode)
        befores = [before for before, _ in pads]
        t, h, w = self.axes = [Axis(*a) for a in zip(shape[1:4], sizes, kernel, stride, dilation, befores, strict=True)]
        self.shape, self.out_shape = shape, (shape[0], *sizes, shape[4])
        self.apart = t.apart and h.apart and w.apart
        self.inside = t.inside and h.inside and w.inside
        self.taps = list(windows.taps(kernel))
        self.columns = [w.met(tap, slice(0, w.windows)) for tap in range(w.kernel)]
        self.looks = w.looks(slice(0, w.windows))
        self.frame = math.prod(shape[2:])
        costs = shape[1] * self.frame, t.stride * self.frame, t.kernel * h.stride * shape[3] * shape[4]
        self.blocks = [
            Block(out, (out[0], t.seen(out[1]), h.seen(out[2])), (t.looks(out[1]), h.looks(out[2])))
            for out in cuts((shape[0], t.windows, h.windows), costs, BLOCK_ELEMENTS)
        ]

    def run(self, task, items):
        """Call ``task(item)`` for every item, on all threads unless the input is small."""
        with short_buffers():
            if math.prod(self.shape) <= ALONE:
                return [task(item) for item in items]
            return threads.run(task, items)


@functools.lru_cache(maxsize=256)
def _plan(*arguments):
    return Plan(*arguments)


def plan_of(op, shape):
    """The plan of a pooling op for an input of that shape, made only once."""
    return _plan(op.name, shape, op.kernel, op.stride, op.dilation, op.pads, op.ceil_mode)


def cuts(counts, costs, most):
    """So many samples, frames and rows, cut into blocks of whole samples, or frames of one, or rows of a frame.

    `costs` says how many elements a sample, a frame and a row take, `most` how many a block should have at most.
    """

    def parts(n, cost):
        return threads.shares(n, most=-(-n * cost // most))

    samples, frames = (threads.shares(n, most=n) for n in counts[:2])
    if costs[0] <= most:
        return [(some, slice(0, counts[1]), slice(0, counts[2])) for some in parts(counts[0], costs[0])]
    if costs[1] <= most:
        return [(n, some, slice(0, counts[2])) for n in samples for some in parts(counts[1], costs[1])]
    return [(n, t, some) for n in samples for t in frames for some in parts(counts[2], costs[2])]


class Desk(threading.local):
    """Arrays that a thread uses again for each block of a call."""

    def __init__(self):
        self.arrays = {}

    def __call__(self, name, shape, dtype=np.float32):
        found = self.arrays.get((name, shape))
        if found is None:
            found = self.arrays[name, shape] = memory.empty(shape, dtype)
        return found


@contextlib.contextmanager
def short_buffers():
    """NumPy takes strided operands through a buffer, unless their inner runs are as long as it: here they often are."""
    before = np.setbufsize(BUFFER)
    try:
        yield
    finally:
        np.setbufsize(before)
