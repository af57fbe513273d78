"""Arrays from memory that was used before: what a training step frees, the next step takes again.

Fresh memory is not free of charge. The system hands out pages on first touch and clears each one, which for arrays of
some megabytes takes as long as filling them does; a training step asks for the same sizes over and over. So large
arrays are cut from chunks that stay, and their bytes go back to a pool when, and only when, the last array that looks
into them is gone: whatever a user holds, a view of it or a slice, stays as it is. docs/kernels/memory.md tells more.
"""

from __future__ import annotations

import ctypes
import math
import os
import threading
from bisect import bisect_left, insort

import numpy as np

SMALLEST = 256 * 1024  # bytes: below, the C library finds warm memory by itself
CHUNK = 32 * 1024 * 1024  # bytes, at least, that the system is asked for: glibc returns so much as soon as it is freed
SLACK = CHUNK  # bytes: chunks are of one size and arrays are not, so the last one is seldom full
POISON = os.environ.get("MINNL_POISON") == "1"  # for tests: memory that was not written reads as NaN
_PAGE = 4096  # bytes: arrays take whole pages, so none shares a page or a cache line with another


class Pool:
    """Free memory, as spans (address, bytes) of chunks: arrays are cut from them, and neighbours are joined again.

    All chunks together take no more than `SLACK` above what was in use at once at the fullest moment, as far as that
    can be: before one is made that would go beyond, those that are wholly free go back to the system.
    """

    lock = threading.RLock()

    def __init__(self):
        self.spans = []  # what is free, by address; no two of them touch
        self.given = []  # what came back and is not yet among them
        self.chunks = {}  # address -> (bytes, the array that owns them)
        self.total = self.used = self.peak = 0  # bytes: of chunks, of arrays, of arrays at the fullest moment
        self.busy = False

    def take(self, size):
        """The address of so many bytes; None in the middle of another call by this thread (from a signal's handler)."""
        with self.lock:
            if self.busy:
                return None
            self.busy = True
            try:
                start = self.settle(size)
                if start is None:
                    start, length = span = self.smallest(size) or self.more(size)
                    i = bisect_left(self.spans, span)
                    self.spans[i : i + 1] = [(start + size, length - size)] if length > size else []
                    self.used += size
                    self.peak = max(self.peak, self.used)
                return start
            finally:
                self.busy = False

    def give(self, start, size):
        """Only a note, for arrays die at any time, in any thread, even in the middle of `take`."""
        if POISON:
            ctypes.memset(start, 0xFF, size)
        self.given.append((start, size))

    def settle(self, wanted=None):
        """Put what came back among the spans, each joined with those that it touches.

        But what has just the size that is `wanted` is used again as it is, and its address returned. So it is with the
        scratch of one task after another, which is still in the cache.
        """
        while self.given:
            start, size = self.given.pop()
            if size == wanted:
                return start
            self.used -= size
            end, i = start + size, bisect_left(self.spans, (start, 0))
            j = i
            if i > 0 and sum(self.spans[i - 1]) == start:
                i -= 1
                start = self.spans[i][0]
            if j < len(self.spans) and self.spans[j][0] == end:
                end = sum(self.spans[j])
                j += 1
            self.spans[i:j] = [(start, end - start)]
        return None

    def smallest(self, size):
        """The smallest span that is large enough, or None: large ones are kept for large arrays."""
        best = None
        for span in self.spans:
            if span[1] >= size and (best is None or span[1] < best[1]):
                best = span
        return best

    def more(self, size):
        """Make one more chunk, and return its span."""
        n = max(size, CHUNK)
        self.shrink(max(self.peak, self.used + size) + SLACK - n)
        buffer = np.empty(n + _PAGE, np.uint8)  # at least a byte is left over: no span ever touches another chunk's
        start = buffer.ctypes.data + -buffer.ctypes.data % _PAGE
        self.chunks[start] = n, buffer
        self.total += n
        insort(self.spans, (start, n))
        return start, n

    def shrink(self, limit=0):
        """Give wholly free chunks back to the system, the oldest first, until all together have `limit` bytes."""
        for start, (n, _) in list(self.chunks.items()):
            if self.total > limit and (start, n) in self.spans:
                self.spans.remove((start, n))
                del self.chunks[start]
                self.total -= n

    def clear(self):
        """Give all that is wholly free back to the system."""
        with self.lock:
            self.settle()
            self.shrink()


pool = Pool()
if hasattr(os, "register_at_fork"):  # a fork waits until no thread is in the middle of `take`
    os.register_at_fork(before=Pool.lock.acquire, after_in_parent=Pool.lock.release, after_in_child=Pool.lock.release)


class _Lease:
    """Owner of an array's memory: NumPy keeps it alive as long as any view of the array; then its bytes return."""

    __slots__ = ("__array_interface__", "pool", "start", "size")

    def __init__(self, shape, dtype, pool, start, size):
        self.pool, self.start, self.size = pool, start, size
        where = (start, False)  # not read-only
        self.__array_interface__ = {"version": 3, "shape": shape, "typestr": dtype.str, "data": where}

    def __del__(self):
        self.pool.give(self.start, self.size)


def view(array, *shape):
    """The array in another shape, as PyTorch's ``Tensor.view``: for results, which have to arrive in `array` itself.

    Raises ValueError where ``array.reshape`` would be a copy: what is written to a copy is lost.
    """
    try:
        return array.reshape(shape, copy=False)
    except ValueError:
        raise ValueError(
            f"view: an array of shape {array.shape} and strides {array.strides} has no view of shape {shape}"
        ) from None


def empty(shape, dtype):
    """np.empty, but from used memory where there is enough in one piece. `shape` is a tuple."""
    dtype = np.dtype(dtype)
    bytes_ = math.prod(shape) * dtype.itemsize
    size = -(-bytes_ // _PAGE) * _PAGE
    start = pool.take(size) if bytes_ >= SMALLEST else None
    array = np.empty(shape, dtype) if start is None else np.asarray(_Lease(shape, dtype, pool, start, size))
    return poisoned(array) if POISON else array


def poisoned(array):
    """The contiguous array with all bits set, which are NaN as floats: a read before the first write shows."""
    ctypes.memset(array.ctypes.data, 0xFF, array.nbytes)
    return array
