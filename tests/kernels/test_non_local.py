"""The CPU kernel of the softmax non-local operation against the textbook body in float64, and edges of all modes."""

import contextlib
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minnl import Tensor, use_kernels
from minnl import functional as F
from minnl.kernels.non_local import cpu as non_local
from minnl.kernels.non_local.cpu import CpuNonLocalSoftmax
from minnl.kernels.runtime import threads
from minnl.ops.non_local import NonLocalSoftmax
from tests.fast import agree, arrays, as_before, outcome, same_bits  # noqa: F401 (as_before is a fixture)

QUICK = settings(max_examples=40, deadline=None, derandomize=True, database=None)
AXES = ["spacetime", "space", "time"]


@st.composite
def attentions(draw):
    """Shapes of theta, phi and g, and the axes."""
    axes = draw(st.sampled_from(AXES))
    n, t, h, w = (draw(st.integers(1, k)) for k in (5, 4, 6, 6))
    keys = [draw(st.integers(1, k)) for k in (4, 6, 6)]
    keys = [t, *keys[1:]] if axes == "space" else [keys[0], h, w] if axes == "time" else keys
    inner, depth = draw(st.integers(1, 6)), draw(st.integers(1, 6))
    return [(n, t, h, w, inner), (n, *keys, inner), (n, *keys, depth)], axes


def saving(saved):
    """Exponentials that forward saves, or exponentials that backward computes again."""
    return mock.patch.object(CpuNonLocalSoftmax, "saves_exponentials", lambda op: saved)


@pytest.fixture(params=[True, False], ids=["saved", "recomputed"])
def saved(request):
    with saving(request.param):
        yield request.param


@contextlib.contextmanager
def in_blocks(block, runs=4):
    """Blocks and tasks so small that all loops go round."""
    with (
        mock.patch.multiple(non_local, BLOCK_ELEMENTS=block, FEWEST_QUERIES=2, RUNS=runs),
        mock.patch.object(threads, "tasks_for", lambda flops: 6),
    ):
        yield


def softmax(axes, scale=None):
    return lambda *tensors: F.non_local(*tensors, scale=scale, axes=axes)


def dot(axes):
    return lambda *tensors: F.non_local(*tensors, mode="dot", axes=axes)


def concat(axes):
    return lambda *tensors: F.non_local(*tensors[:3], mode="concat", axes=axes, weight=tensors[3])


@QUICK
@given(
    case=attentions(),
    scale=st.sampled_from([None, 0.3]),
    saved=st.booleans(),
    block=st.sampled_from([1, 500, 10**6]),
    runs=st.sampled_from([1, 4, 256]),
)
def test_softmax(case, scale, saved, block, runs):
    shapes, axes = case
    with in_blocks(block, runs), saving(saved):
        agree(softmax(axes, scale), arrays(*shapes))


@pytest.mark.slow
@pytest.mark.parametrize("axes", AXES)
@pytest.mark.parametrize("batch", [1, 3, 9])
def test_softmax_has_the_same_bits_on_any_number_of_threads(batch, axes, saved):
    with in_blocks(300):
        same_bits(softmax(axes), arrays(*[(batch, 3, 6, 5, 4)] * 3))


@pytest.mark.parametrize("mode, weight", [("embedded", []), ("dot", []), ("concat", [6])])
def test_an_empty_batch(mode, weight):
    inputs = arrays((0, 1, 2, 2, 3), (0, 1, 2, 2, 3), (0, 1, 2, 2, 3), *weight)
    fn = {"embedded": softmax, "dot": dot, "concat": concat}[mode]("spacetime")
    results, ran = outcome(fn, inputs, "fast")
    assert ran == (mode == "embedded") and [r.shape for r in results] == [(0, 1, 2, 2, 3), *(a.shape for a in inputs)]
    assert not any(r.any() for r in results)


def test_large_logits(saved):
    theta, phi, g = arrays((2, 2, 4, 4, 8), (2, 2, 2, 2, 8), (2, 2, 2, 2, 8))
    # Logits of some hundreds: without the largest subtracted their exponentials overflow. Their own float32 rounding
    # (1e-5) is an error of the weights that no body can help.
    agree(softmax("spacetime"), [30 * theta, 4 * phi, g], tolerance=3e-4)


@pytest.mark.parametrize("level", [-1000, -100, -20, 20, 100, 1000])
def test_logits_far_from_zero(level, saved):
    """All of a row lie so far up or down that exponentials overflow, or are all 0; of half of the rows only."""
    theta, phi, g = arrays((2, 2, 4, 4, 3), (2, 2, 2, 2, 3), (2, 2, 2, 2, 2))
    theta[:, :, ::2, :, 0], phi[..., 0] = level, 1
    with in_blocks(10**6):
        agree(softmax("spacetime"), [theta, phi, g], tolerance=1e-3)


@pytest.mark.parametrize("mode", ["fast", "textbook"])
@pytest.mark.parametrize("far", [False, True])
def test_rows_that_are_nearly_one_hot(mode, far, saved):
    """The gradient at the large weight is 1e-4 of the terms whose difference it is; `far`: logits near 16,000."""
    x, g = arrays((1, 2, 16, 16, 64), (1, 2, 16, 16, 64))
    x = x.astype(np.float32) * np.sqrt(np.float32(3))
    inputs = [x, x, g.astype(np.float32)]
    if far:
        inputs[0], inputs[1] = (np.concatenate([x, np.full_like(x[..., :1], 360)], axis=-1),) * 2
    with in_blocks(500 if far else 10**6):
        found, _ = outcome(softmax("space", 1 / 8), inputs, mode)
        judge, _ = outcome(softmax("space", 1 / 8), inputs, "textbook", np.float64)
    # beside a logit of 16,000 float32 numbers are 1e-3 apart: an error of all small weights that no body can help
    for a, b, bound in zip(found, judge, (1e-5, 2e-3, 2e-3, 1e-5) if far else (1e-6, 1e-5, 1e-5, 1e-6), strict=True):
        a, b = (v[..., :64] for v in (a, b))
        assert np.abs(a - b).max() <= bound * np.abs(b).max()


def test_no_warning_and_no_error_where_a_shift_is_needed(saved):
    theta, phi, g = (a.astype(np.float32) for a in arrays((1, 1, 4, 4, 3), (1, 1, 4, 4, 3), (1, 1, 4, 4, 3)))
    with np.errstate(over="raise", divide="raise", invalid="raise"), use_kernels("fast"):
        for sign in (1, -1):
            y = F.non_local(Tensor(sign * 1e3 * abs(theta)), Tensor(abs(phi)), Tensor(g))
            assert np.isfinite(y.data).all()


def test_nan_reaches_its_query_only(saved):
    theta, phi, g = (a.astype(np.float32) for a in arrays((1, 1, 4, 4, 3), (1, 1, 4, 4, 3), (1, 1, 4, 4, 3)))
    theta[0, 0, 1, 2, 0] = np.nan
    with use_kernels("fast"):
        y = F.non_local(*(Tensor(a, requires_grad=True) for a in (theta, phi, g))).data
    assert np.isnan(y[0, 0, 1, 2]).all() and np.isnan(y).sum() == 3


def test_exponentials_are_saved_only_for_a_backward():
    inputs = [a.astype(np.float32) for a in arrays(*[(1, 2, 4, 4, 3)] * 3)]
    with use_kernels("fast"):
        wanted = F.non_local(*(Tensor(a, requires_grad=True) for a in inputs)).op
        assert wanted.exponentials.shape == (1, 32, 32)
        op = NonLocalSoftmax("spacetime")
        op(*map(Tensor, inputs))
    assert op.exponentials is None


def test_pairs_that_are_exactly_zero_get_no_gradient():
    """a_i + b_j = 0 for some pairs, with small integers, so exactly: there f is 0 and its slope is 0, as in PyTorch."""
    rng = np.random.default_rng(0)
    theta, phi, g = (rng.integers(-2, 3, (2, 1, 4, 5, 2)).astype(float) for _ in range(3))
    results, _ = outcome(concat("spacetime"), [theta, phi, g, np.array([1.0, 0.0, 0.0, 1.0])], "fast")
    sums = theta[..., 0].reshape(2, 20, 1) + phi[..., 1].reshape(2, 1, 20)
    assert (sums == 0).any()
    gy = np.random.default_rng(1).normal(size=theta.shape).astype(np.float32).astype(float)
    of_pairs = (sums > 0) * (gy.reshape(2, 20, 2) @ g.reshape(2, 20, 2).swapaxes(1, 2)) / 20
    np.testing.assert_allclose(results[1][..., 0].reshape(2, 20), of_pairs.sum(axis=2), rtol=0, atol=1e-5)
    np.testing.assert_allclose(results[2][..., 1].reshape(2, 20), of_pairs.sum(axis=1), rtol=0, atol=1e-5)


def test_affinities_that_are_all_zero():
    theta, phi, g = (abs(a) for a in arrays(*[(2, 1, 4, 5, 2)] * 3))
    results, _ = outcome(concat("spacetime"), [theta, phi, g, -np.ones(4)], "fast")
    assert not any(r.any() for r in results)


@pytest.mark.parametrize("run", [(0, 0), (0, 5), (3, 40), (7, 100)])
@pytest.mark.parametrize("longest", [1, 7, 30, 1000])
def test_chunks_cover_everything_once(run, longest):
    start, stop = run
    chunks = threads.chunks_of(slice(start, stop), longest)
    assert [i for chunk in chunks for i in range(stop)[chunk]] == list(range(start, stop))
    assert all(chunk.stop - chunk.start <= longest for chunk in chunks)
