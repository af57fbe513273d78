"""Bad input to every public function: a ValueError or TypeError that names the op and the argument, what came and what
would do; and nothing has been changed when it is raised."""

import numpy as np
import pytest

from minnl import Tensor, random
from minnl import functional as F
from tests import strict_cupy
from tests.ops.bad_input import KERNEL, LABELS, ROWS, STATS, TABLE, X, t


def tensors_in(values):
    return [v for value in values for v in (value if isinstance(value, list) else [value]) if isinstance(v, Tensor)]


@pytest.mark.parametrize(
    ("name", "arguments", "keywords", "error", "message"), TABLE, ids=[f"{row[0]}-{i}" for i, row in enumerate(TABLE)]
)
def test_bad_input(name, arguments, keywords, error, message):
    held = [*arguments, *keywords.values()]
    arrays = [v.data if isinstance(v, Tensor) else v for v in held if isinstance(v, (Tensor, np.ndarray))]
    before, chance = [a.copy() for a in arrays], random.get_state()
    with pytest.raises(error, match=message):
        getattr(F, name)(*arguments, **keywords)
    for a, b in zip(arrays, before, strict=True):
        np.testing.assert_array_equal(a, b)
    assert random.get_state() == chance
    assert all(x.grad is None for x in tensors_in(held))


def test_every_public_function_is_in_the_table():
    assert {row[0] for row in TABLE} == set(F.__all__)


def test_the_arguments_of_the_table_are_right_where_they_are_meant_to_be():
    """An entry proves something only if it is the one thing wrong in it."""
    F.conv3d(X, KERNEL)
    F.conv3d(X, KERNEL, t(8), groups=1)
    F.max_pool3d(X, 2)
    F.avg_pool3d(X, 2, divisor_override=3)
    F.batch_norm(ROWS, *STATS, weight=t(4), bias=t(4))
    F.cross_entropy(ROWS, LABELS, weight=np.ones(4))
    F.non_local(X, X, X, mode="concat", weight=t(8))
    F.attention(X, X, [(0, 0, 0)])


# Devices: every function of two tensors or more, with the last of them elsewhere.

TOGETHER = {
    **dict.fromkeys(("add", "sub", "mul", "div", "pow", "maximum", "minimum"), ((2, 3), (2, 3))),
    "matmul": ((2, 3), (3, 4)),
    "linear": ((2, 3), (3, 4)),
    "conv3d": ((1, 2, 2, 2, 3), (1, 1, 1, 3, 4)),
    "affine": ((2, 3), (3,), (3,)),
    "non_local": ((1, 2, 2, 2, 3),) * 3,
}


@pytest.mark.parametrize("name", TOGETHER)
def test_tensors_on_different_devices(name):
    with strict_cupy.installed():
        tensors = [Tensor(np.ones(shape, np.float32)) for shape in TOGETHER[name]]
        places = r"\(.*\) on cpu, \(.*\) on gpu:0; move them with \.to\(device\)"
        with pytest.raises(TypeError, match=f"{name}: arrays on different devices: .*{places}"):
            getattr(F, name)(*tensors[:-1], tensors[-1].to("gpu"))


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("concatenate", lambda x, y: F.concatenate([x, y])),
        ("stack", lambda x, y: F.stack([x, y])),
        ("where", lambda x, y: F.where(y.data > 0, x, x)),
        ("batch_norm", lambda x, y: F.batch_norm(x, None, None, y[0], training=True)),
        ("batch_norm", lambda x, y: F.batch_norm(x, y.data[0], y.data[0], training=True)),
        ("frozen_batch_norm", lambda x, y: F.frozen_batch_norm(x, y.data[0], y.data[0])),
        ("attention", lambda x, y: F.attention(x.reshape(1, 1, 1, 2, 3), y.reshape(1, 1, 1, 2, 3), [(0, 0, 0)])),
    ],
)
def test_lists_masks_and_statistics_on_different_devices(name, call):
    with strict_cupy.installed():
        x = Tensor(np.ones((2, 3), np.float32))
        for a, b in ((x, x.to("gpu")), (x.to("gpu"), x)):
            with pytest.raises(TypeError, match=f"{name}: arrays on different devices: "):
                call(a, b)


def test_labels_out_of_range_are_caught_before_they_wrap_round_on_the_device():
    with strict_cupy.installed() as cupy:
        x = Tensor(np.ones((3, 4), np.float32), device="gpu")
        with pytest.raises(ValueError, match="cross_entropy: label 7 is out of range"):
            F.cross_entropy(x, cupy.asarray(np.array([0, 7, 1])))
        with pytest.raises(IndexError, match="index: index 7 is out of bounds"):
            x[cupy.asarray(np.array([0, 7, 1]))]


# Nothing has been changed.


def test_statistics_stay_as_they_were_when_training_fails():
    mean, var = np.full(4, 3.0), np.full(4, 5.0)
    for x, keywords in (
        (t(1, 4), {}),
        (ROWS, {"momentum": -1}),
        (ROWS, {"weight": t(3)}),
        (ROWS, {"bias": t(4, dtype=np.float32)}),
        (ROWS, {"eps": -1}),
    ):
        with pytest.raises((ValueError, TypeError)):
            F.batch_norm(x, mean, var, training=True, **keywords)
    np.testing.assert_array_equal(mean, 3)
    np.testing.assert_array_equal(var, 5)


# Tensor itself.


def test_tensors_methods_name_what_is_wrong():
    with pytest.raises(ValueError, match=r"item: the tensor has 12 elements \(shape \(3, 4\)\), not one"):
        ROWS.item()
    with pytest.raises(TypeError, match=r"Tensor: data is a Tensor already; use \.detach\(\)"):
        Tensor(ROWS)
    with pytest.raises(TypeError, match="Tensor: dtype must be float32 or float64, got int32"):
        Tensor([1], dtype=np.int32)
    with pytest.raises(TypeError, match="without axes"):
        len(t())
