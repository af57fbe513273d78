"""Winograd's minimal filtering in two dimensions: its matrices, and the tiles of a video that they work on.

An m x m tile of the output of a 3 x 3 correlation sees an n x n tile of the input, n = m + 2. With three small matrices
(docs/kernels/winograd.md derives them)

    output tile = A^T [ (G w G^T) * (B^T d B) ] A          (* element by element)

takes n^2 multiplications instead of 9 m^2: 36 instead of 144 for m = 4. Each of the n^2 elements has channels, and its
sum over them is a matrix product of its own: (tiles x C) times (C x K).
"""

from __future__ import annotations

import functools
import math

import numpy as np

from minnl.kernels import memory, threads
from minnl.kernels.cpu.gather import in_runs, padded, strided

POINTS = (0.0, 1.0, -1.0, 2.0, -2.0, 0.5)  # where polynomials are evaluated; the last point is infinity, always


@functools.cache
def transforms(m):
    """(A^T, G, B^T) for both dimensions at once, in float32: Kronecker products (m^2, n^2), (n^2, 9), (n^2, n^2)."""
    n, points = m + 2, POINTS[: m + 1]
    A, G, B = np.zeros((n, m)), np.zeros((n, 3)), np.zeros((n, n))
    for i, a in enumerate(points):
        others = points[:i] + points[i + 1 :]
        A[i] = [a**k for k in range(m)]
        G[i] = [a**k / math.prod(a - b for b in others) for k in range(3)]
        B[i, : n - 1] = np.poly(others)[::-1]  # coefficients of the product of all (t - b), lowest power first
    A[-1, -1] = G[-1, -1] = 1
    B[-1] = np.poly(points)[::-1]
    return tuple(np.ascontiguousarray(np.kron(t, t), np.float32) for t in (A.T, G, B))


class Tiles:
    """The output (N, T, H, W, ·) of a 3 x 3 correlation cut into m x m tiles, and these into blocks.

    A block, (samples, rows of tiles, columns of tiles), holds P tiles of each of T frames, at most about `most` in all.
    Where m does not divide H or W the last tiles stick out.
    """

    def __init__(self, m, shape, most):
        self.m, (samples, self.frames, self.height, self.width) = m, shape[:4]
        self.down, self.across = -(-self.height // m), -(-self.width // m)
        columns = threads.pieces(self.across, max(1, most // self.frames))
        rows = threads.pieces(self.down, max(1, most // (self.frames * self.across)))
        some = max(1, most // (self.frames * self.across * self.down))
        self.blocks = [(s, r, c) for s in threads.pieces(samples, some) for r in rows for c in columns]

    def count(self, block):
        """P of a block."""
        return math.prod(part.stop - part.start for part in block)

    def seen(self, x, block, corner):
        """The overlapping n x n tiles of x (N, T, H, W, C) that a block sees: (n, n, N, down, across, T), of runs of C.

        `corner` is where in x the first window of all begins, (-padding, -padding).
        """
        samples, rows, columns = block
        first = (0, corner[0] + rows.start * self.m, corner[1] + columns.start * self.m)
        size = (x.shape[1], (rows.stop - rows.start) * self.m + 2, (columns.stop - columns.start) * self.m + 2)
        return self.cut(padded(x[samples], first, size), self.m + 2)

    def made(self, y, block):
        """The m x m tiles of a block of y (N, T, H, W, K), zero where they stick out: as in `seen`."""
        samples, rows, columns = block
        first = (0, rows.start * self.m, columns.start * self.m)
        size = (y.shape[1], (rows.stop - rows.start) * self.m, (columns.stop - columns.start) * self.m)
        return self.cut(padded(y[samples], first, size), self.m)

    def write(self, tiles, y, block):
        """Put a block's tiles (m * m, P, T, K) where they belong in y."""
        samples, rows, columns = block
        part = y[samples, :, rows.start * self.m : rows.stop * self.m, columns.start * self.m : columns.stop * self.m]
        size = (rows.stop - rows.start) * self.m, (columns.stop - columns.start) * self.m
        whole = part if part.shape[2:4] == size else memory.empty((*part.shape[:2], *size, part.shape[4]), y.dtype)
        view = self.cut(whole, self.m)
        view[...] = in_runs(tiles).reshape(view.shape)
        if whole is not part:
            in_runs(part)[...] = in_runs(whole)[:, :, : part.shape[2], : part.shape[3]]

    def cut(self, frames, side):
        """(N, T, h, w, C) as tiles at steps of m: (side, side, N, down, across, T) of runs of C."""
        n, t, h, w, c = frames.shape
        s = frames.strides
        shape = (side, side, n, (h - side) // self.m + 1, (w - side) // self.m + 1, t)
        return strided(frames, shape, (s[2], s[3], s[0], self.m * s[2], self.m * s[3], s[1]), c)
