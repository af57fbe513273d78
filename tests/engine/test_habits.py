"""Habits that people bring from Python, NumPy and PyTorch, on tensors, ops and functions: a row is a habit, and what
minnl does. That is a result, whose value stands beside it, or an error that says what to write; never nothing.

In the rows t is [[1, 2, 3], [4, 5, 6]], s a single number 2.5, p a parameter [1, 2] with the gradient [10, 20], h
was computed from it, a is an array, clip is channels-first.
"""

import copy
import math
import pickle

import numpy as np
import pytest

import minnl
from minnl import Tensor, backend, nn, no_grad
from minnl import functional as F
from tests import strict_cupy

F32 = np.float32
A = np.array([[1, 2, 3], [4, 5, 6]], F32)


class Other:
    """Another library's array."""

    def __init__(self, array):
        self.array, self.dtype = array, array.dtype

    def __array__(self, dtype=None, copy=None):
        return self.array


def names():
    """A fresh namespace for a row."""
    p = Tensor(np.array([1, 2], F32), requires_grad=True)
    p.grad = np.array([10, 20], F32)
    return {
        "t": Tensor(A.copy()), "s": Tensor(np.array(2.5, F32)), "p": p, "h": p * 3, "a": np.ones((2, 3), F32),
        "clip": Tensor(np.zeros((2, 3, 4, 8, 8), F32)), "np": np, "F": F, "nn": nn, "Tensor": Tensor, "math": math,
        "minnl": minnl, "copy": copy, "pickle": pickle, "no_grad": no_grad, "Other": Other,
    }  # fmt: skip


def true(*rows):
    return np.array(rows, bool)


GIVES = [
    # NumPy's functions see the array
    ("np.asarray(t)", A),
    ("np.asarray(t, dtype=np.float64)", A.astype(np.float64)),
    ("np.array([s, s])", np.array([2.5, 2.5], F32)),
    ("np.mean(t)", F32(3.5)),
    ("np.sum(t, axis=0)", np.array([5, 7, 9], F32)),
    ("np.stack([t, t])", np.stack([A, A])),
    ("np.concatenate((t, a))", np.concatenate([A, np.ones((2, 3), F32)])),
    ("np.where(t > 2, t, 0)", np.array([[0, 0, 3], [4, 5, 6]], F32)),
    ("np.allclose(t, t.numpy())", True),
    ("np.argmax(t)", np.int64(5)),
    ("np.shape(p)", (2,)),
    ("np.zeros_like(p)", np.zeros(2, F32)),
    ("np.linalg.norm(s)", F32(2.5)),
    # numbers
    ("float(s)", 2.5),
    ("float(p[0])", 1.0),
    ("int(s)", 2),
    ("bool(s)", True),
    ("bool(Tensor([0.0]))", False),
    ("not Tensor(0.0)", True),
    ("round(s * 1.11, 1)", 2.8),
    ("math.sqrt(s * 10)", 5.0),
    ("f'{s:.3f}'", "2.500"),
    ("'%.1f' % s", "2.5"),
    ("f'{s}'", "Tensor(2.5, shape=(), dtype=float32, device=cpu)"),
    ("t.tolist()", [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]),
    # rows
    ("[x.tolist() for x in t]", [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]),
    ("[*map(float, p)]", [1.0, 2.0]),
    ("sum(t)", Tensor(np.array([5, 7, 9], F32))),
    ("max(p[0], p[1])", Tensor(np.array(2, F32))),
    # comparisons
    ("t > 2", true([0, 0, 1], [1, 1, 1])),
    ("t == 5", true([0, 0, 0], [0, 1, 0])),
    ("t != t", true([0, 0, 0], [0, 0, 0])),
    ("t <= np.array([1, 9, 0])", true([1, 1, 0], [0, 1, 0])),
    ("np.array([1, 9, 0]) >= t", true([1, 1, 0], [0, 1, 0])),
    ("a == t", true([1, 0, 0], [0, 0, 0])),
    ("2 < t", true([0, 0, 1], [1, 1, 1])),
    ("s == np.float64(2.5)", np.array(True)),
    ("(h == 6).any()", True),
    ("t == None", False),
    ("t != 'x'", True),
    ("{p: 1, h: 2}[h]", 2),
    ("p in {p}", True),
    ("F.where(t > 2, t, 0.0)", Tensor(np.array([[0, 0, 3], [4, 5, 6]], F32))),
    # arithmetic with what is no tensor
    ("np.float32(2) * t", Tensor(2 * A)),
    ("np.float64(2) * t", Tensor(2 * A)),
    ("a + t", Tensor(A + 1)),
    ("t @ np.ones((3, 1), np.float32)", Tensor(np.array([[6], [15]], F32))),
    ("np.ones((1, 2), np.float32) @ t", Tensor(np.array([[5, 7, 9]], F32))),
    # shapes, axes
    ("t.T", Tensor(A.T)),
    ("t.T.T == t", true([1, 1, 1], [1, 1, 1])),
    ("t.reshape(3, 2)", Tensor(A.reshape(3, 2))),
    ("t.reshape((3, -1))", Tensor(A.reshape(3, 2))),
    ("t.flatten()", Tensor(A.ravel())),
    ("clip.flatten(1).shape", (2, 3 * 4 * 8 * 8)),
    ("clip.flatten(-2).shape", (2, 3, 4, 64)),
    ("s.flatten().shape", (1,)),
    ("t[None].squeeze().shape", (2, 3)),
    ("t[None, :, None].squeeze(0).shape", (2, 1, 3)),
    ("t[..., None].squeeze(-1).shape", (2, 3)),
    ("t.transpose(1, 0)", Tensor(A.T)),
    ("t.transpose()", Tensor(A.T)),
    ("t.sum(-1)", Tensor(np.array([6, 15], F32))),
    ("clip.mean((1, 2)).shape", (2, 8, 8)),
    ("t.sum(0, True).shape", (1, 3)),
    ("t.size", 6),
    ("t.argmax()", np.array(5)),
    ("t.argmax(0)", np.array([1, 1, 1])),
    ("t.argmin(-1)", np.array([0, 0])),
    ("Tensor([2.0, 7.0, 7.0]).argmax()", np.array(1)),
    ("t.std()", Tensor(np.array(3.5**0.5, F32))),
    ("t.std(1, correction=0)", Tensor(np.array([(2 / 3) ** 0.5] * 2, F32))),
    ("t.abs().exp().log()", Tensor(A)),
    ("t.split(np.int64(3), 1)[2]", Tensor(A[:, 2:])),
    # indices
    ("t[t > 2]", Tensor(np.array([3, 4, 5, 6], F32))),
    ("t[[True, False]]", Tensor(A[:1])),
    ("t[:, np.array([True, False, True])]", Tensor(A[:, [0, 2]])),
    ("t[t > 9]", Tensor(np.zeros(0, F32))),
    ("t[np.array([False, True]), 1:]", Tensor(A[1:, 1:])),
    # what a tensor is made of
    ("Tensor([1, 2])", Tensor(np.array([1, 2], F32))),
    ("Tensor([t, t])", Tensor(np.stack([A, A]))),
    ("Tensor(Other(np.array([1.0, 2.0])))", Tensor(np.array([1.0, 2.0]))),
    ("Tensor(np.arange(2), dtype=np.float64)", Tensor(np.array([0.0, 1.0]))),
    ("Tensor(True)", Tensor(np.array(1, F32))),
    # copies
    ("copy.deepcopy(p).grad", np.array([10, 20], F32)),
    ("pickle.loads(pickle.dumps(p)).requires_grad", True),
    ("pickle.loads(pickle.dumps(h.detach()))", Tensor(np.array([3, 6], F32))),
    ("copy.copy(t) is t", False),
]


@pytest.mark.parametrize(("habit", "value"), GIVES, ids=[habit for habit, _ in GIVES])
def test_a_habit_gives(habit, value):
    result = eval(habit, names())
    kinds = {Tensor: Tensor, np.ndarray: np.ndarray, bool: (bool, np.bool_)}
    assert isinstance(result, kinds.get(type(value), type(value)))
    if isinstance(value, (Tensor, np.ndarray)):
        assert (result.shape, result.dtype) == (value.shape, value.dtype)
        if isinstance(value, Tensor):
            result, value = result.data, value.data
        np.testing.assert_allclose(result, value, rtol=1e-6)
    else:
        assert result == value


REFUSED = [
    # NumPy would lose the graph
    ("np.asarray(p)", TypeError, r"cannot see the graph .* write t\.numpy\(\) .*F\.stack"),
    ("np.mean(h)", TypeError, r"write t\.numpy\(\)"),
    ("np.stack([t, h])", TypeError, r"write t\.numpy\(\)"),
    ("np.allclose(h, 3)", TypeError, r"write t\.numpy\(\)"),
    ("np.where(a[:, :2] > 0, h, 0)", TypeError, r"write t\.numpy\(\)"),
    ("Tensor([h, h])", TypeError, r"write t\.numpy\(\) .*F\.stack"),
    ("a.__setitem__(0, h[0])", TypeError, r"write t\.numpy\(\)"),
    ("np.exp(t)", TypeError, "operand 'Tensor' does not support ufuncs"),
    ("np.maximum(t, 0)", TypeError, "operand 'Tensor' does not support ufuncs"),
    ("a += t", TypeError, "operand 'Tensor' does not support ufuncs"),
    # not one number, no rows
    ("float(t)", ValueError, r"item: the tensor has 6 elements \(shape \(2, 3\)\), not one"),
    ("f'{t:.3f}'", ValueError, "item: the tensor has 6 elements"),
    ("bool(t)", ValueError, r"bool: .* shape \(2, 3\) is neither true nor false; write \(t != 0\)\.any\(\)"),
    ("bool(t[:0])", ValueError, "bool: .* neither true nor false"),
    ("t and s", ValueError, "bool: "),
    ("list(Tensor(3.0))", TypeError, r"iteration over a tensor without axes; write t\.item\(\)"),
    ("[].extend(s)", TypeError, "iteration over a tensor without axes"),
    ("len(s)", TypeError, "without axes"),
    ("range(s)", TypeError, "'Tensor' object cannot be interpreted as an integer"),
    # comparisons
    ("t == [1, 2, 3]", TypeError, r"==: the other operand must be a Tensor, .* got \[1, 2, 3\]"),
    ("t > np.ones(2)", ValueError, r">: shapes \(2, 3\), \(2,\) do not broadcast"),
    ("t < None", TypeError, "'<' not supported between"),
    ("0 < t < 3", ValueError, "ambiguous"),
    ("[s, t].index(t[0])", ValueError, "ambiguous"),
    # in place, where a graph is recorded, or was
    ("p -= 0.1 * p.grad", RuntimeError, r"-=: no graph can follow .* write t = t \+ u .* `with no_grad\(\):`"),
    ("s += t", ValueError, r"\+=: the result has shape \(2, 3\), the tensor has \(\)"),
    ("t[0] = 1", RuntimeError, r"t\[\.\.\.\] =: no graph can follow .*F\.where"),
    ("with no_grad(): h += 1", RuntimeError, r"\+=: mul computed the tensor, .* Tensor\(t\.data\.copy\(\)\)"),
    ("with no_grad(): h[0] = 1", RuntimeError, r"t\[\.\.\.\] =: mul computed the tensor"),
    ("with no_grad(): p += t", ValueError, r"shapes \(2,\), \(2, 3\) do not broadcast"),
    ("with no_grad(): p += p.reshape(2, 1)", ValueError, r"\+=: the result has shape \(2, 2\), the tensor has \(2,\)"),
    ("with no_grad(): p += np.ones(2)", TypeError, r"add: inputs of different dtypes"),
    ("with no_grad(): p[0] = np.ones(1)", TypeError, r"t\[\.\.\.\] =: the value is float64, the tensor is float32"),
    ("with no_grad(): p[0] = [1.0]", TypeError, r"t\[\.\.\.\] =: expected a Tensor, an array or a number, got list"),
    ("with no_grad(): p[5] = 1", IndexError, "index 5 is out of bounds"),
    ("with no_grad(): s.broadcast_to(3)[0] = 1", ValueError, "the tensor's array is read-only"),
    # grad and data
    ("p.grad = np.ones(3, np.float32)", ValueError, r"grad: shape \(3,\), float32 .* tensor has \(2,\), float32"),
    ("p.grad = np.ones(2)", ValueError, r"grad: shape \(2,\), float64 on cpu given; the tensor has \(2,\), float32"),
    ("p.grad = Tensor([1.0])", ValueError, r"grad: shape \(1,\), float32"),
    ("p.grad = 0", TypeError, "grad: an array, a Tensor or None expected, got int"),
    ("p.grad = [1.0, 2.0]", TypeError, "grad: an array, a Tensor or None expected, got list"),
    ("p.data = h", TypeError, "data: an array of float32 or float64 expected, got Tensor"),
    ("p.data = 3.0", TypeError, r"data: .* got float; to fill it write t\.data\[\.\.\.\] = v"),
    ("p.data = np.ones(3, np.float32)", ValueError, r"data: shape \(3,\), .* gradient of \(2,\), float32"),
    ("p.data = p.data.astype(np.float64)", ValueError, r"data: .* float64 given; .*write t\.grad = None first"),
    ("p.data = np.arange(2)", TypeError, "data: an array of float32 or float64 expected, got an array of int64"),
    # what a tensor is made of
    ("Tensor(None)", TypeError, r"Tensor: data is a NoneType and holds object, real numbers expected"),
    ("Tensor([1.0, None])", TypeError, r"Tensor: data is a list and holds object"),
    ("Tensor('3')", TypeError, r"Tensor: data is a str and holds <U1"),
    ("Tensor(['3'])", TypeError, "Tensor: data is a .* and holds <U1"),
    ("Tensor(1j)", TypeError, "Tensor: data is a .* and holds complex128"),
    ("Tensor([1.0, 2j])", TypeError, "Tensor: data is a .* and holds complex128"),
    ("Tensor(np.array([1j]), dtype=np.float32)", TypeError, "Tensor: data is a .* and holds complex128"),
    ("Tensor(np.array([None]), dtype=np.float32)", TypeError, "Tensor: data is a .* and holds object"),
    ("Tensor(np.array(['3']), dtype=np.float32)", TypeError, "Tensor: data is a .* and holds <U1"),
    ("Tensor([[1.0], [2.0, 3.0]])", ValueError, "Tensor: data is a list that makes no array: .*inhomogeneous"),
    ("Tensor(Other(np.arange(3)))", TypeError, "Tensor: data has dtype int64, float32 or float64 expected"),
    ("Tensor({1: 2})", TypeError, r"Tensor: data is a dict and holds object"),
    ("Tensor(np.ones((1, 1)).view(np.matrix))", TypeError, r"Tensor: data is a matrix, .*write np\.asarray"),
    ("Tensor(np.ma.array([1.0], mask=[1]))", TypeError, r"Tensor: data is a MaskedArray, .*data\.filled"),
    ("Tensor(2, 3)", TypeError, r"requires_grad must be True or False, got 3; .*np\.zeros"),
    ("Tensor([1], dtype=int)", TypeError, "Tensor: dtype must be float32 or float64, got int64"),
    # a graph is not copied
    ("copy.deepcopy(h)", TypeError, r"copy: mul computed the tensor, .* copy or save t\.detach\(\)"),
    ("copy.copy(h)", TypeError, "copy: mul computed the tensor"),
    ("pickle.dumps([h])", TypeError, "copy: mul computed the tensor"),
    # other names of arguments
    ("t.sum(dim=0)", TypeError, "sum: there is no argument 'dim' here; write axis="),
    ("F.softmax(t, dim=1)", TypeError, "softmax: there is no argument 'dim' here; write axis="),
    ("F.concatenate([t], dim=0)", TypeError, "concatenate: there is no argument 'dim'"),
    ("t.mean(0, keepdim=True)", TypeError, "mean: there is no argument 'keepdim' here; write keepdims="),
    ("F.relu(t, inplace=True)", TypeError, "relu: there is no argument 'inplace' here; leave it out"),
    ("t.clip(min=0)", TypeError, "clip: there is no argument 'min' here; write low="),
    ("t.var(0, ddof=0)", TypeError, "var: there is no argument 'ddof' here; write correction="),
    ("t.std(0, unbiased=False)", TypeError, "unexpected keyword argument 'unbiased'"),
    ("t.sum(0, 1)", TypeError, r"sum: keepdims must be True or False, got 1; several axes are a tuple"),
    ("t.mean(1, 2)", TypeError, "mean: keepdims must be True or False, got 2"),
    ("t.transpose(0, 1)", ValueError, r"transpose: \(0, 1\) leaves a matrix as it is \(PyTorch swaps .* write x\.T"),
    ("clip.transpose(1, 2)", ValueError, "is not an order of the 5 axes"),
    ("t.squeeze(0)", ValueError, r"squeeze: axis 0 of shape \(2, 3\) has size 2, not 1"),
    ("t.argmax(5)", ValueError, "argmax: axis 5 is out of range"),
    ("t[:0].argmax()", ValueError, r"argmax: no elements along axis None of shape \(0, 3\)"),
    ("t.to('cuda')", ValueError, r'expected "cpu", "gpu" or "gpu:N", got \'cuda\''),
    ("t.to(np.float64)", TypeError, r"to: the first argument is a device, .* write to\(dtype=\.\.\.\)"),
    ("t.to('float64')", TypeError, r"write to\(dtype=\.\.\.\)"),
    ("t.size()", TypeError, r"size: .* not a method; write t\.shape"),
    ("t.reshape(2.0, 3)", TypeError, "reshape: shape must be ints"),
    ("F.conv3d(clip, Tensor(np.zeros((1, 1, 1, 8, 4), np.float32)), stride=2.0)", TypeError, "stride must be an int"),
    # indices
    ("t[0.0]", TypeError, "index: cannot index with float 0.0"),
    ("t[t]", TypeError, r"index: cannot index with a Tensor, .* write \.numpy\(\)\.astype\(int\)"),
    ("t[np.array([True, False, True])]", IndexError, r"boolean index did not match .*x has shape \(2, 3\)"),
    # other names of methods
    ("t.permute(1, 0)", AttributeError, r"Tensor has no 'permute'; write t\.transpose"),
    ("t.view(-1)", AttributeError, r"Tensor has no 'view'; write t\.reshape\(shape\)"),
    ("t.astype(float)", AttributeError, r"'astype'; write t\.to\(dtype=np\.float64\)"),
    ("t.clone()", AttributeError, r"'clone'; write Tensor\(t\.data\.copy\(\)\) for a leaf, t \* 1"),
    ("t.dim()", AttributeError, r"'dim'; write t\.ndim"),
    ("t.unsqueeze(0)", AttributeError, r"'unsqueeze'; write t\[None\]"),
    ("t.cuda()", AttributeError, r"'cuda'; write t\.to\(\"gpu\"\)"),
    ("t.cpu()", AttributeError, r"'cpu'; write t\.to\(\"cpu\"\)"),
    ("p.add_(1)", AttributeError, r"'add_'; write t \+= u, inside .*no_grad"),
    ("p.zero_()", AttributeError, r"'zero_'; write t\[\.\.\.\] = value, inside `with no_grad\(\):`"),
    ("t.nonsense", AttributeError, "'Tensor' object has no attribute 'nonsense'"),
    ("t.require_grad = True", AttributeError, "require_grad"),
    # channels first
    ("F.conv3d(clip, Tensor(np.zeros((1, 1, 1, 3, 4), np.float32)))", ValueError,
     r"conv3d: weight has 3 input .* x has 8; x of shape \(2, 3, 4, 8, 8\) is read as \(N, T, H, W, C\), "
     r"if its channels come first write x\.transpose\(0, 2, 3, 4, 1\)"),
    ("F.conv3d(clip, Tensor(np.zeros((1, 1, 1, 1, 3), np.float32)), groups=3)", ValueError,
     r"groups=3 must divide the 8 channels of x .* write x\.transpose\(0, 2, 3, 4, 1\)"),
    ("nn.Conv3d(3, 4, 1)(clip)", ValueError, r"write x\.transpose\(0, 2, 3, 4, 1\)"),
    ("nn.Conv3d(5, 4, 1)(clip)", ValueError, r"is read as \(N, T, H, W, C\)$"),
    ("nn.BatchNorm3d(3)(clip)", ValueError, r"batch_norm: .* write x\.transpose\(0, 2, 3, 4, 1\)"),
    ("nn.BatchNorm3d(3).eval()(clip)", ValueError, r"batch_norm: .* write x\.transpose\(0, 2, 3, 4, 1\)"),
    ("F.linear(clip, Tensor(np.zeros((3, 4), np.float32)))", ValueError, r"write x\.transpose\(0, 2, 3, 4, 1\)"),
    ("F.non_local(clip, clip[..., :4], clip[..., :4])", ValueError, r"read as \(N, T, H, W, C\)"),
    ("F.non_local(clip, clip, clip[:, :, :, :4])", ValueError, r"as \(N, T, H, W\); channels come last"),
    *[(f"nn.NonLocalBlock(3, mode={mode!r})(clip)", ValueError,
       r"NonLocalBlock: made for 3 channels, x has 8; .* write x\.transpose\(0, 2, 3, 4, 1\)")
      for mode in ("gaussian", "embedded", "dot", "concat")],
]  # fmt: skip


@pytest.mark.parametrize(("habit", "error", "message"), REFUSED, ids=[row[0] for row in REFUSED])
def test_a_habit_is_refused_and_nothing_has_changed(habit, error, message):
    here = names()
    with pytest.raises(error, match=message):
        exec(habit, here)
    np.testing.assert_array_equal(here["t"].data, A)
    np.testing.assert_array_equal(here["p"].data, [1, 2])
    np.testing.assert_array_equal(here["p"].grad, [10, 20])
    np.testing.assert_array_equal(here["h"].data, [3, 6])
    np.testing.assert_array_equal(here["a"], np.ones((2, 3)))


def test_losses_are_summed_up_with_their_graphs():
    p, other = (Tensor(np.array(v, F32), requires_grad=True) for v in ([1, 2], [3, 4]))
    loss = 0
    for factor in (1, 2, 3):
        loss += F.sum(factor * p * other)
    total = before = Tensor(0.0)
    total += loss
    assert before.item() == 0 and total.item() == 66
    total.backward()
    np.testing.assert_array_equal(p.grad, [18, 24])
    np.testing.assert_array_equal(other.grad, [6, 12])


# What an edit in place does, within no_grad.


@pytest.mark.parametrize(
    ("edit", "value"),
    [
        ("p -= 0.1 * p.grad", [0, 0]),
        ("p += 1", [2, 3]),
        ("p *= np.array([2, 4], np.float32)", [2, 8]),
        ("p /= 2", [0.5, 1]),
        ("p **= 3", [1, 8]),
        ("p += s", [3.5, 4.5]),
        ("p[0] = 7", [7, 2]),
        ("p[...] = 0", [0, 0]),
        ("p[p > 1] = -1", [1, -1]),
        ("p[np.array([1, 0])] = np.array([5, 6], np.float32)", [6, 5]),
        ("p[0] += 4", [5, 2]),
        ("p[:] = p + p", [2, 4]),
    ],
)
def test_in_place_edits_the_array_that_the_tensor_holds(edit, value):
    here = names()
    p, array = here["p"], here["p"].data
    with no_grad():
        exec(edit, here)
    assert here["p"] is p and p.data is array and p.requires_grad and p.is_leaf
    np.testing.assert_allclose(array, value, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(p.grad, [10, 20])


def test_a_matrix_times_a_matrix_in_place():
    p = Tensor(np.array([[1, 2], [3, 4]], F32), requires_grad=True)
    array = p.data
    with no_grad():
        p @= Tensor(np.array([[0, 1], [1, 0]], F32))
    assert p.data is array
    np.testing.assert_array_equal(array, [[2, 1], [4, 3]])


def test_a_hand_written_step_trains_the_parameter_of_a_module():
    layer = nn.Linear(2, 1, bias=False)
    layer.weight.data[...] = 1
    F.sum(layer(Tensor(np.array([[1, 3]], F32)))).backward()
    with no_grad():
        for p in layer.parameters():
            p -= 0.5 * p.grad
    np.testing.assert_array_equal(layer.weight.data[:, 0], [0.5, -0.5])


# Gradients of what is new, and what keeps the graph.


def test_a_mask_sends_gradients_back_to_where_it_is_true():
    x = Tensor(np.array([[1.0, -2.0], [3.0, -4.0]]), requires_grad=True)
    (x[x > 0] * Tensor(np.array([10.0, 20.0]))).sum().backward()
    np.testing.assert_array_equal(x.grad, [[10, 0], [20, 0]])


def test_std_has_the_gradient_of_the_root_and_none_where_nothing_varies():
    x = Tensor(np.array([[1.0, 2.0, 6.0], [5.0, 5.0, 5.0]]), requires_grad=True)
    x.std(1).sum().backward()
    deviation = np.array([-2.0, -1.0, 3.0])
    np.testing.assert_allclose(x.grad, [deviation / (2 * 7**0.5), [0, 0, 0]], rtol=1e-12)
    assert minnl.gradcheck(lambda x: x.std(0, correction=0), [np.random.default_rng(0).normal(size=(4, 3))])


@pytest.mark.parametrize("shape", ["x.flatten()", "x.flatten(1)", "x[None].squeeze()", "sum(x)", "F.stack([*x])"])
def test_shapes_and_rows_keep_the_graph(shape):
    x = Tensor(np.ones((2, 3, 1)), requires_grad=True)
    F.sum(eval(shape, {"x": x, "F": F}) * 5.0).backward()
    np.testing.assert_array_equal(x.grad, np.full((2, 3, 1), 5))


# One array, not an array of tensors.


def test_numpy_gets_the_array_itself_and_looks_at_no_element(monkeypatch):
    monkeypatch.setattr(Tensor, "__getitem__", None)
    t = Tensor(np.ones(100_000, F32))
    assert np.shares_memory(np.asarray(t), t.data)
    assert not np.shares_memory(np.array(t), t.data)
    assert np.vstack([t, t]).shape == (2, 100_000)


def test_a_picture_of_a_tensor():
    figure = pytest.importorskip("matplotlib.figure").Figure()
    axes = figure.subplots()
    np.testing.assert_array_equal(axes.imshow(Tensor(A)).get_array(), A)
    np.testing.assert_array_equal(axes.plot(Tensor(A)[0])[0].get_ydata(), A[0])


def test_on_a_gpu_numpy_is_told_to_ask():
    with strict_cupy.installed():
        t = Tensor(A, device="gpu")
        for look in (np.asarray, np.mean, lambda t: np.stack([t, t])):
            with pytest.raises(TypeError, match=r"the tensor is on gpu:0; write t\.numpy\(\)"):
                look(t)
        masked = t[t > 2]
        assert backend.is_gpu_array(t == 3) and backend.is_gpu_array(masked.data)
        np.testing.assert_array_equal(masked.numpy(), [3, 4, 5, 6])
        assert (float(t.sum()), f"{t.sum():.0f}", t.tolist()[1]) == (21.0, "21", [4, 5, 6])
        np.testing.assert_array_equal(backend.to_host(t.argmax(0)), [1, 1, 1])
        array = t.data
        with no_grad():
            t += 1
            t[0] = 0
        assert t.data is array
        np.testing.assert_array_equal(t.numpy(), [[0, 0, 0], [5, 6, 7]])
        with pytest.raises(ValueError, match=r"grad: shape \(2, 3\), float32 on cpu given; .* on gpu:0"):
            t.grad = A
        with pytest.raises(TypeError, match="different devices"):
            t == A  # noqa: B015


# grad and data take what fits.


def test_grad_and_data_take_arrays_tensors_and_scalars_that_fit():
    p = Tensor(np.array([1, 2], F32), requires_grad=True)
    given = Tensor(np.array([5, 6], F32))
    p.grad = given
    assert p.grad is given.data
    p.grad = None
    assert p.grad is None
    p.data = np.zeros((4, 1))  # another shape and dtype: there is no gradient that it would have to fit
    assert (p.shape, p.dtype) == ((4, 1), np.float64)
    s = Tensor(np.array(2.0), requires_grad=True)
    s.grad = np.float64(3)  # what arithmetic with arrays without axes gives
    s.data = s.data - 0.5 * s.grad
    assert (type(s.data), s.item()) == (np.ndarray, 0.5)


# Copies are leaves of their own.


def test_a_copy_of_a_leaf_is_a_leaf_of_its_own():
    p = nn.Parameter(np.array([1, 2], F32), decay=False)
    p.grad = np.array([3, 4], F32)
    for twin in (copy.deepcopy(p), pickle.loads(pickle.dumps(p)), pickle.loads(pickle.dumps(p, protocol=0))):
        assert type(twin) is nn.Parameter and not twin.decay and twin.requires_grad and twin.is_leaf
        assert not np.shares_memory(twin.data, p.data)
        np.testing.assert_array_equal(twin.grad, [3, 4])
        (twin * 2).sum().backward()
        np.testing.assert_array_equal(twin.grad, [5, 6])
    np.testing.assert_array_equal(p.grad, [3, 4])


def test_a_copy_of_a_module_is_trained_and_the_first_is_not():
    layer = nn.Linear(2, 1)
    twin = copy.deepcopy(layer)
    F.sum(twin(Tensor(np.ones((1, 2), F32)))).backward()
    assert layer.weight.grad is None and twin.weight.grad is not None
