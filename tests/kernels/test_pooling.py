"""Fast max pooling, over windows, shapes and blocks at random: maxima, argmax and gradients as in the textbook."""

import contextlib
import functools
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import minnl
from minnl import Tensor, dispatch, no_grad
from minnl import functional as F
from minnl.kernels.pooling import cpu
from minnl.kernels.runtime import memory
from tests import pooling
from tests.fast import agree, arrays, as_before, outcome, same_bits  # noqa: F401 (as_before is a fixture)

QUICK = settings(max_examples=150, deadline=None, derandomize=True, database=None)


@contextlib.contextmanager
def cut(elements=None, long=cpu.LONG):
    """While this lasts blocks have so many elements, and are shared out however small the input is."""
    sizes = {"BLOCK": elements, "INDICES": elements, "ALONE": 0} if elements else {}
    with mock.patch.multiple(cpu, LONG=long, **sizes):
        yield


windows = functools.partial(pooling.windows, 3, st.integers(1, 4), st.integers(1, 5))


def both(fn, x, gy_seed=1):
    """(result, winner, gradient) of max pooling by each body, in float32: nothing is rounded, so all are the same."""
    found = []
    for mode in dispatch.MODES:
        with minnl.use_kernels(mode):
            leaf = Tensor(x, requires_grad=True)
            y = fn(leaf)
            winner = y.op.argmax.copy()
            # small whole numbers: their sums are exact in any order
            y.backward(np.random.default_rng(gy_seed).integers(-9, 9, y.shape).astype(np.float32))
        found.append((y.data, winner, leaf.grad))
    return found


@QUICK
@given(
    case=windows(most_dilation=2),
    holds=st.sampled_from(["ties", "infinities", "nan"]),
    elements=st.sampled_from([None, 1, 50, 500]),
    long=st.sampled_from([1, 64]),
)
def test_max_pool(case, holds, elements, long):
    shape, arguments = case
    rng = np.random.default_rng(0)
    x = rng.integers(-2, 3, shape).astype(np.float32)
    if holds == "infinities":
        x[x < 1] = -np.inf
    if holds == "nan":
        x[rng.random(shape) < 0.1] = np.nan
    with cut(elements, long):
        for a, b in zip(*both(lambda x: F.max_pool3d(x, **arguments), x), strict=True):
            np.testing.assert_array_equal(a, b)
        with no_grad(), minnl.use_kernels("fast"):
            y = F.max_pool3d(Tensor(x), **arguments).data
        with no_grad(), minnl.use_kernels("textbook"):
            np.testing.assert_array_equal(y, F.max_pool3d(Tensor(x), **arguments).data)


@pytest.mark.parametrize(
    "kernel, stride, padding", [((1, 2, 2), None, 0), ((1, 3, 3), (1, 2, 2), (0, 1, 1)), (3, 2, 1)]
)
@pytest.mark.parametrize("channels", [3, 16, 600])
def test_max_pool_of_clips_with_long_and_short_rows(kernel, stride, padding, channels):
    """Columns of 64 channels or more are compared where they lie, shorter ones are gathered."""
    x = np.random.default_rng(0).integers(0, 50, (2, 4, 9, 8, channels)).astype(np.float32)
    for elements in (None, 20_000):
        with cut(elements):
            for a, b in zip(*both(lambda x: F.max_pool3d(x, kernel, stride, padding), x), strict=True):
                np.testing.assert_array_equal(a, b)


def test_max_pool_of_more_taps_than_half_a_byte_counts():
    x = np.random.default_rng(0).integers(0, 9, (1, 6, 9, 7, 2)).astype(np.float32)
    for a, b in zip(*both(lambda x: F.max_pool3d(x, (5, 7, 7), 1, (2, 3, 3)), x), strict=True):
        np.testing.assert_array_equal(a, b)


def test_max_pool_keeps_an_argmax_only_for_a_gradient():
    x = np.zeros((1, 2, 4, 4, 3), np.float32)
    with minnl.use_kernels("fast"):
        assert F.max_pool3d(Tensor(x, requires_grad=True), 2).op.argmax.dtype == np.uint8
        with mock.patch.object(cpu, "rank", side_effect=AssertionError("looked for the argmax")), no_grad():
            F.max_pool3d(Tensor(x), (1, 2, 2))


def test_a_window_that_may_see_no_input_is_left_to_the_textbook():
    x = arrays((1, 1, 3, 3, 2))[0]
    with minnl.use_kernels("fast"):
        y = F.max_pool3d(Tensor(x.astype(np.float32), requires_grad=True), (2, 1, 1), 1, (1, 0, 0), dilation=(2, 1, 1))
    assert not dispatch.is_kernel(type(y.op))


POOLS = {
    "apart": lambda x: F.max_pool3d(x, (1, 2, 2)),
    "frames": lambda x: F.max_pool3d(x, (2, 1, 1)),
    "overlapping": lambda x: F.max_pool3d(x, 3, 2, 1),
    "single positions": lambda x: F.max_pool3d(x, 1),
    "rows and frames with gaps": lambda x: F.max_pool3d(x, (2, 1, 1), (3, 2, 1)),
    "gaps": lambda x: F.max_pool3d(x, (1, 2, 1), 3),
}


@pytest.mark.parametrize("name", POOLS)
def test_same_bits_on_any_number_of_threads(name):
    with cut(2000):
        same_bits(POOLS[name], arrays((5, 6, 10, 9, 6)))


@pytest.mark.parametrize("name", POOLS)
def test_inputs_and_gradients_that_are_not_contiguous(name):
    def fn(x):
        return F.transpose(POOLS[name](F.transpose(x, (0, 3, 2, 1, 4))), None) * 1.0

    agree(fn, arrays((2, 6, 5, 8, 3)))


@pytest.mark.parametrize("name", POOLS)
def test_float64_is_left_to_the_textbook(name):
    with minnl.use_kernels("fast"):
        op = POOLS[name](Tensor(arrays((2, 4, 6, 6, 3))[0], requires_grad=True)).op
        assert not dispatch.is_kernel(type(op))


@pytest.mark.parametrize("name", POOLS)
def test_nothing_is_read_from_memory_that_was_used_before(name, monkeypatch):
    def used(shape, dtype, empty=memory.empty):
        array = empty(shape, dtype)
        array.fill(np.nan if array.dtype == np.float32 else 255)
        return array

    monkeypatch.setattr(memory, "empty", used)
    with cut(2000):
        agree(POOLS[name], arrays((3, 7, 10, 9, 4)))


@pytest.mark.parametrize("shape", [(7, 3, 5, 4, 6), (2, 9, 11, 8, 16), (1, 4, 30, 20, 32)])
def test_blocks_cover_everything_once_and_are_no_larger_than_they_should_be(shape):
    """But a frame of the output is never cut."""
    with cut(3000):
        op = F.max_pool3d(Tensor(np.zeros(shape, np.float32), requires_grad=True), (1, 3, 3), (1, 2, 2), (0, 1, 1)).op
        covered = np.zeros(op.argmax.shape[:2], int)
        for block in op.blocks(op.argmax.shape):
            covered[block] += 1
            frames = covered[block].size
            assert frames == 1 or frames * np.prod(shape[2:]) <= 3000
        assert (covered == 1).all()
