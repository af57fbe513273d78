"""The debug mode: the first NaN or infinity, forward and backward, by op and module; and edited arrays."""

import numpy as np
import pytest

import minnl
from minnl import Tensor, debugging, functional
from tests.cases import CASES


def leaf(*values):
    return Tensor(np.array(values), requires_grad=True)


class Part:
    """Enough of a module for debugging.inside: children by name in `_modules`."""

    def __init__(self, function=None, **children):
        self.function, self._modules = function, children

    def __call__(self, x):
        with debugging.inside(self):
            if self.function:
                return self.function(x)
            for child in self._modules.values():
                x = child(x)
            return x


def test_debug_names_op_shape_and_module_of_the_first_nan_forward():
    net = Part(stem=Part(lambda x: x - 2.0), res=Part(first=Part(functional.sqrt), last=Part(functional.relu)))
    with minnl.debug(), np.errstate(invalid="ignore"):
        message = r"sqrt in Part\.res\.first: forward: the output of shape \(2, 3\) is the first with NaN or infinity"
        with pytest.raises(FloatingPointError, match=message):
            net(Tensor(np.ones((2, 3))))
    assert debugging.path() == ""


def test_debug_tells_an_input_that_was_bad_already():
    x = Tensor(np.array([1.0, np.inf]))
    with minnl.debug(), pytest.raises(FloatingPointError, match=r"relu: forward: input 0 of shape \(2,\) has NaN"):
        functional.relu(x)


def test_debug_names_op_and_module_of_the_first_nan_backward():
    x = leaf(0.0, 1.0)
    net = Part(root=Part(functional.sqrt), tail=Part(lambda y: y * 3.0))
    with minnl.debug(), np.errstate(divide="ignore"):
        y = net(x).sum()
        message = r"sqrt in Part\.root: backward: the gradient of input 0, shape \(2,\), is the first"
        with pytest.raises(FloatingPointError, match=message):
            y.backward()
    assert x.grad is None


def test_debug_tells_a_bad_seed():
    x = leaf(0.0, 1.0)
    with (
        minnl.debug(),
        pytest.raises(FloatingPointError, match="mul: backward: the incoming gradient of shape .* has NaN"),
    ):
        (x * 2).backward(np.array([np.nan, 1.0]))


def test_debug_detects_an_edited_array():
    x, w = leaf(1.0, 2.0), leaf(3.0, 4.0)
    with minnl.debug():
        y = Part(body=Part(lambda t: t * w))(x)
        w.data += 1
        with pytest.raises(RuntimeError, match=r"mul in Part\.body: the array saved as `b` was edited between forward"):
            y.sum().backward()
    assert x.grad is None


@pytest.mark.parametrize("name", [n for n in CASES if not n.startswith(("to/", "attention"))])
def test_debug_changes_no_result_and_finds_nothing_where_nothing_is(name):
    def run():
        tensors = [Tensor(x, requires_grad=True) for x in CASES[name].inputs(np.random.default_rng(0))]
        y = CASES[name].fn(*tensors)
        y.backward(np.ones(y.shape, y.dtype))
        return [y.data, *(t.grad for t in tensors)]

    plain = run()
    with minnl.debug():
        watched = run()
    for a, b in zip(watched, plain, strict=True):
        np.testing.assert_array_equal(a, b)


def test_outside_of_debug_nothing_is_watched():
    x = leaf(-1.0, 2.0)
    with np.errstate(invalid="ignore"):
        functional.sqrt(x).sum().backward()
    assert np.isnan(x.grad[0])


def test_debug_ends_with_an_exception_and_nests():
    with pytest.raises(KeyError), minnl.debug():
        with minnl.debug():
            pass
        assert debugging.active()
        raise KeyError
    assert not debugging.active()
