"""Cases of the non-local operation."""

from minnl import functional as F
from minnl.study.cases.case import case, normal


def concat(theta, phi, g, weight, axes="spacetime"):
    """F.non_local in mode "concat", its weight a tensor like the others."""
    return F.non_local(theta, phi, g, mode="concat", axes=axes, weight=weight)


def block_gaussian(x, g):
    """As the Gaussian block calls it: x is query and key."""
    return F.non_local(x, x, g, mode="gaussian")


def of_transposed(theta, phi, g):
    """Of views with time and width exchanged, and so the gradient too."""
    order = (0, 3, 2, 1, 4)
    return F.transpose(F.non_local(*(F.transpose(x, order) for x in (theta, phi, g)), axes="time"), order)


def far_from_zero(rng):
    """Logits near 110, whose exponential float32 cannot hold, though it can their softmax."""
    theta, phi, g = normal(*((1, 1, 2, 2, 3),) * 3)(rng)
    theta[..., 0] += 10.5
    phi[..., 0] = 10.5 + 0.1 * phi[..., 0]
    return theta, phi, g


QUERIES = (2, 2, 3, 2, 3)
SHAPES = {
    "plain": {},
    "subsampled": {"keys": (2, 2, 1, 2)},
    "one-key": {"keys": (2, 1, 1, 1)},
    "space": {"axes": "space"},
    "space-subsampled": {"axes": "space", "keys": (2, 2, 2, 1)},
    "time": {"axes": "time"},
    "time-subsampled": {"axes": "time", "keys": (2, 1, 3, 2)},
}


def _modes(label, fn=None, extra=(), **arguments):
    cases = []
    for name, shape in SHAPES.items():
        keys = shape.get("keys", QUERIES[:4])
        more = {**arguments, **({"axes": shape["axes"]} if "axes" in shape else {})}
        inputs = normal(QUERIES, (*keys, 3), (*keys, 4), *extra)
        cases.append(case(f"non_local/{label}-{name}", inputs, fn, smooth=label != "concat", **more))
    return cases


CASES = [
    *_modes("embedded"),
    *_modes("dot", mode="dot"),
    *_modes("concat", concat, extra=((6,),)),
    case("non_local/gaussian", normal(QUERIES, QUERIES, (*QUERIES[:4], 2)), mode="gaussian"),
    case("non_local/gaussian-x-is-query-and-key", normal((1, 2, 2, 2, 3), (1, 2, 2, 2, 2)), block_gaussian),
    case("non_local/scale", normal(QUERIES, QUERIES, QUERIES), scale=3**-0.5),
    case("non_local/scale-space", normal(QUERIES, QUERIES, QUERIES), scale=0.4, axes="space", mode="gaussian"),
    case("non_local/large-logits", far_from_zero),
    case("non_local/one-position", normal(*((2, 1, 1, 1, 3),) * 3)),
    case("non_local/one-channel", normal(*((2, 1, 2, 2, 1),) * 3)),
    case("non_local/empty-batch", normal(*((0, 1, 2, 2, 3),) * 3)),
    case("non_local/dot-square", normal(QUERIES, QUERIES, QUERIES), mode="dot"),
    case("non_local/dot-empty-batch", normal(*((0, 1, 2, 2, 3),) * 3), mode="dot"),
    case("non_local/non-contiguous", normal(*((1, 2, 3, 2, 3),) * 3), of_transposed),
]
