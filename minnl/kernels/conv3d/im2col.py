"""Convolution as a matrix product over blocks of the im2col matrix: docs/kernels/conv3d.md.

A row of the im2col matrix is a window, unrolled: taps * C numbers. The whole matrix would be `taps` times the input (27
times for 3x3x3), so a block of it, small enough for the cache, is gathered, multiplied and forgotten. Outputs one above
the other share lines of the input: a row of `cols` has all lines of one place (sample, frame, w'), each once, and
the window of a height h' is a stretch of that row. So there is a matrix for each height, and these matrices overlap.
"""

from __future__ import annotations

import functools
import itertools
import math
from typing import NamedTuple

import numpy as np

from minnl.kernels.runtime import memory, threads
from minnl.kernels.runtime.matmul import added, compute, tiled
from minnl.kernels.runtime.memory import LINE, in_runs, padded, plans, strided

WEIGHT_ELEMENTS = 256 * 1024  # Elements of the largest weight for this method, 1 MB: each task sums up a gradient.
BLOCK_ELEMENTS = 512 * 1024  # Elements of a block of the matrix, 2 MB: with smaller ones threads wait more for Python.
ROWS = 128  # A product has at least so many rows, if there are so many and a line of the output is not wide.
WIDE = 56  # Outputs in a wide line: such a line is a product of its own, and the block's outputs need no other order.
HEIGHTS_ELEMENTS = 48 * 1024  # Elements of the products, in a weight's gradient, that one call makes.
PAGE = 1024  # Numbers in 4 KB: rows at multiples of this distance compete for the same lines of the cache.
BYTES = 4  # Bytes of a float32.


def correlate(x, weight, y, stride, pads, dilation):
    """y (N, T', H', W', K) = windows of x (N, T, H, W, C) times weight (kT, kH, kW, C, K). The dilation is 1."""
    x, weight, y, *how = upright(x, weight, y, stride, pads)
    matrix = weight.swapaxes(0, 1).reshape(-1, weight.shape[4])  # lines first, as in a row of `cols`

    def run(task):
        where, first, layout = task
        plan, out = plans.of(Cols, layout), y[where].transpose(2, 0, 1, 3, 4)
        plan.gather(x[where[0]], first)
        rows = memory.view(out, *plan.out.shape) if layout.in_place else plan.out
        for heights, taps, cols in plan.matrices:
            compute(tiled(cols, matrix[taps], rows[heights]))
        if not layout.in_place:
            in_runs(out)[...] = in_runs(rows).reshape(out.shape[:4])

    threads.run(run, blocks(x.shape, weight.shape, y.shape, *how))


def weight_gradient(x, gy, gw, stride, pads, dilation):
    """The sum over blocks of cols^T times gy. Each task sums for itself, and the sums are added in the tasks' order."""
    x, gw, gy, *how = upright(x, gw, gy, stride, pads)
    kt, kh, kw, c, k = gw.shape
    every = blocks(x.shape, gw.shape, gy.shape, *how)

    def run(share):
        total = memory.empty((kh * kt * kw * c, k), gy.dtype)
        total.fill(0)
        for where, first, layout in every[share]:
            plan, out = plans.of(Cols, layout), gy[where].transpose(2, 0, 1, 3, 4)
            plan.gather(x[where[0]], first)
            if layout.in_place:
                rows = memory.view(out, *plan.out.shape)
            else:
                in_runs(plan.out).reshape(out.shape[:4])[...], rows = in_runs(out), plan.out
            for heights, taps, cols in plan.matrices:
                depth = cols.shape[2]
                for chunk in threads.chunks(len(cols), HEIGHTS_ELEMENTS // max(1, depth * k)):
                    products = memory.empty((chunk.stop - chunk.start, depth, k), gy.dtype)
                    compute(tiled(cols[chunk].swapaxes(1, 2), rows[heights][chunk], products))
                    for product in products:
                        total[taps] += product
        return total

    total = added(threads.run(run, threads.split(len(every), threads.tasks_for(2 * gy.size * gw[..., 0].size))))
    gw[...] = total.reshape(kh, kt, kw, c, k).swapaxes(0, 1)


def upright(x, weight, y, stride, pads):
    """Views in which time is the height, if windows are long in time alone, since frames then are shared as lines are.

    x, weight, y, stride, pads; and whether time is the height.
    """
    turned = weight.shape[0] > weight.shape[1] == 1
    if turned:
        x, weight, y = x.swapaxes(1, 2), weight.swapaxes(0, 1), y.swapaxes(1, 2)
        stride, pads = ((b, a, c) for a, b, c in (stride, pads))
    return x, weight, y, stride, tuple(pads), turned


class Layout(NamedTuple):
    """Everything that the matrices of a block depend on. Blocks with the same layout share a plan."""

    weight: tuple
    stride: tuple
    extent: tuple  # (n, t, h, w) of the block's outputs
    above: int  # lines of the block's windows that lie in the padding above the input
    lines: int  # lines of the input that the block's windows reach
    in_place: bool  # whether the outputs lie in y in the order of the product, height by height


@functools.lru_cache(256)
def blocks(x, weight, y, stride, pads, turned):
    """The blocks of an output: four slices of y, where the windows begin in x (T, H, W), and the layout of each."""
    (n, t, height, width), kernel, line = y[:4], weight[:3], math.prod(weight[:4]) // weight[1]
    tasks = threads.tasks_for(2 * math.prod(y[:4]) * math.prod(weight))
    if width >= WIDE and not turned:
        frames = 1
    else:
        least = min(-(-ROWS // width), n * t)
        most = BLOCK_ELEMENTS // (width * line * ((height - 1) * stride[1] + kernel[1]))
        frames = max(least, min(most, -(-n * t // tasks)))
    lines = (BLOCK_ELEMENTS // (frames * width * line) - kernel[1]) // stride[1] + 1
    lines = min(lines, -(-height // -(-tasks * frames // (n * t))))
    cuts = threads.chunks(n, frames // t), threads.chunks(t, frames), threads.chunks(height, lines), [slice(0, width)]
    made = []
    for where in itertools.product(*cuts):
        extent = tuple(s.stop - s.start for s in where)
        first = [s.start * step - before for s, step, (before, _) in zip(where[1:], stride, pads, strict=True)]
        reach = first[1], first[1] + (extent[2] - 1) * stride[1] + kernel[1]
        top, end = (min(max(0, i), x[2]) for i in reach)
        layout = Layout(
            weight, stride, extent, top - reach[0], end - top, extent[0] == 1 and (turned or extent[1] == 1)
        )
        made.append((where, (first[0], top, first[2]), layout))
    return made


class Cols:
    """A thread's plan for blocks of one layout: memory for `cols` and for its product, and the matrices in `cols`."""

    def __init__(self, empty, layout):
        (kt, kh, kw, c, k), (st, sh, sw), (n, t, h, w), above, lines, _ = layout
        line, self.run, self.steps = kt * kw * c, kw * c, (st, sw)
        self.size = (t - 1) * st + kt, lines, (w - 1) * sw + kw  # of the input that the block's windows reach
        pitch = lines * line
        pitch += 2 * LINE * (pitch % PAGE < LINE or pitch % PAGE > PAGE - LINE)
        scratch, self.out = empty((n * t * w * pitch,), np.float32), empty((h, n * t * w, k), np.float32)
        strides = tuple(BYTES * i for i in (t * w * pitch, w * pitch, pitch, line, self.run))
        self.cols = np.ndarray((n, t, w, lines, kt), f"V{BYTES * self.run}", scratch, 0, strides)
        self.matrices = []  # (heights, rows of the weight's matrix, their matrix (heights, n * t * w, depth)) each
        for (begin, end), heights in itertools.groupby(
            range(h), lambda i: tuple(min(max(0, above + line - i * sh), kh) for line in (0, lines))
        ):
            heights = list(heights)
            shape, strides = (len(heights), n * t * w, (end - begin) * line), (sh * line, pitch, 1)
            offset = (heights[0] * sh + begin - above) * line if end > begin else 0
            matrix = np.ndarray(shape, np.float32, scratch, BYTES * offset, tuple(BYTES * i for i in strides))
            self.matrices.append((slice(heights[0], heights[-1] + 1), slice(begin * line, end * line), matrix))

    def gather(self, x, first):
        """Copy the lines of a block into `cols`; its windows begin at `first` (T, H, W) in its samples of x."""
        box, (st, sw) = padded(x, first, self.size), self.steps
        s = box.strides
        self.cols[...] = strided(box, self.cols.shape, (s[0], s[1] * st, s[3] * sw, s[2], s[1]), self.run)
