"""Fast softmax, log-softmax and cross-entropy, over shapes and options at random, against the textbook in float64."""

from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import minnl
from minnl import Tensor, kernels
from minnl import functional as F
from minnl.kernels.cpu import softmax
from tests.fast import agree, arrays, as_before, same_bits  # noqa: F401 (as_before is a fixture)

QUICK = settings(max_examples=100, deadline=None, derandomize=True, database=None)


@st.composite
def logits(draw):
    """Rows of logits: close together, far apart within a row, or each row around another number."""
    shape = (*draw(st.lists(st.integers(1, 6), max_size=2)), draw(st.integers(1, 9)), draw(st.sampled_from([2, 3, 57])))
    x, level = arrays(shape, (*shape[:-1], 1), seed=draw(st.integers(0, 9)))
    kind = draw(st.sampled_from(["near", "wide", "levels"]))
    return {"near": x, "wide": 30 * x, "levels": x + 100 * level}[kind]


@QUICK
@given(x=logits(), block=st.sampled_from([1, 20, 100, softmax.BLOCK_ELEMENTS]))
def test_softmax(x, block):
    with mock.patch.object(softmax, "BLOCK_ELEMENTS", block):
        agree(F.softmax, [x])
        agree(F.log_softmax, [x])


@QUICK
@given(
    x=logits(),
    reduction=st.sampled_from(["mean", "sum", "none"]),
    smoothing=st.sampled_from([0.0, 0.1]),
    weighted=st.booleans(),
    ignoring=st.booleans(),
    block=st.sampled_from([1, 20, softmax.BLOCK_ELEMENTS]),
)
def test_cross_entropy(x, reduction, smoothing, weighted, ignoring, block):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, x.shape[-1], x.shape[:-1])
    if ignoring:
        labels[rng.random(labels.shape) < 0.4] = -100
        labels.reshape(-1)[0] = 1  # if all were ignored the mean would be 0 / 0
    weight = rng.uniform(0.5, 2, x.shape[-1]) if weighted else None

    def loss(x):
        given_weight = None if weight is None else weight.astype(x.dtype)
        return F.cross_entropy(x, labels, given_weight, reduction=reduction, label_smoothing=smoothing)

    with mock.patch.object(softmax, "BLOCK_ELEMENTS", block):
        agree(loss, [x])


def test_rows_far_below_the_largest_keep_their_digits():
    """With one shift for all the exponentials of the second row would be 0, its logarithm -infinity."""
    x = np.array([[500.0, 499, 498], [-500, -501, -502], [0, 1, 2]])
    agree(F.softmax, [x], tolerance=1e-6)
    agree(F.log_softmax, [x], tolerance=1e-6)
    agree(lambda x: F.cross_entropy(x, [0, 1, 2]), [x], tolerance=1e-6)


@pytest.mark.parametrize("mode", kernels.MODES)
def test_a_class_that_is_ruled_out_costs_nothing(mode):
    """A logit of -infinity where the label is not: as if there were a class less."""
    x = np.random.default_rng(0).normal(size=(4, 5)).astype(np.float32)
    masked = x.copy()
    masked[:, 2] = -np.inf
    labels = np.array([0, 1, 3, 4])
    with minnl.use_kernels(mode):
        leaf, fewer = Tensor(masked, requires_grad=True), Tensor(np.delete(x, 2, axis=1), requires_grad=True)
        loss, expected = F.cross_entropy(leaf, labels), F.cross_entropy(fewer, labels - (labels > 2))
        loss.backward()
        expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    np.testing.assert_allclose(np.delete(leaf.grad, 2, axis=1), fewer.grad, rtol=1e-5)
    assert not leaf.grad[:, 2].any()


@pytest.mark.parametrize("mode", kernels.MODES)
def test_an_ignored_row_may_hold_anything(mode):
    x = np.zeros((3, 4), np.float32)
    x[1] = np.nan
    with minnl.use_kernels(mode):
        assert F.cross_entropy(Tensor(x), [0, -100, 1]).item() == pytest.approx(np.log(4))


def test_same_bits_on_any_number_of_threads():
    labels = np.random.default_rng(0).integers(0, 30, 50)
    with mock.patch.object(softmax, "BLOCK_ELEMENTS", 200):
        for fn in (F.softmax, F.log_softmax, lambda x: F.cross_entropy(x, labels, label_smoothing=0.1)):
            same_bits(fn, arrays((50, 30)))


@pytest.mark.parametrize("fn", [F.softmax, F.log_softmax, lambda x: F.cross_entropy(x, [0, 1])])
def test_what_is_left_to_the_textbook(fn):
    with minnl.use_kernels("fast"):
        assert fn(Tensor(np.zeros((2, 3)), requires_grad=True)).op.fast is None, "float64"
    for one_class in (F.softmax, F.log_softmax, lambda x: F.cross_entropy(x, [0, 0])):
        assert one_class(Tensor(np.zeros((2, 1), np.float32), requires_grad=True)).op.fast is None
    assert F.softmax(Tensor(np.zeros((2, 3), np.float32), requires_grad=True), axis=0).op.fast is None
