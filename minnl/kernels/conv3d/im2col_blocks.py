"""Where the columns of a convolution lie: its output in blocks, and the matrices of each. docs/kernels/conv_columns.md.

All of this follows from shapes alone, and is worked out once for them.
"""

from __future__ import annotations

import functools
import itertools
import math
import operator

from minnl.kernels.runtime import threads
from minnl.kernels.runtime.strided import LINE

BLOCK_ELEMENTS = 512 * 1024  # of the column matrix at once, 2 MB: smaller ones would make short calls, see README.md
WORTH = 0.8  # of what gathering every window by itself copies: sharing lines has to copy less
ROWS = 128  # of a matrix, if there are so many; but
WIDE = 56  # outputs of a line are as good, if a frame by itself then needs no copies: its outputs lie in their order
PAGE = 1024  # numbers in 4 KB
BYTES = 4  # of a number


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


@functools.lru_cache(256)
def tasks(x, weight, y, stride, pads, dilation):
    """The work of a convolution of these shapes: for each task its blocks, as `blocks` has them."""
    block = functools.cache(functools.partial(Block, x, weight, y, stride, pads, dilation))
    return [list(blocks(*part, weight, y, stride, dilation, block)) for part in parts(y, weight, stride, dilation)]


def parts(y, weight, stride, dilation):
    """(samples, frames, places) slices that cut an output (N, T', H', W', K) in tasks: by samples, or also by frames.

    By places on a line instead if a sample is one frame and its windows share lines, but no places. (Windows that share
    no lines are rows in the order of the output, and that order is one of whole lines: see :class:`Block`.)
    """
    wanted = threads.tasks_for(2 * math.prod(y[:4]) * math.prod(weight))
    each = -(-wanted // y[0])
    by_places = y[1] == 1 and _narrow(weight, stride) and shares_lines(weight, stride, dilation, y[3])
    places = each if by_places else 1
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


def blocks(samples, frames, places, weight, y, stride, dilation, block):
    """(where, first, Block) for each piece of a part of the output whose columns fit the cache.

    `where` are four slices of the output, `first` (T, H, W) in x is where the first of its windows begins.
    """
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
        made = block((n, t, where[2].start, where[2].stop, w))
        first = [i + some.start * step for i, some, step in zip(made.first, where[1:], made.stride, strict=True)]
        yield where, first, made


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
        self.in_place, self.by_height = not shared or n * t == 1, (h, n, t, w)
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


def _strides(axes, last):
    """In bytes, of axes (size, …) without gaps between them."""
    return tuple(itertools.accumulate([size for size, *_ in axes[:0:-1]], operator.mul, initial=last))[::-1]


def _inside(top, size, height):
    """Which of the lines top, …, top + size - 1 are among `height` lines: from and to."""
    begin = min(max(0, -top), size)
    return begin, max(begin, min(size, height - top))
