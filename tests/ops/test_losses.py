"""Softmax and the losses where rounding, infinities and ignored labels could spoil them."""

import warnings

import numpy as np
import pytest

import minnl
from minnl import Tensor, dispatch
from minnl import functional as F

BOTH = pytest.mark.parametrize("mode", dispatch.MODES)


@BOTH
@pytest.mark.parametrize(
    "logits, label, right",
    [
        ([1e8, 1e8], 1, np.log(2)),
        ([1e5, 1e5 + 1, 1e5 - 1], 0, np.log1p(np.exp(1) + np.exp(-1))),
        ([3000, 2990], 0, np.log1p(np.exp(-10))),
        ([3000, 2990], 1, 10 + np.log1p(np.exp(-10))),
        ([500, 499, -500], 2, 1000 + np.log1p(np.exp(-1))),
    ],
)
def test_an_offset_costs_no_digits(logits, label, right, mode):
    """All rows at once, so that none is shifted by another's largest logit."""
    x = np.zeros((3, len(logits)), np.float32)
    x[1], x[2] = logits, -1e4
    with minnl.use_kernels(mode):
        loss = F.cross_entropy(Tensor(x), [0, label, 0], reduction="none").data[1]
        log_p = F.log_softmax(Tensor(x)).data[1, label]
    assert loss == pytest.approx(right, rel=1e-7, abs=1e-7) and log_p == pytest.approx(-right, rel=1e-7, abs=1e-7)


@BOTH
def test_rows_far_below_the_largest_keep_their_digits(mode):
    x = np.array([[500.0, 499, 498], [-500, -501, -502], [0, 1, 2]], np.float32)
    p = np.exp([0.0, -1, -2]) / np.exp([0.0, -1, -2]).sum()
    with minnl.use_kernels(mode):
        np.testing.assert_allclose(F.softmax(Tensor(x)).data, [p, p, p[::-1]], rtol=1e-6)


@BOTH
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weight", [None, np.float32([0.5, 2, 1])])
def test_where_every_label_is_ignored_the_mean_is_nan_and_its_gradient_is_0(smoothing, weight, mode):
    """As in PyTorch: a batch with nothing to learn from teaches nothing."""
    x = Tensor(np.float32([[1, 2, 3], [4, 5, 6]]), requires_grad=True)
    with minnl.use_kernels(mode), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # 0 / 0
        loss = F.cross_entropy(x, [-100, -100], weight, label_smoothing=smoothing)
        loss.backward()
    assert np.isnan(loss.item())
    np.testing.assert_array_equal(x.grad, np.zeros((2, 3)))


@BOTH
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_an_ignored_row_may_hold_anything(reduction, mode):
    x = Tensor(np.zeros((3, 4), np.float32), requires_grad=True)
    x.data[1] = np.nan
    with minnl.use_kernels(mode):
        loss = F.cross_entropy(x, [0, -100, 1], reduction=reduction)
        loss.backward(np.ones_like(loss.data))
    right = np.log(4) * np.array({"mean": 1, "sum": 2, "none": [1, 0, 1]}[reduction])
    np.testing.assert_allclose(loss.data, right, rtol=1e-6)
    row = np.array([-0.75, 0.25, 0.25, 0.25]) / (2 if reduction == "mean" else 1)
    np.testing.assert_allclose(x.grad, [row, np.zeros(4), row[[1, 0, 2, 3]]], rtol=1e-6)


@BOTH
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


@BOTH
@pytest.mark.parametrize("x, target, right, slope", [
    (-1e6, 0.01, 1e4, -0.01), (-50, 0, np.exp(-50), np.exp(-50)), (50, 1, np.exp(-50), -np.exp(-50)), (1e6, 1, 0, 0),
])  # fmt: skip
def test_binary_cross_entropy_of_saturated_logits(x, target, right, slope, mode):
    """Losses and slopes far below 1, which (1 - t) x + ln(1 + e^-x) and sigmoid(x) - t would round away."""
    leaf = Tensor(np.float32([x]), requires_grad=True)
    with minnl.use_kernels(mode):
        loss = F.binary_cross_entropy_with_logits(leaf, np.float32([target]))
        loss.backward()
    np.testing.assert_allclose([loss.item(), leaf.grad[0]], [right, slope], rtol=1e-6)
