"""Winograd's minimal filtering in two dimensions: its matrices, and the tiles of a video: docs/kernels/conv3d.md.

A tile of 4 x 4 outputs of a 3 x 3 correlation depends on a tile d of 6 x 6 inputs. With three small matrices

    output tile = A^T [ (G w G^T) * (B^T d B) ] A          (* element by element)

takes 36 multiplications instead of 144. Each of the 36 points has channels, and its sum over them is a matrix product
of its own: (tiles x C) times (C x K).
"""

from __future__ import annotations

import functools
import itertools
import math

import numpy as np

from minnl.kernels.runtime import memory, threads
from minnl.kernels.runtime.memory import LINE, in_runs, padded, strided

TILE = 4  # Side of an output tile: 2 takes half as long again, 5 loses another factor of four in accuracy.
SIDE = TILE + 2  # Side of an input tile.
POINTS = (0.0, 0.625, -0.625, 1.5, -1.5)  # Polynomials are evaluated here and at infinity: least rounding for TILE = 4.


def _transforms():
    """(A^T, G, B^T) for one dimension, in float32: (4, 6), (6, 3), (6, 6)."""
    A, G, B = np.zeros((SIDE, TILE)), np.zeros((SIDE, 3)), np.zeros((SIDE, SIDE))
    for i, a in enumerate(POINTS):
        others = POINTS[:i] + POINTS[i + 1 :]
        A[i] = [a**k for k in range(TILE)]
        G[i] = [a**k / math.prod(a - b for b in others) for k in range(3)]
        B[i, :-1] = np.poly(others)[::-1]  # coefficients of the product of all (t - b), lowest power first
    A[-1, -1] = G[-1, -1] = 1
    B[-1] = np.poly(POINTS)[::-1]
    return tuple(np.ascontiguousarray(matrix, np.float32) for matrix in (A.T, G, B))


AT, G, BT = _transforms()


def along_both(matrix, a, between, out):
    """The two products (a, b, out) that take tiles a (q, q, N) by a matrix (r, q) to matrix a matrix^T (r, r, N).

    `between` (q, r, N) is scratch for the result of the first product.
    """
    return [(matrix, a, between), (matrix, between.swapaxes(0, 1), out.swapaxes(0, 1))]


def squares(q, r, n, empty=memory.empty):
    """Memory (q, r, n). Few of several rows a power of 2 apart fit into a cache: each row is an odd number of lines."""
    lines = -(-n // LINE) | 1
    return memory.view(empty((q * r, lines * LINE), np.float32)[:, :n], q, r, n)


@functools.lru_cache(256)
def blocks(shape, most):
    """Slices (samples, down, across) that cut the tiles of an output (N, T, H, W) in blocks of about `most` tiles.

    A block has all frames of its tiles. The cut follows from the shape alone.
    """
    samples, frames, height, width = shape
    down, across = -(-height // TILE), -(-width // TILE)
    cuts = (
        threads.chunks(samples, most // (frames * across * down)),
        threads.chunks(down, most // (frames * across)),
        threads.chunks(across, most // frames),
    )
    return list(itertools.product(*cuts))


def input_tiles(x, block, pads):
    """The overlapping 6 x 6 tiles of x (N, T, H, W, C) for a block: (6, 6, N, down, across, T) of runs of C."""
    samples, down, across = block
    first = 0, down.start * TILE - pads[1][0], across.start * TILE - pads[2][0]
    size = x.shape[1], (down.stop - down.start) * TILE + 2, (across.stop - across.start) * TILE + 2
    return _tiles(padded(x[samples], first, size), SIDE)


def output_tiles(y, block):
    """The 4 x 4 tiles of y (N, T, H, W, K) for a block, 0 outside y: (4, 4, N, down, across, T) of runs of K."""
    samples, down, across = block
    size = y.shape[1], (down.stop - down.start) * TILE, (across.stop - across.start) * TILE
    return _tiles(padded(y[samples], (0, down.start * TILE, across.start * TILE), size), TILE)


def write_tiles(y, block, tiles):
    """Write `tiles`, in the order of `output_tiles`, to a block of y; parts of tiles outside y are left out."""
    samples, down, across = block
    part = y[samples, :, down.start * TILE : down.stop * TILE, across.start * TILE : across.stop * TILE]
    size = (down.stop - down.start) * TILE, (across.stop - across.start) * TILE
    if part.shape[2:4] == size:
        _tiles(part, TILE)[...] = tiles
    else:
        whole = memory.empty((*part.shape[:2], *size, part.shape[4]), part.dtype)
        _tiles(whole, TILE)[...] = tiles
        in_runs(part)[...] = in_runs(whole)[:, :, : part.shape[2], : part.shape[3]]


def _tiles(frames, side):
    """A view of (N, T, h, w, C) as tiles at steps of 4: (side, side, N, down, across, T) of runs of C."""
    n, t, h, w, c = frames.shape
    s = frames.strides
    shape = side, side, n, (h - side) // TILE + 1, (w - side) // TILE + 1, t
    return strided(frames, shape, (s[2], s[3], s[0], TILE * s[2], TILE * s[3], s[1]), c)
