"""Reductions over any axes: sum, mean, variance, max, min. Derivations: docs/ops/reduce.md."""

import math

from minnl.engine import Op, meta_array
from minnl.sums import chosen, mean, total


class _Reduction(Op):
    """`axis` is a sorted tuple of axes, from 0."""

    def __init__(self, axis, keepdims):
        self.axis, self.keepdims = axis, keepdims

    def remember(self, x):
        self.shape = x.shape
        self.count = math.prod(x.shape[a] for a in self.axis)

    def infer(self, x):
        self.remember(x)
        shape = [1 if a in self.axis else n for a, n in enumerate(x.shape) if self.keepdims or a not in self.axis]
        y = meta_array(shape, x.dtype)
        for key in self.saved_for_backward:
            setattr(self, key, x if key == "x" else meta_array(shape, self.xp.int64))
        return y

    def spread(self, g):
        """A reduced array with its axes back (size 1), so that it broadcasts against x."""
        return g.reshape([1 if a in self.axis else n for a, n in enumerate(self.shape)])

    def stretch(self, g):
        """A reduced array repeated over the axes that were summed away."""
        return self.xp.broadcast_to(self.spread(g), self.shape)


class Sum(_Reduction):
    r"""Sum: :math:`y = \sum_i x_i`, :math:`\bar x_i = \bar y`. Keeps nothing."""

    public_name = "sum"

    def forward(self, x):
        self.remember(x)
        return self.xp.asarray(total(x, self.axis, self.keepdims))

    def backward(self, gy):
        return (self.stretch(gy),)


class Mean(_Reduction):
    r"""Mean over n elements: :math:`y = \tfrac1n\sum_i x_i`, :math:`\bar x_i = \bar y / n`. Keeps nothing."""

    public_name = "mean"

    def forward(self, x):
        self.remember(x)
        return self.xp.asarray(mean(x, self.axis, self.keepdims))

    def backward(self, gy):
        return (self.stretch(gy / self.count),)


class Var(_Reduction):
    r"""Variance: :math:`y = \tfrac1{n-c}\sum_i (x_i - m)^2` with the mean m and the correction c (1: unbiased).

    .. math:: \bar x_i = \bar y\,\tfrac{2}{n-c}\,(x_i - m)

    (what reaches x through m adds to 0, since deviations from a mean do). Keeps x.
    """

    public_name = "var"
    saved_for_backward = ("x",)

    def __init__(self, axis, keepdims, correction):
        super().__init__(axis, keepdims)
        self.correction = correction

    def centred(self, x):
        """x - m, in two steps: what a large mean loses by rounding is in the mean of what is left."""
        d = x - mean(x, self.axis, keepdims=True)
        d -= mean(d, self.axis, keepdims=True)
        return d

    def forward(self, x):
        self.remember(x)
        self.x = x
        d = self.centred(x)
        return self.xp.asarray(total(d * d, self.axis, self.keepdims) / (self.count - self.correction))

    def backward(self, gy):
        return (self.spread(gy) * self.centred(self.x) * (2 / (self.count - self.correction)),)


def first(x, best, axis):
    """Where along an axis the best, or NaN, comes first; of several NaN CuPy's argmax takes any."""
    return ((x == best[..., None].swapaxes(axis, -1)) | (x != x)).argmax(axis=axis)


class Max(_Reduction):
    r"""Largest element: :math:`\bar x_i = \bar y\,[i = i^*]` with :math:`i^*` the first largest in row-major order.

    NaN counts as largest. Keeps :math:`i^*`, one integer an output.
    """

    public_name = "max"
    saved_for_backward = ("argmax",)

    def rows(self, x):
        """x with the reduced axes moved to the end and made one: shape (..., n)."""
        rest = [a for a in range(x.ndim) if a not in self.axis]
        return x.transpose([*rest, *self.axis]).reshape(*(x.shape[a] for a in rest), self.count)

    def extreme(self, rows):
        return rows.max(axis=-1)

    def forward(self, x):
        self.remember(x)
        rows = self.rows(x)
        y = self.extreme(rows)
        self.argmax = first(rows, y, axis=-1)
        return self.spread(y) if self.keepdims else self.xp.asarray(y)

    def backward(self, gy):
        # each row of n elements gets its share at the argmax; rows back to x is the inverse of `rows`
        hit = self.argmax[..., None] == self.xp.arange(self.count)
        rows = chosen(gy.reshape(self.argmax.shape)[..., None], hit)
        rest = [a for a in range(len(self.shape)) if a not in self.axis]
        order = [*rest, *self.axis]
        back = sorted(range(len(order)), key=order.__getitem__)
        return (rows.reshape([self.shape[a] for a in order]).transpose(back),)


class Min(Max):
    r"""Smallest element: :math:`\bar x_i = \bar y\,[i = i^*]` with :math:`i^*` the first smallest in row-major order.

    NaN counts as smallest. Keeps :math:`i^*`.
    """

    public_name = "min"

    def extreme(self, rows):
        return rows.min(axis=-1)
