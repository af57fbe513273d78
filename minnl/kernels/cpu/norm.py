"""Batch norm in blocks that stay in the cache, on all threads: docs/kernels/batch_norm.md.

The textbook body goes over the whole array eight times forward and backward; from main memory each time, if it is
larger than the caches. Here forward reads it twice (statistics, result) and backward twice (sums, gradient).
"""

from __future__ import annotations

import numpy as np

from minnl.kernels import threads
from minnl.kernels.cpu.kernel import Float32Kernel

BLOCK_ELEMENTS = 32 * 1024  # 128 KB: a block, its deviation and its result fit a core's cache together
LANES = 512  # few channels make short inner loops: several rows are taken as one, at least this wide


class BlockedBatchNorm(Float32Kernel):
    @staticmethod
    def forward(op, x, weight, bias):
        op.x, op.weight = x, weight
        rows = Rows(x)
        op.mean, var = statistics(rows)
        op.rstd = 1 / np.sqrt(var + op.eps)
        op.track(op.mean, var * np.float32(rows.n / (rows.n - 1)))
        mean, scale, shift = rows.widened(op.mean), rows.widened(op.rstd * weight), rows.widened(bias)
        y = np.empty(rows.wide.shape, x.dtype)

        def one(part):
            for block in rows.blocks(part):
                out = np.subtract(rows.wide[block], mean, out=y[block])
                out *= scale
                out += shift

        threads.run(one, rows.parts())
        return y.reshape(x.shape)

    @staticmethod
    def backward(op, gy):
        rows, g = Rows(op.x), Rows(gy)
        mean = rows.widened(op.mean)

        def sums(part):
            gbias, gweight = np.zeros((2, rows.wide.shape[1]), gy.dtype)
            for block in rows.blocks(part):
                gbias += g.column_sums(g.wide[block])
                gweight += g.column_sums((rows.wide[block] - mean) * g.wide[block])
            return gbias, gweight

        gbias, gweight = (rows.narrowed(total) for total in zip(*threads.run(sums, rows.parts()), strict=True))
        gweight *= op.rstd
        if not op.needs[0]:
            return None, gweight, gbias
        slope = op.weight * op.rstd
        a, b = rows.widened(slope), rows.widened(slope * op.rstd * gweight / np.float32(rows.n))
        c = rows.widened(slope * gbias / np.float32(rows.n))
        gx = np.empty(rows.wide.shape, gy.dtype)

        def one(part):
            for block in rows.blocks(part):
                along = rows.wide[block] - mean
                along *= b
                along += c
                out = np.multiply(g.wide[block], a, out=gx[block])
                out -= along

        threads.run(one, rows.parts())
        return gx.reshape(op.x.shape), gweight, gbias


def statistics(rows):
    """Mean and variance of each channel from one reading.

    Deviations are taken from a mean of the first block: near enough to the true mean that nothing cancels, however
    large it is, in E[d^2] - E[d]^2. The blocks' sums are added up in float64, a handful of numbers.
    """
    first = rows.wide[next(iter(rows.blocks(rows.parts()[0])))]
    pivot = rows.narrowed([first]) / np.float32(len(first) * rows.fold)
    wide_pivot = rows.widened(pivot)

    def one(part):
        total, squares = np.zeros((2, rows.wide.shape[1]))
        for block in rows.blocks(part):
            d = rows.wide[block] - wide_pivot
            total += rows.column_sums(d)
            squares += rows.column_sums(d * d)
        return total, squares

    total, squares = (rows.narrowed(s) for s in zip(*threads.run(one, rows.parts()), strict=True))
    shift = total / rows.n
    var = squares / rows.n - shift * shift
    return (pivot + shift).astype(pivot.dtype), np.maximum(var, 0).astype(pivot.dtype)


class Rows:
    """x (..., C) as n rows of C, several of them side by side in a wide one where n divides."""

    def __init__(self, x):
        self.channels = x.shape[-1]
        self.n = x.size // self.channels
        self.fold = max(1, LANES // self.channels)
        while self.n % self.fold:
            self.fold //= 2
        self.fold = max(1, self.fold)
        self.wide = np.ascontiguousarray(x).reshape(self.n // self.fold, self.fold * self.channels)
        self.ones = np.ones(max(1, BLOCK_ELEMENTS // self.wide.shape[1]), x.dtype)

    def parts(self):
        return threads.shares(len(self.wide), most=16)

    def blocks(self, part):
        step = len(self.ones)
        return [slice(i, min(i + step, part.stop)) for i in range(part.start, part.stop, step)]

    def column_sums(self, block):
        return self.ones[: len(block)] @ block  # a matrix product is the quickest sum down columns

    def widened(self, channels):
        """(C,) -> (fold * C,), to broadcast over wide rows."""
        return np.tile(channels, self.fold)

    def narrowed(self, parts):
        """Sum of wide rows -> (C,)."""
        return sum(p.reshape(-1, self.channels).sum(axis=0) for p in parts)
