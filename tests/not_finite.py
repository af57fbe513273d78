"""NaN and infinity in each input and in the gradient that arrives, for ops that choose or have a fast body.

What the textbook makes of them on NumPy is what every other body has to make of them: tests/ops/test_not_finite.py and
tests/gpu/test_not_finite.py.
"""

import math
from functools import partial

import numpy as np
import pytest

import minnl
from minnl import Tensor, backend
from minnl import functional as F
from minnl.study.cases.case import beside
from minnl.study.cases.normalisation import batch_norm, dropout, frozen_batch_norm

VALUES = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}
LARGE, C = (2, 4, 16, 16, 40), 40  # from 65,536 numbers on batch norm has a fast body on the CPU
CLIP, ROWS = (2, 4, 6, 6, 8), (300, 40)
RUNNING = {"mean": [i % 7 / 7 for i in range(C)], "var": [0.5 + i % 5 for i in range(C)]}


def where(x, y):
    return F.where(beside(x, np.arange(x.size).reshape(x.shape) % 2, bool), x, y)


LABELS = [-100 if i % 9 == 0 else i % C for i in range(ROWS[0])]
NORMED = [LARGE, (C,), (C,), LARGE]
OPS = {
    "relu": (F.relu, [ROWS]),
    "abs": (F.abs, [ROWS]),
    "clip": (partial(F.clip, low=-0.5, high=0.5), [ROWS]),
    "maximum": (F.maximum, [ROWS, ROWS]),
    "minimum": (F.minimum, [ROWS, (C,)]),
    "where": (where, [ROWS, ROWS]),
    "sigmoid": (F.sigmoid, [ROWS]),
    "tanh": (F.tanh, [ROWS]),
    "max": (partial(F.max, axis=1), [ROWS]),
    "max, one of few": (F.max, [(12,)]),
    "min": (partial(F.min, axis=0), [ROWS]),
    "mean": (partial(F.mean, axis=(1, 2, 3)), [LARGE]),
    "affine": (F.affine, [ROWS, (C,), (C,)]),
    "dropout": (partial(dropout, p=0.4), [ROWS]),
    "dropout of channels": (partial(dropout, p=0.4, channels=True), [CLIP]),
    "batch norm": (partial(batch_norm, training=True), NORMED[:3]),
    "batch norm, relu": (partial(batch_norm, training=True, relu=True), NORMED[:3]),
    "batch norm, relu, residual": (partial(batch_norm, training=True, relu=True), NORMED),
    "frozen batch norm": (partial(frozen_batch_norm, **RUNNING), NORMED[:3]),
    "frozen batch norm, relu": (partial(frozen_batch_norm, relu=True, **RUNNING), NORMED[:3]),
    "frozen batch norm, relu, residual": (partial(frozen_batch_norm, relu=True, **RUNNING), NORMED),
    "max pooling, apart": (partial(F.max_pool3d, kernel_size=2), [CLIP]),
    "max pooling, large apart": (partial(F.max_pool3d, kernel_size=(2, 3, 3)), [CLIP]),
    "max pooling, overlapping": (partial(F.max_pool3d, kernel_size=3, stride=2, padding=1), [CLIP]),
    "average pooling": (partial(F.avg_pool3d, kernel_size=2), [CLIP]),
    "adaptive max pooling": (partial(F.adaptive_max_pool3d, output_size=(2, 4, 1)), [CLIP]),
    "adaptive average pooling": (partial(F.adaptive_avg_pool3d, output_size=1), [CLIP]),
    "adaptive max pooling, few": (partial(F.adaptive_max_pool3d, output_size=1), [(1, 2, 2, 3, 1)]),
    "softmax": (F.softmax, [ROWS]),
    "softmax of the first axis": (partial(F.softmax, axis=0), [ROWS]),
    "log softmax": (F.log_softmax, [ROWS]),
    "cross-entropy": (partial(F.cross_entropy, labels=LABELS), [ROWS]),
    "cross-entropy of each row": (partial(F.cross_entropy, labels=LABELS, reduction="none"), [ROWS]),
}


# (name, place, value): each value in each input, and in the gradient (the place behind the last input)
EACH_PLACE = [
    pytest.param(name, i, value, id=f"{name}-{label} in {f'input {i}' if i < len(shapes) else 'gradient'}")
    for name, (_, shapes) in OPS.items()
    for i in range(len(shapes) + 1)
    for label, value in VALUES.items()
]


def outcome(name, place, value, mode, device=backend.CPU):
    """Output and gradients on the host, in float32, with the value in some places of an input or of the gradient."""
    fn, shapes = OPS[name]
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=shape).astype(np.float32) for shape in shapes]

    def sprinkled(array):
        array.reshape(-1)[rng.choice(array.size, min(6, array.size), replace=False)] = value
        return array

    if place < len(arrays):
        sprinkled(arrays[place])
    with minnl.use_kernels(mode), np.errstate(all="ignore"):
        leaves = [Tensor(a, requires_grad=True, device=device) for a in arrays]
        y = fn(*leaves)
        gy = np.asarray(np.random.default_rng(1).normal(size=y.shape), np.float32)
        y.backward(backend.to_device(sprinkled(gy) if place == len(arrays) else gy, y.device))
    return [backend.to_host(a) for a in (y.data, *(x.grad for x in leaves))]


def same(name, got, expected):
    """The same numbers, NaN and infinities; norms and cross-entropy sum in their own order and may mix these two."""
    sums = name.split(",")[0].endswith("batch norm") or name.startswith("cross-entropy")
    for a, b in zip(got, expected, strict=True):
        if sums:
            a, b = (np.where(np.isfinite(array), array, math.nan) for array in (a, b))
        largest = np.abs(b[np.isfinite(b)]).max(initial=1)
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * largest)
