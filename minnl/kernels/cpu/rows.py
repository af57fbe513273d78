"""Activations (..., C) as one long row of numbers, for operations in which a channel has numbers of its own.

docs/kernels/batch_norm.md tells why blocks are large and rows wide.
"""

from __future__ import annotations

import functools

import numpy as np

from minnl.kernels import memory, threads

BLOCK = 400 * 1024  # numbers that an operation is given at most, 1.6 MB
ALONE = 1024 * 1024  # numbers: fewer are done on one thread before another has woken up
WIDTH = 8 * 1024  # rows at least as wide where a channel's number is added to or multiplied with many
LANES = 512  # and where sums go down their columns


class Rows:
    """How `size` numbers, C of them a position, are cut into tasks, blocks, and rows of whole positions."""

    def __init__(self, size, channels):
        self.channels = channels
        self.lanes = channels * -(-LANES // channels)
        self.width = self.lanes * -(-WIDTH // self.lanes)
        threaded = size >= ALONE
        count = -(-size // BLOCK)
        count += count % 2 if threaded else 0  # as many for each of two threads
        shares = threads.shares(-(-size // self.width), count)
        blocks = [slice(some.start * self.width, min(some.stop * self.width, size)) for some in shares]
        self.tasks = [[part] for part in blocks] if threaded else [blocks]
        self.block = max(part.stop - part.start for part in blocks)
        self.ones = np.ones(self.block // self.lanes, np.float32)
        self.zeros = np.zeros(self.width, np.float32)

    def run(self, one):
        """Call ``one(part)`` for every block, on all threads; returns the results in order."""
        done = threads.run(lambda parts: [one(part) for part in parts], self.tasks)
        return [result for results in done for result in results]

    def run_with_scratch(self, one):
        """Call ``one(part, scratch)``: `scratch` is memory as large as the block."""

        def task(parts):
            scratch = memory.empty((self.block,), np.float32)
            return [one(part, scratch[: part.stop - part.start]) for part in parts]

        return [result for results in threads.run(task, self.tasks) for result in results]

    def repeated(self, *vectors):
        """Each vector (C,) repeated over a row: an array (vectors, width)."""
        out = np.empty((len(vectors), self.width // self.channels, self.channels), np.float32)
        out[...] = np.array(vectors)[:, None]
        return out.reshape(len(vectors), self.width)

    def each(self, ufunc, a, row, out):
        """out = ufunc(a, the channel's number) for a block; `row` holds the numbers, as `repeated` makes them."""
        whole = len(a) // self.width * self.width
        if whole:
            ufunc(a[:whole].reshape(-1, self.width), row, out=out[:whole].reshape(-1, self.width))
        if whole < len(a):
            ufunc(a[whole:], row[: len(a) - whole], out=out[whole:])
        return out

    def sums(self, a):
        """Sums of a block down the columns: a product with ones, which is what BLAS does quickest."""
        whole = len(a) // self.lanes * self.lanes
        total = self.ones[: whole // self.lanes].dot(a[:whole].reshape(-1, self.lanes))
        total[: len(a) - whole] += a[whole:]
        return total

    def sums_of_products(self, a, b):
        """Sums of a * b down the columns."""
        whole = len(a) // self.lanes * self.lanes
        total = np.einsum("ij,ij->j", *(v[:whole].reshape(-1, self.lanes) for v in (a, b)))
        total[: len(a) - whole] += a[whole:] * b[whole:]
        return total

    def by_channel(self, partial):
        """Column sums of all blocks, [(kind, kind, ...), ...], added up in float64: an array (kinds, C)."""
        partial = np.array(partial)
        positions = partial.reshape(*partial.shape[:2], -1, self.channels)
        return positions.sum(axis=(0, 2), dtype=np.float64)


@functools.lru_cache(maxsize=256)
def rows_of(size, channels):
    """The :class:`Rows` of arrays of that size, made once."""
    return Rows(size, channels)


def flat(x):
    return np.ascontiguousarray(x).reshape(-1)
