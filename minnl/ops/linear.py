"""Matrix products. Derivations: docs/ops/linear.md."""

from __future__ import annotations

import math

from minnl.backend import Array
from minnl.engine import Op, Tensor, meta_array
from minnl.ops.arguments import Operand, broadcast_shape, layout, tensor, tensors
from minnl.sums import product, sum_to, total


class MatMul(Op):
    r"""Product of matrices in the last two axes, batches broadcast in front.

    .. math:: Y = AB, \qquad \bar A = \bar Y B^\top, \qquad \bar B = A^\top \bar Y

    Shapes: a (..., m, k), b (..., k, n) -> y (..., m, n). Keeps a and b.
    """

    public_name = "matmul"
    saved_for_backward = ("a", "b")

    def forward(self, a, b):
        self.a, self.b = a, b
        return a @ b

    def infer(self, a, b):
        self.a, self.b = a, b
        batch = broadcast_shape(self.name, a.shape[:-2], b.shape[:-2])
        y = meta_array((*batch, a.shape[-2], b.shape[-1]), a.dtype)
        self.multiply_adds = y.size * a.shape[-1]
        return y

    def backward(self, gy):
        ga = sum_to(gy @ self.b.swapaxes(-1, -2), self.a.shape) if self.needs[0] else None
        gb = sum_to(self.a.swapaxes(-1, -2) @ gy, self.b.shape) if self.needs[1] else None
        return ga, gb


class Linear(Op):
    r"""Affine map of the last axis.

    .. math:: y = xW + b, \qquad \bar x = \bar y W^\top, \qquad \bar W = x^\top \bar y, \qquad \bar b = \sum_i \bar y_i

    where i runs over all positions. Shapes: x (..., I), weight (I, O), bias (O,) -> y (..., O). Keeps x and weight.
    """

    public_name = "linear"
    saved_for_backward = ("x", "weight")

    def forward(self, x, weight, bias=None):
        self.x, self.weight = x, weight
        y = x @ weight
        return y if bias is None else y + bias

    def infer(self, x, weight, bias=None):
        self.x, self.weight = x, weight
        self.multiply_adds = math.prod(x.shape) * weight.shape[1]
        return meta_array((*x.shape[:-1], weight.shape[1]), x.dtype)

    def backward(self, gy):
        rows, grows = self.x.reshape(-1, self.x.shape[-1]), gy.reshape(-1, gy.shape[-1])
        gx = gy @ self.weight.T if self.needs[0] else None
        gw = product(rows, grows) if self.needs[1] else None
        gb = (total(grows, 0),) if len(self.needs) == 3 else ()
        return gx, gw, *gb


def matmul(a: Operand, b: Operand) -> Tensor:
    """Matrix product of a (..., m, k) and b (..., k, n), batches broadcast; vectors are not promoted."""
    a, b = tensors("matmul", a, b)
    if a.ndim < 2 or b.ndim < 2:
        raise ValueError(f"matmul: both need two axes or more (reshape a vector), got shapes {a.shape} and {b.shape}")
    if a.shape[-1] != b.shape[-2]:
        raise ValueError(f"matmul: a has {a.shape[-1]} columns, b has {b.shape[-2]} rows (shapes {a.shape}, {b.shape})")
    broadcast_shape("matmul", a.shape[:-2], b.shape[:-2])
    return MatMul()(a, b)


def linear(x: Tensor | Array, weight: Tensor | Array, bias: Tensor | Array | None = None) -> Tensor:
    """Affine map of the last axis, ``x @ weight + bias``.

    Parameters
    ----------
    x : Tensor of shape (..., in)
    weight : Tensor of shape (in, out)
        Note the order: PyTorch stores (out, in).
    bias : Tensor of shape (out,) or None

    Raises
    ------
    ValueError
        If the channels of x, weight and bias do not agree.
    """
    x, weight = tensor("linear", "x", x), tensor("linear", "weight", weight, 2, "(in, out)")
    if x.ndim < 1 or x.shape[-1] != weight.shape[0]:
        raise ValueError(
            f"linear: weight takes {weight.shape[0]} channels, x has shape {x.shape}" + layout(x, weight.shape[0])
        )
    if bias is None:
        return Linear()(x, weight)
    bias = tensor("linear", "bias", bias, 1, "(out,)")
    if bias.shape[0] != weight.shape[1]:
        raise ValueError(f"linear: bias has {bias.shape[0]} channels, weight gives {weight.shape[1]}")
    return Linear()(x, weight, bias)
