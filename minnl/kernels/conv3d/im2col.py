"""Convolution as a matrix product over blocks of columns: docs/kernels/conv_columns.md.

A row of the column matrix is one window, unrolled: taps * C numbers. As a whole the matrix would be `taps` times the
input (27 times for 3x3x3); here a block of it, small enough for the cache, is gathered, multiplied and forgotten. And
of windows one above the other, which have lines in common, each line is gathered once. For few channels: with many,
every tap is a good matrix product by itself (conv_taps.py).
"""

from __future__ import annotations

import itertools
import math

import numpy as np

from minnl.kernels.conv3d.im2col_blocks import BYTES, tasks, upright_shapes
from minnl.kernels.runtime import memory, threads
from minnl.kernels.runtime.matmul import added, compute, pieces
from minnl.kernels.runtime.panels import factor
from minnl.kernels.runtime.strided import in_runs, padded, strided
from minnl.kernels.runtime.workspace import plans

WEIGHT_ELEMENTS = 640 * 1024  # of a weight that this is for: a larger one leaves the cache from block to block; and
SUM_ELEMENTS = 256 * 1024  # for its gradient: each part sums up one of that size, 1 MB
SUM_ROWS = 192  # rows in one sum of the weight gradient: with few channels short enough for gemm.py
LONG_SUM_ROWS = 480  # the same where each sum is a call:
LARGE_SUM = 48 * 1024  # elements of a weight from which on several sums in one call would leave the cache


def correlate(x, weight, y, stride, pads, dilation):
    """y (N, T', H', W', K) = windows of x (N, T, H, W, C) times weight (kT, kH, kW, C, K)."""
    x, weight, y, stride, pads, dilation = upright(x, weight, y, stride, pads, dilation)
    w = weight.swapaxes(0, 1).reshape(-1, weight.shape[4])  # heights outermost, as in a row of columns
    how, products = factor(w, math.prod(y.shape[:4])), {}

    def one(blocks):
        for where, first, block in blocks:
            plan, out = plans.of(Columns, block, y.shape[4]), y[where]
            plan.gather(x[where[0]], first)
            if block.in_place:
                compute(plan.products(*how, memory.view(out, *block.outputs, y.shape[4])))
                continue
            if plan not in products:
                products[plan] = plan.products(*how, plan.outs)
            compute(products[plan])
            _by_height(out)[...] = plan.by_height

    threads.run(one, tasks(x.shape, weight.shape, y.shape, stride, tuple(pads), dilation))


def weight_gradient(x, gy, gw, stride, pads, dilation):
    """Sum over blocks of columns^T times gy; each task sums for itself, and the sums are added in the tasks' order."""
    x, gw, gy, stride, pads, dilation = upright(x, gw, gy, stride, pads, dilation)
    kt, kh, kw, c, k = gw.shape

    def one(blocks):
        total = memory.empty((kh * kt * kw * c, k), gy.dtype)
        total.fill(0)
        for where, first, block in blocks:
            plan, out = plans.of(GradientColumns, block, k), gy[where]
            plan.gather(x[where[0]], first)
            if block.in_place:
                sums = plan.make_sums(out.reshape(*block.outputs, -1))
            else:
                plan.by_height[...], sums = _by_height(out), plan.sums
            for taps, products, product in sums:
                compute(products)
                total[taps] += product if product.ndim == 2 else product.sum(axis=(0, 1))
        return total

    total = added(threads.run(one, tasks(x.shape, gw.shape, gy.shape, stride, tuple(pads), dilation)))
    gw[...] = total.reshape(kh, kt, kw, c, k).swapaxes(0, 1)


class Columns:
    """A thread's plan for blocks of one kind: memory for the columns, the matrices in it, and rows of results."""

    def __init__(self, empty, block, k):
        self.block, rows = block, empty((block.numbers,), np.float32)
        self.to = np.ndarray(block.shape, f"V{BYTES * block.run}", rows, 0, block.strides)
        self.matrices = [
            (heights, taps, np.ndarray(shape, np.float32, rows, offset, strides))
            for heights, taps, shape, offset, strides in block.matrices
        ]
        if not block.in_place:
            self.outs = empty((*block.outputs, k), np.float32)
            self.by_height = memory.view(in_runs(self.outs), *block.by_height)

    def gather(self, x, first):
        """The columns of a block whose windows begin at `first` (T, H, W) in its samples of x."""
        seen = padded(x, first, self.block.size)
        strides = tuple(seen.strides[axis] * step for axis, step in zip(*self.block.steps, strict=True))
        self.to[...] = strided(seen, self.block.shape, strides, self.block.run)

    def products(self, make, w, outs):
        """outs (heights, rows, K) = columns times w, as products (a, b, out); `make` and w from panels.factor."""
        return [
            product for some, taps, matrix in self.matrices for product in make(matrix, w[..., taps, :], outs[some])
        ]


class GradientColumns(Columns):
    """The same for what blocks add to the weight's gradient: `sums` of the rows that are there, if not `in_place`."""

    def __init__(self, empty, block, k):
        super().__init__(empty, block, k)
        sizes = [math.prod(self._shape(matrix, k)) for *_, matrix in self.matrices]
        self.product = empty((max(sizes),), np.float32)
        if not block.in_place:
            self.sums = self.make_sums(self.outs)

    def make_sums(self, outs):
        """(taps, products, product) for outs (heights, rows, K): how to make what is to be added for some taps.

        A `product` of four axes is several sums, to be added up over the first two.
        """
        made = []
        for heights, taps, matrix in self.matrices:
            gy, shape = outs[heights], self._shape(matrix, outs.shape[2])
            rows, product = gy.shape[1], memory.view(self.product[: math.prod(shape)], *shape)
            if len(shape) == 2:
                runs = itertools.product(threads.pieces(rows, LONG_SUM_ROWS), zip(matrix, gy, strict=True))
                made += [(taps, pieces(a[some].T, b[some], product), product) for some, (a, b) in runs]
                continue
            whole = rows // SUM_ROWS * SUM_ROWS
            for some, each in ((slice(0, whole), SUM_ROWS), (slice(whole, rows), rows - whole)):  # and what is left
                if some.stop > some.start:
                    count = (some.stop - some.start) // each
                    a, b = (m[:, some].reshape(len(m), count, each, m.shape[2]) for m in (matrix, gy))
                    made.append((taps, pieces(a.swapaxes(2, 3), b, product[:, :count]), product[:, :count]))
        return made

    @staticmethod
    def _shape(matrix, k):
        """Of the product of a matrix: (depth, K); or (heights, sums, depth, K), several sums at once."""
        heights, rows, depth = matrix.shape
        return (depth, k) if depth * k >= LARGE_SUM else (heights, max(1, rows // SUM_ROWS), depth, k)


def upright(x, weight, y, stride, pads, dilation):
    """The same convolution; but for windows along time alone time is the height, and all places of a frame are a line.

    For x, weight and y as arrays. So windows one after the other in time, too, can share what they see in common.
    """
    how = upright_shapes(x.shape, weight.shape, y.shape, stride, tuple(pads), dilation)
    return *(memory.view(a, *shape) for a, shape in zip((x, weight, y), how, strict=False)), *how[3:]


def _by_height(part):
    """A block of an output, (n, t, h, w, K), as (h, n, t, w) of runs."""
    return in_runs(part).transpose(2, 0, 1, 3)
