"""The float32 check: what it takes for right, what it finds, and that minnl's own kernels pass it."""

import numpy as np
import pytest

import minnl
from minnl import Tensor, dispatch, float32check
from minnl import functional as F
from minnl.dispatch import CpuKernel
from minnl.ops.softmax import LogSoftmax
from minnl.study import check
from minnl.study.float32 import PASS
from tests.engine.test_contracts import Square

RNG = np.random.default_rng(0)


def put_in(monkeypatch, op_class, kernel):
    monkeypatch.setattr(dispatch, "_kernels", dict(dispatch._kernels))
    dispatch.register(op_class, "cpu", kernel)


class OneTopForAll(CpuKernel, LogSoftmax):
    """Log-softmax as it was: a maximum for all rows, added to the logarithm before it is taken off."""

    @staticmethod
    def suits(op, arrays):
        return CpuKernel.suits(op, arrays) and arrays[0].size > 0

    def forward(self, x):
        top = x.max()
        self.y = x - (np.log(np.exp(x - top).sum(axis=-1, keepdims=True)) + top)
        return self.y


class SlightlyOff(CpuKernel, Square):
    def backward(self, gy):
        (gx,) = super().backward(gy)
        gx[1, 2] *= np.float32(1.01)
        return (gx,)


def test_a_kernel_that_loses_digits_is_found_where_it_does(monkeypatch):
    put_in(monkeypatch, LogSoftmax, OneTopForAll)
    near = float32check(F.log_softmax, [RNG.normal(size=(4, 5))])
    assert near and near.ran == ("OneTopForAll",)
    far = float32check(F.log_softmax, [1e5 + RNG.normal(size=(4, 5))])
    output, gradient = far.results
    assert not far and output.verdict == "FAIL" and output.error > PASS > 1e-6 > output.textbook
    assert output.name == "output" and gradient.name == "x"
    assert "FAIL" in str(far) and "OneTopForAll" in str(far)


def test_a_gradient_that_is_wrong_in_float32_only(monkeypatch):
    put_in(monkeypatch, Square, SlightlyOff)
    inputs = [RNG.uniform(0.9, 1, size=(3, 4))]
    assert minnl.gradcheck(lambda x: Square()(x), inputs)
    output, gradient = float32check(lambda x: Square()(x), inputs).results
    assert output.verdict == "pass" and gradient.verdict == "FAIL" and 5e-3 < gradient.error < 2e-2


def test_without_a_kernel_float32_itself_is_what_is_seen():
    result = float32check(lambda x: Square()(x), [RNG.normal(size=(3, 4))])
    assert result and result.ran == () and "kernels: none" in str(result)
    assert all(0 < c.error == c.textbook < 1e-6 for c in result.results)


def test_numbers_that_float32_has_not_are_rounded_before_both():
    assert float32check(F.sum, [np.full(3, 1 / 3)]).results[0].error < 1e-7


@pytest.mark.parametrize("mode", dispatch.MODES)
def test_kernels_run_in_either_mode_and_inputs_stay(mode):
    x = np.ones((2, 3, 4, 4, 2))
    before = x.copy()
    with minnl.use_kernels(mode):
        result = float32check(lambda x: F.max_pool3d(x, 2) * 1.0, [Tensor(x)])
        assert dispatch.mode() == mode
    assert result.ran == ("CpuMaxPool3d",)
    np.testing.assert_array_equal(x, before)


class Clipped(SlightlyOff):
    def forward(self, x):
        return np.minimum(super().forward(x), np.finfo(np.float32).max)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_what_float32_cannot_hold_must_be_infinite_there(monkeypatch):
    inputs = [np.full((2, 3), 1e30)]
    assert float32check(lambda x: Square()(x), inputs)
    put_in(monkeypatch, Square, Clipped)
    assert float32check(lambda x: Square()(x), inputs).results[0].error == np.inf


def test_a_gradient_of_0():
    gradient = float32check(lambda x: F.sum(F.softmax(x)) * 0.0, [RNG.normal(size=(3, 4))]).results[1]
    assert gradient.error == 0 and gradient.verdict == "pass"


@pytest.mark.parametrize(
    ("fn", "inputs", "message"),
    [
        (F.exp, np.ones(3), "inputs must be a list of one array or more, got ndarray"),
        (F.exp, [], "inputs must be a list of one array or more, got list"),
        (F.exp, [[1.0]], r"inputs\[0\] must be a float32 or float64 array or a Tensor, got list"),
        (F.exp, [np.arange(3)], r"inputs\[0\] must be a float32 or float64 array or a Tensor, got int64"),
        (lambda x: x.data, [np.ones(3)], "fn must return one Tensor, of float64 as its inputs, got ndarray"),
        (
            lambda x: x.to(dtype=np.float32),
            [np.ones(3)],
            "must return one Tensor, of float64 as its inputs, got float32",
        ),
    ],
)
def test_what_is_refused(fn, inputs, message):
    with pytest.raises(TypeError, match=message):
        float32check(fn, inputs)


def test_the_command_runs_all_cases(capsys):
    assert check.float32() == 0
    assert "cases in float32 beside float64 on cpu: all pass" in capsys.readouterr().out


def test_the_command_fails_with_a_wrong_kernel(capsys, monkeypatch):
    class Wrong(OneTopForAll):
        def backward(self, gy):
            return (gy,)

    put_in(monkeypatch, LogSoftmax, Wrong)
    assert check.float32(["log_softmax"]) == 1
    assert "failed" in capsys.readouterr().out
