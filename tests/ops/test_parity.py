"""Forward and backward against PyTorch, for every case of the table: 1e-10 in float64, 1e-4 in float32.

Errors are relative to the largest value of what is compared. The output is weighted at random for backward.
"""

import warnings

import numpy as np
import pytest

import minnl
from minnl import dispatch
from minnl import functional as F
from minnl.ops import non_local
from tests.cases import CASES, NOT_FINITE

torch = pytest.importorskip("torch")
torch_twins = pytest.importorskip("tests.torch_twins")

pytestmark = pytest.mark.torch

TOLERANCE = {"float64": 1e-10, "float32": 1e-4}
MODES = dispatch.MODES
COMPARED = {name: case for name, case in {**CASES, **NOT_FINITE}.items() if case.torch}


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def ours(case, arrays, weight=None):
    """Output and gradients of a case as arrays; the weight of the outputs is drawn if not given."""
    leaves = [minnl.Tensor(a, requires_grad=True) for a in arrays]
    with np.errstate(all="ignore"):
        y = case.fn(*leaves)
        weight = np.random.default_rng(1).normal(size=y.shape).astype(y.dtype) if weight is None else weight
        y.backward(weight)
    return y.data, [x.grad for x in leaves]


def theirs(case, arrays):
    leaves = [torch.tensor(a, requires_grad=True) for a in arrays]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns of results that are empty
        y = case.torch(*leaves)
    y.backward(torch.as_tensor(np.random.default_rng(1).normal(size=y.shape), dtype=y.dtype))
    return y.detach().numpy(), [x.grad.numpy() for x in leaves]


def compare(what, got, expected, tolerance, scale=0.0):
    """Same shape and dtype, NaN and infinity in the same places, and the rest within tolerance of the largest value.

    Where that is 0, as with the slope of a softmax over one element, `scale` takes its place.
    """
    assert got.shape == expected.shape and got.dtype == expected.dtype, f"{what}: {got.dtype} {got.shape}"
    finite = np.isfinite(expected)
    np.testing.assert_array_equal(got[~finite], expected[~finite], what)
    difference = np.abs(got[finite] - expected[finite]).max(initial=0)
    largest = np.abs(expected[finite]).max(initial=0) or scale
    assert difference <= tolerance * largest, f"{what}: off by {difference:.1e}, the largest value is {largest:.1e}"


def compare_all(case, dtype, mode="fast"):
    arrays = [a.astype(dtype) for a in case.inputs(np.random.default_rng(0))]
    with minnl.use_kernels(mode):
        y, grads = ours(case, arrays)
    expected, expected_grads = theirs(case, arrays)
    compare("output", y, expected, TOLERANCE[dtype])
    if case.name in torch_twins.NO_GRADIENT:
        return
    for i, (grad, expected_grad) in enumerate(zip(grads, expected_grads, strict=True)):
        scale = np.abs(expected).max(initial=0)
        compare(f"gradient of input {i}", grad, expected_grad, TOLERANCE[dtype], scale)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", COMPARED)
def test_as_in_pytorch(name, dtype, mode):
    compare_all(COMPARED[name], dtype, mode)


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith("non_local/")])
def test_non_local_in_blocks(name, monkeypatch):
    monkeypatch.setattr(non_local, "BLOCK_ELEMENTS", 30)  # a few queries at a time
    compare_all(CASES[name], "float64")


def test_every_case_has_a_twin():
    without = {name for name, case in {**CASES, **NOT_FINITE}.items() if case.torch is None}
    assert without == set(torch_twins.NO_TWIN)
    assert set(torch_twins.NO_GRADIENT) <= set(NOT_FINITE)
    named = {*torch_twins.OF_CASES, *torch_twins.AS_IT_STANDS}
    assert named <= set(CASES), f"twins without a case: {sorted(named - set(CASES))}"


@pytest.mark.parametrize("wrong", ["value", "gradient", "nan", "dtype"])
def test_the_comparison_can_fail(wrong):
    got, expected = np.ones((2, 3)), np.ones((2, 3))
    if wrong == "value":
        got[0, 1] += 2e-10
    elif wrong == "nan":
        expected[1, 2] = np.nan
    elif wrong == "dtype":
        got = got.astype(np.float32)
    else:
        got, expected = np.full((2, 3), 1e-15), np.zeros((2, 3))
    with pytest.raises(AssertionError):
        compare("anything", got, expected, TOLERANCE["float64"], scale=1e-6)


ATTENTION = {
    "embedded": {},
    "scaled": {"scale": 0.5, "mode": "gaussian"},
    "dot": {"mode": "dot"},
    "concat": {"mode": "concat"},
    "space": {"axes": "space"},
    "time": {"axes": "time", "mode": "dot"},
}


@pytest.mark.parametrize("name", ATTENTION)
def test_attention_gathers_what_the_operation_gives(name):
    """With g = one key's indicator the operation returns that key's weight: rows of the identity give them all."""
    arguments, rng = ATTENTION[name], np.random.default_rng(0)
    theta, phi = rng.normal(size=(2, 2, 2, 3, 4)), rng.normal(size=(2, 2, 2, 3, 4))
    weight = rng.normal(size=8) if name == "concat" else None
    positions = [(0, 1, 2), (1, 0, 0)]
    got = F.attention(theta, phi, positions, weight=weight, **arguments)
    each = torch.eye(12, dtype=torch.float64).reshape(1, 2, 2, 3, 12).expand(2, -1, -1, -1, -1)
    weight = None if weight is None else torch.tensor(weight)
    full = torch_twins.non_local(torch.tensor(theta), torch.tensor(phi), each, weight, **arguments)
    expected = torch.stack([full[:, t, h, w] for t, h, w in positions], 1).reshape(2, 2, 2, 2, 3).numpy()
    compare("attention", got, expected, 1e-10)
