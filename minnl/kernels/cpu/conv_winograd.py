"""Convolution with 3 x 3 windows in space, any number of taps in time, stride 1, by Winograd's minimal filtering.

Only space is transformed. The taps in time become longer sums: where the tiles of all frames at a place lie one after
the other, the kT frames that an output sees are one row of kT * C numbers; frames that are padding are left out.
docs/kernels/winograd.md.
"""

from __future__ import annotations

import itertools
import math

import numpy as np

from minnl.kernels import memory, threads
from minnl.kernels.cpu.gather import in_runs
from minnl.kernels.cpu.gemm import multiply
from minnl.kernels.cpu.winograd import Tiles, transforms

BLOCK_ELEMENTS = 8 * 1024  # tiles * channels at once; times n^2 = 36 floats, 1.2 MB
SUM_BLOCK_ELEMENTS = 8 * 1024  # the same in the weight gradient
SLAB_ELEMENTS = 64 * 1024  # the same where all transforms are kept until the next phase: 9 MB
PARTIAL_ELEMENTS = 256 * 1024  # of a sum that each part has for itself: 1 MB
WEIGHT_PIECE = 32 * 1024  # elements of one tap of the weight that a thread transforms at once
WEIGHT_ELEMENTS = 6 * 1024 * 1024  # of transformed weights at once: 24 MB


def correlate(x, weight, y, stride, pads, dilation, m):
    """y (N, T', H', W', K) = windows of x (N, T, H, W, C) times weight (kT, 3, 3, C, K), in tiles of m x m.

    Stride and dilation are 1; they are named because all methods are called alike.
    """
    if weight.shape[0] == 1:
        x, y = _as_images(x), _as_images(y)
    for some in _channel_parts(weight.shape, m):
        _correlate(x, weight[..., some], y[..., some], pads, m)


def _correlate(x, weight, y, pads, m):
    At, _, Bt = transforms(m)
    taps, *_, c, k = weight.shape
    tiles = Tiles(m, y.shape, BLOCK_ELEMENTS // max(c, k))
    u = _transformed(weight, m).reshape(len(Bt), taps * c, k)
    corner = [-first for first, _ in pads[1:]]

    def one(blocks):
        most = max(map(tiles.count, blocks))
        size = len(Bt) * most * max(x.shape[1] * c, y.shape[1] * k)
        here, there = memory.empty((size,), x.dtype), memory.empty((size,), x.dtype)
        for block in blocks:
            p = tiles.count(block)
            seen = tiles.seen(x, block, corner)
            d, v = (_shaped(a, len(Bt), p, x.shape[1] * c) for a in (here, there))
            in_runs(d.reshape(*seen.shape, c))[...] = seen
            multiply(Bt, _flat(d), _flat(v))
            products, out = _shaped(here, len(Bt), p, y.shape[1], k), _shaped(there, len(At), p, y.shape[1], k)
            for t in range(y.shape[1]):
                first, last = max(0, t - pads[0][0]), min(x.shape[1], t - pads[0][0] + taps)
                tap = first + pads[0][0] - t
                used = u[:, tap * c : (tap + last - first) * c]
                multiply(v[:, :, first * c : last * c], used, products[:, :, t])
            multiply(At, _flat(products), _flat(out))
            tiles.write(out, y, block)

    threads.run(one, [tiles.blocks[some] for some in threads.shares(len(tiles.blocks), 16)])


def weight_gradient(x, gy, gw, stride, pads, dilation, m):
    """gw (kT, 3, 3, C, K) = windows of x, transposed, times gy (N, T', H', W', K).

    The tiles of gy go through A, those of x through B^T; their products, summed over the tiles, are the gradient of the
    transformed weight, and G^T takes it back. Slab by slab: first all threads transform, then all multiply.
    """
    if gw.shape[0] == 1:
        x, gy = _as_images(x), _as_images(gy)
    for some in _channel_parts(gw.shape, m):
        _weight_gradient(x, gy[..., some], gw[..., some], pads, m)


def _weight_gradient(x, gy, gw, pads, m):
    matrices = transforms(m)
    taps, *_, c, k = gw.shape
    tiles = Tiles(m, gy.shape, SUM_BLOCK_ELEMENTS // max(c, k))
    shape = (len(matrices[1]), taps, c, k)
    if math.prod(shape) <= PARTIAL_ELEMENTS:  # a sum for each part, whose transforms are used while they are warm
        runs = [tiles.blocks[some] for some in threads.shares(len(tiles.blocks), 4)]
        slabs = 1
    else:  # one sum, to which all threads add: each to the points that are its own
        runs, slabs = (
            [tiles.blocks],
            max(1, SLAB_ELEMENTS // max(c, k) // (tiles.frames * tiles.count(tiles.blocks[0]))),
        )

    def one(blocks):
        total = memory.empty(shape, x.dtype)
        for i in range(0, len(blocks), slabs):
            _add(x, gy, total, pads, matrices, tiles, blocks[i : i + slabs], begun=i > 0)
        return total

    total, *others = threads.run(one, runs)
    G = matrices[1]

    def back(task):
        tap, some = task
        for other in others:
            total[:, tap, some] += other[:, tap, some]
        parts = memory.empty((9, some.stop - some.start, k), x.dtype)
        multiply(G.T, _flat(total[:, tap, some]), _flat(parts))
        gw[tap, :, :, some] = parts.reshape(3, 3, -1, k)

    threads.run(back, [(tap, some) for tap in range(taps) for some in threads.pieces(c, WEIGHT_PIECE // k)])


def _add(x, gy, total, pads, matrices, tiles, blocks, begun):
    """Add what some blocks contribute to the gradient of the transformed weight: first transform, then multiply."""
    At, G, Bt = matrices
    taps, c, k = total.shape[1:]
    corner = [-first for first, _ in pads[1:]]
    ends = list(itertools.accumulate(map(tiles.count, blocks)))
    v = memory.empty((len(Bt), x.shape[1], ends[-1], c), x.dtype)
    z = memory.empty((len(Bt), gy.shape[1], ends[-1], k), x.dtype)

    def transform(task):
        block, end = task
        here = slice(end - tiles.count(block), end)
        _into(v[:, :, here], Bt, tiles.seen(x, block, corner))
        _into(z[:, :, here], At.T, tiles.made(gy, block))

    def multiplied(points):
        product = memory.empty((points.stop - points.start, c, k), x.dtype) if begun else None
        for tap in range(taps):
            ahead = tap - pads[0][0]  # frame t of gy and frame t + ahead of x belong together
            first, last = max(0, -ahead), min(gy.shape[1], x.shape[1] - ahead)
            a = v[points, first + ahead : last + ahead].reshape(points.stop - points.start, -1, c).swapaxes(1, 2)
            b = z[points, first:last].reshape(points.stop - points.start, -1, k)
            if begun:
                total[points, tap] += multiply(a, b, product)
            else:
                multiply(a, b, total[points, tap])

    threads.run(transform, zip(blocks, ends, strict=True))
    threads.run(multiplied, threads.shares(len(Bt), 1 if len(blocks) == 1 else 6))


def _into(to, matrix, cut):
    """Tiles (n, n, N, down, across, T) of runs, transformed by a matrix, to (points, T, P, C)."""
    cut = cut.transpose(0, 1, 5, 2, 3, 4)  # frames before places: so a run of frames is a run of rows
    d = memory.empty((matrix.shape[1], *to.shape[1:]), to.dtype)
    in_runs(d.reshape(*cut.shape, -1))[...] = cut
    for t in range(to.shape[1]):
        multiply(matrix, _flat(d[:, t]), _flat(to[:, t]))


def _transformed(weight, m):
    """G w G^T of every tap in time and pair of channels: (kT, 3, 3, C, K) -> (n^2, kT, C, K)."""
    G = transforms(m)[1]
    taps, *_, c, k = weight.shape
    u = memory.empty((len(G), taps, c, k), weight.dtype)

    def one(task):
        tap, some = task
        part = np.ascontiguousarray(weight[tap, :, :, some])
        multiply(G, part.reshape(9, -1), _flat(u[:, tap, some]))

    threads.run(one, [(tap, some) for tap in range(taps) for some in threads.pieces(c, WEIGHT_PIECE // k)])
    return u


def _channel_parts(shape, m):
    """Slices of the output channels, so few that the transformed weights stay within their bound."""
    return threads.pieces(shape[4], WEIGHT_ELEMENTS // ((m + 2) ** 2 * shape[0] * shape[3]))


def _as_images(x):
    """(N, T, H, W, C) as N * T clips of one frame: without taps in time every frame is by itself."""
    return x.reshape(-1, 1, *x.shape[2:])


def _shaped(scratch, *shape):
    return scratch[: math.prod(shape)].reshape(shape)


def _flat(a):
    """(points, ...) -> (points, everything else), without copying."""
    return a.reshape(len(a), -1)
