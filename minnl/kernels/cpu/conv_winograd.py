"""Convolution with 3 x 3 windows in space, any number of taps in time, stride 1, by Winograd's minimal filtering.

Only space is transformed. The taps in time become longer sums: where the tiles of all frames at a place lie one after
the other, the kT frames that an output sees are one row of kT * C numbers; frames that are padding are left out.
docs/kernels/winograd.md.
"""

from __future__ import annotations

import itertools
import math
import threading

import numpy as np

from minnl.kernels import memory, threads
from minnl.kernels.cpu.gather import in_runs
from minnl.kernels.cpu.gemm import add_product, compute, divisor, pieces
from minnl.kernels.cpu.winograd import along_both, regions, squares, transforms

BLOCK_ELEMENTS = 8 * 1024  # tiles * channels at once; times n^2 = 36 floats, 1.2 MB
SLAB_ELEMENTS = 64 * 1024  # the same where all transforms are kept until the next phase: 9 MB
PARTIAL_ELEMENTS = 256 * 1024  # of a weight's sum for it to be taken in parts: 1 MB each,
PARTS = 4  # at most
NEAR_ELEMENTS = 256 * 1024  # of transformed weights that all frames of a block meet before others come, 1 MB
PANEL = 64  # output channels of transformed weights in one piece, or a divisor of their number that is a little less
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
    n, (taps, *_, c, k) = len(Bt), weight.shape
    u = _transformed(weight, m)
    panels, width = u.shape[2], u.shape[-1]
    u = u.reshape(n * n, panels, taps * c, width)
    corner = [-first for first, _ in pads[1:]]

    def plan(samples, down, across, frames):
        """For blocks of that many tiles: where they go, the products in turn, and where the result is."""
        shape, out_frames = (samples, down, across), y.shape[1]
        p = math.prod(shape)
        inputs, outputs = p * frames * c, p * out_frames * k
        # Each step reads one and writes the other: tiles, v and half-way sums here, half-way tiles, sums and out there.
        here, there = (squares(n, n, max(inputs, outputs), x.dtype) for _ in range(2))
        tiles, out = here[..., :inputs], there[:m, :m, :outputs]
        v, sums = tiles.reshape(n * n, p, frames * c), there[..., :outputs].reshape(n * n, p, out_frames, k)
        products = along_both(Bt, tiles, there[..., :inputs], tiles)
        for some in threads.pieces(n * n, NEAR_ELEMENTS // (taps * c * k)):
            for t in range(out_frames):
                first, last = max(0, t - pads[0][0]), min(frames, t - pads[0][0] + taps)
                tap = first + pads[0][0] - t
                seen, weights = slice(first * c, last * c), slice(tap * c, (tap + last - first) * c)
                to = sums[some, :, t].reshape(-1, p, panels, width).swapaxes(1, 2)
                products += pieces(v[some, None, :, seen], u[some, :, weights], to)
        products += along_both(At, there[..., :outputs], here[:, :m, :outputs], out)
        return (
            in_runs(tiles.reshape(n, n, *shape, frames, c)),
            products,
            in_runs(out.reshape(m, m, *shape, out_frames, k)),
        )

    plan = _for_each_thread(plan)

    def one(region):
        seen, (to, finish) = region.seen(x, corner), region.to_write(y)
        for block in region.blocks:
            tiles, products, out = plan(*seen[block].shape[2:])
            tiles[...] = seen[block]
            compute(products)
            to[block] = out
        finish()

    threads.run(one, regions(m, y.shape, max(c, k), BLOCK_ELEMENTS // max(c, k)))


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
    At, _, Bt = transforms(m)
    n, (_, taps, c, k) = len(Bt), shape
    corner = [-first for first, _ in pads[1:]]

    def plan(samples, down, across):
        p, frames, out_frames = samples * down * across, x.shape[1], gy.shape[1]
        inputs, outputs = frames * p * c, out_frames * p * k
        v, z = squares(n, n, inputs, x.dtype), squares(n, n, outputs, x.dtype)
        between, product = squares(n, n, max(inputs, outputs), x.dtype), memory.empty(shape, x.dtype)
        made = z[:m, :m]
        products = along_both(Bt, v, between[..., :inputs], v)
        products += along_both(At.T, made, between[:m, :, :outputs], z)
        for tap, a, b in _meeting(v.reshape(n * n, frames, p, c), z.reshape(n * n, out_frames, p, k), taps, pads):
            products += pieces(a, b, product[:, tap])
        spots = [
            in_runs(a.reshape(*a.shape[:2], t, samples, down, across, -1)) for a, t in ((v, frames), (made, out_frames))
        ]
        return *spots, products, product

    plan = _for_each_thread(plan)

    def one(some):
        total = memory.empty(shape, x.dtype)
        total.fill(0)
        for region in some:
            seen, made = (_frames_first(cut) for cut in (region.seen(x, corner), region.made(gy)))
            for block in region.blocks:
                block = (*block[:2], slice(None), *block[2:])
                tiles, outs, products, product = plan(*seen[block].shape[3:])
                tiles[...], outs[...] = seen[block], made[block]
                compute(products)
                total += product
        return total

    every = regions(m, gy.shape, max(c, k), BLOCK_ELEMENTS // max(c, k), most=PARTS)
    return threads.run(one, [every[some] for some in threads.shares(len(every), PARTS)])


def _shared_sum(x, gy, shape, pads, m):
    """The same in one sum, for large weights: all threads transform a slab, then each multiplies at its own points."""
    At, _, Bt = transforms(m)
    n, (points, taps, c, k) = len(Bt), shape
    corner = [-first for first, _ in pads[1:]]
    total = memory.empty(shape, x.dtype)
    every = regions(m, gy.shape, max(c, k), BLOCK_ELEMENTS // max(c, k), most=gy.size)
    for begun, slab in enumerate(_slabs(every, max(1, SLAB_ELEMENTS // max(c, k)))):
        ends = list(itertools.accumulate(region.count for region in slab))
        v = memory.empty((n, n, x.shape[1], ends[-1], c), x.dtype)
        z = memory.empty((n, n, gy.shape[1], ends[-1], k), x.dtype)

        def transform(task, v=v, z=z):
            region, end = task
            here = slice(end - region.count, end)
            _into(v[:, :, :, here], Bt, region.seen(x, corner))
            _into(z[:, :, :, here], At.T, region.made(gy))

        def add(some, v=v, z=z, begun=begun):
            v, z = (a.reshape(points, *a.shape[2:])[some] for a in (v, z))
            for tap, a, b in _meeting(v, z, taps, pads):
                add_product(a, b, total[some, tap], fresh=not begun)

        threads.run(transform, zip(slab, ends, strict=True))
        threads.run(add, threads.shares(points, 6))
    return (total,)


def _slabs(every, most):
    """Regions in groups of about `most` tiles of all frames."""
    some = max(1, most // (every[0].count * every[0].frames))
    return [every[i : i + some] for i in range(0, len(every), some)]


def _meeting(v, z, taps, pads):
    """For each tap in time: transformed tiles of x, as columns, and of gy, at the frames that it brings together."""
    points, _, _, c = v.shape
    for tap in range(taps):
        ahead = tap - pads[0][0]  # frame t of gy meets frame t + ahead of x
        first, last = max(0, -ahead), min(z.shape[1], v.shape[1] - ahead)
        a = v[:, first + ahead : last + ahead].reshape(points, -1, c).swapaxes(1, 2)
        yield tap, a, z[:, first:last].reshape(points, -1, z.shape[3])


def _into(to, matrix, cut):
    """Tiles (q, q, N, down, across, T) of runs, transformed by a matrix (r, q), to (r, r, T, P, C)."""
    cut = _frames_first(cut)
    (r, q), (frames, *_, c) = matrix.shape, to.shape[2:]
    tiles = squares(q, q, math.prod(to.shape[2:]), to.dtype)
    in_runs(tiles.reshape(*cut.shape, c))[...] = cut
    tiles = tiles.reshape(q, q, frames, -1)
    between = squares(q, r, tiles.shape[3], to.dtype)
    for t in range(frames):
        compute(along_both(matrix, tiles[:, :, t], between, to[:, :, t].reshape(r, r, -1)))


def _frames_first(cut):
    """(n, n, N, down, across, T) -> (n, n, T, N, down, across): a run of frames becomes a run of rows."""
    return cut.transpose(0, 1, 5, 2, 3, 4)


def _for_each_thread(make):
    """`make` with a memory: what it made of the same arguments for the same thread before."""
    made = {}

    def once(*arguments):
        key = threading.get_ident(), *arguments
        if key not in made:
            made[key] = make(*arguments)
        return made[key]

    return once


def _transformed(weight, m):
    """G w G^T of every tap in time and pair of channels: (kT, 3, 3, C, K) -> (n, n, panels, kT, C, K / panels).

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
        compute(along_both(G, part, between, u[:, :, panel, tap, some].reshape(n, n, -1)))

    threads.run(one, itertools.product(range(taps), range(k // width), threads.pieces(c, WEIGHT_PIECE // width)))
    return u


def _channel_parts(shape, m):
    """Slices of the output channels, so few that the transformed weights stay within their bound."""
    return threads.pieces(shape[4], WEIGHT_ELEMENTS // ((m + 2) ** 2 * shape[0] * shape[3]))


def _as_images(x):
    """(N, T, H, W, C) as N * T clips of one frame: without taps in time every frame is by itself."""
    return x.reshape(-1, 1, *x.shape[2:])
