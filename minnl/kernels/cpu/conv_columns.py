"""Convolution as a matrix product over blocks of columns: docs/kernels/conv_columns.md.

A row of the column matrix is one window, unrolled: taps * C numbers. As a whole the matrix would be `taps` times the
input (27 times for 3x3x3); here a block of it, small enough for the cache, is gathered, multiplied and forgotten. And
of windows one above the other, which have lines in common, each line is gathered once. For few channels: with many,
every tap is a good matrix product by itself (conv_taps.py).
"""

from __future__ import annotations

import functools
import itertools
import math
import operator

import numpy as np

from minnl.kernels import memory, threads
from minnl.kernels.cpu.gather import LINE, in_runs, padded, strided
from minnl.kernels.cpu.gemm import multiply

BLOCK_ELEMENTS = 512 * 1024  # of the column matrix at once, 2 MB: smaller ones would make short calls, see README.md
WEIGHT_ELEMENTS = 640 * 1024  # of a weight that this is for: a larger one leaves the cache from block to block; and
SUM_ELEMENTS = 256 * 1024  # for its gradient: each part sums up one of that size, 1 MB
WORTH = 0.8  # of what gathering every window by itself copies: sharing lines has to copy less
ROWS = 128  # of a matrix, if there are so many; but
WIDE = 56  # outputs of a line are as good, if a frame by itself then needs no copies: its outputs lie in their order
SUM_ROWS = 192  # rows in one sum of the weight gradient: with few channels short enough for gemm.py
LONG_SUM_ROWS = 480  # the same where each sum is a call:
LARGE_SUM = 48 * 1024  # elements of a weight from which on several sums in one call would leave the cache
PAGE = 1024  # numbers in 4 KB
BYTES = 4  # of a number


def correlate(x, weight, y, stride, pads, dilation):
    """y (N, T', H', W', K) = windows of x (N, T, H, W, C) times weight (kT, kH, kW, C, K)."""
    x, weight, y, stride, pads, dilation = upright(x, weight, y, stride, pads, dilation)
    w = weight.swapaxes(0, 1).reshape(-1, weight.shape[4])  # heights outermost, as in a row of columns
    shapes = (x.shape, weight.shape, y.shape, stride, tuple(pads), dilation)

    def one(part):
        for where, block in blocks(*part, *shapes):
            out = y[where]
            rows = block.rows(out) if block.in_place else memory.empty((*block.outputs, y.shape[4]), y.dtype)
            for heights, taps, matrix in block.columns(x, where):
                multiply(matrix, w[taps], rows[heights])
            if not block.in_place:
                block.write(rows, out)

    threads.run(one, parts(y.shape, weight.shape, stride))


def weight_gradient(x, gy, gw, stride, pads, dilation):
    """Sum over blocks of columns^T times gy; each part sums for itself, and the sums are added in the parts' order."""
    x, gw, gy, stride, pads, dilation = upright(x, gw, gy, stride, pads, dilation)
    kt, kh, kw, c, k = gw.shape
    shapes = (x.shape, gw.shape, gy.shape, stride, tuple(pads), dilation)

    def one(part):
        total = memory.empty((kh * kt * kw * c, k), gy.dtype)
        total.fill(0)
        for where, block in blocks(*part, *shapes):
            rows = block.rows(gy[where])
            for heights, taps, matrix in block.columns(x, where):
                add_gradient(matrix, rows[heights], total[taps])
        return total

    first, *others = threads.run(one, parts(gy.shape, gw.shape, stride))
    total = sum(others, first)
    gw[...] = total.reshape(kh, kt, kw, c, k).swapaxes(0, 1)


def add_gradient(columns, gy, total):
    """total += columns^T gy, summed over heights, for (heights, rows, ·)."""
    if total.size >= LARGE_SUM:
        product = memory.empty(total.shape, total.dtype)
        for some in threads.pieces(gy.shape[1], LONG_SUM_ROWS):
            for a, b in zip(columns, gy, strict=True):
                total += multiply(a[some].T, b[some], product)
        return
    rows = gy.shape[1]
    whole = rows // SUM_ROWS * SUM_ROWS
    for some, each in ((slice(0, whole), SUM_ROWS), (slice(whole, rows), rows - whole)):  # short sums; what is left
        if some.stop > some.start:
            sums = (some.stop - some.start) // each
            a, b = (m[:, some].reshape(len(m), sums, each, m.shape[2]) for m in (columns, gy))
            products = memory.empty((*b.shape[:2], *total.shape), total.dtype)
            total += multiply(a.swapaxes(2, 3), b, products).sum(axis=(0, 1))


def upright(x, weight, y, stride, pads, dilation):
    """The same convolution; but for windows along time alone time is the height, and all places of a frame are a line.

    For x, weight and y as arrays. So windows one after the other in time, too, can share what they see in common.
    """
    how = upright_shapes(x.shape, weight.shape, y.shape, stride, tuple(pads), dilation)
    return *(a.reshape(shape) for a, shape in zip((x, weight, y), how, strict=False)), *how[3:]


@functools.lru_cache(1024)
def upright_shapes(x, weight, y, stride, pads, dilation):
    """`upright` for shapes."""
    turned = (1, weight[0], 1, *weight[3:]), (1, stride[0], 1), (1, dilation[0], 1)
    same_places = weight[1:3] == stride[1:] == (1, 1) and x[2:4] == y[2:4] and pads[1][0] == pads[2][0] == 0
    if not (same_places and shares_lines(*turned, y[2] * y[3])):
        return x, weight, y, stride, pads, dilation
    x, y = ((n, 1, t, h * w, c) for n, t, h, w, c in (x, y))
    weight, stride, dilation = turned
    return x, weight, y, stride, ((0, 0), pads[0], (0, 0)), dilation


def parts(y, weight, stride):
    """(samples, frames, places) slices that cut an output (N, T', H', W', K) in tasks: by samples, or also by frames.

    By places on a line instead if a sample is one frame and windows do not share places.
    """
    wanted = threads.tasks_for(2 * math.prod(y[:4]) * math.prod(weight))
    each = -(-wanted // y[0])
    places = each if y[1] == 1 and _narrow(weight, stride) else 1
    return list(
        itertools.product(threads.shares(y[0], wanted), threads.shares(y[1], each), threads.shares(y[3], places))
    )


def _narrow(weight, stride):
    """Whether windows are one place wide, one beside the other: then any places can be taken by themselves."""
    return weight[2] == stride[2] == 1


def by_frames(weight, stride, width):
    """Whether lines of so many outputs, or pieces of them, are long enough for blocks within single frames."""
    return width >= WIDE or weight[0] == 1 and _narrow(weight, stride)


def shares_lines(weight, stride, dilation, width):
    """Whether it pays that windows one above the other take the lines that they have in common from one place.

    Each line is gathered once then, but outputs have to be brought into another order, which copies them twice; not
    those of single frames.
    """
    kt, kh, kw, c, k = weight
    line = kt * kw * c  # numbers of a window on lines of one height
    copies = 0 if by_frames(weight, stride, width) else 2 * k
    return dilation[1] == 1 and line * stride[1] + copies < WORTH * line * kh


def blocks(samples, frames, places, x, weight, y, stride, pads, dilation):
    """(where, Block) for each piece of a part of the output whose columns fit the cache; `where` are four slices."""
    n, t, height, width = (s.stop - s.start for s in (samples, frames, slice(0, y[2]), places))
    if shares_lines(weight, stride, dilation, y[3]):  # as many whole frames as fit, or some lines of one or a few
        place = math.prod(weight[:4]) // weight[1]  # numbers gathered from a line for one place
        row = place * ((height - 1) * stride[1] + weight[1])
        across = threads.pieces(width, max(ROWS, BLOCK_ELEMENTS // row) if _narrow(weight, stride) else width)
        rows = across[-1].stop - across[-1].start
        least = 1 if rows >= WIDE else min(-(-ROWS // rows), n * t)
        each = 1 if rows >= WIDE else max(least, BLOCK_ELEMENTS // (rows * row))
        lines = (BLOCK_ELEMENTS // (least * rows * place) - weight[1]) // stride[1] + 1
        band = height if BLOCK_ELEMENTS // (rows * row) >= least else lines
        cut = threads.pieces(n, each // t), threads.pieces(t, each), threads.pieces(height, band), across
        extents = itertools.product(*cut)
    else:  # whole lines of the output, one after the other
        extents = threads.blocks((n, t, height, width), BLOCK_ELEMENTS // math.prod(weight[:4]))
    for extent in extents:
        starts = samples.start, frames.start, 0, places.start
        where = tuple(slice(first + s.start, first + s.stop) for first, s in zip(starts, extent, strict=True))
        n, t, _, w = (s.stop - s.start for s in extent)
        yield where, Block.of(x, weight, y, stride, pads, dilation, (n, t, where[2].start, where[2].stop, w))


class Block:
    """A piece of the output whose columns are gathered at once, and all about it that follows from shapes alone.

    There are two orders of columns. Where windows have no lines in common, a row is a window, and rows are in the order
    of the outputs. Where they have, a row holds all that the windows of one place (sample, frame, w) see, from the
    first line of the uppermost to the last of the lowest, and a window is a stretch of it: there is a matrix for each
    height, and they overlap. Lines in the padding are left out.
    """

    def __init__(self, x, weight, y, stride, pads, dilation, extent):
        (kt, kh, kw, c, _), (st, sh, sw), (dt, dh, dw) = weight, stride, dilation
        shared = shares_lines(weight, stride, dilation, y[3])
        n, t, start, stop, w = extent
        h, top = stop - start, start * sh - pads[1][0]
        end = top + (h - 1) * sh + dh * (kh - 1) + 1
        first, last = (min(max(0, line), x[2]) for line in (top, end)) if shared else (top, end)
        self.stride, self.first = (st, 0, sw), (-pads[0][0], first, -pads[2][0])
        self.size = (t - 1) * st + dt * (kt - 1) + 1, last - first, (w - 1) * sw + dw * (kw - 1) + 1

        taps = [(kt, 1, dt)] if dw == 1 else [(kt, 1, dt), (kw, 3, dw)]  # (how many, axis of x, step)
        self.run = kw * c if dw == 1 else c
        if shared:
            self.outputs, rows, row = (h, n * t * w), [(n, 0, 1), (t, 1, st), (w, 3, sw)], [(last - first, 2, 1), *taps]
        else:
            self.outputs, row = (1, n * t * h * w), [(kh, 2, dh), *taps]
            rows = [(n, 0, 1), (t, 1, st), (h, 2, sh), (w, 3, sw)]
        self.in_place = not shared or n * t == 1
        pitch = math.prod(size for size, *_ in row) * self.run
        pitch += 2 * LINE * (pitch % PAGE < LINE or pitch % PAGE > PAGE - LINE)
        self.numbers = self.outputs[1] * pitch
        self.shape, *self.steps = zip(*rows, *row, strict=True)
        self.strides = _strides(rows, BYTES * pitch) + _strides(row, BYTES * self.run)

        line = kt * kw * c  # numbers of a window on lines of one height
        self.matrices = []
        for (begin, stop), heights in itertools.groupby(
            range(self.outputs[0]), lambda i: _inside(top + i * sh, kh, x[2]) if shared else (0, kh)
        ):
            heights = list(heights)
            offset = (top + heights[0] * sh + begin - first) * line if stop > begin else 0
            shape = len(heights), self.outputs[1], (stop - begin) * line
            strides = BYTES * sh * line, BYTES * pitch, BYTES
            some, taps = slice(heights[0], heights[-1] + 1), slice(begin * line, stop * line)
            self.matrices.append((some, taps, shape, BYTES * offset, strides))

    @staticmethod
    @functools.lru_cache(1024)
    def of(*shapes):
        return Block(*shapes)

    def columns(self, x, where):
        """(heights, taps, matrix) to multiply: matrix (heights, rows, ·) and the rows of the weight that it meets."""
        first = [i + some.start * step for i, some, step in zip(self.first, where[1:], self.stride, strict=True)]
        seen = padded(x[where[0]], first, self.size)
        rows = memory.empty((self.numbers,), x.dtype)
        strides = tuple(seen.strides[axis] * step for axis, step in zip(*self.steps, strict=True))
        to = np.ndarray(self.shape, f"V{BYTES * self.run}", rows, 0, self.strides)
        to[...] = strided(seen, self.shape, strides, self.run)
        return [
            (heights, taps, np.ndarray(shape, x.dtype, rows, offset, strides))
            for heights, taps, shape, offset, strides in self.matrices
        ]

    def rows(self, part):
        """The block of the output, (n, t, h, w, K), by heights: (heights, rows, K). A copy if not `in_place`."""
        if self.in_place:
            return part.reshape(*self.outputs, -1)
        rows = memory.empty((*self.outputs, part.shape[4]), part.dtype)
        by_height = in_runs(part).transpose(2, 0, 1, 3)
        in_runs(rows).reshape(by_height.shape)[...] = by_height
        return rows

    def write(self, rows, part):
        """The inverse of `rows`."""
        by_height = in_runs(part).transpose(2, 0, 1, 3)
        by_height[...] = in_runs(rows).reshape(by_height.shape)


def _strides(axes, last):
    """In bytes, of axes (size, …) without gaps between them."""
    return tuple(itertools.accumulate([size for size, *_ in axes[:0:-1]], operator.mul, initial=last))[::-1]


def _inside(top, size, height):
    """Which of the lines top, …, top + size - 1 are among `height` lines: from and to."""
    begin = min(max(0, -top), size)
    return begin, max(begin, min(size, height - top))
