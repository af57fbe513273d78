"""The engine: the sweep, no_grad, sum_to. Its dtypes, memory and debug mode have files of their own."""

import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import mutually_broadcastable_shapes

import minnl
from minnl import Op, Tensor, debugging, no_grad, sums


def leaf(*values, dtype=np.float64):
    return Tensor(np.array(values if len(values) > 1 else values[0], dtype=dtype), requires_grad=True)


class Noted(Op):
    """The identity, which writes its name into a list when its backward runs."""

    def __init__(self, name, notes):
        self.public_name, self.notes = name, notes

    def forward(self, *xs):
        return sum(xs[1:], xs[0]) * 1

    def backward(self, gy):
        self.notes.append((self.public_name, gy.copy()))
        return (gy * 1,) * len(self.needs)


# The sweep.


def test_an_op_waits_for_everything_that_used_its_output():
    """a feeds b and c, b feeds d, all feed the end: a's turn comes once, last, with the sum of all its uses."""
    notes = []
    x = leaf(1.0)
    a = Noted("a", notes)(x)
    b = Noted("b", notes)(a)
    c = Noted("c", notes)(a)
    d = Noted("d", notes)(b)
    Noted("end", notes)(a, d, c).backward()
    assert [name for name, _ in notes] == ["end", "d", "c", "b", "a"]
    assert notes[-1][1] == x.grad == 3


def test_every_op_runs_once_in_a_graph_with_exponentially_many_paths():
    notes = []
    x = y = leaf(1.0)
    for i in range(60):
        y = Noted(i, notes)(y, y)
    y.backward()
    assert [name for name, _ in notes] == list(range(60))[::-1]
    assert x.grad == 2.0**60


def test_shared_use_accumulates():
    x = leaf(3.0)
    (x * x + x * 2 + x).backward()
    assert x.grad == 2 * 3 + 2 + 1


def test_calls_accumulate_into_grad():
    x = leaf([1.0, 2.0])
    for n in (1, 2, 3):
        (x * x).sum().backward()
        np.testing.assert_array_equal(x.grad, n * 2 * x.data)
    x.zero_grad()
    assert x.grad is None


def test_a_chain_of_5000_ops():
    x = y = leaf(1.0)
    for _ in range(5000):
        y = y + 1.0
    y.backward()
    assert x.grad == 1


def test_a_leaf_is_its_own_graph():
    x = leaf([1.0, 2.0])
    x.backward(np.array([3.0, 4.0]))
    np.testing.assert_array_equal(x.grad, [3, 4])


def test_only_what_asked_gets_a_gradient():
    x, constant = leaf(2.0), Tensor(np.array(5.0))
    y = x * constant
    (y * y).backward()
    assert (x.grad, constant.grad, y.grad) == (100, None, None)
    assert not constant.requires_grad
    assert y.requires_grad


def test_an_op_is_told_which_inputs_want_a_gradient():
    needs = []

    class Asked(Op):
        def forward(self, a, b):
            needs.append(self.needs)
            return a + b

        def backward(self, gy):
            return (gy if self.needs[0] else None), (gy if self.needs[1] else None)

    x, constant = leaf([1.0, 1.0]), Tensor(np.ones(2))
    Asked()(x, constant).sum().backward()
    Asked()(constant, x).sum().backward()
    assert needs == [(True, False), (False, True)]
    np.testing.assert_array_equal(x.grad, [2, 2])


def test_retain_graph_and_the_second_sweep():
    x = leaf(3.0)
    y = x * x
    y.backward(retain_graph=True)
    y.backward()
    assert x.grad == 12
    with pytest.raises(RuntimeError, match="what mul kept is gone.*retain_graph=True"):
        y.backward()
    assert x.grad == 12


def test_a_second_sweep_over_a_shared_part():
    x = leaf(3.0)
    shared = x * x
    a, b = shared * 2, shared * 3
    a.backward()
    with pytest.raises(RuntimeError, match="what mul kept is gone"):
        b.backward()


def test_retain_grad():
    x = leaf([1.0, 2.0])
    y = x * 2
    y.retain_grad()
    z = y * y
    z.sum().backward()
    np.testing.assert_array_equal(y.grad, 2 * y.data)
    assert z.grad is None
    assert not np.shares_memory(x.grad, y.grad)
    with pytest.raises(ValueError, match="retain_grad: the tensor does not require a gradient"):
        x.detach().retain_grad()


def test_retain_grad_of_the_root():
    x = leaf([1.0, 2.0])
    y = x + 0.0
    y.retain_grad()
    seed = np.ones(2)
    y.backward(seed)
    arrays = [x.grad, y.grad, seed]
    assert not any(np.shares_memory(a, b) for i, a in enumerate(arrays) for b in arrays[:i])


def test_detach_shares_the_array_but_not_the_graph():
    x = leaf([1.0, 2.0])
    d = (x * 2).detach()
    assert d.is_leaf
    assert not d.requires_grad
    assert x.detach().data is x.data
    (x * d).sum().backward()
    np.testing.assert_array_equal(x.grad, 2 * x.data)


@pytest.mark.parametrize(
    ("root", "grad", "error", "message"),
    [
        (lambda x: x.detach(), None, ValueError, "backward: the tensor does not require a gradient"),
        (lambda x: x * 2, None, ValueError, r"backward: the tensor has shape \(2,\).*reduce to one element"),
        (lambda x: x * 2, np.ones(3), ValueError, r"backward: grad has shape \(3,\), the tensor has \(2,\)"),
        (lambda x: x * 2, np.ones(2, np.float32), TypeError, "backward: grad is float32, the tensor is float64"),
        (lambda x: x * 2, [1.0, 1.0], TypeError, "backward: grad must be an array, got list"),
        (lambda x: x * 2, 1.0, TypeError, "backward: grad must be an array, got float"),
    ],
)
def test_what_backward_refuses(root, grad, error, message):
    x = leaf([1.0, 2.0])
    with pytest.raises(error, match=message):
        root(x).backward(grad)
    assert x.grad is None


def test_one_element_of_any_shape_needs_no_seed():
    for shape in ((), (1,), (1, 1, 1)):
        x = Tensor(np.full(shape, 3.0), requires_grad=True)
        (x * x).backward()
        assert type(x.grad) is np.ndarray
        assert x.grad.shape == shape
        assert x.grad == 6


def test_a_gradient_is_an_array_even_without_axes():
    """NumPy's arithmetic makes a scalar of 0-d arrays."""
    x = leaf(2.0, dtype=np.float32)
    for _ in range(2):
        (x * 3.0 + x * x).backward()
        assert type(x.grad) is np.ndarray
        assert x.grad.dtype == np.float32
    assert x.grad == 14


def test_an_exception_within_the_sweep_leaves_every_grad_alone():
    class Breaks(Op):
        def forward(self, x):
            return x * 1

        def backward(self, gy):
            raise ZeroDivisionError("on purpose")

    a, b = leaf([1.0, 2.0]), leaf([3.0, 4.0])
    a.grad = before = np.array([7.0, 7.0])
    y = Breaks()(a) + b * 2  # b's share is complete before a's op breaks
    y.retain_grad()
    with pytest.raises(ZeroDivisionError, match="on purpose"):
        y.sum().backward()
    assert a.grad is before
    np.testing.assert_array_equal(before, [7, 7])
    assert b.grad is None
    assert y.grad is None


@pytest.mark.parametrize(
    "wrong",
    [lambda g: g[:1], lambda g: g[None], lambda g: g.astype(np.float32), lambda g: g.sum()],
    ids=["shape", "axes", "dtype", "summed"],
)
def test_a_wrong_gradient_is_refused_and_the_op_named(wrong):
    class Careless(Op):
        public_name = "careless"

        def forward(self, a, b):
            return a + b

        def backward(self, gy):
            return gy, wrong(gy)

    a, b = leaf([1.0, 2.0]), leaf([3.0, 4.0])
    with pytest.raises(
        RuntimeError, match=r"careless: backward made a gradient .* for input 1 of shape \(2,\) float64"
    ):
        Careless()(a, b).sum().backward()
    assert a.grad is None


def test_a_gradient_too_few_is_refused():
    class Forgetful(Op):
        def forward(self, a, b):
            return a + b

        def backward(self, gy):
            return (gy,)

    with pytest.raises(ValueError, match=r"Forgetful: backward returned 1 gradients for 2 inputs"):
        Forgetful()(leaf(1.0), leaf(2.0)).backward()


# no_grad, for this thread alone.


def test_no_grad_records_nothing():
    x = leaf(2.0)
    with no_grad():
        y = x * x
        with no_grad():
            pass
        z = y * 2
    assert not y.requires_grad
    assert not z.requires_grad
    assert y.op is None
    assert (x * x).requires_grad
    with pytest.raises(ValueError, match="made in no_grad"):
        y.backward()


def test_no_grad_ends_with_an_exception():
    x = leaf(2.0)
    with pytest.raises(KeyError), no_grad():
        raise KeyError
    assert (x * x).requires_grad


def test_no_grad_and_debug_are_of_one_thread():
    x, seen = leaf(2.0), {}

    def other():
        seen["recording"] = (x * x).requires_grad
        seen["debug"] = debugging.active()

    with no_grad(), minnl.debug():
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        assert debugging.active()
    assert seen == {"recording": True, "debug": False}


# sum_to, the one undoing of broadcasting.


def summed_by_loop(array, shape):
    """Every element added where it was broadcast from."""
    total = np.zeros(shape)
    for index in np.ndindex(array.shape):
        own = index[len(index) - len(shape) :]
        total[tuple(0 if n == 1 else i for i, n in zip(own, shape, strict=True))] += array[index]
    return total


@given(mutually_broadcastable_shapes(num_shapes=2, max_dims=4, max_side=3), st.integers(0, 2**32 - 1))
def test_sum_to_is_the_transpose_of_broadcasting(shapes, seed):
    shape, full = shapes.input_shapes[0], shapes.result_shape
    array = np.random.default_rng(seed).normal(size=full)
    got = sums.sum_to(array, shape)
    assert got.shape == shape
    np.testing.assert_allclose(got, summed_by_loop(array, shape), rtol=1e-12, atol=1e-12)


@given(mutually_broadcastable_shapes(num_shapes=2, max_dims=4, max_side=3))
def test_gradients_come_back_in_the_shapes_of_the_inputs(shapes):
    a, b = (Tensor(np.ones(s), requires_grad=True) for s in shapes.input_shapes)
    y = a * b
    y.backward(np.ones(y.shape))
    for x in (a, b):
        assert x.grad.shape == x.shape
        assert x.grad.sum() == y.size


def test_sum_to_of_the_same_shape_is_the_array_itself():
    x = np.ones((2, 3))
    assert sums.sum_to(x, (2, 3)) is x
