"""Arrays from memory that was used before: what a training step frees, the next step takes again.

Fresh memory is not free of charge. The system hands out pages on first touch and clears each one, which for arrays of
some megabytes takes as long as filling them does; a training step asks for the same sizes over and over. So large
arrays are cut from blocks that go back to a pool when, and only when, the last array that looks into them is gone:
whatever a user holds, a view of it or a slice, keeps its block out of the pool. docs/kernels/README.md tells more.
"""

from __future__ import annotations

import math
import threading

import numpy as np

SMALLEST = 256 * 1024  # bytes: below, the C library finds warm memory by itself
SLACK = 32 * 1024 * 1024  # bytes: a step's sizes differ, and with less of each at hand many would be made anew
_LOOK = 8  # blocks are looked through for one that this thread had: another one's would sit in another core's cache
_ALIGNED = 64  # bytes: a cache line, and the widest vector


class Pool:
    """Free blocks by size, oldest first, and how much is out.

    Free and used blocks together never take more than `SLACK` above the blocks that were in use at once at the fullest
    moment: before a new one is made, free ones go back to the system as far as that needs.
    """

    def __init__(self):
        self.free = {}  # size -> (thread that gave it, buffer, address) of blocks, the one given last at the end
        self.held = self.used = self.peak = 0  # bytes: in free blocks, in arrays, most in arrays at once
        self.lock = threading.RLock()  # again from the same thread: the collector may run `give` inside `take`

    def take(self, size):
        with self.lock:
            blocks = self.free.get(size)
            if blocks:
                me = threading.get_ident()
                mine = (i for i in range(-1, -1 - min(len(blocks), _LOOK), -1) if blocks[i][0] == me)
                block = blocks.pop(next(mine, -1))[1:]
                self.held -= size
            else:
                self.make_room(size)
                buffer = np.empty(size + _ALIGNED, np.uint8)
                block = buffer, buffer.ctypes.data + -buffer.ctypes.data % _ALIGNED
            self.used += size
            self.peak = max(self.peak, self.used)
            return block

    def make_room(self, size):
        """Give free blocks back to the system, as far as one more of that size would take us above the limit."""
        limit = max(self.peak, self.used + size) + SLACK
        for other, blocks in self.free.items():
            while blocks and self.held + self.used + size > limit:
                blocks.pop(0)
                self.held -= other

    def clear(self):
        """Give all free blocks back to the system."""
        with self.lock:
            self.free.clear()
            self.held = 0

    def give(self, block, size):
        with self.lock:
            self.used -= size
            self.held += size
            self.free.setdefault(size, []).append((threading.get_ident(), *block))


pool = Pool()


class _Lease:
    """Owner of an array's memory: NumPy keeps it alive as long as any view of the array; then the block returns."""

    __slots__ = ("__array_interface__", "pool", "block", "size")

    def __init__(self, shape, dtype, pool, block, size):
        self.pool, self.block, self.size = pool, block, size
        where = (block[1], False)  # not read-only
        self.__array_interface__ = {"version": 3, "shape": shape, "typestr": dtype.str, "data": where}

    def __del__(self):
        self.pool.give(self.block, self.size)


def empty(shape, dtype):
    """np.empty, but from used memory where there is some of that size. `shape` is a tuple."""
    dtype = np.dtype(dtype)
    bytes_ = math.prod(shape) * dtype.itemsize
    if bytes_ < SMALLEST:
        return np.empty(shape, dtype)
    size = rounded(bytes_)
    return np.asarray(_Lease(shape, dtype, pool, pool.take(size), size))


def rounded(n):
    """The next of eight sizes between two powers of two: shapes that nearly agree share blocks."""
    step = 1 << max(0, n.bit_length() - 4)
    return -(-n // step) * step
