"""Fast batch norm with residual and ReLU: over shapes and options at random, against the textbook body in float64."""

import contextlib
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import minnl
from minnl import Tensor, dispatch, no_grad
from minnl import functional as F
from minnl.engine import meta_array
from minnl.kernels.batch_norm import cpu as norm
from tests.batch_norm import normalise, spread
from tests.fast import agree, arrays, as_before, outcome, same_bits  # noqa: F401 (as_before is a fixture)

QUICK = settings(max_examples=60, deadline=None, derandomize=True, database=None)


@pytest.fixture(autouse=True)
def even_the_smallest(monkeypatch):
    monkeypatch.setattr(norm, "SMALLEST", 0)


@contextlib.contextmanager
def cut(**constants):
    """While this lasts arrays are cut otherwise."""
    norm.rows_of.cache_clear()
    with mock.patch.multiple(norm, **constants):
        yield
    norm.rows_of.cache_clear()


@QUICK
@given(
    shape=st.lists(st.integers(1, 7), min_size=1, max_size=4),
    channels=st.sampled_from([1, 3, 8, 64, 200, 700]),
    constants=st.sampled_from([{"BLOCK": norm.BLOCK}, {"BLOCK": 1}, {"BLOCK": 3000, "WIDTH": 512, "LANES": 64}]),
    training=st.booleans(),
    relu=st.booleans(),
    residual=st.booleans(),
)
def test_batch_norm(shape, channels, constants, training, relu, residual):
    shape = (*shape[:-1], shape[-1] + 1, channels)  # two values a channel or more
    x, *others = arrays(shape, channels, channels, *([shape] if residual else []))
    with cut(**constants):
        agree(normalise(training, relu), [spread(x), *others])


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", [(2, 20000), (5, 9001), (70001, 1), (4, 3, 37, 41, 7)])
def test_many_channels_and_sizes_that_no_row_divides(shape, training):
    x, *others = arrays(shape, shape[-1], shape[-1])
    agree(normalise(training, relu=True), [spread(x), *others])


@pytest.mark.parametrize("relu", [False, True])
def test_large_arrays_as_they_are_cut(relu):
    shape = (4, 2, 57, 61, 40)  # several blocks
    agree(normalise(relu=relu), arrays(shape, 40, 40, shape))


@pytest.mark.parametrize("relu", [False, True])
def test_a_mean_far_from_zero(relu):
    """Mean 10,000 and deviation 1: mean of squares less square of mean would leave nothing of the variance."""
    x, weight, bias = arrays((4, 2, 30, 30, 16), 16, 16)
    x = (1e4 + x).astype(np.float32).astype(np.float64)  # what float32 can hold of it is the input of both
    mean, var = np.zeros(16, np.float32), np.ones(16, np.float32)
    judge, _ = outcome(normalise(relu=relu), [x, weight, bias], "textbook", np.float64)
    for a, b in zip(outcome(normalise(relu=relu), [x, weight, bias], "fast")[0], judge, strict=True):
        # Numbers near 10,000 lie 1e-3 apart in float32: what the mean loses by that must not be lost.
        assert np.abs(a - b).max() < 1e-5 * np.abs(b).max()
    F.batch_norm(Tensor(x.astype(np.float32)), mean, var, training=True, momentum=1.0)
    np.testing.assert_allclose(mean, x.mean((0, 1, 2, 3)), rtol=1e-7)
    np.testing.assert_allclose(var, x.var((0, 1, 2, 3), ddof=1), rtol=1e-5)


@pytest.mark.parametrize("offset", [0, 3, 5, 50])
def test_means_on_both_sides_of_far(offset):
    x, weight, bias = arrays((4, 2, 30, 30, 16), 16, 16)
    x = (offset + x).astype(np.float32).astype(np.float64)
    agree(normalise(), [x, weight, bias], tolerance=2e-5)


def test_given_statistics_with_a_mean_far_from_zero():
    x, weight, bias = arrays((50, 40, 16), 16, 16)
    x = (1e4 + x).astype(np.float32).astype(np.float64)

    def fn(x, weight, bias):
        return F.batch_norm(x, np.full(16, 1e4, x.dtype), np.ones(16, x.dtype), weight, bias)

    fast, judge = (outcome(fn, [x, weight, bias], *how)[0] for how in (("fast",), ("textbook", np.float64)))
    for a, b in zip(fast, judge, strict=True):
        assert np.abs(a - b).max() < 1e-5 * np.abs(b).max()


def test_constant_channels():
    """Deviation 0: the result is beta, and nothing passes where ReLU has a kink."""
    x, weight, bias = arrays((9, 31, 6), 6, 6)
    x[..., :4] = [0, 0.7, -1000, 3]
    bias[:2] = 0
    for relu in (False, True):
        agree(normalise(relu=relu), [x, weight, bias])
    with no_grad():
        y = F.batch_norm(Tensor(x.astype(np.float32)), None, None, None, Tensor(bias.astype(np.float32)), training=True)
    np.testing.assert_allclose(y.data[..., :4], np.broadcast_to(bias[:4], (9, 31, 4)), atol=1e-6)


def test_a_first_block_unlike_the_rest():
    x, weight, bias = arrays((8, 4, 30, 30, 16), 16, 16)
    x[0, 0] = -50
    with cut(BLOCK=4000):
        agree(normalise(), [x, weight, bias])


def test_running_statistics_are_the_textbooks():
    x = arrays((3, 4, 5, 5, 7))[0].astype(np.float32)
    seen = {}
    for mode in dispatch.MODES:
        seen[mode] = np.ones(7, np.float32), np.ones(7, np.float32)
        with minnl.use_kernels(mode):
            F.batch_norm(Tensor(x), *seen[mode], training=True, momentum=0.3)
    for fast, textbook in zip(seen["fast"], seen["textbook"], strict=True):
        np.testing.assert_allclose(fast, textbook, rtol=1e-5)
        assert fast.dtype == np.float32


@pytest.mark.parametrize("mode", dispatch.MODES)
@pytest.mark.parametrize("before", [0.0, 1.0, 1e6])
def test_with_a_momentum_of_1_running_statistics_are_the_batchs(before, mode):
    """r + (b - r) is not b: a variance of 1e-4 after 1 was off by 2 %."""
    x = (100 + 0.01 * arrays((5, 40, 7))[0]).astype(np.float32)
    mean, var = (np.full(7, before, np.float32) for _ in range(2))
    with minnl.use_kernels(mode):
        F.batch_norm(Tensor(x), mean, var, training=True, momentum=1.0)
    exact = x.astype(np.float64)
    np.testing.assert_array_equal(mean, exact.mean((0, 1)).astype(np.float32))
    np.testing.assert_allclose(var, exact.var((0, 1), ddof=1), rtol=1e-6)


@pytest.mark.parametrize("training", [True, False])
def test_the_same_bits_on_any_number_of_threads(training):
    with cut(BLOCK=20000):
        same_bits(normalise(training, relu=True), arrays((9, 4, 12, 12, 24), 24, 24, (9, 4, 12, 12, 24)))


def test_arrays_that_are_not_contiguous():
    def fn(x, weight, bias, residual):
        swapped = (a.transpose(0, 2, 1, 3) for a in (x, residual))
        x, residual = swapped
        return normalise(relu=True)(x, weight, bias, residual).transpose(0, 2, 1, 3)

    agree(fn, arrays((3, 6, 5, 4), 4, 4, (3, 6, 5, 4)))


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (3,), (0, 3), (1, 2), (0, 1, 2, 3)])
def test_gradients_that_are_wanted_are_those_of_all(wanted, training, relu):
    """Whoever else wants one: gx is then written beside the gradient of the residual, or over it."""
    inputs = [a.astype(np.float32) for a in arrays((6, 30, 8), 8, 8, (6, 30, 8))]
    everything, _ = outcome(normalise(training, relu), inputs, "fast")
    leaves = [Tensor(a, requires_grad=i in wanted) for i, a in enumerate(inputs)]
    y = normalise(training, relu)(*leaves)
    y.backward(np.random.default_rng(1).normal(size=y.shape).astype(np.float32))
    for leaf, expected in zip(leaves, everything[1:], strict=True):
        if leaf.requires_grad:
            np.testing.assert_array_equal(leaf.grad, expected)
        else:
            assert leaf.grad is None
    large = [leaves[i].grad for i in (0, 3) if i in wanted]
    assert len(large) < 2 or not np.shares_memory(*large)


@pytest.mark.parametrize("frozen", [False, True])
def test_without_gamma_to_learn_given_statistics_keep_no_input(frozen):
    weight = Tensor(np.ones(4, np.float32), requires_grad=not frozen)
    x = Tensor(np.ones((50, 4), np.float32), requires_grad=True)
    op = F.frozen_batch_norm(x, np.zeros(4, np.float32), np.ones(4, np.float32), weight, relu=True).op
    assert type(op) is norm.CpuFrozenBatchNorm
    assert (op.x is None) == frozen and op.y is not None


@pytest.mark.parametrize("training", [True, False])
def test_shape_inference_saves_what_forward_saves(training):
    inputs = [Tensor(a.astype(np.float32), requires_grad=True) for a in arrays((50, 4), 4, 4)]
    mean, var = np.zeros(4, np.float32), np.ones(4, np.float32)
    op = F.batch_norm(inputs[0], mean, var, *inputs[1:], training, relu=True).op
    saved = {name: getattr(op, name) for name in op.saved_for_backward}
    y = op.infer(*(meta_array(a.shape, a.dtype) for a in inputs))
    assert y.shape == (50, 4) and "mean_error" in saved
    for name, array in saved.items():
        inferred = getattr(op, name)
        assert (array is None and inferred is None) or array.shape == inferred.shape, name


@pytest.mark.parametrize("training", [True, False])
def test_float64_is_left_to_the_textbook(training):
    inputs = arrays((30, 40, 8), 8, 8)
    fast, ran = outcome(normalise(training), inputs, "fast", np.float64)
    textbook, _ = outcome(normalise(training), inputs, "textbook", np.float64)
    assert not ran
    for a, b in zip(fast, textbook, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("training", [True, False])
def test_small_arrays_are_left_to_the_textbook(training, monkeypatch):
    monkeypatch.setattr(norm, "SMALLEST", 960)
    for positions in (119, 120):
        assert outcome(normalise(training), arrays((positions, 8), 8, 8), "fast")[1] == (positions == 120)
