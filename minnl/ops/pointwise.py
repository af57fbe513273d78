"""Functions of one tensor, element by element. Derivations: docs/ops/pointwise.md."""

from __future__ import annotations

from minnl.engine import Op, meta_array
from minnl.sums import chosen


def sigmoid_of(xp, x):
    """1 / (1 + e^-x), which for x < 0 is e^x / (1 + e^x)."""
    e = xp.exp(-xp.abs(x))
    return xp.where(x >= 0, xp.ones_like(e), e) / (1 + e)


class _Unary(Op):
    saved_for_backward: tuple[str, ...] = ("y",)

    def infer(self, x):
        y = meta_array(x.shape, x.dtype)
        for key in self.saved_for_backward:
            setattr(self, key, {"x": x, "y": y}[key])
        return y


class Neg(_Unary):
    r"""Negative: :math:`y = -x`, :math:`\bar x = -\bar y`. Keeps nothing."""

    public_name = "neg"
    saved_for_backward = ()

    def forward(self, x):
        return -x

    def backward(self, gy):
        return (-gy,)


class Exp(_Unary):
    r"""Exponential: :math:`y = e^x`, :math:`\bar x = \bar y\, y`. Keeps y."""

    public_name = "exp"

    def forward(self, x):
        self.y = self.xp.exp(x)
        return self.y

    def backward(self, gy):
        return (gy * self.y,)


class Log(_Unary):
    r"""Natural logarithm: :math:`y = \ln x`, :math:`\bar x = \bar y / x`. Keeps x. NaN below 0, -infinity at 0."""

    public_name = "log"
    saved_for_backward = ("x",)

    def forward(self, x):
        self.x = x
        return self.xp.log(x)

    def backward(self, gy):
        return (gy / self.x,)


class Sqrt(_Unary):
    r"""Square root: :math:`y = \sqrt x`, :math:`\bar x = \bar y / 2y`. Keeps y. The slope at 0 is infinite."""

    public_name = "sqrt"

    def forward(self, x):
        self.y = self.xp.sqrt(x)
        return self.y

    def backward(self, gy):
        return (gy / (2 * self.y),)


class Tanh(_Unary):
    r"""Hyperbolic tangent: :math:`\bar x = \bar y\,(1 - y^2)`. Keeps y."""

    public_name = "tanh"

    def forward(self, x):
        self.y = self.xp.tanh(x)
        return self.y

    def backward(self, gy):
        return (gy * (1 - self.y * self.y),)


class Sigmoid(_Unary):
    r"""Logistic function: :math:`y = 1/(1+e^{-x})`, :math:`\bar x = \bar y\, y (1 - y)`. Keeps y.

    Computed from :math:`e^{-|x|}`, which overflows at neither end and keeps its digits where y is tiny.
    """

    public_name = "sigmoid"

    def forward(self, x):
        self.y = sigmoid_of(self.xp, x)
        return self.y

    def backward(self, gy):
        return (gy * self.y * (1 - self.y),)


class ReLU(_Unary):
    r"""Rectifier: :math:`y = \max(x, 0)`, :math:`\bar x = \bar y\,[y > 0]`; slope 0 at 0.

    NaN stays NaN and counts as above 0. Keeps y, which the next layer keeps anyway.
    """

    public_name = "relu"

    def forward(self, x):
        self.y = self.xp.maximum(x, 0)
        return self.y

    def backward(self, gy):
        return (chosen(gy, self.y != 0),)


class Abs(_Unary):
    r"""Absolute value: :math:`\bar x = \bar y\,\mathrm{sign}(x)`, 0 at 0. Keeps x."""

    public_name = "abs"
    saved_for_backward = ("x",)

    def forward(self, x):
        self.x = x
        return self.xp.abs(x)

    def backward(self, gy):
        return (gy * self.xp.sign(self.x),)


class Clip(_Unary):
    r"""Limit to [low, high]: :math:`\bar x = \bar y\,[low \le x \le high]`, the borders included. Keeps x."""

    public_name = "clip"
    saved_for_backward = ("x",)

    def __init__(self, low, high):
        self.low, self.high = low, high

    def forward(self, x):
        self.x = x
        return self.xp.clip(x, self.low, self.high)

    def backward(self, gy):
        inside = self.xp.ones(self.x.shape, dtype=bool)
        if self.low is not None:
            inside &= self.x >= self.low
        if self.high is not None:
            inside &= self.x <= self.high
        return (chosen(gy, inside),)
