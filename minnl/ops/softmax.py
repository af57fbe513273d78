"""Softmax and the losses on it. Derivations: docs/ops/softmax.md and docs/ops/losses.md."""

from __future__ import annotations

from minnl.backend import Array
from minnl.engine import Op, Tensor, meta_array
from minnl.ops.arguments import one_axis, tensor
from minnl.sums import total


def softmax_of(xp, x, axis):
    """exp(x) / sum exp(x); the maximum is taken off first, so that nothing overflows."""
    e = xp.exp(x - x.max(axis=axis, keepdims=True))
    e /= total(e, axis, keepdims=True)
    return e


def log_softmax_of(xp, x, axis):
    """x - ln sum exp(x), with the maximum taken off first."""
    x = x - x.max(axis=axis, keepdims=True)
    return x - xp.log(total(xp.exp(x), axis, keepdims=True))


class Softmax(Op):
    r"""Softmax along an axis.

    .. math:: y_i = \frac{e^{x_i}}{\sum_j e^{x_j}}, \qquad
        \bar x_i = y_i \Bigl(\bar y_i - \sum_j \bar y_j y_j\Bigr)

    Keeps y.
    """

    public_name = "softmax"
    saved_for_backward = ("y",)

    def __init__(self, axis):
        self.axis = axis

    def forward(self, x):
        self.y = softmax_of(self.xp, x, self.axis)
        return self.y

    def backward(self, gy):
        return (self.y * (gy - total(gy * self.y, self.axis, keepdims=True)),)

    def infer(self, x):
        self.y = meta_array(x.shape, x.dtype)
        return self.y


class LogSoftmax(Op):
    r"""Logarithm of the softmax, without forming it.

    .. math:: y_i = x_i - \ln \sum_j e^{x_j}, \qquad \bar x_i = \bar y_i - e^{y_i} \sum_j \bar y_j

    Keeps y.
    """

    public_name = "log_softmax"
    saved_for_backward = ("y",)

    def __init__(self, axis):
        self.axis = axis

    def forward(self, x):
        self.y = log_softmax_of(self.xp, x, self.axis)
        return self.y

    def backward(self, gy):
        return (gy - self.xp.exp(self.y) * total(gy, self.axis, keepdims=True),)

    def infer(self, x):
        self.y = meta_array(x.shape, x.dtype)
        return self.y


def softmax(x: Tensor | Array, axis: int = -1) -> Tensor:
    """Softmax along one axis; each line along it sums to 1. Formula: :class:`Softmax`."""
    x = tensor("softmax", "x", x)
    return Softmax(_filled("softmax", x, axis))(x)


def log_softmax(x: Tensor | Array, axis: int = -1) -> Tensor:
    """Logarithm of the softmax along one axis, exact where softmax underflows. Formula: :class:`LogSoftmax`."""
    x = tensor("log_softmax", "x", x)
    return LogSoftmax(_filled("log_softmax", x, axis))(x)


def _filled(op, x, axis):
    axis = one_axis(op, axis, x.ndim)
    if x.shape[axis] == 0:
        raise ValueError(f"{op}: x has no elements along axis {axis}, shape {x.shape}")
    return axis
