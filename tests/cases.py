"""The table of minnl/study/cases with, for the tests, each case's twin in PyTorch; and cases with NaN and infinity.

A case is used so: ``case.fn(*map(Tensor, case.inputs(numpy.random.default_rng(0))))``.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from dataclasses import dataclass

from minnl.study import cases as study
from minnl.study.cases.case import case, normal


@dataclass(frozen=True)
class Case(study.Case):
    """A case of minnl.study.cases, and the same function on PyTorch's tensors, channels last in and out.

    `torch` is None without PyTorch, and for those cases that tests.torch_twins.NO_TWIN gives a reason for.
    """

    torch: Callable | None = None


def _table(cases):
    def no_twin(_):
        return None

    twin = no_twin
    if importlib.util.find_spec("torch"):
        from tests.torch_twins import twin
    return {c.name: Case(c.name, c.fn, c.inputs, c.smooth, twin(c)) for c in cases}


def sprinkled(value, *shapes, every=5):
    """Normal inputs with a value in every fifth place."""

    def make(rng):
        arrays = normal(*shapes)(rng)
        for start, array in enumerate(arrays):
            array.reshape(-1)[start::every] = value
        return arrays

    return make


CLIP, NAN = (2, 3, 4, 4, 2), math.nan

CASES = _table(study.CASES.values())

# where nothing has a slope, so that these are not for the gradient check; forward and backward are defined all the same
NOT_FINITE = _table(
    [
        case("maximum/nan", sprinkled(NAN, (4, 5), (4, 5), every=3), smooth=False),
        case("minimum/nan", sprinkled(NAN, (4, 5), (4, 5), every=3), smooth=False),
        case("relu/nan", sprinkled(NAN, (4, 5)), smooth=False),
        case("abs/nan", sprinkled(NAN, (4, 5)), smooth=False),
        case("clip/nan", sprinkled(NAN, (4, 5)), low=-0.5, high=0.5, smooth=False),
        case("max/nan", sprinkled(NAN, (4, 6)), axis=1, smooth=False),
        case("min/nan", sprinkled(NAN, (4, 6)), axis=1, smooth=False),
        case("max_pool3d/nan", sprinkled(NAN, CLIP, every=17), kernel_size=2, stride=1, smooth=False),
        case(
            "max_pool3d/nan-padding", sprinkled(NAN, CLIP, every=17), kernel_size=3, stride=2, padding=1, smooth=False
        ),
        case("max_pool3d/minus-infinity", sprinkled(-math.inf, CLIP, every=1), kernel_size=2, padding=1, smooth=False),
        case("adaptive_max_pool3d/nan", sprinkled(NAN, CLIP, every=41), output_size=(2, 3, 1), smooth=False),
        case("softmax/minus-infinity", sprinkled(-math.inf, (3, 4))),
        case("sqrt/infinite-slope", sprinkled(0.0, (1, 3), every=1)),
    ]
)
