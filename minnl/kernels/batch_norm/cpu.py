"""Batch norm with residual and ReLU, a block at a time on all threads: docs/kernels/batch_norm.md.

The textbook body goes over whole arrays some twenty times forward and backward. Here forward reads x twice (statistics,
result), and backward reads x and the gradient twice (sums, result); with given statistics each reads them once.
"""

from __future__ import annotations

import functools

import numpy as np

from minnl.dispatch import CpuKernel
from minnl.kernels.runtime import memory, threads
from minnl.kernels.runtime.sums import sums, sums_of_products
from minnl.ops.norm import BatchNorm, FrozenBatchNorm

SMALLEST = 64 * 1024  # Elements below which the textbook body is quicker.
FAR = 4  # Standard deviations: where a mean is farther from 0, x is centred before anything else.
BLOCK = 512 * 1024  # Elements of a block, 2 MB; an array of fewer is one block, since a second thread starts too late.
WIDTH = 16 * 1024  # Elements of a row at most; rows of 8,192 and more take 0.17 ns an element, of 4,096 0.25 ns.
LANES = 512  # Elements of a row at most while the columns are summed: more rows make longer runs.


class LargeKernel(CpuKernel):
    @staticmethod
    def suits(op, arrays):
        return arrays[0].size >= SMALLEST and CpuKernel.suits(op, arrays)

    def infer(self, *inputs):
        self.mean_error = None  # (C,) elements at most, and only where a mean is far from 0
        return super().infer(*inputs)


class CpuBatchNorm(LargeKernel, BatchNorm):
    """With the statistics of the batch."""

    saved_for_backward = (*BatchNorm.saved_for_backward, "mean_error")

    def forward(self, x, weight, bias, *residual):
        self.x, self.weight = x, weight
        self.mean, var, mean_error = statistics(x, self.eps)
        self.mean_error = finite(mean_error, self.mean, weight)
        self.rstd = 1 / np.sqrt(var + np.float32(self.eps))
        n = np.float32(x.size // x.shape[-1])
        self.track(self.mean, var * (n / (n - 1)))
        y = result(self, x, weight, bias, *residual)
        self.y = y if self.relu else None
        return y

    def backward(self, gy):
        rows, n = rows_of(gy.size, gy.shape[-1]), gy.size // gy.shape[-1]
        x, z = Centred(rows, self.x, self.mean, self.mean_error), ReluGradient(self, rows, gy)

        def channel_sums(block):
            g = z.gradient(block)
            return rows.sums(g), rows.sums_of_products(g, x.block(block))

        gbias, gweight = rows.by_channel(rows.run(channel_sums))
        gweight = (gweight - x.mean * gbias) * self.rstd
        if not self.needs[0]:
            return z.gradients(None, gweight, gbias)
        slope = self.rstd * gweight / -n
        scale, slope, constant = rows.repeated(self.weight * self.rstd, slope, gbias / -n - slope * x.mean)
        gx = z.memory_for_gx()
        out = memory.view(gx, -1, rows.width)

        def input_gradient(block):
            g = np.multiply(x.block(block), slope)
            g += constant
            g += z.matrix[block]
            np.multiply(g, scale, out=out[block])

        rows.run(input_gradient)
        return z.gradients(gx, gweight, gbias)


class CpuFrozenBatchNorm(LargeKernel, FrozenBatchNorm):
    """With given statistics."""

    saved_for_backward = (*FrozenBatchNorm.saved_for_backward, "mean_error")

    def forward(self, x, weight, bias, *residual):
        self.rstd = 1 / np.sqrt(self.var + np.float32(self.eps))
        mean_error = np.zeros_like(self.mean) if far(self.mean, self.rstd) else None
        self.mean_error = finite(mean_error, self.mean, weight)
        y = result(self, x, weight, bias, *residual)
        self.keep(x, weight, y)
        return y

    def backward(self, gy):
        rows, learns = rows_of(gy.size, gy.shape[-1]), any(self.needs[1:3])
        z = ReluGradient(self, rows, gy)
        x = None if self.x is None else Centred(rows, self.x, self.mean, self.mean_error)
        (scale,) = rows.repeated(self.weight * self.rstd)
        gx = z.memory_for_gx()
        out = memory.view(gx, -1, rows.width)

        def task(block):
            g = z.gradient(block)
            sums = rows.sums(g) if learns else None
            products = sums if x is None else rows.sums_of_products(g, x.block(block))
            np.multiply(g, scale, out=out[block])
            return sums, products

        partial = rows.run(task)
        gbias, gweight = rows.by_channel(partial) if learns else (None, None)
        if x is not None:
            gweight = (gweight - x.mean * gbias) * self.rstd
        return z.gradients(gx, gweight, gbias)


def statistics(x, eps):
    """Mean and variance of each channel, and None; or if a mean is far from 0 its error, from a second reading.

    E[d^2] - E[d]^2 is the variance whatever number d is counted from, but loses digits if that is far from the mean.
    """
    rows, n = rows_of(x.size, x.shape[-1]), x.size // x.shape[-1]

    def moments(centred):
        def task(block):
            values = centred.block(block)
            return rows.sums(values), rows.sums_of_products(values, values)

        mean, squares = rows.by_channel(rows.run(task)) / n
        return mean, np.maximum(squares - mean * mean, 0)

    mean, var = moments(Centred(rows, x, None, None))
    if not far(mean, 1 / np.sqrt(var + eps)):
        return mean.astype(x.dtype), var.astype(x.dtype), None
    centre = mean.astype(x.dtype)
    shift, var = moments(Centred(rows, x, centre, 0))
    mean = (centre + shift).astype(x.dtype)
    return mean, var.astype(x.dtype), (centre - mean + shift).astype(x.dtype)


def far(mean, rstd):
    return not (np.abs(mean) * rstd).max() <= FAR  # NaN is far


def finite(mean_error, mean, weight):
    """`mean_error`; or zeros where a weight is infinite, so that x is centred before the infinity multiplies it."""
    return np.zeros_like(mean) if mean_error is None and not np.isfinite(weight).all() else mean_error


class Centred:
    """Blocks of x, as they are or, with a `mean_error`, less the mean. `mean` is the mean of the blocks as returned."""

    def __init__(self, rows, x, mean, mean_error):
        self.matrix, self.mean, self.row = x.reshape(-1, rows.width), mean, None
        if mean_error is not None:
            self.mean, (self.row,) = mean_error, rows.repeated(mean)

    def block(self, block):
        return self.matrix[block] if self.row is None else self.matrix[block] - self.row


def result(op, x, weight, bias, residual=None):
    """y = max(scale * x + shift + residual, 0), or without the maximum."""
    rows, y = rows_of(x.size, x.shape[-1]), memory.empty(x.shape, x.dtype)
    centred, scale = Centred(rows, x, op.mean, op.mean_error), op.rstd * weight
    shift = bias - centred.mean * np.where(np.isfinite(scale), scale, 0)
    scale, shift, zeros = rows.repeated(scale, shift, np.zeros_like(shift))
    out = memory.view(y, -1, rows.width)
    residual = None if residual is None else residual.reshape(-1, rows.width)

    def task(block):
        z = np.multiply(centred.block(block), scale, out=out[block])
        z += shift
        if residual is not None:
            z += residual[block]
        if op.relu:
            np.maximum(z, zeros, out=z)  # with the number 0 it takes four times as long

    rows.run(task)
    return y


class ReluGradient:
    """The gradient of z in y = max(z, 0), made a block at a time; without ReLU it is gy itself."""

    def __init__(self, op, rows, gy):
        self.op = op
        self.array = memory.empty(gy.shape, gy.dtype) if op.relu else gy
        self.matrix = self.array.reshape(-1, rows.width)
        self.gy, self.y = (a.reshape(-1, rows.width) for a in (gy, op.y)) if op.relu else (None, None)

    def gradient(self, block):
        """gy where y is not 0, else 0: NaN counts as above 0.

        The ReLU mask, 1 or 0, times the bits of a float is the float, or 0 even if that is NaN.
        """
        z = self.matrix[block]
        if self.op.relu:
            np.multiply(self.gy[block].view(np.int32), self.y[block] != 0, out=z.view(np.int32))
        return z

    def memory_for_gx(self):
        """This array's own, unless it is the residual's gradient, or the caller's gy."""
        own = self.op.relu and not any(self.op.needs[3:])
        return self.array if own else memory.empty(self.array.shape, self.array.dtype)

    def gradients(self, gx, gweight, gbias):
        """All gradients, as the op returns them."""
        gweight, gbias = (None if g is None else g.astype(self.array.dtype) for g in (gweight, gbias))
        found = gx, gweight, gbias, self.array
        return tuple(g if need else None for g, need in zip(found, self.op.needs, strict=False))


class Rows:
    """Activations (..., C) as a matrix (-1, width): each row holds whole positions. `blocks` are slices of rows.

    A channel's number takes part in an operation as a row, in which it is repeated for every position.
    """

    def __init__(self, size, channels):
        positions = divisor(size // channels, WIDTH // channels)
        self.channels, self.width = channels, positions * channels
        self.lanes = channels * divisor(positions, LANES // channels)
        pairs = -(-size // (2 * BLOCK))  # of blocks, since there are two threads or more
        self.blocks = threads.split(size // self.width, 2 * pairs if size >= BLOCK else 1)

    def run(self, task):
        """Call ``task(block)`` for every block, on all threads; returns the results in order."""
        return threads.run(task, self.blocks)

    def repeated(self, *vectors):
        """Each vector (C,) repeated along a row: an array (vectors, width)."""
        return np.tile(np.array(vectors, np.float32), self.width // self.channels)

    def sums(self, block):
        """Sums down the columns of a block, in float64."""
        return sums(block.reshape(-1, self.lanes))

    def sums_of_products(self, a, b):
        return sums_of_products(a.reshape(-1, self.lanes), b.reshape(-1, self.lanes))

    def by_channel(self, partial):
        """What `sums` and the like returned for each block, [(sums, sums, ...), ...], added up: an array (..., C)."""
        partial = np.array(partial)
        return partial.reshape(*partial.shape[:2], -1, self.channels).sum(axis=(0, 2))


@functools.lru_cache(maxsize=256)
def rows_of(size, channels):
    """The :class:`Rows` of arrays of that size."""
    return Rows(size, channels)


def divisor(n, most):
    """The largest divisor of n up to `most`, or 1."""
    return next((d for d in range(min(n, most), 0, -1) if n % d == 0), 1)
