"""Every backward by the error curve, and that the table of cases leaves no op out."""

import numpy as np
import pytest

import minnl
from minnl import dispatch
from minnl import functional as F
from minnl.ops import non_local, pointwise
from tests.cases import CASES, NOT_FINITE

NO_CASE = {
    "attention": "gives an array to look at, without gradient; see test_parity.py",
    "to": "float32 is too coarse for differences; see below and tests/gpu/test_cases.py",
}
ON_A_KINK = {
    "maximum/ties", "minimum/ties", "relu/at-zero", "abs/at-zero", "clip/at-the-borders", "max/ties",
    "max/ties-over-two-axes", "min/ties", "min/ties-over-two-axes", "max_pool3d/ties", "max_pool3d/ties-overlapping",
    "adaptive_max_pool3d/ties", "adaptive_max_pool3d/ties-shared-cells",
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_error_curve(name):
    case = CASES[name]
    result = minnl.gradcheck(case.fn, case.inputs(np.random.default_rng(0)))
    assert result, f"\n{result}"
    assert max(check.floor for check in result.inputs) < 1e-8
    assert (sum(check.kinks for check in result.inputs) > 0) == (name in ON_A_KINK)


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith("non_local/")])
def test_error_curve_of_non_local_in_blocks(name, monkeypatch):
    monkeypatch.setattr(non_local, "BLOCK_ELEMENTS", 30)  # a few queries at a time
    test_error_curve(name)


def test_every_public_function_has_a_case():
    assert {case.op for case in CASES.values()} == set(F.__all__) - set(NO_CASE)
    assert {case.op for case in NOT_FINITE.values()} <= set(F.__all__)


def test_what_is_on_a_kink_is_not_called_smooth():
    assert not [name for name in ON_A_KINK if CASES[name].smooth]


def test_gradient_of_to():
    x = minnl.Tensor(np.arange(3.0), requires_grad=True)
    y = x.to(dtype=np.float32)
    y.backward(np.array([1, 2, 3], np.float32))
    assert y.dtype == np.float32 and x.grad.dtype == np.float64
    np.testing.assert_array_equal(x.grad, [1, 2, 3])
    assert x.to(dtype=np.float64) is x


def both_ways(case, dtype):
    """Output and gradients by the textbook bodies and by the fast ones, and the ops for which a kernel was picked."""
    picked, runs = set(), []
    original = dispatch.kernel_of

    def pick(op, arrays, *device):
        kernel = original(op, arrays, *device)
        picked.update([op.name] if kernel else [])
        return kernel

    arrays = [a.astype(dtype) for a in case.inputs(np.random.default_rng(0))]
    for mode in dispatch.MODES:
        with minnl.use_kernels(mode), pytest.MonkeyPatch.context() as patch, np.errstate(all="ignore"):
            patch.setattr(dispatch, "kernel_of", pick)
            leaves = [minnl.Tensor(a, requires_grad=True) for a in arrays]
            y = case.fn(*leaves)
            y.backward(np.random.default_rng(1).normal(size=y.shape).astype(dtype))
        runs.append([y.data, *(x.grad for x in leaves)])
    return runs, picked


def disagreements(dtype, tolerance):
    """Cases for which some kernel was picked, and those of them where fast and textbook differ."""
    ran, wrong = set(), set()
    for name, case in {**CASES, **NOT_FINITE}.items():
        (textbook, fast), picked = both_ways(case, dtype)
        if picked:
            ran.add(name)
        output = np.abs(textbook[0][np.isfinite(textbook[0])]).max(initial=0)
        for a, b in zip(textbook, fast, strict=True):
            scale = max(np.abs(a[np.isfinite(a)]).max(initial=0), output)  # a gradient of 0 may hold rounding only
            if a.dtype != b.dtype or not np.allclose(a, b, rtol=0, atol=tolerance * scale, equal_nan=True):
                wrong.add(name)
    return ran, wrong


def test_kernels_give_the_numbers_of_the_textbook():
    ran64, wrong64 = disagreements("float64", 1e-10)
    ran32, wrong32 = disagreements("float32", 1e-4)
    assert not wrong64 | wrong32
    assert ran64 | ran32, "no case is one for a fast kernel"


def test_a_wrong_kernel_is_noticed(monkeypatch):
    class NearlyExp(pointwise.Exp):
        suits = staticmethod(lambda op, arrays: True)

        def backward(self, gy):
            return (gy * self.y * 1.001,)

    monkeypatch.setattr(dispatch, "_kernels", dispatch._kernels | {(pointwise.Exp, "cpu"): NearlyExp})
    _, wrong = disagreements("float64", 1e-10)
    assert wrong == {"exp/plain", "exp/zero-axes"}
