"""Cases of ops that move elements: reshape, transpose, broadcast_to, concatenate, stack, split, pad, flip, index."""

import numpy as np

from minnl import functional as F
from minnl.study.cases.case import case, normal


def concatenate(*xs, axis=0):
    """F.concatenate, its tensors one by one."""
    return F.concatenate(xs, axis)


def stack(*xs, axis=0):
    """F.stack, its tensors one by one."""
    return F.stack(xs, axis)


def split(x, parts, axis=0):
    """F.split, made one tensor: the sums of the pieces to the powers 1, 2, 3, so that no two count the same."""
    return F.stack([F.sum(piece ** (i + 1.0)) for i, piece in enumerate(F.split(x, parts, axis))])


def attended(x):
    """The frames of a clip reordered, cut and put together again: many small moves in a chain."""
    first, second = F.split(x.transpose(1, 0, 2), [1, 2])
    return F.concatenate([second[::-1], first * 2]).reshape(-1)


CASES = [
    case("reshape/plain", normal((2, 6)), shape=(3, 4)),
    case("reshape/minus-one", normal((2, 6)), shape=(4, -1)),
    case("reshape/to-zero-axes", normal((1, 1)), shape=()),
    case("reshape/empty", normal((0, 4)), shape=(2, 0)),
    case("reshape/non-contiguous", normal((2, 3, 2)), lambda x: F.reshape(F.transpose(x), (4, 3))),
    case("transpose/reversed", normal((2, 3, 4))),
    case("transpose/cycle", normal((2, 3, 4)), axes=(1, 2, 0)),
    case("transpose/five-axes", normal((2, 1, 3, 2, 2)), axes=(0, 4, 2, 1, 3)),
    case("transpose/negative-axes", normal((2, 3, 4)), axes=(-1, 0, 1)),
    case("transpose/square-cycle", normal((3, 3, 3)), axes=(1, 2, 0)),
    case("transpose/property-T", normal((2, 3)), lambda x: x.T),
    case("broadcast_to/new-axes", normal((3,)), new_shape=(2, 4, 3)),
    case("broadcast_to/stretched-axis", normal((2, 1, 3)), new_shape=(2, 4, 3)),
    case("broadcast_to/square", normal((3, 1)), new_shape=(3, 3)),
    case("broadcast_to/from-zero-axes", normal(()), new_shape=(2, 2)),
    case("broadcast_to/to-nothing", normal((1, 3)), new_shape=(0, 3)),
    case("broadcast_to/read-only-into-mul", normal((3,)), lambda x: F.mul(b := F.broadcast_to(x, (2, 3)), b)),
    case("concatenate/first-axis", normal((1, 3), (2, 3)), concatenate),
    case("concatenate/equal-shapes", normal((2, 3), (2, 3)), concatenate, axis=1),
    case("concatenate/last-axis-of-three", normal((2, 1), (2, 2), (2, 3)), concatenate, axis=-1),
    case("concatenate/one", normal((2, 3)), concatenate),
    case("concatenate/with-an-empty-one", normal((2, 3), (0, 3)), concatenate),
    case("concatenate/one-tensor-twice", normal((2, 3)), lambda x: F.concatenate([x, x], axis=1)),
    case("stack/first-axis", normal((2, 3), (2, 3)), stack),
    case("stack/middle-axis", normal((2, 3), (2, 3), (2, 3)), stack, axis=1),
    case("stack/last-axis", normal((2, 3), (2, 3)), stack, axis=-1),
    case("stack/numbers", normal((), ()), stack),
    case("split/equal-parts", normal((6, 2)), split, parts=3),
    case("split/sizes", normal((2, 6)), split, parts=[1, 3, 2], axis=1),
    case("split/a-part-of-none", normal((3, 2)), split, parts=[0, 3]),
    case("split/chain-of-moves", normal((2, 3, 2)), attended),
    case("pad/zeros", normal((2, 3)), widths=((1, 0), (2, 3))),
    case("pad/value", normal((2, 3)), widths=((0, 1), (1, 1)), value=-4.0),
    case("pad/nothing", normal((2, 3)), widths=((0, 0), (0, 0))),
    case("pad/empty-batch", normal((0, 3)), widths=((0, 0), (1, 2))),
    case("flip/all", normal((2, 3))),
    case("flip/one-axis", normal((2, 3, 2)), axis=1),
    case("flip/two-axes", normal((2, 3, 2)), axis=(0, -1)),
    case("index/number", normal((3, 4)), key=1),
    case("index/negative-number", normal((3, 4)), key=(slice(None), -2)),
    case("index/slice", normal((5, 4)), key=(slice(1, 4), slice(None, None, 2))),
    case("index/slice-backwards", normal((5, 4)), key=slice(None, None, -2)),
    case("index/empty-slice", normal((5, 4)), key=slice(2, 2)),
    case("index/ellipsis-and-new-axis", normal((2, 3, 4)), key=(None, Ellipsis, 1)),
    case("index/list", normal((5, 3)), key=[4, 0, 2]),
    case("index/duplicates", normal((4, 3)), key=np.array([1, 1, 3, 1])),
    case("index/two-arrays", normal((4, 3)), key=(np.array([0, 3, 3]), np.array([2, 1, 1]))),
    case("index/array-after-slice", normal((2, 4, 3)), key=(slice(None), np.array([[3, 0], [0, -1]]))),
    case("index/arrays-around-a-slice", normal((3, 4, 3)), key=(np.array([0, 2, 2]), slice(None), np.array([1, 0, 0]))),
    case("index/single-element", normal((2, 3)), key=(1, 2)),
]
