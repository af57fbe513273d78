"""Moving elements without changing them: backward moves the gradients back. Derivations: docs/ops/shape.md."""

from itertools import accumulate

from minnl.engine import Op
from minnl.sums import sum_to


class Reshape(Op):
    r"""The same elements, in row-major order, in another shape; backward reshapes back. Keeps nothing."""

    public_name = "reshape"

    def __init__(self, shape):
        self.new_shape = shape

    def forward(self, x):
        self.shape = x.shape
        return x.reshape(self.new_shape)

    def backward(self, gy):
        return (gy.reshape(self.shape),)


class Transpose(Op):
    r"""Axes in another order: :math:`y_{i_{a_0} i_{a_1} \dots} = x_{i_0 i_1 \dots}`; backward applies the inverse.

    Keeps nothing.
    """

    public_name = "transpose"

    def __init__(self, axes):
        self.axes = axes

    def forward(self, x):
        return x.transpose(self.axes)

    def backward(self, gy):
        return (gy.transpose(sorted(range(len(self.axes)), key=self.axes.__getitem__)),)


class BroadcastTo(Op):
    r"""Repeat along axes of size 1: :math:`y_{ij} = x_j`, :math:`\bar x_j = \sum_i \bar y_{ij}`. Keeps nothing."""

    public_name = "broadcast_to"

    def __init__(self, shape):
        self.new_shape = shape

    def forward(self, x):
        self.shape = x.shape
        return self.xp.broadcast_to(x, self.new_shape)

    def backward(self, gy):
        return (sum_to(gy, self.shape),)


class Concatenate(Op):
    r"""Join along an axis; backward cuts the gradient at the same places. Keeps nothing."""

    public_name = "concatenate"

    def __init__(self, axis):
        self.axis = axis

    def forward(self, *xs):
        self.ends = list(accumulate(x.shape[self.axis] for x in xs))
        return self.xp.concatenate(xs, axis=self.axis)

    def backward(self, gy):
        return tuple(self.xp.split(gy, self.ends[:-1], axis=self.axis))


class Stack(Op):
    r"""Join along a new axis; backward takes the gradient apart along it. Keeps nothing."""

    public_name = "stack"

    def __init__(self, axis):
        self.axis = axis

    def forward(self, *xs):
        return self.xp.stack(xs, axis=self.axis)

    def backward(self, gy):
        return tuple(self.xp.moveaxis(gy, self.axis, 0))


class Pad(Op):
    r"""A border of a constant around x; backward cuts it off. Keeps nothing."""

    public_name = "pad"

    def __init__(self, widths, value):
        self.widths, self.value = widths, value

    def forward(self, x):
        self.inside = tuple(slice(before, before + n) for (before, _), n in zip(self.widths, x.shape, strict=True))
        return self.xp.pad(x, self.widths, constant_values=self.value)

    def backward(self, gy):
        return (gy[self.inside],)


class Flip(Op):
    r"""Reverse along axes; backward reverses again. Keeps nothing."""

    public_name = "flip"

    def __init__(self, axis):
        self.axis = axis

    def forward(self, x):
        return self.xp.flip(x, self.axis)

    def backward(self, gy):
        return (self.xp.flip(gy, self.axis),)


class Index(Op):
    r"""Pick elements: :math:`y_i = x_{k(i)}`, :math:`\bar x_j = \sum_{i:\,k(i)=j} \bar y_i`.

    A slice or a mask names no element twice, so its backward writes; integer arrays may, so theirs adds. On a GPU these
    additions are atomic: where more than two go to one element, their order, and the last bits, may differ from run to
    run.
    Keeps the index.
    """

    public_name = "index"

    def __init__(self, index, gathers):
        self.index, self.gathers = index, gathers

    def forward(self, x):
        self.shape = x.shape
        return self.xp.asarray(x[self.index])

    def backward(self, gy):
        gx = self.xp.zeros(self.shape, dtype=gy.dtype)
        if self.gathers:
            self.xp.add.at(gx, self.index, gy)
        else:
            gx[self.index] = gy
        return (gx,)
