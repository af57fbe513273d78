"""Arrays for results and workspace, and views of runs of numbers: docs/kernels/runtime.md.

NumPy copies an array of small records quicker than the same bytes as one more axis of floats: each record is one
memcpy, without a loop around a few numbers. With 16 numbers a record takes half the time; from 64 numbers on there is
no gain. So the kernels view a run of numbers (all channels of a pixel, a row of a receptive field) as one element of
dtype void. Such elements may overlap, as receptive fields do.
"""

from __future__ import annotations

import ctypes
import functools
import math
import os
import sys
import threading

import numpy as np

POISON = os.environ.get("MINNL_POISON") == "1"  # For tests: memory that nothing has written reads as NaN.
LINE = 16  # Numbers in a line of the cache, 64 bytes.
MALLOPT = {-1: 2**31 - 1, -2: 64 * 2**20, -3: 32 * 2**20}  # M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD, in bytes.
MOST_PLANS = 256  # A thread with so many plans forgets them all, so that shapes that never return do not pile up.


def keep_freed_memory():
    """Have the C library, where that is glibc, keep freed arrays of up to 32 MB, the most it can, for the next arrays.

    By default glibc returns an array of 25 MB to the system when the array is freed, and the system clears the next
    one. Batch norm of (4, 8, 28, 28, 256) takes 23 ms backward with the default, and 15 ms with these values.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        for option, value in MALLOPT.items():
            libc.mallopt(option, value)


def release():
    """Return freed memory to the system, where the C library is glibc."""
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)


def empty(shape, dtype):
    """np.empty; NaN throughout in the tests' poison mode. `shape` is a tuple."""
    array = np.empty(shape, dtype)
    return poisoned(array) if POISON else array


def poisoned(array):
    """The contiguous array with all bits set. As floats these are NaN, so a read before the first write shows."""
    ctypes.memset(array.ctypes.data, 0xFF, array.nbytes)
    return array


def view(array, *shape):
    """The array in another shape, as PyTorch's ``Tensor.view``: for results, which have to arrive in `array` itself.

    Raises ValueError where ``array.reshape`` would be a copy: a result written to a copy is lost.
    """
    try:
        return array.reshape(shape, copy=False)
    except ValueError:
        raise ValueError(
            f"view: an array of shape {array.shape} and strides {array.strides} has no view of shape {shape}"
        ) from None


class Plans(threading.local):
    """The plans of each thread, and the thread's workspace: memory in which the buffers of all plans lie.

    A plan is an object made once for a shape: buffers, views of them, and products in turn. Python needs microseconds
    to make the views, and holds the interpreter lock meanwhile. A thread carries out one plan at a time.
    """

    def __init__(self):
        self.made, self.workspace, self.used = {}, np.empty(0, np.uint8), 0

    def of(self, make, *arguments):
        """The plan ``make(empty, *arguments)``, made when first asked for. ``empty(shape, dtype)`` cuts the workspace.

        The next plan overwrites what a plan leaves in the workspace.
        """
        key = make, *arguments
        if key not in self.made:
            self.used = 0
            plan = make(self.empty, *arguments)
            if self.used > self.workspace.size:
                self.made, self.workspace, self.used = {}, empty((self.used,), np.uint8), 0
                plan = make(self.empty, *arguments)
            if len(self.made) == MOST_PLANS:
                self.made = {}
            self.made[key] = plan
        if POISON:
            poisoned(self.workspace)
        return self.made[key]

    def empty(self, shape, dtype):
        start, size = self.used, math.prod(shape) * np.dtype(dtype).itemsize
        self.used += -(-size // (4 * LINE)) * (4 * LINE)
        if self.used > self.workspace.size:  # `of` counts the bytes, and makes the plan again in a larger workspace
            return np.empty(shape, dtype)
        return self.workspace[start : start + size].view(dtype).reshape(shape)


plans = Plans()
keep_freed_memory()


class _Memory:
    """What NumPy asks for to make an array from an address; it keeps the owner of the memory alive."""

    def __init__(self, interface, owner):
        self.__array_interface__, self.owner = interface, owner


def strided(array, shape, strides, run):
    """An array of runs, each `run` numbers that lie side by side, over the memory of `array` from its first element.

    As np.lib.stride_tricks.as_strided, nothing checks that shape and strides (in bytes) stay within the array.
    """
    interface = {
        "version": 3,
        "data": array.__array_interface__["data"],
        "typestr": f"|V{run * array.itemsize}",
        "shape": tuple(shape),
        "strides": tuple(strides),
    }
    return np.asarray(_Memory(interface, array))


def in_runs(array):
    """(..., C) as (...) of runs of C."""
    return array.view(f"V{array.shape[-1] * array.itemsize}")[..., 0]


def padded(x, first, size):
    """x[:, i : i + size[0], …] for (i, …) = first over the axes (T, H, W) of x (N, T, H, W, C); zero outside.

    A view of x where all of it is inside.
    """
    inside, to = _overlap(x.shape[1:4], tuple(first), tuple(size))
    part = x[inside]
    if to is None:
        return part
    whole = empty((x.shape[0], *size, x.shape[4]), x.dtype)
    whole.fill(0)  # the border alone would be six small calls, which take longer
    in_runs(whole)[to] = in_runs(part)
    return whole


@functools.lru_cache(4096)
def _overlap(shape, first, size):
    """What of a box (T, H, W) at `first` is inside clips of that shape: where in them; and where in the box.

    Two indices; None for the second if that is all of it.
    """
    inside = [slice(max(0, i), min(max(0, i + n), end)) for i, n, end in zip(first, size, shape, strict=True)]
    sizes = [max(0, s.stop - s.start) for s in inside]
    to = [slice(s.start - i, s.start - i + n) for s, i, n in zip(inside, first, sizes, strict=True)]
    whole = tuple(sizes) == tuple(size)
    return (slice(None), *inside), None if whole else (slice(None), *to)
