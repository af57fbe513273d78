"""Winograd's minimal filtering in two dimensions: its matrices, and the tiles of a video that they work on.

An m x m tile of the output of a 3 x 3 correlation sees an n x n tile of the input, n = m + 2. With three small matrices
(docs/kernels/winograd.md derives them)

    output tile = A^T [ (G w G^T) * (B^T d B) ] A          (* element by element)

takes n^2 multiplications instead of 9 m^2: 36 instead of 144 for m = 4. Each of the n^2 elements has channels, and its
sum over them is a matrix product of its own: (tiles x C) times (C x K).
"""

from __future__ import annotations

import functools
import itertools
import math

import numpy as np

from minnl.kernels.runtime import memory, threads
from minnl.kernels.runtime.strided import LINE, in_runs, padded, strided

REGION_ELEMENTS = 1024 * 1024  # of the input or output of a region, 4 MB
LEAST_ELEMENTS = 8 * 1024  # tiles * channels: no region is less than a block, but two of this size rather than one
POINTS = {  # where polynomials are evaluated: those with the least rounding; the last point is infinity, always
    2: (0.0, 1.0, -1.0),
    3: (0.0, 0.75, -0.75, 2.0),
    4: (0.0, 0.625, -0.625, 1.5, -1.5),
    5: (0.0, 0.875, -0.875, 2.0, -2.0, 0.5),
}


@functools.cache
def transforms(m):
    """(A^T, G, B^T) for one dimension, in float32: (m, n), (n, 3), (n, n)."""
    n, points = m + 2, POINTS[m]
    A, G, B = np.zeros((n, m)), np.zeros((n, 3)), np.zeros((n, n))
    for i, a in enumerate(points):
        others = points[:i] + points[i + 1 :]
        A[i] = [a**k for k in range(m)]
        G[i] = [a**k / math.prod(a - b for b in others) for k in range(3)]
        B[i, : n - 1] = np.poly(others)[::-1]  # coefficients of the product of all (t - b), lowest power first
    A[-1, -1] = G[-1, -1] = 1
    B[-1] = np.poly(points)[::-1]
    return tuple(np.ascontiguousarray(t, np.float32) for t in (A.T, G, B))


def along_both(matrix, a, between, out):
    """The two products (a, b, out) that take tiles a (q, q, N) by a matrix (r, q) to matrix a matrix^T (r, r, N).

    `between` (q, r, N) is memory for what one of them leaves to the other.
    """
    return [(matrix, a, between), (matrix, between.swapaxes(0, 1), out.swapaxes(0, 1))]


def squares(q, r, n, empty=memory.empty):
    """Memory for numbers (q, r, n). Of rows that lie powers of 2 apart only few fit into a core's cache together."""
    lines = -(-n // LINE) | 1  # odd, so rows begin in different places of it
    return memory.view(empty((q * r, lines * LINE), np.float32)[:, :n], q, r, n)


class Region:
    """Rows of tiles, of some samples, of the output (N, T, H, W, ·) of a 3 x 3 correlation, in m x m tiles.

    A region is what a thread works on at a time; `blocks` cut it into (samples, rows, columns) of the region whose
    tiles of all frames go through the cache together. Where m does not divide H or W the last tiles stick out.
    """

    def __init__(self, m, samples, rows, shape, most):
        self.m, self.rows, (self.frames, self.height, self.width) = m, rows, shape
        self.across, down = -(-self.width // m), rows.stop - rows.start
        self.extent = down * m, self.across * m
        self.count = samples * down * self.across  # tiles of one frame
        cuts = [
            threads.pieces(samples, max(1, most // (self.frames * self.across * down))),
            threads.pieces(down, max(1, most // (self.frames * self.across))),
            threads.pieces(self.across, max(1, most // self.frames)),
        ]
        self.blocks = [(slice(None), slice(None), *block) for block in itertools.product(*cuts)]

    def seen(self, x, corner):
        """The overlapping n x n tiles of x (N, T, H, W, C) that the outputs see: (n, n, N, down, across, T) of runs.

        `corner` is where in x the first window of all begins, (-padding, -padding).
        """
        first = (0, corner[0] + self.rows.start * self.m, corner[1])
        size = (x.shape[1], self.extent[0] + 2, self.extent[1] + 2)
        return self._tiles(padded(x, first, size), self.m + 2)

    def made(self, y):
        """The m x m tiles of the region of y (N, T, H, W, K), zero where they stick out: as in `seen`."""
        return self._tiles(padded(y, (0, self.rows.start * self.m, 0), (y.shape[1], *self.extent)), self.m)

    def to_write(self, y):
        """Tiles of the region of y as `made` has them, to be written; and a function to call when all are."""
        top = self.rows.start * self.m
        part = y[:, :, top : top + self.extent[0]]
        if part.shape[2:4] == self.extent:
            return self._tiles(part, self.m), lambda: None
        whole = memory.empty((*part.shape[:2], *self.extent, part.shape[4]), y.dtype)

        def done():
            in_runs(part)[...] = in_runs(whole)[:, :, : part.shape[2], : part.shape[3]]

        return self._tiles(whole, self.m), done

    def _tiles(self, frames, side):
        """(N, T, h, w, C) as tiles at steps of m: (side, side, N, down, across, T) of runs of C."""
        n, t, h, w, c = frames.shape
        s = frames.strides
        shape = (side, side, n, (h - side) // self.m + 1, (w - side) // self.m + 1, t)
        return strided(frames, shape, (s[2], s[3], s[0], self.m * s[2], self.m * s[3], s[1]), c)


@functools.lru_cache(256)
def regions(m, shape, channels, block, most=8):
    """The output (N, T, H, W) in `most` regions or fewer, more where they would be large; blocks of `block` tiles.

    Pairs (slice of samples, Region). Cut by the shape alone, so that the same sums are taken whatever the number of
    threads.
    """
    block, (samples, frames, height, width) = max(1, block), shape
    down, across = -(-height // m), -(-width // m)
    tiles = samples * down * across * frames
    wanted = min(most, max(1, tiles // block, min(2, tiles * channels // LEAST_ELEMENTS)))
    wanted += wanted > 1 and wanted % 2  # even, since numbers of cores are
    rows = min(-(-samples * down // wanted), REGION_ELEMENTS // (frames * across * m * m * channels))
    if rows >= down:
        cuts = [(some, slice(0, down)) for some in threads.pieces(samples, rows // down)]
    else:
        cuts = [(slice(i, i + 1), some) for i in range(samples) for some in threads.pieces(down, rows)]
    region = functools.cache(lambda n, first, last: Region(m, n, slice(first, last), shape[1:], block))
    return tuple((some, region(some.stop - some.start, rows.start, rows.stop)) for some, rows in cuts)
