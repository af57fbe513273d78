"""Convolution with 3 x 3 windows in space, any number of taps in time, stride 1, by Winograd's minimal filtering.

Only space is transformed. The taps in time become longer sums: where the tiles of all frames at a place lie one after
the other, the kT frames that an output sees are one row of kT * C numbers; frames that are padding are left out.
docs/kernels/winograd.md.
"""

from __future__ import annotations

import contextlib
import itertools
import math

import numpy as np

from minnl.kernels.conv3d import taps as conv_taps
from minnl.kernels.conv3d.tiles import along_both, regions, squares, transforms
from minnl.kernels.conv3d.uneven import in_range, pixels, small_windows, windows
from minnl.kernels.runtime import memory, threads
from minnl.kernels.runtime.matmul import add_product, compute, divisor, pieces
from minnl.kernels.runtime.strided import in_runs
from minnl.kernels.runtime.workspace import plans

BLOCK_ELEMENTS = 20 * 1024  # tiles * channels at once; times n^2 = 36 floats, 2.9 MB: shorter calls wait for each other
SLAB_ELEMENTS = 64 * 1024  # the same where all transforms are kept until the next phase: 9 MB
PARTIAL_ELEMENTS = 512 * 1024  # of a weight's sum for it to be taken in parts: 2 MB each,
PARTS = 4  # at most
NEAR_ELEMENTS = 256 * 1024  # of transformed weights that all frames of a block meet before others come, 1 MB
PANEL = 64  # output channels of transformed weights in one piece, or a divisor of their number that is a little less
WEIGHT_PIECE = 32 * 1024  # elements of one tap of the weight that a thread transforms at once
WEIGHT_ELEMENTS = 6 * 1024 * 1024  # of transformed weights at once: 24 MB


def correlate(x, weight, y, stride, pads, dilation, m):
    """y (N, T', H', W', K) = windows of x (N, T, H, W, C) times weight (kT, 3, 3, C, K), in tiles of m x m.

    Stride and dilation are 1; they are named because all methods are called alike.
    """
    if not in_range(weight, pixels(weight)):
        conv_taps.correlate(x, weight, y, stride, pads, dilation)
        return
    if weight.shape[0] == 1:
        x, y = _as_images(x), _as_images(y)
    lost = small_windows(x, pixels(x), y.shape[:4], len(weight), pads, m)
    with np.errstate(over="ignore", invalid="ignore") if lost else contextlib.nullcontext():
        for some in _channel_parts(weight.shape, m):
            _correlate(x, weight[..., some], y[..., some], pads, m)
    if lost:
        every, seen = lost
        y[every], matrix = 0, weight.reshape(-1, weight.shape[4])

        def direct(_):
            for some, rows in windows(x, weight.shape, pads, seen):
                y[some] = rows @ matrix

        threads.run(direct, [None])  # BLAS on one thread, for the same bits on any number


def _correlate(x, weight, y, pads, m):
    taps, *_, c, k = weight.shape
    u = _transformed(weight, m)
    corner, sums = [-first for first, _ in pads[1:]], {}

    def one(task):
        some, region = task
        seen, (to, finish) = region.seen(x[some], corner), region.to_write(y[some])
        for block in region.blocks:
            tiles = seen[block]
            plan = plans.of(Correlation, m, tiles.shape[2:5], x.shape[1], y.shape[1], c, k)
            if plan not in sums:
                sums[plan] = plan.sums(u, taps, pads[0][0])
            plan.tiles[...] = tiles
            compute(plan.forth)
            compute(sums[plan])
            compute(plan.back)
            to[block] = plan.out
        finish()

    threads.run(one, regions(m, y.shape[:4], max(c, k), BLOCK_ELEMENTS // max(c, k)))


class Correlation:
    """A thread's plan for blocks of so many (samples, down, across) tiles of so many frames.

    Where they go, the products (a, b, out) that transform them, and back, and where the result is.
    """

    def __init__(self, empty, m, shape, frames, out_frames, c, k):
        At, _, Bt = transforms(m)
        n, p = len(Bt), math.prod(shape)
        inputs, outputs = p * frames * c, p * out_frames * k
        # Each step reads one and writes the other: tiles, v and half-way sums here, half-way tiles, sums and out there.
        here, there = (squares(n, n, max(inputs, outputs), empty) for _ in range(2))
        tiles, out = here[..., :inputs], there[:m, :m, :outputs]
        self.tiles = in_runs(memory.view(tiles, n, n, *shape, frames, c))
        self.forth = along_both(Bt, tiles, there[..., :inputs], tiles)
        self.v = memory.view(tiles, n * n, p, frames, c)
        self.sum = memory.view(there[..., :outputs], n * n, p, out_frames, k)
        self.back = along_both(At, there[..., :outputs], here[:, :m, :outputs], out)
        self.out = in_runs(memory.view(out, m, m, *shape, out_frames, k))

    def sums(self, u, taps, before):
        """The products of v with a transformed weight; frame t sees the frames from t - before on."""
        (_, p, frames, c), out_frames, products = self.v.shape, self.sum.shape[2], []
        points, panels, *_, width = u.shape
        v, u = self.v.reshape(points, 1, p, frames * c), u.reshape(points, panels, taps * c, width)
        for some in threads.pieces(points, NEAR_ELEMENTS // (taps * c * panels * width)):
            for t in range(out_frames):
                first, last = max(0, t - before), min(frames, t - before + taps)
                tap = first + before - t
                seen, weights = slice(first * c, last * c), slice(tap * c, (tap + last - first) * c)
                to = memory.view(self.sum[some, :, t], -1, p, panels, width).swapaxes(1, 2)
                products += pieces(v[some, ..., seen], u[some, :, weights], to)
        return products


def weight_gradient(x, gy, gw, stride, pads, dilation, m):
    """gw (kT, 3, 3, C, K) = windows of x, transposed, times gy (N, T', H', W', K).

    The tiles of gy go through A, those of x through B^T; their products, summed over the tiles, are the gradient of the
    transformed weight, and G^T takes it back. Slab by slab: first all threads transform, then all multiply.
    """
    of = pixels(x)
    if not (in_range(x, of) and in_range(gy, pixels(gy))):
        conv_taps.weight_gradient(x, gy, gw, stride, pads, dilation)
        return
    if gw.shape[0] == 1:
        x, gy, of = _as_images(x), _as_images(gy), of.reshape(-1, 1, *of.shape[2:])
    lost = small_windows(x, of, gy.shape[:4], len(gw), pads, m)
    if lost:
        (every, seen), whole, gy = lost, gy, gy.copy()
        gy[every] = 0
    for some in _channel_parts(gw.shape, m):
        _weight_gradient(x, gy[..., some], gw[..., some], pads, m)
    if lost:

        def direct(_):
            for some, rows in windows(x, gw.shape, pads, seen):
                np.add(gw, (rows.T @ whole[some]).reshape(gw.shape), out=gw)

        threads.run(direct, [None])


def _weight_gradient(x, gy, gw, pads, m):
    G = transforms(m)[1]
    n, (taps, *_, c, k) = len(G), gw.shape
    shape = (n * n, taps, c, k)
    own = math.prod(shape) <= PARTIAL_ELEMENTS
    total, *others = (_own_sums if own else _shared_sum)(x, gy, shape, pads, m)

    def back(task):
        tap, some = task
        for other in others:
            total[:, tap, some] += other[:, tap, some]
        numbers = (some.stop - some.start) * k
        between, parts = memory.empty((n, 3, numbers), x.dtype), memory.empty((3, 3, numbers), x.dtype)
        compute(along_both(G.T, total[:, tap, some].reshape(n, n, numbers), between, parts))
        gw[tap, :, :, some] = parts.reshape(3, 3, -1, k)

    threads.run(back, [(tap, some) for tap in range(taps) for some in threads.pieces(c, WEIGHT_PIECE // k)])


def _own_sums(x, gy, shape, pads, m):
    """The gradient of the transformed weight in a few sums: transforms are used while they are in the cache."""
    channels = max(shape[2:])
    corner = [-first for first, _ in pads[1:]]

    def one(tasks):
        total = memory.empty(shape, x.dtype)
        total.fill(0)
        for some, region in tasks:
            seen, made = _frames_first(region.seen(x[some], corner)), _frames_first(region.made(gy[some]))
            for block in region.blocks:
                block = (*block[:2], slice(None), *block[2:])
                tiles = seen[block]
                plan = plans.of(PartOfSum, m, tiles.shape[3:], x.shape[1], gy.shape[1], *shape[1:], pads[0][0])
                plan.tiles[...], plan.outs[...] = tiles, made[block]
                compute(plan.products)
                total += plan.product
        return total

    every = regions(m, gy.shape[:4], channels, BLOCK_ELEMENTS // channels, most=PARTS)
    return threads.run(one, [every[some] for some in threads.shares(len(every), PARTS)])


class PartOfSum:
    """A thread's plan for what blocks of so many tiles, and of gy, add to the gradient of the transformed weight."""

    def __init__(self, empty, m, shape, frames, out_frames, taps, c, k, before):
        At, _, Bt = transforms(m)
        n, p = len(Bt), math.prod(shape)
        inputs, outputs = frames * p * c, out_frames * p * k
        v, z, between = (squares(n, n, size, empty) for size in (inputs, outputs, max(inputs, outputs)))
        outs, self.product = z[:m, :m], empty((n * n, taps, c, k), np.float32)
        self.tiles = in_runs(memory.view(v, n, n, frames, *shape, c))
        self.outs = in_runs(memory.view(outs, m, m, out_frames, *shape, k))
        self.products = along_both(Bt, v, between[..., :inputs], v)
        self.products += along_both(At.T, outs, between[:m, :, :outputs], z)
        v, z = memory.view(v, n * n, frames, p, c), memory.view(z, n * n, out_frames, p, k)
        for tap, a, b in _meeting(v, z, taps, before):
            self.products += pieces(a, b, self.product[:, tap])


def _shared_sum(x, gy, shape, pads, m):
    """The same in one sum, for large weights: all threads transform a slab, then each multiplies at its own points."""
    At, _, Bt = transforms(m)
    n, (points, taps, c, k) = len(Bt), shape
    corner = [-first for first, _ in pads[1:]]
    total = memory.empty(shape, x.dtype)
    every = regions(m, gy.shape[:4], max(c, k), BLOCK_ELEMENTS // max(c, k), most=gy.size)
    for begun, slab in enumerate(_slabs(every, max(1, SLAB_ELEMENTS // max(c, k)))):
        ends = list(itertools.accumulate(region.count for _, region in slab))
        v = memory.empty((n, n, x.shape[1], ends[-1], c), x.dtype)
        z = memory.empty((n, n, gy.shape[1], ends[-1], k), x.dtype)

        def transform(task, v=v, z=z):
            (some, region), end = task
            here = slice(end - region.count, end)
            _into(v[:, :, :, here], Bt, region.seen(x[some], corner))
            _into(z[:, :, :, here], At.T, region.made(gy[some]))

        def add(some, v=v, z=z, begun=begun):
            v, z = (a.reshape(points, *a.shape[2:])[some] for a in (v, z))
            for tap, a, b in _meeting(v, z, taps, pads[0][0]):
                add_product(a, b, total[some, tap], fresh=not begun)

        threads.run(transform, zip(slab, ends, strict=True))
        threads.run(add, threads.shares(points, 6))
    return (total,)


def _slabs(every, most):
    """Regions in groups of about `most` tiles of all frames."""
    region = every[0][1]
    some = max(1, most // (region.count * region.frames))
    return [every[i : i + some] for i in range(0, len(every), some)]


def _meeting(v, z, taps, before):
    """For each tap in time: transformed tiles of x, as columns, and of gy, at the frames that it brings together."""
    points, _, _, c = v.shape
    for tap in range(taps):
        ahead = tap - before  # frame t of gy meets frame t + ahead of x
        first, last = max(0, -ahead), min(z.shape[1], v.shape[1] - ahead)
        a = v[:, first + ahead : last + ahead].reshape(points, -1, c).swapaxes(1, 2)
        yield tap, a, z[:, first:last].reshape(points, -1, z.shape[3])


def _into(to, matrix, cut):
    """Tiles (q, q, N, down, across, T) of runs, transformed by a matrix (r, q), to (r, r, T, P, C)."""
    cut = _frames_first(cut)
    (r, q), (frames, *_, c) = matrix.shape, to.shape[2:]
    tiles = squares(q, q, math.prod(to.shape[2:]))
    in_runs(memory.view(tiles, *cut.shape, c))[...] = cut
    tiles = tiles.reshape(q, q, frames, -1)
    between = squares(q, r, tiles.shape[3])
    for t in range(frames):
        compute(along_both(matrix, tiles[:, :, t], between, memory.view(to[:, :, t], r, r, -1)))


def _frames_first(cut):
    """(n, n, N, down, across, T) -> (n, n, T, N, down, across): a run of frames becomes a run of rows."""
    return cut.transpose(0, 1, 5, 2, 3, 4)


def _transformed(weight, m):
    """G w G^T of every tap in time and pair of channels: (kT, 3, 3, C, K) -> (n * n, panels, kT, C, K / panels).

    A panel is a matrix in one piece. Few tiles are multiplied with a large weight as fast as that can be fetched, and
    what lies in one piece is fetched quickest.
    """
    G = transforms(m)[1]
    n, (taps, *_, c, k) = len(G), weight.shape
    width = divisor(k, PANEL) if k % divisor(k, PANEL) == 0 else k
    u = memory.empty((n, n, k // width, taps, c, width), weight.dtype)

    def one(task):
        tap, panel, some = task
        part = np.ascontiguousarray(weight[tap, :, :, some, panel * width : (panel + 1) * width]).reshape(3, 3, -1)
        between = memory.empty((3, n, part.shape[2]), weight.dtype)
        compute(along_both(G, part, between, memory.view(u[:, :, panel, tap, some], n, n, -1)))

    threads.run(one, itertools.product(range(taps), range(k // width), threads.pieces(c, WEIGHT_PIECE // width)))
    return u.reshape(n * n, *u.shape[2:])


def _channel_parts(shape, m):
    """Slices of the output channels, so few that the transformed weights stay within their bound."""
    return threads.pieces(shape[4], WEIGHT_ELEMENTS // ((m + 2) ** 2 * shape[0] * shape[3]))


def _as_images(x):
    """(N, T, H, W, C) as N * T clips of one frame: without taps in time every frame is by itself."""
    return x.reshape(-1, 1, *x.shape[2:])
