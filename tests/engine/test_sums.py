"""Sums and means over many positions, in float32 and on the CPU: no digit is lost by how many there are."""

import math

import numpy as np
import pytest

import minnl
from minnl import Tensor
from minnl import functional as F
from minnl.kernels.runtime.sums import column_sums, sums, sums_of_products
from minnl.sums import RUN, mean, total
from tests.many_positions import BOUND, cases, numbers, worst

MANY = cases(300_000)


@pytest.mark.parametrize("mode", minnl.dispatch.MODES)
@pytest.mark.parametrize("name", MANY)
def test_sums_over_many_positions(name, mode):
    with minnl.use_kernels(mode):
        assert worst(*MANY[name]) < BOUND


@pytest.mark.parametrize("mode", minnl.dispatch.MODES)
def test_the_mean_of_a_clip(mode):
    """The mean of these numbers was 1003.26."""
    x = (1000 + np.random.default_rng(0).random((2, 64, 112, 112, 3))).astype(np.float32)
    with minnl.use_kernels(mode):
        y = F.mean(Tensor(x), (1, 2, 3)).data
    np.testing.assert_allclose(y, 1000.5, atol=1e-3)


@pytest.mark.parametrize("mode", minnl.dispatch.MODES)
def test_a_bias_under_four_million_positions(mode):
    """Ones are counted exactly up to 2^24; a running sum of 0.1 is off by 3e-3 after four million steps."""
    x, weight, bias = (Tensor(np.zeros(s, np.float32), requires_grad=True) for s in [(4_000_000, 1), (1, 2), (2,)])
    with minnl.use_kernels(mode):
        F.linear(x, weight, bias).backward(np.full((4_000_000, 2), 0.1, np.float32))
    np.testing.assert_allclose(bias.grad, 4_000_000 * float(np.float32(0.1)), rtol=BOUND)


@pytest.mark.parametrize("mode", minnl.dispatch.MODES)
@pytest.mark.parametrize("n", [1, RUN, RUN + 1, 2 * RUN, 1_000_003])
def test_a_weight_under_many_positions(n, mode):
    """A product over four million positions was off by 1 %. A run of positions may round at every step, no more."""
    x, gy = np.full((n, 3), 0.1, np.float32), np.full((n, 2), 0.1, np.float32)
    weight = Tensor(np.zeros((3, 2), np.float32), requires_grad=True)
    with minnl.use_kernels(mode):
        F.linear(Tensor(x), weight).backward(gy)
    np.testing.assert_allclose(weight.grad, n * float(np.float32(0.1)) ** 2, rtol=RUN * 2.0**-24)


def test_sum_and_mean_are_rounded_once():
    x = np.float32([2**24, 1, 1, 1, -(2**24)])
    assert total(x) == 3 and total(x).dtype == np.float32
    assert mean(np.float32([3e38, 3e38])) == np.float32(3e38), "their sum is no float32"
    assert total(x.reshape(1, 5, 1), (0, 1)).shape == (1,) and total(x.reshape(1, 5, 1), 1, True).shape == (1, 1, 1)


@pytest.mark.parametrize("shape", [(0, 3), (1, 3), (2, 5, 7), (31, 4), (32, 4), (65, 2), (9000, 130)])
def test_column_sums(shape):
    x = numbers(*shape)
    rows = x.reshape(-1, shape[-1]).astype(float)
    np.testing.assert_allclose(column_sums(x), rows.sum(axis=0), rtol=1e-7)
    np.testing.assert_allclose(sums(x.reshape(-1, shape[-1])), rows.sum(axis=0), rtol=1e-6)
    x = x.reshape(-1, shape[-1])
    np.testing.assert_allclose(sums_of_products(x, x[::-1]), (rows * rows[::-1]).sum(axis=0), rtol=1e-6)


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_infinity_and_nan_reach_the_sum(value):
    x = np.ones((100, 2), np.float32)
    x[40, 1] = value
    np.testing.assert_array_equal(column_sums(x), [100, value])
    np.testing.assert_array_equal(total(x, 0), [100, value])
