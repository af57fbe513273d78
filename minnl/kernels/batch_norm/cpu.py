"""Batch norm with residual and ReLU, a block at a time on all threads: docs/kernels/batch_norm.md.

The textbook body goes over whole arrays some twenty times forward and backward. Here forward reads x twice (statistics,
result), and backward reads x and the gradient twice (sums, result); with given statistics it is once.
"""

from __future__ import annotations

import numpy as np

from minnl.kernels.batch_norm.rows import rows_of
from minnl.kernels.runtime import memory
from minnl.kernels.runtime.cpu_kernel import CpuKernel
from minnl.ops.norm import BatchNorm, FrozenBatchNorm

SMALLEST = 64 * 1024  # numbers: with fewer the textbook body is through before the blocks are cut
FAR = 4  # deviations: if a mean is farther from 0, means are taken off x before anything else


class LargeKernel(CpuKernel):
    @staticmethod
    def suits(op, arrays):
        return arrays[0].size >= SMALLEST and CpuKernel.suits(op, arrays)


class CpuBatchNorm(LargeKernel, BatchNorm):
    """With the statistics of the batch."""

    keeps = (*BatchNorm.keeps, "left")

    def forward(self, x, weight, bias, *residual):
        self.x, self.weight = x, weight
        self.mean, var, left = statistics(x, self.eps)
        self.left = set_apart(left, self.mean, weight)
        self.rstd = 1 / np.sqrt(var + np.float32(self.eps))
        n = np.float32(x.size // x.shape[-1])
        self.track(self.mean, var * (n / (n - 1)))
        y = result(self, x, weight, bias, *residual)
        self.y = y if self.relu else None
        return y

    def backward(self, gy):
        rows, x, gz = rows_of(gy.size, gy.shape[-1]), Parts(self.x, self.mean, self.left), GradientOfSum(self, gy)

        def sums(i, scratch):
            g = gz.make(i, scratch)
            return rows.sums(g), rows.sums_of_products(g, x(i))

        gbias, gweight = rows.by_channel(rows.run_with_scratch(sums))
        gweight = (gweight - x.mean * gbias) * self.rstd
        if not self.needs[0]:
            return gz.and_others(None, gweight, gbias)
        n = gy.size // rows.channels
        slope = self.rstd * gweight / -n
        scale, slope, constant = rows.repeated(self.weight * self.rstd, slope, gbias / -n - slope * x.mean)
        gx = gz.room_for_gx()
        out = rows.cut(memory.view(gx, -1))

        def one(i, scratch):
            rows.each(np.multiply, x(i), slope, out=scratch)
            rows.each(np.add, scratch, constant, out=scratch)
            np.add(scratch, gz.blocks[i], out=scratch)
            rows.each(np.multiply, scratch, scale, out=out[i])

        rows.run_with_scratch(one)
        return gz.and_others(gx, gweight, gbias)

    def infer(self, *inputs):
        self.left = None  # (C,) numbers at most, and only where a mean is far from 0
        return super().infer(*inputs)


class CpuFrozenBatchNorm(LargeKernel, FrozenBatchNorm):
    """With given statistics."""

    keeps = (*FrozenBatchNorm.keeps, "left")

    def forward(self, x, weight, bias, *residual):
        self.rstd = 1 / np.sqrt(self.var + np.float32(self.eps))
        self.left = set_apart(np.zeros_like(self.mean) if far(self.mean, self.rstd) else None, self.mean, weight)
        y = result(self, x, weight, bias, *residual)
        self.keep(x, weight, y)
        return y

    def backward(self, gy):
        rows, gz, learns = rows_of(gy.size, gy.shape[-1]), GradientOfSum(self, gy), any(self.needs[1:3])
        x = None if self.x is None else Parts(self.x, self.mean, self.left)
        (scale,) = rows.repeated(self.weight * self.rstd)
        gx = gz.room_for_gx()
        out = rows.cut(memory.view(gx, -1))

        def one(i, scratch):
            g = gz.make(i, scratch)
            sums = rows.sums(g) if learns else None
            products = sums if x is None else rows.sums_of_products(g, x(i))
            rows.each(np.multiply, g, scale, out=out[i])
            return sums, products

        partial = rows.run_with_scratch(one)
        gbias, gweight = rows.by_channel(partial) if learns else (None, None)
        if x is not None:
            gweight = (gweight - x.mean * gbias) * self.rstd
        return gz.and_others(gx, gweight, gbias)

    def infer(self, *inputs):
        self.left = None  # (C,) numbers at most, and only where a mean is far from 0
        return super().infer(*inputs)


def statistics(x, eps):
    """Mean and variance of each channel, and None; or if a mean is far what it lost by rounding, from a second reading.

    E[d^2] - E[d]^2 is the variance for deviations d from any number, but loses digits if that is far from the mean.
    """
    rows, n = rows_of(x.size, x.shape[-1]), x.size // x.shape[-1]

    def moments(parts):
        def one(i):
            block = parts(i)
            return rows.sums(block), rows.sums_of_products(block, block)

        mean, squares = rows.by_channel(rows.run(one)) / n
        return mean, np.maximum(squares - mean * mean, 0)

    mean, var = moments(Parts(x))
    if not far(mean, 1 / np.sqrt(var + eps)):
        return mean.astype(x.dtype), var.astype(x.dtype), None
    centre = mean.astype(x.dtype)
    shift, var = moments(Parts(x, centre, left=0))
    mean = (centre + shift).astype(x.dtype)
    return mean, var.astype(x.dtype), (centre - mean + shift).astype(x.dtype)


def far(mean, rstd):
    return not (np.abs(mean) * rstd).max() <= FAR  # NaN is far


def set_apart(left, mean, weight):
    """`left`; or zeros where a weight is infinite, so that the mean is subtracted before x meets the infinity."""
    return np.zeros_like(mean) if left is None and not np.isfinite(weight).all() else left


class Parts:
    """Blocks of x. With `left` the mean is subtracted from them, and `left` is the mean of what remains.

    The attribute `mean` is the mean of the blocks as they are returned.
    """

    def __init__(self, x, mean=None, left=None):
        self.rows = rows_of(x.size, x.shape[-1])
        self.blocks, self.mean, self.row = self.rows.cut(x), mean, None
        if left is not None:
            self.mean, (self.row,) = left, self.rows.repeated(mean)

    def __call__(self, i):
        block = self.blocks[i]
        if self.row is None:
            return block
        return self.rows.each(np.subtract, block, self.row, out=memory.empty(block.shape, block.dtype))


def result(op, x, weight, bias, residual=None):
    """y = max(scale * x + shift + residual, 0), or without the maximum."""
    rows, y, parts = rows_of(x.size, x.shape[-1]), memory.empty(x.shape, x.dtype), Parts(x, op.mean, op.left)
    scale = op.rstd * weight
    scale, shift = rows.repeated(scale, bias - parts.mean * np.where(np.isfinite(scale), scale, 0))
    outs, residuals = rows.cut(memory.view(y, -1)), None if residual is None else rows.cut(residual)

    def one(i):
        out = rows.each(np.multiply, parts(i), scale, out=outs[i])
        rows.each(np.add, out, shift, out=out)
        if residuals is not None:
            np.add(out, residuals[i], out=out)
        if op.relu:
            rows.each(np.maximum, out, rows.zeros, out=out)

    rows.run(one)
    return y


class GradientOfSum:
    """The gradient of z in y = max(z, 0), made a block at a time; without ReLU it is gy itself."""

    def __init__(self, op, gy):
        self.op, rows = op, rows_of(gy.size, gy.shape[-1])
        self.array = memory.empty(gy.shape, gy.dtype) if op.relu else gy
        self.blocks = rows.cut(self.array)
        self.given, self.y = (rows.cut(gy), rows.cut(op.y)) if op.relu else (None, None)

    def make(self, i, scratch):
        out = self.blocks[i]
        return gate(self.given[i], self.y[i], out, scratch) if self.op.relu else out

    def room_for_gx(self):
        """Its own memory, if nobody else will want it."""
        own = self.op.relu and not any(self.op.needs[3:])
        return self.array if own else memory.empty(self.array.shape, self.array.dtype)

    def and_others(self, gx, gweight, gbias):
        """All gradients, as the op returns them."""
        gweight, gbias = (None if g is None else g.astype(self.array.dtype) for g in (gweight, gbias))
        grads = gx, gweight, gbias, self.array
        return tuple(g if need else None for g, need in zip(grads, self.op.needs, strict=False))


def gate(values, y, out, scratch):
    """out = values where y, a result of max(z, 0), is not 0, else 0: NaN counts as above 0.

    A product of bits with 1 or 0 leaves a float as it is, or makes it 0, even NaN.
    """
    above = np.not_equal(y, 0, out=scratch.view(bool).reshape(-1)[: y.size].reshape(y.shape))
    np.multiply(values.view(np.int32), above, out=out.view(np.int32))
    return out
