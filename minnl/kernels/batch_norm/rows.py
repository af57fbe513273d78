"""Activations (..., C) as one long row of numbers, for operations in which a channel has numbers of its own.

docs/kernels/batch_norm.md tells why blocks are large and rows wide.
"""

from __future__ import annotations

import functools

import numpy as np

from minnl.kernels.runtime import memory, threads
from minnl.kernels.runtime.sums import over_positions, products_over_positions

BLOCK = 512 * 1024  # numbers that an operation is given at most, 2 MB
ALONE = 512 * 1024  # numbers: fewer are done on one thread before another has woken up
WIDTH = 8 * 1024  # rows at least as wide where a channel's number is added to or multiplied with many
LANES = 512  # and where sums go down their columns


class Rows:
    """How `size` numbers, C of them a position, are cut into tasks, blocks, and rows of whole positions.

    Blocks (rows, width) are known by their numbers; what is left in the end is a block of one shorter row.
    """

    def __init__(self, size, channels):
        self.channels = channels
        self.lanes = channels * -(-LANES // channels)
        self.width = self.lanes * -(-WIDTH // self.lanes)
        self.count, self.rest = divmod(size, self.width)
        threaded = size >= ALONE
        count = -(-size // BLOCK)
        count += count % 2 if threaded else 0  # as many for each of two threads
        self.blocks = threads.shares(self.count, count) if self.count else []
        self.shapes = [(some.stop - some.start, self.width) for some in self.blocks]
        self.shapes += [(1, self.rest)] * bool(self.rest)
        numbers = list(range(len(self.shapes)))
        self.tasks = [[i] for i in numbers] if threaded else [numbers]
        self.zeros = np.zeros(self.width, np.float32)

    def cut(self, array):
        """The array in blocks, which look into it if it is contiguous: `memory.view` says so of a result."""
        array = array.reshape(-1)
        whole = array[: self.count * self.width].reshape(self.count, self.width)
        return [whole[some] for some in self.blocks] + [array[-self.rest :].reshape(1, -1)] * bool(self.rest)

    def run(self, one):
        """Call ``one(i)`` for every block, on all threads; returns the results in order."""
        done = threads.run(lambda numbers: [one(i) for i in numbers], self.tasks)
        return [result for results in done for result in results]

    def run_with_scratch(self, one):
        """Call ``one(i, scratch)``: `scratch` is memory as large as the block."""

        def task(numbers):
            room = memory.empty((max(self.shapes[i][0] for i in numbers), self.width), np.float32)
            return [one(i, room[: self.shapes[i][0], : self.shapes[i][1]]) for i in numbers]

        return [result for results in threads.run(task, self.tasks) for result in results]

    def repeated(self, *vectors):
        """Each vector (C,) repeated over a row: an array (vectors, width)."""
        out = np.empty((len(vectors), self.width // self.channels, self.channels), np.float32)
        out[...] = np.array(vectors)[:, None]
        return out.reshape(len(vectors), self.width)

    def each(self, ufunc, a, row, out):
        """out = ufunc(a, the channel's number) for a block; `row` holds the numbers, as `repeated` makes them."""
        return ufunc(a, row[: a.shape[1]], out=out)

    def sums(self, a):
        """Sums of a block down the columns, in float64."""
        return over_positions(self._lines(a)[None])[0]

    def sums_of_products(self, a, b):
        """Sums of a * b down the columns, in float64."""
        return products_over_positions(self._lines(a), self._lines(b))

    def _lines(self, a):
        """A block as rows of `lanes`, the last one filled up with zeros."""
        if a.shape[1] % self.lanes:
            a = np.concatenate([a[0], np.zeros(-a.shape[1] % self.lanes, a.dtype)])
        return a.reshape(-1, self.lanes)

    def by_channel(self, partial):
        """Column sums of all blocks, [(kind, kind, ...), ...], added up: an array (kinds, C)."""
        partial = np.array(partial)
        return partial.reshape(*partial.shape[:2], -1, self.channels).sum(axis=(0, 2))


@functools.lru_cache(maxsize=256)
def rows_of(size, channels):
    """The :class:`Rows` of arrays of that size, made once."""
    return Rows(size, channels)
