"""Pooling to a given size, whatever the input's. Derivations: docs/ops/pool.md."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from minnl import windows
from minnl.backend import Array
from minnl.engine import Op, Tensor, meta_array
from minnl.ops.arguments import tensor
from minnl.ops.reduce import first
from minnl.sums import chosen, mean


class _Adaptive(Op):
    """Cell i of m along an axis of n covers positions floor(i*n/m) to ceil((i+1)*n/m), so cells may share some."""

    def __init__(self, sizes):
        self.sizes = sizes

    def cells(self, shape):
        """Pairs (position of the output, region of the input) as index tuples."""
        axes = [
            [(i, slice(i * n // m, -(-(i + 1) * n // m))) for i in range(m)]
            for n, m in zip(shape[1:4], self.sizes, strict=True)
        ]
        for (t, st), (h, sh), (w, sw) in itertools.product(*axes):
            yield (slice(None), t, h, w), (slice(None), st, sh, sw)

    def empty(self, x, dtype):
        return self.xp.empty((x.shape[0], *self.sizes, x.shape[4]), dtype=dtype)


class AdaptiveAvgPool3d(_Adaptive):
    r"""Average of each cell R(p): :math:`y_p = \tfrac1{|R(p)|}\sum_{q \in R(p)} x_q`,
    :math:`\bar x_q = \sum_{p:\,q\in R(p)} \bar y_p / |R(p)|`.

    Shapes: x (N, T, H, W, C) -> y (N, *sizes, C). Keeps nothing. Size 1 is global average pooling.
    """

    public_name = "adaptive_avg_pool3d"

    def forward(self, x):
        self.shape = x.shape
        y = self.empty(x, x.dtype)
        for p, region in self.cells(x.shape):
            y[p] = mean(x[region], (1, 2, 3))
        return y

    def backward(self, gy):
        gx = self.xp.zeros(self.shape, dtype=gy.dtype)
        for p, region in self.cells(self.shape):
            count = math.prod(gx[region].shape[1:4])
            gx[region] += (gy[p] / count)[:, None, None, None]
        return (gx,)

    def infer(self, x):
        self.shape = x.shape
        return meta_array((x.shape[0], *self.sizes, x.shape[4]), x.dtype)


class AdaptiveMaxPool3d(_Adaptive):
    r"""Largest value of each cell R(p): :math:`y_p = \max_{q\in R(p)} x_q`,
    :math:`\bar x_q = \sum_p \bar y_p\,[q = q^*_p]`, the first largest in row-major order; NaN wins.

    Shapes: x (N, T, H, W, C) -> y (N, *sizes, C). Keeps the argmax within its cell, one integer an output.
    """

    public_name = "adaptive_max_pool3d"
    saved_for_backward = ("argmax",)

    def forward(self, x):
        self.shape = x.shape
        y, self.argmax = self.empty(x, x.dtype), self.empty(x, self.xp.int64)
        for p, region in self.cells(x.shape):
            values = x[region].reshape(x.shape[0], math.prod(x[region].shape[1:4]), x.shape[4])
            y[p] = best = values.max(axis=1)
            self.argmax[p] = first(values, best, axis=1)
        return y

    def backward(self, gy):
        xp = self.xp
        gx = xp.zeros(self.shape, dtype=gy.dtype)
        for p, region in self.cells(self.shape):
            cell = gx[region]
            place = xp.arange(math.prod(cell.shape[1:4])).reshape(*cell.shape[1:4], 1)
            cell += chosen(gy[p][:, None, None, None], self.argmax[p][:, None, None, None] == place)
        return (gx,)

    def infer(self, x):
        self.shape = x.shape
        y = meta_array((x.shape[0], *self.sizes, x.shape[4]), x.dtype)
        self.argmax = meta_array(y.shape, self.xp.int64)
        return y


def adaptive_avg_pool3d(x: Tensor | Array, output_size: int | Sequence[int]) -> Tensor:
    """Average pooling to `output_size` (an int or three); 1 is global average pooling, shape (N, 1, 1, 1, C).

    Raises ValueError for an input without positions or a size below 1. Formula: :class:`AdaptiveAvgPool3d`.
    """
    return AdaptiveAvgPool3d(_sizes("adaptive_avg_pool3d", x, output_size))(tensor("adaptive_avg_pool3d", "x", x))


def adaptive_max_pool3d(x: Tensor | Array, output_size: int | Sequence[int]) -> Tensor:
    """Max pooling to `output_size` (an int or three); 1 is global max pooling, shape (N, 1, 1, 1, C).

    Raises ValueError for an input without positions or a size below 1. Formula: :class:`AdaptiveMaxPool3d`.
    """
    return AdaptiveMaxPool3d(_sizes("adaptive_max_pool3d", x, output_size))(tensor("adaptive_max_pool3d", "x", x))


def _sizes(op, x, output_size):
    x = tensor(op, "x", x, 5, "(N, T, H, W, C)")
    if 0 in x.shape[1:4]:
        raise ValueError(f"{op}: x has no positions to pool, shape {x.shape}")
    return windows.triple(op, "output_size", output_size)
