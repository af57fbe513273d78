"""Convolution as a matrix product over blocks of columns: docs/kernels/conv_columns.md.

A row of the column matrix is one window, unrolled: taps * C numbers. As a whole the matrix would be `taps` times the
input (27 times for 3x3x3); here a block of it, small enough for the cache, is gathered, multiplied and forgotten. For
few channels: with many, every tap is a good matrix product by itself (conv_taps.py).
"""

from __future__ import annotations

import itertools
import math

import numpy as np

from minnl.kernels import memory, threads
from minnl.kernels.cpu.gather import in_runs, padded, strided
from minnl.kernels.cpu.gemm import multiply

BLOCK_ELEMENTS = 512 * 1024  # of the column matrix at once, 2 MB: smaller ones would make short calls, see README.md
WEIGHT_ELEMENTS = 256 * 1024  # of a weight that this is for: each part sums up a gradient of that size, 1 MB
PORTION_ELEMENTS = 1024 * 1024  # of input gathered at once by a thread, 4 MB, unless one frame's output sees more
SUM_ROWS = 192  # rows in one sum of the weight gradient: short enough for gemm.py
SHORT_RUN = 64  # numbers of one row of a window; shorter ones are gathered in two steps


def correlate(x, weight, y, stride, pads, dilation):
    """y (N, T', H', W', K) = windows of x (N, T, H, W, C) times weight (kT, kH, kW, C, K)."""
    w = weight.reshape(-1, weight.shape[4])

    def one(part):
        for some in portions(part, weight.shape, stride, dilation, y.shape):
            windows, out = Windows(x, weight.shape, stride, pads, dilation, y.shape, some), y[some]
            for block in windows.blocks():
                rows = out[block].reshape(-1, out.shape[-1])  # a view: a block is a run of whole lines
                multiply(windows.columns(block), w, rows)

    threads.run(one, parts(y.shape, weight.size))


def weight_gradient(x, gy, gw, stride, pads, dilation):
    """Sum over blocks of columns^T times gy; each part sums for itself, and the sums are added in the parts' order."""

    def one(part):
        total = np.zeros((math.prod(gw.shape[:4]), gw.shape[4]), gy.dtype)
        for some in portions(part, gw.shape, stride, dilation, gy.shape):
            windows, g = Windows(x, gw.shape, stride, pads, dilation, gy.shape, some), gy[some]
            for block in windows.blocks():
                columns, rows = windows.columns(block), g[block].reshape(-1, g.shape[-1])
                whole = len(rows) // SUM_ROWS * SUM_ROWS
                if whole:
                    a, b = (m[:whole].reshape(-1, SUM_ROWS, m.shape[1]) for m in (columns, rows))
                    products = memory.empty((len(a), *total.shape), total.dtype)
                    total += multiply(a.swapaxes(1, 2), b, products).sum(axis=0)
                if whole < len(rows):
                    total += columns[whole:].T @ rows[whole:]
        return total

    gw[...] = sum(threads.run(one, parts(gy.shape, gw.size))).reshape(gw.shape)


def parts(shape, weight_size):
    """(samples, frames) slices that cut an output (N, T', H', W', K): by samples, and by frames if those are few."""
    wanted = threads.tasks_for(2 * math.prod(shape[:4]) * weight_size)
    if shape[0] >= wanted:
        return [(samples, slice(0, shape[1])) for samples in threads.shares(shape[0], wanted)]
    each = -(-wanted // shape[0])
    return [(slice(n, n + 1), frames) for n in range(shape[0]) for frames in threads.shares(shape[1], each)]


def portions(part, weight, stride, dilation, shape):
    """A part in pieces whose padded input, and what its lines of windows see of it, take a few MB."""
    samples, frames = part
    (kt, kh, kw, c, _), (_, _, h, w, _) = weight, shape
    frame = w * ((h - 1) * stride[1] + dilation[1] * (kh - 1) + 1) * kw * c
    reach = dilation[0] * (kt - 1) + 1
    each = frame * ((frames.stop - frames.start - 1) * stride[0] + reach)  # of one sample
    if each <= PORTION_ELEMENTS:
        frames_each, samples_each = frames.stop - frames.start, PORTION_ELEMENTS // each
    else:
        frames_each, samples_each = max(1, (PORTION_ELEMENTS // frame - reach) // stride[0] + 1), 1
    return list(itertools.product(threads.cuts(samples, samples_each), threads.cuts(frames, frames_each)))


class Windows:
    """The windows of one part of the output: `view` (n, T', H', W', ...) of runs, each window ... runs."""

    def __init__(self, x, weight, stride, pads, dilation, out_shape, part):
        samples, frames = part
        (kt, kh, kw, c, _), (dt, dh, dw) = weight, dilation
        self.dtype, self.row = x.dtype, kt * kh * kw * c
        counts = (frames.stop - frames.start, *out_shape[2:4])
        first = [n * s - before for n, s, (before, _) in zip((frames.start, 0, 0), stride, pads, strict=True)]
        size = [(n - 1) * s + d * (k - 1) + 1 for n, s, d, k in zip(counts, stride, dilation, weight[:3], strict=True)]
        big = padded(x[samples], first, size)
        n, st = big.shape[0], big.strides
        steps = [s * step for s, step in zip(st[1:4], stride, strict=True)]
        if dw > 1:
            shape, strides, self.run = (*counts, kt, kh, kw), (*steps, dt * st[1], dh * st[2], dw * st[3]), c
        elif dh > 1 or kh == 1 or kw * c > SHORT_RUN:
            shape, strides, self.run = (*counts, kt, kh), (*steps, dt * st[1], dh * st[2]), kw * c
        else:  # first what each line of windows sees of each row, so that a window's rows then lie one below the other
            lines = memory.empty((n, size[0], counts[2], size[1], kw * c), x.dtype)
            in_runs(lines)[...] = strided(big, lines.shape[:4], (st[0], st[1], steps[2], st[2]), kw * c)
            big, st = lines, lines.strides
            shape, self.run = (*counts, kt), kh * kw * c
            strides = (stride[0] * st[1], stride[1] * st[3], st[2], dt * st[1])
        self.view = strided(big, (n, *shape), (st[0], *strides), self.run)

    def blocks(self):
        """Index tuples that cut the windows into runs of whole lines whose columns fit the cache."""
        return threads.blocks(self.view.shape[:4], BLOCK_ELEMENTS // self.row)

    def columns(self, block):
        """The rows of the column matrix for a block."""
        windows = self.view[block]
        out = memory.empty((*windows.shape, self.run), self.dtype)
        in_runs(out)[...] = windows
        return out.reshape(-1, self.row)
