"""Copying windows and tiles out of clips, a run of numbers at a time.

NumPy copies an array of small records quicker than the same bytes as one more axis of floats: each record is one
memcpy, without a loop around a few numbers. With 16 of them that is half the time, with 64 and more no gain. So the
kernels look at a run (all channels of a pixel, a row of a window) as one element of dtype void. Such elements may
overlap: windows do.
"""

from __future__ import annotations

import functools

import numpy as np

from minnl.kernels.runtime import memory

LINE = 16  # numbers in a line of the cache


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
    whole = memory.empty((x.shape[0], *size, x.shape[4]), x.dtype)
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
