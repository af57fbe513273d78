"""The fast non-local operation, every kernel by itself, against the textbook body in float64."""

import contextlib
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minnl import Tensor, use_kernels
from minnl import functional as F
from minnl.kernels.non_local import concat as non_local_concat
from minnl.kernels.non_local import cpu as non_local
from minnl.kernels.non_local import dot as non_local_dot
from minnl.kernels.non_local import positions
from minnl.kernels.non_local import sorted as non_local_sorted
from minnl.kernels.runtime import panels, threads
from minnl.ops.non_local import NonLocalDot, NonLocalSoftmax
from tests.fast import agree, arrays, as_before, outcome, same_bits, small_panels  # noqa: F401 (as_before is a fixture)

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


@pytest.fixture(params=[True, False], ids=["kept", "again"])
def kept(request, monkeypatch):
    """Both ways of the softmax modes: exponentials that are kept, and those that backward computes again."""
    monkeypatch.setattr(NonLocalSoftmax, "few_keys", lambda op: request.param)
    return request.param


@pytest.fixture(params=["pairs", "sums"])
def order(request, monkeypatch):
    """Both orders of the dot product."""
    monkeypatch.setattr(NonLocalDot, "few_pairs", lambda op: request.param == "pairs")
    return request.param


@pytest.fixture(params=["sorted", "streamed"])
def way(request, monkeypatch):
    """Both kernels of the concatenation."""
    monkeypatch.setattr(non_local_sorted, "FEW", 0 if request.param == "sorted" else 10**9)
    return request.param


@contextlib.contextmanager
def in_blocks(block, run=2):
    """Blocks, panels and runs of positions, so small that all loops go round."""
    with (
        small_panels(),
        mock.patch.multiple(
            non_local, BLOCK_ELEMENTS=block, FEWEST_QUERIES=2, MOST_KEYS=16, SHORTEST_RUN=run, ALIGNED=1
        ),
        mock.patch.object(non_local_concat, "BLOCK_ELEMENTS", block),
        mock.patch.multiple(positions, SHORTEST_RUN=run, COSTS=(1, 1, 1)),
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
    kept=st.booleans(),
    block=st.sampled_from([1, 500, 10**6]),
    run=st.sampled_from([1, 4, 256]),
)
def test_softmax(case, scale, kept, block, run):
    shapes, axes = case
    with in_blocks(block, run), mock.patch.object(NonLocalSoftmax, "few_keys", lambda op: kept):
        agree(softmax(axes, scale), arrays(*shapes))


@QUICK
@given(case=attentions(), pairs=st.booleans(), run=st.sampled_from([1, 4, 256]))
def test_dot(case, pairs, run):
    shapes, axes = case
    with in_blocks(500, run), mock.patch.object(NonLocalDot, "few_pairs", lambda op: pairs):
        agree(dot(axes), arrays(*shapes))


@QUICK
@given(
    case=attentions(),
    few=st.sampled_from([0, 10**9]),
    block=st.sampled_from([1, 500, 10**6]),
    run=st.sampled_from([1, 4, 256]),
)
def test_concat(case, few, block, run):
    shapes, axes = case
    with in_blocks(block, run), mock.patch.object(non_local_sorted, "FEW", few):
        agree(concat(axes), arrays(*shapes, 2 * shapes[0][-1]))


@pytest.mark.slow
@pytest.mark.parametrize("axes", AXES)
@pytest.mark.parametrize("batch", [1, 3, 9])
def test_softmax_has_the_same_bits_on_any_number_of_threads(batch, axes, kept):
    with in_blocks(300):
        same_bits(softmax(axes), arrays(*[(batch, 3, 6, 5, 4)] * 3))


@pytest.mark.parametrize("axes", AXES)
@pytest.mark.parametrize("batch", [1, 3, 9])
def test_dot_has_the_same_bits_on_any_number_of_threads(batch, axes, order):
    with in_blocks(300):
        same_bits(dot(axes), arrays(*[(batch, 3, 6, 5, 4)] * 3))


@pytest.mark.parametrize("axes", AXES)
@pytest.mark.parametrize("batch", [1, 3, 9])
def test_concat_has_the_same_bits_on_any_number_of_threads(batch, axes, way):
    with in_blocks(300):
        same_bits(concat(axes), arrays(*[(batch, 3, 6, 5, 4)] * 3, 8))


@pytest.mark.parametrize("mode, weight", [("embedded", []), ("dot", []), ("concat", [6])])
def test_an_empty_batch(mode, weight):
    inputs = arrays((0, 1, 2, 2, 3), (0, 1, 2, 2, 3), (0, 1, 2, 2, 3), *weight)
    fn = {"embedded": softmax, "dot": dot, "concat": concat}[mode]("spacetime")
    results, ran = outcome(fn, inputs, "fast")
    assert ran and [r.shape for r in results] == [(0, 1, 2, 2, 3), *(a.shape for a in inputs)]
    assert not any(r.any() for r in results)


def test_large_logits(kept):
    theta, phi, g = arrays((2, 2, 4, 4, 8), (2, 2, 2, 2, 8), (2, 2, 2, 2, 8))
    # Logits of some hundreds: without the largest subtracted their exponentials overflow. Their own float32 rounding
    # (1e-5) is an error of the weights that no body can help.
    agree(softmax("spacetime"), [30 * theta, 4 * phi, g], tolerance=3e-4)


@pytest.mark.parametrize("level", [-1000, -100, -20, 20, 100, 1000])
def test_logits_far_from_zero(level, kept):
    """All of a row lie so far up or down that exponentials overflow, or are all 0; of half of the rows only."""
    theta, phi, g = arrays((2, 2, 4, 4, 3), (2, 2, 2, 2, 3), (2, 2, 2, 2, 2))
    theta[:, :, ::2, :, 0], phi[..., 0] = level, 1
    with in_blocks(10**6):
        agree(softmax("spacetime"), [theta, phi, g], tolerance=1e-3)


@pytest.mark.parametrize("mode", ["fast", "textbook"])
@pytest.mark.parametrize("far", [False, True])
def test_rows_that_are_nearly_one_hot(mode, far, kept):
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


def test_no_warning_and_no_error_where_a_shift_is_needed(kept):
    theta, phi, g = (a.astype(np.float32) for a in arrays((1, 1, 4, 4, 3), (1, 1, 4, 4, 3), (1, 1, 4, 4, 3)))
    with np.errstate(over="raise", divide="raise", invalid="raise"), use_kernels("fast"):
        for sign in (1, -1):
            y = F.non_local(Tensor(sign * 1e3 * abs(theta)), Tensor(abs(phi)), Tensor(g))
            assert np.isfinite(y.data).all()


def test_nan_reaches_its_query_only(kept):
    theta, phi, g = (a.astype(np.float32) for a in arrays((1, 1, 4, 4, 3), (1, 1, 4, 4, 3), (1, 1, 4, 4, 3)))
    theta[0, 0, 1, 2, 0] = np.nan
    with use_kernels("fast"):
        y = F.non_local(*(Tensor(a, requires_grad=True) for a in (theta, phi, g))).data
    assert np.isnan(y[0, 0, 1, 2]).all() and np.isnan(y).sum() == 3


def test_exponentials_are_kept_only_for_a_backward():
    inputs = [a.astype(np.float32) for a in arrays(*[(1, 2, 4, 4, 3)] * 3)]
    with use_kernels("fast"):
        wanted = F.non_local(*(Tensor(a, requires_grad=True) for a in inputs)).op
        assert wanted.exponentials.shape == (1, 32, 32)
        op = NonLocalSoftmax("spacetime")
        op(*map(Tensor, inputs))
    assert op.exponentials is None


def test_pairs_that_are_exactly_zero_get_no_gradient(way):
    """a_i + b_j = 0 for some pairs, with small integers, so exactly: there f is 0 and its slope is 0, as in PyTorch."""
    rng = np.random.default_rng(0)
    theta, phi, g = (rng.integers(-2, 3, (2, 1, 4, 5, 2)).astype(float) for _ in range(3))
    agree(concat("spacetime"), [theta, phi, g, np.array([1.0, 0.0, 0.0, 1.0])])


def test_affinities_that_are_all_zero(way):
    theta, phi, g = (abs(a) for a in arrays(*[(2, 1, 4, 5, 2)] * 3))
    results, _ = outcome(concat("spacetime"), [theta, phi, g, -np.ones(4)], "fast")
    assert not any(r.any() for r in results)


def test_sorted_sums_of_equal_numbers_stay_exact():
    """5,000 equal terms: one after the other in float32 they would be off by 1e-4."""
    x = np.full((1, 5000, 2), 0.1, np.float32)
    sums = non_local_sorted.running(x)[0, : 5000 + 1, 0]
    np.testing.assert_allclose(sums, np.arange(5001) * np.float64(np.float32(0.1)), rtol=2e-6, atol=0)


@pytest.mark.parametrize("keys, kernel", [(4, non_local_dot.DotOfPairs), (64, non_local_dot.DotOfSums)])
def test_the_order_of_the_dot_product(keys, kernel):
    theta, phi, g = (Tensor(a.astype(np.float32)) for a in arrays(*[(1, 1, 8, 8, 16)] + [(1, 1, 1, keys, 16)] * 2))
    op = NonLocalDot("spacetime")
    with use_kernels("fast"):
        op(theta, phi, g)
    assert type(op) is kernel


@pytest.mark.parametrize("shape", [(0, 0), (0, 5), (3, 40), (7, 100)])
@pytest.mark.parametrize("longest, multiple", [(1, 1), (7, 1), (30, 16), (1000, 16)])
def test_cuts_cover_everything_once(shape, longest, multiple):
    start, stop = shape
    parts = threads.cuts(slice(start, stop), longest, multiple)
    assert [i for part in parts for i in range(stop)[part]] == list(range(start, stop))
    assert all(part.stop - part.start < longest + multiple for part in parts)


@pytest.mark.parametrize("channels", [3, 128, 200])
@pytest.mark.parametrize("keys, width", [(21, 21), (48, 48), (96, 32)])
@pytest.mark.parametrize("shared", [True, False])
def test_copies_in_panels(channels, keys, width, shared, monkeypatch):
    monkeypatch.setattr(panels, "has_small", lambda: True)
    monkeypatch.setattr(positions, "SHARED", 1 if shared else positions.SHARED)
    (x,) = arrays((3, keys, channels))
    x = x.astype(np.float32)
    for batch in (1, 3):
        with positions.Copies() as copies:
            turned = copies.turned(x[:batch], 0.5, ones=True)
            upright, view = (copies.upright(x[:batch], keys, rows) for rows in (1000, 10))
        assert turned.shape == (batch, keys // width, channels + 1, width)
        whole = turned.swapaxes(1, 2).reshape(batch, channels + 1, keys)
        np.testing.assert_array_equal(whole[:, :-1], 0.5 * x[:batch].swapaxes(1, 2))
        np.testing.assert_array_equal(whole[:, -1], np.float32(0.5))
        assert upright.shape[1] == {3: 1, 128: 2, 200: 1}[channels] and np.shares_memory(view, x)
        for copied in (upright, view):
            np.testing.assert_array_equal(copied.swapaxes(1, 2).reshape(batch, keys, channels), x[:batch])
