"""Arithmetic of two tensors, with broadcasting. Derivations: docs/ops/arithmetic.md.

Every backward here ends in ``sum_to``: an input that broadcasting stretched was used many times, so its gradient is
the sum over its uses.
"""

from minnl import backend
from minnl.engine import Op, meta_array
from minnl.ops.arguments import broadcast_shape, tensors
from minnl.sums import chosen, sum_to


class _Binary(Op):
    """Elementwise in two inputs of shapes that broadcast; keeps what each op says."""

    def __call__(self, a, b):
        a, b = tensors(self.name, a, b)
        broadcast_shape(self.name, a.shape, b.shape)
        return super().__call__(a, b)

    def infer(self, a, b):
        self.__dict__.update({key: array for key, array in (("a", a), ("b", b)) if key in self.saved_for_backward})
        return meta_array(broadcast_shape(self.name, a.shape, b.shape), a.dtype)

    def shares(self, ga, gb):
        """Both gradients summed back to the shapes of their inputs; not computed where nobody asks."""
        return tuple(
            sum_to(g(), shape) if need else None
            for g, (shape, _), need in zip((ga, gb), self.expected, self.needs, strict=True)
        )


class Add(_Binary):
    r"""Sum of two tensors: :math:`y = a + b`, :math:`\bar a = \bar y`, :math:`\bar b = \bar y`. Keeps nothing."""

    public_name = "add"

    def forward(self, a, b):
        return a + b

    def backward(self, gy):
        return self.shares(lambda: gy, lambda: gy)


class Sub(_Binary):
    r"""Difference: :math:`y = a - b`, :math:`\bar a = \bar y`, :math:`\bar b = -\bar y`. Keeps nothing."""

    public_name = "sub"

    def forward(self, a, b):
        return a - b

    def backward(self, gy):
        return self.shares(lambda: gy, lambda: -gy)


class Mul(_Binary):
    r"""Product: :math:`y = ab`, :math:`\bar a = \bar y b`, :math:`\bar b = \bar y a`. Keeps both inputs."""

    public_name = "mul"
    saved_for_backward = ("a", "b")

    def forward(self, a, b):
        self.a, self.b = a, b
        return a * b

    def backward(self, gy):
        return self.shares(lambda: gy * self.b, lambda: gy * self.a)


class Div(_Binary):
    r"""Quotient: :math:`y = a / b`, :math:`\bar a = \bar y / b`, :math:`\bar b = -\bar y a / b^2`.

    Keeps both inputs.
    """

    public_name = "div"
    saved_for_backward = ("a", "b")

    def forward(self, a, b):
        self.a, self.b = a, b
        return a / b

    def backward(self, gy):
        return self.shares(lambda: gy / self.b, lambda: -gy * self.a / (self.b * self.b))


class Pow(_Binary):
    r"""Power: :math:`y = a^b`, :math:`\bar a = \bar y\, b\, a^{b-1}`, :math:`\bar b = \bar y\, a^b \ln a`.

    By convention (as in PyTorch) :math:`\bar a = 0` where b = 0, and :math:`\bar b = 0` where a = 0 and b >= 0.
    Keeps both inputs.
    """

    public_name = "pow"
    saved_for_backward = ("a", "b")

    def forward(self, a, b):
        self.a, self.b = a, b
        return a**b

    def backward(self, gy):
        xp, a, b = self.xp, self.a, self.b

        def to_base():
            exponent = xp.where(b == 0, xp.ones_like(b), b) - 1  # at b = 0 any finite power does: b multiplies it by 0
            return gy * b * a**exponent

        def to_exponent():
            settled = (a == 0) & (b >= 0)
            return xp.where(settled, xp.zeros_like(gy), gy * a**b * xp.log(xp.where(settled, xp.ones_like(a), a)))

        return self.shares(to_base, to_exponent)


class _Extreme(_Binary):
    saved_for_backward = ("a", "b")

    def backward(self, gy):
        # where both are equal each gets half: the symmetric choice, and PyTorch's
        equal = self.a == self.b
        gy = gy * (1 - equal.astype(gy.dtype) * 0.5)
        return self.shares(
            lambda: chosen(gy, self.wins(self.a, self.b) | equal), lambda: chosen(gy, self.wins(self.b, self.a) | equal)
        )


class Maximum(_Extreme):
    r"""Larger of two: :math:`\bar a = \bar y\,[a > b]`, half each where they are equal. NaN wins. Keeps both inputs."""

    public_name = "maximum"

    def forward(self, a, b):
        self.a, self.b = a, b
        return self.xp.maximum(a, b)

    def wins(self, a, b):
        return (a > b) | (a != a)


class Minimum(_Extreme):
    r"""Smaller of two: :math:`\bar a = \bar y\,[a < b]`, half each where they are equal. NaN wins.

    Keeps both inputs.
    """

    public_name = "minimum"

    def forward(self, a, b):
        self.a, self.b = a, b
        return self.xp.minimum(a, b)

    def wins(self, a, b):
        return (a < b) | (a != a)


class Where(_Binary):
    r"""Choice: :math:`y = a` where the condition c holds, else b.

    .. math:: \bar a = \bar y\,[c], \qquad \bar b = \bar y\,[\lnot c]

    Keeps the condition (one byte an element).
    """

    public_name = "where"
    saved_for_backward = ("condition",)

    def __init__(self, condition):
        self.condition = condition

    def __call__(self, a, b):
        a, b = tensors(self.name, a, b)
        backend.namespace(self.name, self.condition, a.data, b.data)
        broadcast_shape(self.name, self.condition.shape, a.shape, b.shape)
        return super().__call__(a, b)

    def forward(self, a, b):
        return self.xp.where(self.condition, a, b)

    def backward(self, gy):
        zero = self.xp.zeros_like(gy)
        return self.shares(
            lambda: self.xp.where(self.condition, gy, zero), lambda: self.xp.where(self.condition, zero, gy)
        )
