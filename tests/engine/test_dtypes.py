"""Strict dtypes: nothing is converted unasked, and no float64 array appears in a float32 step."""

import numpy as np
import pytest

import minnl
from minnl import Op, Tensor
from tests.cases import CASES


@pytest.mark.parametrize("dtype", [np.int64, np.float16, np.bool_, np.complex128, np.uint8])
def test_other_dtypes_are_refused(dtype):
    with pytest.raises(TypeError, match=r"Tensor: data has dtype .*; say Tensor\(data, dtype=np.float32\)"):
        Tensor(np.zeros(3, dtype))
    assert Tensor(np.zeros(3, dtype).real, dtype=np.float32).dtype == np.float32


def test_lists_and_numbers_become_float32_and_arrays_keep_theirs():
    assert Tensor([1, 2]).dtype == Tensor(3.0).dtype == np.float32
    assert Tensor(np.float64(3)).dtype == np.float64
    assert Tensor([1, 2], dtype=np.float64).dtype == np.float64
    array = np.ones(3)
    assert Tensor(array).data is array


def test_mixed_dtypes_are_refused_by_name():
    a, b = Tensor(np.ones((2, 3))), Tensor(np.ones(3, np.float32))
    with pytest.raises(TypeError, match=r"add: inputs of different dtypes: \(2, 3\) float64, \(3,\) float32"):
        a + b
    with pytest.raises(TypeError, match="matmul: inputs of different dtypes"):
        a @ b.reshape(3, 1)


def test_numbers_are_weak_numpys_too():
    x = Tensor(np.ones(3, np.float32))
    for y in (x * 2.0, 2.0 * x, x / np.float64(3), np.float64(3) - x, x + np.int64(1), x ** np.float32(2)):
        assert type(y) is Tensor
        assert y.dtype == np.float32


def arrays_of(value, depth=3):
    """Every array that an op holds, in tuples and dicts too."""
    if isinstance(value, np.ndarray):
        return [value]
    if depth and isinstance(value, (tuple, list)):
        return [a for v in value for a in arrays_of(v, depth - 1)]
    if depth and isinstance(value, dict):
        return [a for v in value.values() for a in arrays_of(v, depth - 1)]
    return []


@pytest.fixture
def watched(monkeypatch):
    """All arrays that go through ops, forward and backward, and what ops hold in between: (op, stage, array)."""
    seen, call, gradients = [], Op.__call__, Op.gradients

    def watch(op, stage, *values):
        seen.extend((op.name, stage, a) for a in arrays_of(values))

    def watched_call(op, *inputs):
        y = call(op, *inputs)
        watch(op, "forward", [t.data for t in inputs], y.data, op.__dict__)
        return y

    def watched_gradients(op, gy):
        grads = gradients(op, gy)
        watch(op, "backward", gy, grads, op.__dict__)
        return grads

    monkeypatch.setattr(Op, "__call__", watched_call)
    monkeypatch.setattr(Op, "gradients", watched_gradients)
    return seen


@pytest.mark.parametrize("kernels", ["textbook", "fast"])
@pytest.mark.parametrize("name", [n for n in CASES if not n.startswith("to/")])
def test_no_float64_in_a_float32_step(name, kernels, watched):
    tensors = [Tensor(x.astype(np.float32), requires_grad=True) for x in CASES[name].inputs(np.random.default_rng(0))]
    with minnl.use_kernels(kernels):
        y = CASES[name].fn(*tensors)
        y.backward(np.ones(y.shape, np.float32))
    wide = [(op, stage, a.shape) for op, stage, a in watched if a.dtype == np.float64]
    assert wide == []
    assert {t.grad.dtype for t in tensors} <= {np.dtype(np.float32)}
