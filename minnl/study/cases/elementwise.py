"""Cases of arithmetic and of functions of one tensor, element by element."""

from minnl import functional as F
from minnl.study.cases.case import beside, case, normal, positive, whole, with_zeros

CHECKERBOARD = [[True, False, True], [False, True, False]]

SHAPES = {
    "same-shape": ((2, 3), (2, 3)),
    "broadcast-both": ((2, 1, 3), (4, 1)),
    "broadcast-square": ((3, 1), (3, 3)),
    "broadcast-left": ((3,), (2, 4, 3)),
    "zero-axes": ((2, 3), ()),
    "size-1-axes": ((1, 1), (2, 1, 3)),
    "empty-batch": ((0, 3), (3,)),
}


def _binary(op, inputs, smooth=True):
    return [case(f"{op}/{name}", inputs(*shapes), smooth=smooth) for name, shapes in SHAPES.items()]


def _where(a, b, condition):
    return F.where(beside(a, condition, bool), a, b)


CASES = [
    *_binary("add", normal),
    case("add/number-right", normal((2, 3)), b=2.5),
    case("add/operator-number-left", normal((2, 3)), lambda x: 2 + x),
    case("add/one-tensor-twice", normal((2, 3)), lambda x: x + x),
    case("add/broadcast-with-itself", normal((3, 1)), lambda x: x + x.reshape(1, 3)),
    *_binary("sub", normal),
    case("sub/number-right", normal((2, 3)), b=2.5),
    case("sub/operator-number-left", normal((2, 3)), lambda x: 2 - x),
    *_binary("mul", normal),
    case("mul/number-right", normal((2, 3)), b=-2.5),
    case("mul/operator-number-left", normal((2, 3)), lambda x: 3 * x),
    case("mul/one-tensor-twice", normal((2, 3)), lambda x: x * x),
    case("mul/zeros", with_zeros((3, 4), (3, 4))),
    *_binary("div", positive),
    case("div/number-right", normal((2, 3)), b=4.0),
    case("div/operator-number-left", positive((2, 3)), lambda x: 2 / x),
    case("div/negative", lambda rng: (rng.normal(size=(2, 3)), -rng.uniform(0.5, 2, size=(2, 3)))),
    *_binary("pow", positive),
    case("pow/square-of-any-sign", normal((3, 4)), b=2.0),
    case("pow/cube-at-zero", with_zeros((3, 4)), b=3.0),
    case("pow/first-at-zero", with_zeros((3, 4)), b=1.0),
    case("pow/exponent-zero", with_zeros((3, 4)), b=0.0),
    case("pow/exponent-negative", positive((3, 4)), b=-1.5),
    case("pow/base-zero", positive((2, 3)), lambda b: F.pow(beside(b, 0.0), b)),
    case("pow/operator-number-left", normal((2, 3)), lambda x: 2**x),
    *_binary("maximum", normal, smooth=False),
    case("maximum/ties", whole(0, 3, (4, 5), (4, 5)), smooth=False),
    case("maximum/number-right", normal((3, 4)), b=0.25, smooth=False),
    *_binary("minimum", normal, smooth=False),
    case("minimum/ties", whole(0, 3, (4, 5), (4, 5)), smooth=False),
    case("minimum/number-right", normal((3, 4)), b=0.25, smooth=False),
    case("where/same-shape", normal((2, 3), (2, 3)), _where, condition=CHECKERBOARD),
    case("where/broadcast-inputs", normal((3,), (2, 1)), _where, condition=CHECKERBOARD),
    case("where/broadcast-condition", normal((2, 2, 3), (2, 2, 3)), _where, condition=CHECKERBOARD),
    case("where/condition-larger-than-both", normal((3,), ()), _where, condition=CHECKERBOARD),
    case("where/never", normal((2, 3), (2, 3)), _where, condition=[[False]]),
    case("neg/plain", normal((2, 3))),
    case("neg/operator", normal((2, 3)), lambda x: -x),
    case("exp/plain", normal((2, 3))),
    case("exp/zero-axes", normal(())),
    case("exp/empty", normal((0, 3))),
    case("log/plain", positive((2, 3))),
    case("sqrt/plain", positive((2, 3))),
    case("tanh/plain", normal((2, 3))),
    case("tanh/far-out", lambda rng: (rng.uniform(3, 6, size=(2, 3)),)),
    case("sigmoid/plain", normal((2, 3))),
    case("sigmoid/far-left", lambda rng: (rng.uniform(-30, -20, size=(2, 3)),)),
    case("sigmoid/far-right", lambda rng: (rng.uniform(6, 9, size=(2, 3)),)),
    case("relu/plain", normal((4, 5)), smooth=False),
    case("relu/at-zero", with_zeros((4, 5)), smooth=False),
    case("abs/plain", normal((4, 5)), smooth=False),
    case("abs/at-zero", with_zeros((4, 5)), smooth=False),
    case("clip/both-sides", normal((4, 5)), low=-0.5, high=0.75, smooth=False),
    case("clip/low-only", normal((4, 5)), low=-0.5, smooth=False),
    case("clip/high-only", normal((4, 5)), high=0.5, smooth=False),
    case("clip/at-the-borders", whole(-3, 3, (4, 5)), low=-1, high=2, smooth=False),
]
