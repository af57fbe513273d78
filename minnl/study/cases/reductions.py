"""Cases of sum, mean, variance, max and min."""

from minnl import functional as F
from minnl.study.cases.case import case, normal, whole

AXES = {
    "all": {},
    "one-axis": {"axis": 1},
    "last-axis": {"axis": -1},
    "two-axes-unordered": {"axis": (2, 0)},
    "keepdims": {"axis": (0, -1), "keepdims": True},
    "all-keepdims": {"keepdims": True},
}


def _reduction(op, smooth=True):
    def of_transposed(x, axis):
        return getattr(F, op)(F.transpose(x, (1, 2, 0)), axis=axis)

    return [
        *(case(f"{op}/{name}", normal((2, 3, 4)), smooth=smooth, **axes) for name, axes in AXES.items()),
        case(f"{op}/empty-batch", normal((0, 3, 4)), smooth=smooth, axis=1),
        case(f"{op}/non-contiguous", normal((4, 2, 3)), of_transposed, smooth=smooth, axis=1),
    ]


CASES = [
    *_reduction("sum"),
    case("sum/no-axes", normal((2, 3)), axis=()),
    case("sum/zero-axes", normal(())),
    case("sum/over-nothing", normal((2, 0))),
    case("sum/size-1-axis", normal((2, 1, 3)), axis=1),
    *_reduction("mean"),
    case("mean/size-1-axis", normal((2, 1, 3)), axis=1),
    *_reduction("var"),
    case("var/correction-0", normal((2, 5)), axis=1, correction=0),
    case("var/correction-2-keepdims", normal((2, 5)), axis=1, correction=2, keepdims=True),
    case("var/large-mean", lambda rng: (rng.normal(size=(2, 5)) + 100,), axis=1),
    *_reduction("max", smooth=False),
    case("max/ties", whole(0, 4, (4, 6)), axis=1, smooth=False),
    case("max/ties-over-two-axes", whole(0, 9, (3, 4, 3)), axis=(0, 2), smooth=False),
    case("max/cube", normal((3, 3, 3)), axis=0, smooth=False),
    case("max/size-1-axis", normal((2, 1, 3)), axis=1),
    *_reduction("min", smooth=False),
    case("min/ties", whole(0, 4, (4, 6)), axis=1, smooth=False),
    case("min/ties-over-two-axes", whole(0, 9, (3, 4, 3)), axis=(0, 2), smooth=False),
]
