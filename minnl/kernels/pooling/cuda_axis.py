"""Where windows lie along an axis, as tables that the pooling kernels read: docs/kernels/cuda_pool.md."""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np

from minnl import backend


class Axis(NamedTuple):
    """An axis of some positions with some windows on it, and its tables, which are on the GPU."""

    size: int
    windows: int
    taps: int  # of the largest window
    table: object  # (windows, 5) int32: Window in pool.cu
    seen: object  # (size, 2) int32: Seen in pool.cu


@functools.lru_cache(1024)
def sliding(device, size, windows, kernel, stride, dilation, before, counted):
    """Windows that move by `stride`, from `before` positions ahead of the first one on.

    `counted` is the number of taps that a window counts, or a pair of positions: those between them count.
    """
    start = np.arange(windows) * stride - before
    if isinstance(counted, tuple):
        counted = np.clip(start + kernel, *counted) - np.clip(start, *counted)
    step = dilation if kernel > 1 else 1  # of a single tap it says nothing, and may be any number
    return _axis(device, size, start, step, np.full(windows, kernel), counted)


@functools.lru_cache(1024)
def adaptive(device, size, cells):
    """Cell i covers the positions from floor(i * size / cells) to ceil((i + 1) * size / cells)."""
    i = np.arange(cells)
    start = i * size // cells
    taps = -(-(i + 1) * size // cells) - start
    return _axis(device, size, start, 1, taps, taps)


def _axis(device, size, start, step, taps, counted):
    first = np.clip(-(start // step), 0, taps - 1)
    last = np.minimum(-((start - size) // step), taps)
    table = np.empty((len(start), 5), np.int32)
    for column, values in enumerate((start, step, first, last, counted)):
        table[:, column] = values
    # Later windows neither start nor end sooner: two searches tell which may see a position.
    position, end = np.arange(size), start + (taps - 1) * step + 1
    seen = np.stack([np.searchsorted(a, position, "right") for a in (end, start)], 1).astype(np.int32)
    return Axis(size, len(start), int(taps.max()), *(backend.to_device(a, device) for a in (table, seen)))
