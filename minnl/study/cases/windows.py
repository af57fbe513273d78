"""Cases of sliding windows: convolution and pooling."""

from minnl import functional as F
from minnl.study.cases.case import case, normal, whole


def negative(rng):
    """All below 0: if padding counted as 0 it would win."""
    return (-rng.uniform(1, 2, size=(1, 3, 3, 3, 2)),)


def conv(name, x, weight, **arguments):
    """A convolution with a bias."""
    return case(f"conv3d/{name}", normal(x, weight, weight[-1:]), **arguments)


def of_transposed(x, weight):
    """Convolution of a transposed view, its output transposed back: neither x nor the gradient is contiguous."""
    return F.transpose(F.conv3d(F.transpose(x, (0, 3, 2, 1, 4)), F.flip(weight, 0), padding=1), (0, 3, 2, 1, 4))


def of_repeated_clip(x, weight):
    """Convolution of one clip broadcast to a batch, summed: x and the gradient are broadcast views."""
    return F.sum(F.conv3d(F.broadcast_to(x, (3, *x.shape[1:])), weight), axis=(0, 1, 2, 3))


CONVOLUTIONS = [
    conv("plain", (2, 4, 5, 4, 3), (3, 3, 3, 3, 2)),
    case("conv3d/no-bias", normal((2, 3, 3, 4, 2), (2, 3, 2, 2, 3))),
    conv("one-tap", (2, 2, 3, 3, 4), (1, 1, 1, 4, 3)),
    conv("square-channels", (1, 3, 3, 3, 3), (2, 2, 2, 3, 3)),
    conv("stride-divides", (1, 5, 5, 7, 2), (3, 3, 3, 2, 2), stride=2),
    conv("stride-does-not-divide", (1, 6, 6, 5, 2), (3, 2, 3, 2, 2), stride=(2, 3, 3)),
    conv("stride-larger-than-kernel", (1, 5, 6, 7, 2), (1, 2, 1, 2, 2), stride=(2, 3, 4)),
    conv("padding", (1, 2, 3, 3, 2), (3, 3, 3, 2, 2), padding=1),
    conv("padding-each-its-own", (1, 2, 4, 3, 2), (3, 1, 2, 2, 2), padding=(2, 0, 1)),
    conv("padding-larger-than-kernel", (1, 2, 2, 2, 1), (1, 2, 1, 1, 2), padding=(2, 3, 1)),
    conv("stride-and-padding", (2, 4, 5, 6, 2), (3, 3, 3, 2, 2), stride=(1, 2, 2), padding=1),
    conv("dilation", (1, 5, 5, 6, 2), (2, 3, 2, 2, 2), dilation=(2, 2, 3)),
    conv("dilation-stride-padding", (1, 6, 6, 5, 2), (2, 3, 2, 2, 2), dilation=2, stride=(2, 1, 3), padding=(0, 1, 2)),
    conv("groups", (2, 2, 3, 3, 4), (2, 2, 2, 2, 6), groups=2),
    conv("groups-depthwise", (1, 3, 3, 3, 3), (2, 2, 2, 1, 6), groups=3, padding=1),
    conv("groups-stride-dilation", (1, 4, 4, 5, 4), (2, 2, 2, 2, 2), groups=2, stride=2, dilation=(1, 1, 2)),
    conv("same-odd-kernel", (1, 3, 3, 4, 2), (3, 1, 3, 2, 2), padding="same"),
    conv("same-even-kernel", (1, 3, 3, 4, 2), (2, 4, 3, 2, 2), padding="same"),
    conv("same-dilated", (1, 3, 4, 4, 1), (2, 3, 2, 1, 2), padding="same", dilation=(1, 2, 3)),
    conv("valid", (1, 3, 3, 4, 2), (2, 3, 3, 2, 2), padding="valid"),
    conv("kernel-of-the-input's-size", (2, 2, 3, 4, 2), (2, 3, 4, 2, 3)),
    conv("one-position", (2, 1, 1, 1, 3), (3, 3, 3, 3, 2), padding=1),
    conv("one-channel-each", (1, 3, 4, 3, 1), (2, 2, 2, 1, 1)),
    conv("stem-of-a-video", (1, 3, 7, 7, 3), (3, 5, 5, 3, 2), stride=(1, 2, 2), padding=(1, 2, 2)),
    conv("empty-batch", (0, 3, 3, 3, 2), (2, 2, 2, 2, 3)),
    case("conv3d/non-contiguous", normal((1, 3, 4, 3, 2), (2, 3, 3, 2, 2)), of_transposed),
    case("conv3d/broadcast", normal((1, 3, 3, 3, 2), (2, 2, 2, 2, 2)), of_repeated_clip),
]

CLIP = normal((2, 4, 5, 6, 2))


def _pools(op, smooth):
    def of_transposed(x):
        pool = getattr(F, op)(F.transpose(x, (0, 3, 2, 1, 4)), 2, 1)
        return F.transpose(pool, (0, 3, 2, 1, 4))

    cases = {
        "plain": {"kernel_size": 2},
        "each-axis-its-own": {"kernel_size": (1, 3, 2), "stride": (1, 2, 3)},
        "overlapping": {"kernel_size": 3, "stride": 1},
        "stride-does-not-divide": {"kernel_size": 2, "stride": 3},
        "padding": {"kernel_size": 3, "stride": 2, "padding": 1},
        "padding-some-axes": {"kernel_size": (1, 3, 3), "stride": (1, 2, 2), "padding": (0, 1, 1)},
        "ceil-mode": {"kernel_size": 2, "stride": (3, 2, 2), "ceil_mode": True},
        "ceil-mode-padding": {"kernel_size": 3, "stride": (2, 2, 3), "padding": 1, "ceil_mode": True},
        "kernel-of-the-input's-size": {"kernel_size": (4, 5, 6)},
        "stride-larger-than-kernel": {"kernel_size": 1, "stride": (2, 3, 2)},
    }
    return [
        *(case(f"{op}/{name}", CLIP, smooth=smooth, **arguments) for name, arguments in cases.items()),
        case(f"{op}/size-1-axes", normal((1, 1, 3, 1, 1)), smooth=smooth, kernel_size=(1, 2, 1)),
        case(f"{op}/empty-batch", normal((0, 2, 2, 2, 3)), smooth=smooth, kernel_size=2),
        case(f"{op}/non-contiguous", normal((1, 3, 4, 3, 2)), of_transposed, smooth=smooth),
    ]


def _adaptive(op, smooth):
    sizes = {
        "global": 1,
        "divides": (2, 1, 3),
        "does-not-divide": (3, 2, 4),
        "same-size": (4, 5, 6),
        "larger-than-the-input": (6, 5, 7),
    }
    return [
        *(case(f"{op}/{name}", CLIP, smooth=smooth, output_size=size) for name, size in sizes.items()),
        case(f"{op}/size-1-axes", normal((1, 1, 3, 1, 1)), smooth=smooth, output_size=(1, 2, 1)),
        case(f"{op}/empty-batch", normal((0, 3, 2, 2, 3)), smooth=smooth, output_size=2),
    ]


POOLS = [
    *_pools("max_pool3d", smooth=False),
    case("max_pool3d/dilation", CLIP, smooth=False, kernel_size=2, stride=1, dilation=(1, 2, 3)),
    case("max_pool3d/dilation-stride", CLIP, smooth=False, kernel_size=(2, 2, 3), stride=2, padding=1, dilation=2),
    case("max_pool3d/dilation-ceil-mode", CLIP, smooth=False, kernel_size=2, stride=2, dilation=2, ceil_mode=True),
    case("max_pool3d/negative-in-padding", negative, smooth=False, kernel_size=2, stride=1, padding=1),
    case("max_pool3d/ties", whole(0, 7, (1, 4, 4, 4, 2)), smooth=False, kernel_size=2),
    case("max_pool3d/ties-overlapping", whole(0, 20, (1, 4, 4, 4, 1)), smooth=False, kernel_size=2, stride=1),
    *_pools("avg_pool3d", smooth=True),
    case("avg_pool3d/without-padding", CLIP, kernel_size=3, stride=2, padding=1, count_include_pad=False),
    case(
        "avg_pool3d/without-padding-ceil-mode", CLIP,
        kernel_size=(2, 3, 3), stride=(3, 2, 3), padding=1, ceil_mode=True, count_include_pad=False,
    ),
    case("avg_pool3d/divisor", CLIP, kernel_size=2, stride=1, padding=1, divisor_override=5),
    case("avg_pool3d/divisor-ceil-mode", CLIP, kernel_size=2, stride=(3, 2, 2), ceil_mode=True, divisor_override=3),
    *_adaptive("adaptive_avg_pool3d", smooth=True),
    *_adaptive("adaptive_max_pool3d", smooth=False),
    case("adaptive_max_pool3d/ties", whole(0, 12, (1, 4, 4, 3, 2)), smooth=False, output_size=2),
    case("adaptive_max_pool3d/ties-shared-cells", whole(0, 30, (1, 3, 5, 3, 1)), smooth=False, output_size=(2, 3, 2)),
]  # fmt: skip

CASES = [*CONVOLUTIONS, *POOLS]
