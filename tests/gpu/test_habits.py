"""On a GPU: CuPy's arrays beside tensors, edits in place, masks, and what an op may return there."""

import copy

import numpy as np
import pytest

from minnl import Op, Tensor, backend, no_grad, use_kernels
from minnl import functional as F
from tests.gpu.device import GPU

A = np.array([[1, 2, 3], [4, 5, 6]], np.float32)
cupy = backend.load_cupy()


def tensor(requires_grad=False):
    return Tensor(A.copy(), requires_grad, device=GPU)


def test_cupys_arrays_on_the_left_leave_it_to_the_tensor():
    t, ones = tensor(), cupy.ones((2, 3), np.float32)
    np.testing.assert_array_equal((ones + t).numpy(), A + 1)
    np.testing.assert_array_equal((ones / t).numpy(), 1 / A)
    for mask, value in ((ones == t, A == 1), (ones < t, A > 1), (t != ones, A != 1), (t >= 5, A >= 5)):
        assert isinstance(mask, cupy.ndarray)
        np.testing.assert_array_equal(mask.get(), value)
    with pytest.raises(TypeError, match="Tensor"):
        ones += t


def test_numpy_is_told_where_the_numbers_are():
    t = tensor()
    for look in (np.asarray, np.mean, lambda t: np.stack([t, t])):
        with pytest.raises(TypeError, match=r"the tensor is on gpu:0; write t\.numpy\(\) for a copy on the host"):
            look(t)
    assert isinstance(np.zeros_like(t), cupy.ndarray)
    assert (float(t.sum()), int(t[1, 2]), bool(t[0, 0] == 1), f"{t.mean():.2f}") == (21, 6, True, "3.50")
    assert [row.tolist() for row in t] == A.tolist()


def test_masks_and_answers_stay_on_the_gpu():
    x = tensor(requires_grad=True)
    picked = x[x > 2]
    np.testing.assert_array_equal(picked.numpy(), [3, 4, 5, 6])
    (picked * picked).sum().backward()
    np.testing.assert_array_equal(x.grad.get(), np.where(A > 2, 2 * A, 0))
    np.testing.assert_array_equal(x.argmax(1).get(), [2, 2])
    np.testing.assert_allclose(x.std().numpy(), A.std(ddof=1), rtol=1e-6)


def test_edits_in_place_and_gradients_that_fit():
    p = tensor(requires_grad=True)
    F.sum(p * p).backward()
    array, grad = p.data, p.grad
    with no_grad():
        p -= 0.5 * p.grad
        p[0] = cupy.full(3, 7, np.float32)
        p[p == 0] = 9
    assert p.data is array
    np.testing.assert_array_equal(array.get(), [[7, 7, 7], [9, 9, 9]])
    with pytest.raises(ValueError, match="grad: shape .* on cpu given; the tensor has .* on gpu:0"):
        p.grad = A
    with no_grad(), pytest.raises(TypeError, match="different devices"):
        p[0] = np.ones(3, np.float32)
    assert p.grad is grad
    twin = copy.deepcopy(p)
    assert twin.device == p.device and twin.data is not array
    np.testing.assert_array_equal(twin.grad.get(), 2 * A)


def test_what_an_op_may_not_return_there():
    class Host(Op):
        def __init__(self, forward, backward):
            self.forward, self.backward = forward, backward

    x = tensor(requires_grad=True)
    with pytest.raises(TypeError, match="Host: forward returned float32 on cpu for inputs of float32 on gpu:0"):
        Host(lambda x: x.get(), None)(x)
    y = Host(lambda x: x * 1, lambda gy: (gy.get(),))(x)
    with pytest.raises(TypeError, match="Host: backward returned ndarray for input 0 .* an array of cupy or None"):
        y.sum().backward()
    assert x.grad is None


@pytest.mark.parametrize("name", ["ReLU", "Softmax", "MaxPool3d"])
def test_an_op_of_a_known_name_is_computed_by_its_own_forward(name):
    kind = type(name, (Op,), {"forward": lambda self, x: x * 10})
    with use_kernels("fast"):
        np.testing.assert_array_equal(kind()(tensor()).numpy(), 10 * A)
