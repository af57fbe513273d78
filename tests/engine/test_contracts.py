"""What the engine asks of an op: one call an object, an array from forward, what it keeps, a gradient for each input;
and that kernels belong to the class, not to its name."""

import threading

import numpy as np
import pytest

import minnl
from minnl import Op, Tensor, dispatch, gradcheck, no_grad, optim
from minnl import functional as F
from minnl.ops import conv, linear, pointwise


def leaf(*values, dtype=np.float64):
    return Tensor(np.array(values, dtype), requires_grad=True)


class Square(Op):
    saved_for_backward = ("x",)

    def forward(self, x):
        self.x = x
        return x * x

    def backward(self, gy):
        return (2 * gy * self.x,)


# An object is called once.

AGAIN = r"Square: this Square object was called already .* make a new object for each call: Square\(...\)\(x\)"


def test_a_second_call_is_refused_and_the_first_keeps_its_gradient():
    """Two calls would share `x`: both backwards would find that of the second."""
    a, b, act = leaf(3.0), leaf(5.0), Square()
    y = act(a)
    with pytest.raises(RuntimeError, match=AGAIN):
        act(b)
    y.sum().backward()
    np.testing.assert_array_equal(a.grad, [6])
    assert b.grad is None


def test_a_nested_call_and_a_call_without_a_graph_are_refused():
    act = Square()
    with pytest.raises(RuntimeError, match=AGAIN):
        act(act(leaf(3.0)))

    class Inward(Op):
        def forward(self, x):
            return self(Tensor(x)).data

    with pytest.raises(RuntimeError, match="Inward: this Inward object was called already"):
        Inward()(leaf(3.0))
    act = Square()
    with no_grad():
        act(leaf(3.0))
    with pytest.raises(RuntimeError, match=AGAIN):
        act(leaf(3.0))


def test_a_second_call_with_other_shapes_leaves_those_of_the_first():
    """The shapes that undo broadcasting belong to the first call."""
    a, b, op = leaf(2.0), leaf(3.0, 4.0), minnl.functional.arithmetic.Mul()
    y = op(a, b)
    with pytest.raises(RuntimeError, match=r"mul: this Mul object was called already"):
        op(b, leaf(1.0, 1.0))
    y.sum().backward()
    np.testing.assert_array_equal(a.grad, [7])


def test_of_calls_at_the_same_time_one_is_taken():
    meet, taken, refused = threading.Barrier(8), [], []

    class Slow(Square):
        def forward(self, x):
            taken.append(x)
            return super().forward(x)

    for _ in range(20):
        op = Slow()

        def call(op=op):
            meet.wait()
            try:
                op(leaf(1.0))
            except RuntimeError:
                refused.append(op)

        threads = [threading.Thread(target=call) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert (len(taken), len(refused)) == (20, 140)


def test_refused_inputs_are_no_call():
    op, x = Square(), leaf(3.0)
    with pytest.raises(TypeError, match="Square: input 0 is float"):
        op(3.0)
    with pytest.raises(TypeError, match="Square: called without inputs"):
        op()
    op(x).sum().backward()
    np.testing.assert_array_equal(x.grad, [6])


def test_gradcheck_of_an_op_object_says_what_to_write():
    with pytest.raises(RuntimeError, match=AGAIN):
        gradcheck(Square(), [np.ones(2)])
    assert gradcheck(lambda x: Square()(x), [np.arange(1.0, 4.0)])


# Kernels belong to the class.


def test_an_op_of_a_known_name_is_computed_by_its_own_forward():
    class Linear(Op):
        def forward(self, x, w):
            return (x @ w) * 10

    class Softmax(Op):
        axis = -1

        def forward(self, x):
            return x + 1

    class Mean(Op):
        axis, keepdims = (1, 2, 3), False

        def forward(self, x):
            return x.sum(axis=self.axis) * 0 + 7

    x, w = Tensor(np.ones((2, 3), np.float32)), Tensor(np.ones((3, 4), np.float32))
    clip = Tensor(np.ones((2, 3, 4, 4, 2), np.float32))
    with minnl.use_kernels("fast"):
        np.testing.assert_array_equal(Linear()(x, w).data, np.full((2, 4), 30))
        np.testing.assert_array_equal(Softmax()(x).data, np.full((2, 3), 2))
        np.testing.assert_array_equal(Mean()(clip).data, np.full((2, 2), 7))


@pytest.mark.parametrize("name", ["Linear", "Tenfold"])
def test_a_derived_op_is_computed_by_its_own_forward(name):
    def forward(self, x, weight):
        return 10 * linear.Linear.forward(self, x, weight)

    kind = type(name, (linear.Linear,), {"forward": forward})
    x, w = Tensor(np.ones((2, 3), np.float32)), Tensor(np.ones((3, 4), np.float32))
    with minnl.use_kernels("fast"):
        np.testing.assert_array_equal(kind()(x, w).data, np.full((2, 4), 30))
        np.testing.assert_array_equal(linear.Linear()(x, w).data, np.full((2, 4), 3))


@pytest.mark.parametrize("parent", [optim.AdamW, optim.Optimizer])
def test_an_optimiser_of_a_known_name_steps_by_its_own_update(parent):
    class AdamW(parent):
        def __init__(self, params):
            if parent is optim.AdamW:
                super().__init__(params, lr=0.5)
            else:
                super().__init__(params, lr=0.5, weight_decay=0.0)

        def update(self, w, gw, *kept, lr, **options):
            w -= lr * gw

    p = Tensor(np.ones(400_000, np.float32), requires_grad=True)  # so many that minnl's own AdamW has a kernel for them
    p.grad = np.full(400_000, 2, np.float32)
    with minnl.use_kernels("fast"):
        AdamW([p]).step()
    np.testing.assert_array_equal(p.data, 0)


def test_the_classes_of_minnl_have_their_kernels():
    picked = dispatch.kernel_of(linear.Linear(), [np.ones((2, 3), np.float32), np.ones((3, 4), np.float32)])
    assert (picked is not None) == (dispatch.mode() == "fast")
    with pytest.raises(
        TypeError, match="register: kernel must be a subclass of op_class 'Linear', got <class 'object'>"
    ):
        dispatch.register("Linear", "cpu", object)
    with pytest.raises(TypeError, match="register: kernel must be a subclass of op_class .*Linear.*, got .*ReLU"):
        dispatch.register(linear.Linear, "cpu", pointwise.ReLU)
    with pytest.raises(TypeError, match=r"register: ReLU has no method suits\(op, arrays\)"):
        dispatch.register(pointwise.ReLU, "cpu", pointwise.ReLU)
    with pytest.raises(ValueError, match='register: device must be "cpu" or "gpu", got \'tpu\''):
        dispatch.register(linear.Linear, "tpu", picked or type("K", (linear.Linear,), {"suits": None}))
    registered = {op for op, _ in dispatch._kernels}
    assert {linear.Linear, conv.Conv3d, pointwise.ReLU, optim.AdamW, optim.SGD} <= registered


# What forward returns and keeps.


def op_returning(result, **attributes):
    return type("Mine", (Op,), {"forward": lambda self, x: result(x), **attributes})()


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (lambda x: None, "Mine: forward returned NoneType, one array expected"),
        (lambda x: 3.0, "Mine: forward returned float, one array expected"),
        (lambda x: (x, x), "Mine: forward returned tuple, one array expected"),
        (lambda x: x.tolist(), "Mine: forward returned list, one array expected"),
        (lambda x: F.exp(Tensor(x)), "Mine: forward returned Tensor, one array .* not with functional"),
        (lambda x: x.astype(np.float64), "forward returned float64 on cpu for inputs of float32 on cpu; return y"),
        (lambda x: np.float64(x.sum()), "Mine: forward returned float64 on cpu for inputs of float32"),
        (lambda x: x.astype(int), "Mine: forward returned int64 on cpu for inputs of float32"),
        (lambda x: x > 0, "Mine: forward returned bool on cpu for inputs of float32"),
    ],
)
def test_what_a_forward_may_not_return(result, message):
    with pytest.raises(TypeError, match=message):
        op_returning(result)(leaf(1.0, 2.0, dtype=np.float32))


def test_a_forward_that_says_so_may_change_the_dtype():
    x = leaf(1.0, 2.0, dtype=np.float32)
    wide = lambda x: x.astype(np.float64)  # noqa: E731
    assert op_returning(wide, converts=True)(x).dtype == np.float64
    with pytest.raises(TypeError, match="Mine: forward returned int64"):
        op_returning(lambda x: x.astype(int), converts=True)(x)


def test_a_scalar_of_numpy_is_an_array_without_axes():
    y = op_returning(lambda x: x.sum())(leaf(1.0, 2.0))
    assert type(y.data) is np.ndarray
    assert (y.shape, y.item()) == ((), 3)


def test_what_keeps_names_must_be_there():
    class Forgetful(Op):
        saved_for_backward = ("x", "mask")

        def forward(self, x):
            self.x = x
            return x * 1

        def backward(self, gy):
            return (gy,)

    x = leaf(1.0)
    with pytest.raises(TypeError, match=r"Forgetful: saved_for_backward names 'mask', but forward left no self\.mask"):
        Forgetful()(x).sum().backward()
    assert x.grad is None
    with pytest.raises(
        TypeError, match=r"NoTuple: saved_for_backward must be a tuple of names; write saved_for_backward = \('mask',\)"
    ):
        type("NoTuple", (Op,), {"saved_for_backward": "mask"})


# What backward returns.


@pytest.mark.parametrize(
    ("gradients", "error", "message"),
    [
        (lambda gy: gy, TypeError, r"mine: backward returned ndarray, a tuple .* each of 2 inputs"),
        (lambda gy: None, TypeError, "mine: backward returned NoneType, a tuple"),
        (lambda gy: (g for g in (gy, gy)), TypeError, "mine: backward returned generator, a tuple"),
        (lambda gy: (gy,), ValueError, r"mine: backward returned 1 gradients for 2 inputs \(\(2,\), \(2,\)\)"),
        (lambda gy: (gy, gy, gy), ValueError, "mine: backward returned 3 gradients for 2 inputs"),
        (lambda gy: (gy, [1.0, 1.0]), TypeError, r"mine: backward returned list for input 1 of shape \(2,\), an array"),
        (lambda gy: (Tensor(gy), gy), TypeError, "mine: backward returned Tensor for input 0"),
        (lambda gy: (gy, 1.0), TypeError, "mine: backward returned float for input 1"),
        (lambda gy: (gy, gy[:1]), RuntimeError, r"backward returned a gradient of shape \(1,\) float64 for input 1"),
        (lambda gy: (gy.astype(int), gy), RuntimeError, r"shape \(2,\) int64 for input 0 of shape \(2,\) float64"),
    ],
)
def test_what_a_backward_may_not_return(gradients, error, message):
    class Mine(Op):
        public_name = "mine"

        def forward(self, a, b):
            return a + b

        def backward(self, gy):
            return gradients(gy)

    a, b = leaf(1.0, 2.0), leaf(3.0, 4.0)
    with pytest.raises(error, match=message):
        Mine()(a, b).sum().backward()
    assert a.grad is None and b.grad is None


def test_an_op_without_a_body_is_named():
    with pytest.raises(NotImplementedError, match="Empty has no forward"):
        type("Empty", (Op,), {})()(leaf(1.0))
    y = op_returning(lambda x: x * 1)(leaf(1.0))
    with pytest.raises(NotImplementedError, match="Mine has no backward"):
        y.sum().backward()
