"""Where Winograd's tiles would lose digits, and what is multiplied there: docs/kernels/winograd.md, "Accuracy".

A tile is computed as a whole, with the rounding of its largest numbers. A window in it that holds nothing but small
ones would drown in that, and one infinite pixel would make all of the tile NaN. Such windows are few.
"""

from __future__ import annotations

import functools
import math

import numpy as np

from minnl.kernels.runtime import threads
from minnl.kernels.runtime.strided import padded

RATIO = 4  # of a tile's largest pixel to a window in it, as Euclidean norms, up to which the window keeps its digits
LEAST, MOST = 1e-15, 1e12  # of these norms, for products, sums and transforms to stay within float32's normal range
ROWS_ELEMENTS = 512 * 1024  # of windows at once


def pixels(x, dtype=np.float32):
    """Squares of the norms of pixels: (N, …, C) -> (N, …)."""
    parts = threads.shares(len(x), threads.tasks_for(64 * x.size))
    with np.errstate(over="ignore", invalid="ignore"):
        some = threads.run(lambda part: np.einsum("...c,...c->...", x[part], x[part], dtype=dtype), parts)
    return np.concatenate(some)


def in_range(x, of):
    """Whether the largest pixel of x is within bounds, or all are 0; `of` are its squares."""
    largest = math.sqrt(of.max())
    return LEAST <= largest <= MOST or not (largest or x.any())


def small_windows(x, of, out, taps, pads, m):
    """Outputs, (N, T', H', W') in all, that m x m tiles of x, with squares `of`, would lose digits of.

    Two of their indices (n, t, h, w): of all, and of those whose windows are not 0 throughout; or None.
    """
    low, high = of.min(), of.max()
    if low >= LEAST**2 and high <= MOST**2 and high <= RATIO**2 * low:
        return None
    if not (low >= LEAST**2 and high <= MOST**2):
        of = pixels(x, np.float64)
    first, size = (0, -pads[1][0], -pads[2][0]), (x.shape[1], *(-(-n // m) * m + 2 for n in out[2:]))
    of = padded(of[..., None], first, size)[..., 0]
    tile, window = _merged(np.maximum, of, m + 2, m).repeat(m, axis=2).repeat(m, axis=3), _merged(np.add, of, 3, 1)
    with np.errstate(over="ignore", invalid="ignore"):
        small = ~(RATIO**2 * window >= tile) | ~(tile <= MOST**2) | (tile < LEAST**2) & (tile > 0)
    lost, seen = np.zeros(out, bool), np.zeros(out, bool)
    for tap in range(taps):
        ahead = tap - pads[0][0]
        start, stop = max(0, -ahead), min(out[1], x.shape[1] - ahead)
        there = slice(None), slice(start + ahead, stop + ahead), slice(out[2]), slice(out[3])
        lost[:, start:stop] |= small[there]
        seen[:, start:stop] |= window[there] != 0
    return (np.nonzero(lost), np.nonzero(lost & seen)) if lost.any() else None


def _merged(merge, x, size, step):
    """`merge` of each window of size x size in the last two axes, at steps."""
    for _ in range(2):
        last = x.shape[3] - size
        x = functools.reduce(merge, (x[..., i : i + last + 1 : step] for i in range(size))).swapaxes(2, 3)
    return x


def windows(x, weight, pads, at):
    """Windows of outputs (n, t, h, w), some at a time: pairs (these outputs, matrix (Q, kT * kH * kW * C))."""
    kernel, row = weight[:3], math.prod(weight[:4])
    for some in threads.pieces(len(at[0]), ROWS_ELEMENTS // row):
        some = tuple(i[some] for i in at)
        index, inside = [some[0].reshape(-1, 1, 1, 1)], True
        for axis, (first, k, size, (before, _)) in enumerate(zip(some[1:], kernel, x.shape[1:4], pads, strict=True)):
            seen = np.expand_dims(first[:, None] - before + np.arange(k), [i + 1 for i in range(3) if i != axis])
            index.append(seen.clip(0, size - 1))
            inside = inside & (seen >= 0) & (seen < size)
        rows = x[tuple(index)]
        rows[~inside] = 0
        yield some, rows.reshape(-1, row)
