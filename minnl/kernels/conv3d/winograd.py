"""Convolution with 3 x 3 windows in space, any number of taps in time, stride 1, by Winograd's minimal filtering.

Only space is transformed. Taps in time become longer sums: the tiles of all frames at a place lie side by side, so the
kT frames of an output are one row of kT * C numbers, and frames in the padding are left out. docs/kernels/conv3d.md.

A tile is rounded as its largest numbers are. A window of far smaller numbers would lose its digits in that, and an
infinite pixel would make the whole tile NaN. Such windows are few, and are multiplied as the formula has them.
"""

from __future__ import annotations

import functools
import itertools
import math

import numpy as np

from minnl.kernels.conv3d import taps as by_taps
from minnl.kernels.conv3d import tiles
from minnl.kernels.conv3d.tiles import AT, BT, SIDE, TILE, G, along_both, squares
from minnl.kernels.runtime import memory, threads
from minnl.kernels.runtime.matmul import added, compute, tiled
from minnl.kernels.runtime.memory import in_runs, padded, plans

BLOCK_ELEMENTS = 20 * 1024  # A block has so many tiles * channels; times 36 floats, 2.9 MB: shorter calls wait more.
LEAST_ELEMENTS = 4 * 1024  # A block has at least so many, rather than that there are fewer than two.
SUM_TILES = 128  # A block has at least so many tiles in the weight's gradient, so that its sum is long.
SUM_ELEMENTS = 512 * 1024  # Up to so many numbers of a transformed weight, 2 MB, four tasks sum it up, else two.
WEIGHT_BLOCK = 32 * 1024  # Elements of one tap of the weight that a thread transforms at once.
WEIGHT_ELEMENTS = 6 * 1024 * 1024  # Elements of transformed weights at once, 24 MB.
RATIO = 4  # A window keeps its digits up to this ratio of its tile's largest pixel to it, as Euclidean norms.
LEAST, MOST = 1e-15, 1e12  # Bounds of norms, so that products, sums and transforms stay within float32's normal range.
ROWS_ELEMENTS = 512 * 1024  # Elements of windows that are multiplied apart at once, 2 MB.


def correlate(x, weight, y, stride, pads, dilation):
    """y (N, T', H', W', K) = windows of x (N, T, H, W, C) times weight (kT, 3, 3, C, K).

    Returns what `lost_windows` found, for the gradient of the weight; None if the weight was out of range.
    """
    if not _in_range(weight):
        return by_taps.correlate(x, weight, y, stride, pads, dilation)
    lost = lost_windows(x, y.shape[:4], weight.shape, pads)
    images = (x.reshape(-1, 1, *x.shape[2:]), y.reshape(-1, 1, *y.shape[2:])) if len(weight) == 1 else (x, y)
    with np.errstate(**{} if lost.size == 0 else {"over": "ignore", "invalid": "ignore"}):
        for outputs in _output_channels(weight.shape):
            _correlate(images[0], weight[..., outputs], images[1][..., outputs], pads)
    if lost.size:
        y[lost[0]], matrix = 0, weight.reshape(-1, weight.shape[4])
        with threads.one_blas_thread:  # for the same bits on any number of threads
            for where, rows in windows(x, weight.shape, pads, lost[0] & lost[1]):
                y[where] = rows @ matrix
    return lost


def _correlate(x, weight, y, pads):
    taps, *_, c, k = weight.shape
    u, products = _transformed(weight), {}

    def run(block):
        inputs = tiles.input_tiles(x, block, pads)
        plan = plans.of(Correlation, inputs.shape[2:5], x.shape[1], y.shape[1], c, k)
        if plan not in products:
            products[plan] = plan.products(u, taps, pads[0][0])
        plan.tiles[...] = inputs
        compute(plan.forward)
        compute(products[plan])
        compute(plan.back)
        tiles.write_tiles(y, block, plan.out)

    threads.run(run, tiles.blocks(y.shape[:4], _block(y, max(c, k))))


def _block(y, channels, least=1):
    """How many tiles a block has: as many as stay in the cache, but rather fewer than only one block."""
    tiles = y.shape[0] * y.shape[1] * -(-y.shape[2] // TILE) * -(-y.shape[3] // TILE)
    return max(least, 1, min(BLOCK_ELEMENTS // channels, max(-(-tiles // 2), LEAST_ELEMENTS // channels)))


class Correlation:
    """A thread's plan for blocks of so many (samples, down, across) tiles of so many frames.

    The plan has scratch for the tiles, the products (a, b, out) that transform them and transform back, and the result.
    """

    def __init__(self, empty, shape, frames, out_frames, c, k):
        p = math.prod(shape)
        inputs, outputs = p * frames * c, p * out_frames * k
        # Each step reads one scratch and writes the other: `here` has tiles, then v; `there` has sums, then out.
        here, there = (squares(SIDE, SIDE, max(inputs, outputs), empty) for _ in range(2))
        v, out = here[..., :inputs], there[:TILE, :TILE, :outputs]
        self.tiles = in_runs(memory.view(v, SIDE, SIDE, *shape, frames, c))
        self.forward = along_both(BT, v, there[..., :inputs], v)
        self.v = memory.view(v, SIDE * SIDE, p, frames * c)
        self.sum = memory.view(there[..., :outputs], SIDE * SIDE, p, out_frames, k)
        self.back = along_both(AT, there[..., :outputs], here[:, :TILE, :outputs], out)
        self.out = in_runs(memory.view(out, TILE, TILE, *shape, out_frames, k))

    def products(self, u, taps, before):
        """The products of v with a transformed weight u (36, kT * C, K); output t sums frames t - before and on."""
        made, c = [], u.shape[1] // taps
        frames = self.v.shape[2] // c
        for t in range(self.sum.shape[2]):
            first, last = max(0, t - before), min(frames, t - before + taps)
            tap = first + before - t
            v, weights = self.v[..., first * c : last * c], u[:, tap * c : (tap + last - first) * c]
            made += tiled(v, weights, self.sum[:, :, t])
        return made


def weight_gradient(x, gy, gw, stride, pads, dilation, lost=None):
    """gw (kT, 3, 3, C, K) = windows of x, transposed, times gy (N, T', H', W', K).

    The tiles of gy go through A, those of x through B^T. Their products, summed over the tiles, are the gradient of the
    transformed weight, and G^T takes it back. `lost` is what `correlate` returned for x, if it ran.
    """
    lost, inner = lost_windows(x, gy.shape[:4], gw.shape, pads) if lost is None else lost, gy
    if lost.size:
        inner = gy.copy()
        inner[lost[0]] = 0
    images = (x.reshape(-1, 1, *x.shape[2:]), inner.reshape(-1, 1, *gy.shape[2:])) if len(gw) == 1 else (x, inner)
    with np.errstate(over="ignore", invalid="ignore"):
        for outputs in _output_channels(gw.shape):
            _weight_gradient(images[0], images[1][..., outputs], gw[..., outputs], pads)
    if not (_in_range(gw) or not (gw.any() or inner.any())):  # gy was out of range
        by_taps.weight_gradient(x, gy, gw, stride, pads, dilation)
    elif lost.size:
        with threads.one_blas_thread:
            for where, rows in windows(x, gw.shape, pads, lost[0] & lost[1]):
                gw += (rows.T @ gy[where]).reshape(gw.shape)


def _weight_gradient(x, gy, gw, pads):
    taps, *_, c, k = gw.shape
    every = tiles.blocks(gy.shape[:4], _block(gy, max(c, k), least=SUM_TILES))

    def run(share):
        total = memory.empty((SIDE * SIDE, taps, c, k), x.dtype)
        total.fill(0)
        for block in every[share]:  # frames before samples and places: consecutive frames are consecutive rows
            both = tiles.input_tiles(x, block, pads), tiles.output_tiles(gy, block)
            of_x, of_gy = (a.transpose(0, 1, 5, 2, 3, 4) for a in both)
            plan = plans.of(Products, of_x.shape[3:], x.shape[1], gy.shape[1], taps, c, k, pads[0][0])
            plan.tiles[...], plan.out_tiles[...] = of_x, of_gy
            compute(plan.products)
            total += plan.product
        return total

    tasks = 4 if SIDE * SIDE * gw[:, 0, 0].size <= SUM_ELEMENTS else 2
    total = added(threads.run(run, threads.split(len(every), tasks)))

    def back(task):
        tap, inputs = task
        numbers = (inputs.stop - inputs.start) * k
        between, out = memory.empty((SIDE, 3, numbers), x.dtype), memory.empty((3, 3, numbers), x.dtype)
        compute(along_both(G.T, total[:, tap, inputs].reshape(SIDE, SIDE, numbers), between, out))
        gw[tap, :, :, inputs] = out.reshape(3, 3, -1, k)

    threads.run(back, itertools.product(range(taps), threads.chunks(c, WEIGHT_BLOCK // k)))


class Products:
    """A thread's plan for what a block of tiles, of x and of gy, adds to the gradient of the transformed weight."""

    def __init__(self, empty, shape, frames, out_frames, taps, c, k, before):
        p = math.prod(shape)
        inputs, outputs = frames * p * c, out_frames * p * k
        v, z, between = (squares(SIDE, SIDE, size, empty) for size in (inputs, outputs, max(inputs, outputs)))
        out_tiles, self.product = z[:TILE, :TILE], empty((SIDE * SIDE, taps, c, k), np.float32)
        self.tiles = in_runs(memory.view(v, SIDE, SIDE, frames, *shape, c))
        self.out_tiles = in_runs(memory.view(out_tiles, TILE, TILE, out_frames, *shape, k))
        self.products = along_both(BT, v, between[..., :inputs], v)
        self.products += along_both(AT.T, out_tiles, between[:TILE, :, :outputs], z)
        v, z = memory.view(v, SIDE * SIDE, frames * p, c), memory.view(z, SIDE * SIDE, out_frames * p, k)
        for tap in range(taps):
            ahead = tap - before  # by this tap frame t of gy meets frame t + ahead of x
            first, last = max(0, -ahead), min(out_frames, frames - ahead)
            a, b = v[:, (first + ahead) * p : (last + ahead) * p].swapaxes(1, 2), z[:, first * p : last * p]
            self.products += tiled(a, b, self.product[:, tap])


def _transformed(weight):
    """G w G^T of every tap in time and pair of channels: (kT, 3, 3, C, K) -> (36, kT * C, K)."""
    taps, *_, c, k = weight.shape
    u = memory.empty((SIDE, SIDE, taps, c, k), weight.dtype)

    def run(task):
        tap, inputs = task
        part = np.ascontiguousarray(weight[tap, :, :, inputs]).reshape(3, 3, -1)
        between = memory.empty((3, SIDE, part.shape[2]), weight.dtype)
        compute(along_both(G, part, between, memory.view(u[:, :, tap, inputs], SIDE, SIDE, -1)))

    threads.run(run, itertools.product(range(taps), threads.chunks(c, WEIGHT_BLOCK // k)))
    return u.reshape(SIDE * SIDE, taps * c, k)


def _output_channels(weight):
    """Slices of the output channels, so few that the transformed weights stay within their bound."""
    return threads.chunks(weight[4], WEIGHT_ELEMENTS // (SIDE * SIDE * weight[0] * weight[3]))


def _in_range(weight):
    return LEAST <= max(weight.max(), -weight.min()) <= MOST


def squared_norms(x):
    """Squares of the norms of pixels, (N, T, H, W, C) -> (N, T, H, W); in float64 where float32 has no digits."""
    shares = threads.split(len(x), threads.tasks_for(64 * x.size))
    with np.errstate(over="ignore", invalid="ignore"):
        norms = np.concatenate(threads.run(lambda share: np.einsum("...c,...c->...", x[share], x[share]), shares))
        if not (norms.min() >= LEAST**2 and norms.max() <= MOST**2):
            odd = ~(norms >= LEAST**2) | ~(norms <= MOST**2)
            norms = norms.astype(np.float64)
            norms[odd] = (x[odd].astype(np.float64) ** 2).sum(axis=-1)
    return norms


def lost_windows(x, out, weight, pads):
    """The outputs (N, T', H', W') of which 4 x 4 tiles would lose digits: bool (2, N, T', H', W'), empty if none.

    The second array tells which windows are not 0 throughout.
    """
    norms = squared_norms(x)
    low, high = norms.min(), norms.max()
    if low >= LEAST**2 and high <= min(MOST**2, RATIO**2 * low):
        return np.empty(0, bool)
    down, across = (-(-n // TILE) for n in out[2:])
    first, size = (0, -pads[1][0], -pads[2][0]), (x.shape[1], down * TILE + 2, across * TILE + 2)
    norms = padded(norms[..., None], first, size)[..., 0]
    largest, sums = _reduced(np.maximum, norms, SIDE, TILE)[:, :, :, None, :, None], _reduced(np.add, norms, 3, 1)
    sums = sums.reshape(*sums.shape[:2], down, TILE, across, TILE)
    with np.errstate(over="ignore", invalid="ignore"):
        lost = ~(RATIO**2 * sums >= largest)
        lost |= ~(largest <= MOST**2) | (largest < LEAST**2) & (largest > 0)
    if not lost.any():
        return np.empty(0, bool)
    found = np.zeros((2, *out), bool)
    lost, sums = (a.reshape(*a.shape[:2], down * TILE, across * TILE)[:, :, : out[2], : out[3]] for a in (lost, sums))
    for tap in range(weight[0]):
        ahead = tap - pads[0][0]
        start, stop = max(0, -ahead), min(out[1], x.shape[1] - ahead)
        found[0, :, start:stop] |= lost[:, start + ahead : stop + ahead]
        found[1, :, start:stop] |= sums[:, start + ahead : stop + ahead] != 0
    return found


def _reduced(reduce, x, size, step):
    """`reduce` of each window of size x size in the last two axes, at steps."""
    for _ in range(2):
        last = x.shape[3] - size
        x = functools.reduce(reduce, (x[..., i : i + last + 1 : step] for i in range(size))).swapaxes(2, 3)
    return x


def windows(x, weight, pads, which):
    """Windows of the outputs where `which` (N, T', H', W'), in chunks: (indices, matrix (Q, kT * 3 * 3 * C))."""
    kernel, row = weight[:3], math.prod(weight[:4])
    size = [n + k - 1 for n, k in zip(which.shape[1:], kernel, strict=True)]
    every = np.lib.stride_tricks.sliding_window_view(padded(x, [-a for a, _ in pads], size), kernel, axis=(1, 2, 3))
    at = np.nonzero(which)
    for chunk in threads.chunks(len(at[0]), ROWS_ELEMENTS // row):
        where = tuple(i[chunk] for i in at)
        yield where, np.moveaxis(every[where], 1, -1).reshape(-1, row)
