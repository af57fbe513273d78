"""NaN and infinity in each input and gradient, on CuPy, in both modes: what NumPy's textbook makes of them."""

import functools

import pytest

from minnl import dispatch
from tests.gpu.device import GPU
from tests.not_finite import EACH_PLACE, outcome, same


@functools.cache
def right(name, place, value):
    return outcome(name, place, value, "textbook")


@pytest.mark.parametrize("mode", dispatch.MODES)
@pytest.mark.parametrize(("name", "place", "value"), EACH_PLACE)
def test_as_numpy_makes_of_them(name, place, value, mode):
    same(name, outcome(name, place, value, mode, GPU), right(name, place, value))
