"""CuPy's rules: that the stand-in keeps them, and that every op runs under them, forward and backward."""

import importlib.util
import math

import numpy as np
import pytest

from minnl import Op, Tensor, backend, use_kernels
from tests import strict_cupy
from tests.cases import CASES, NOT_FINITE
from tests.strict_cupy import Undefined, counts


@pytest.fixture
def cupy():
    with strict_cupy.installed() as module:
        yield module


@pytest.fixture
def a(cupy):
    """[[0 1 2] [3 4 5]] in float32, on the device."""
    array = cupy.asarray(np.arange(6, dtype=np.float32).reshape(2, 3))
    counts.reset()
    return array


HOST = np.ones((2, 3), np.float32)


# The stand-in itself.


def test_it_is_cupy_to_the_backend_and_nothing_to_numpy(cupy, a):
    assert backend.is_gpu_array(a)
    assert not isinstance(a, np.ndarray)
    assert backend.namespace("test", a) is cupy is backend.load_cupy()


@pytest.mark.parametrize(
    "mixture",
    [
        lambda xp, a: a + HOST,
        lambda xp, a: HOST + a,
        lambda xp, a: a * np.array(2.0),
        lambda xp, a: a @ HOST.T,
        lambda xp, a: HOST.T @ a,
        lambda xp, a: a > HOST,
        lambda xp, a: a + [1, 2, 3],
        lambda xp, a: np.add(a, HOST),
        lambda xp, a: np.concatenate([a, HOST]),
        lambda xp, a: np.einsum("ij,ij->", a, HOST),
        lambda xp, a: np.where(HOST > 0, a, a),
        lambda xp, a: xp.exp(HOST),
        lambda xp, a: xp.maximum(a, 0, out=HOST.copy()),
        lambda xp, a: xp.concatenate([a, HOST]),
        lambda xp, a: xp.stack([a, HOST]),
        lambda xp, a: xp.where(HOST > 0, a, a),
        lambda xp, a: xp.where(a > 0, a, HOST),
        lambda xp, a: xp.matmul(a, HOST.T),
        lambda xp, a: xp.einsum("ij,ij->", a, HOST),
        lambda xp, a: xp.tensordot(a, HOST),
        lambda xp, a: xp.clip(a, HOST, HOST),
        lambda xp, a: xp.sum(HOST),
        lambda xp, a: xp.broadcast_to(HOST, (2, 2, 3)),
        lambda xp, a: xp.add.at(a, np.array([0]), a),
        lambda xp, a: xp.add.at(a, xp.arange(2), HOST),
        lambda xp, a: a.__iadd__(HOST),
        lambda xp, a: np.add(HOST, 1, out=a),
        lambda xp, a: a.__setitem__(..., HOST),
        lambda xp, a: a.__setitem__(0, [1, 2, 3]),
        lambda xp, a: a.__setitem__(xp.arange(2), HOST),
        lambda xp, a: a[np.array([0, 1])],
        lambda xp, a: a[[0, 1]],
        lambda xp, a: HOST.copy().__setitem__(..., a),
        lambda xp, a: HOST[xp.arange(2)],
    ],
)
def test_it_never_meets_a_numpy_array(cupy, a, mixture):
    with pytest.raises(TypeError):
        mixture(cupy, a)


@pytest.mark.parametrize("conversion", [np.array, np.asarray, np.ascontiguousarray, lambda a: np.copyto(0 * HOST, a)])
def test_it_never_becomes_a_numpy_array_by_itself(a, conversion):
    with pytest.raises(TypeError):
        conversion(a)


@pytest.mark.parametrize(
    ("name", "wait"),
    [
        ("float", lambda xp, a: float(a.sum())),
        ("int", lambda xp, a: int(a.argmax())),
        ("bool", lambda xp, a: bool(a.any())),
        ("if", lambda xp, a: 1 if a[0, 0] else 0),
        ("math", lambda xp, a: math.sqrt(a.sum())),
        ("item", lambda xp, a: a.sum().item()),
        ("tolist", lambda xp, a: a.tolist()),
        ("print", lambda xp, a: str(a)),
        ("format", lambda xp, a: f"{a.sum():.2f}"),
        ("get", lambda xp, a: a.get()),
        ("asnumpy", lambda xp, a: xp.asnumpy(a)),
        ("mask", lambda xp, a: a[a > 2]),
        ("nonzero", lambda xp, a: xp.nonzero(a)),
        ("synchronize", lambda xp, a: a.device.synchronize()),
    ],
)
def test_it_counts_what_waits_for_the_device(cupy, a, name, wait):
    wait(cupy, a)
    assert counts.synchronised == 1


def test_it_counts_what_moves(cupy, a):
    a.get()
    cupy.asarray(np.zeros(4, np.int64))
    cupy.array([1.0, 2.0])
    cupy.asarray(a)
    assert counts.to_host == [((2, 3), "float32")]
    assert counts.to_device == [((4,), "int64"), ((2,), "float64")]


def test_what_stays_on_the_device_is_not_counted(cupy, a):
    b = a.sum(axis=0) * 2 + a[0] - cupy.zeros(3, dtype=np.float32)
    b[1:] = 0
    cupy.stack([b, b]).reshape(-1)[::2].max()
    assert (counts.synchronised, counts.to_host, counts.to_device) == (0, [], [])


def test_reductions_and_single_elements_are_arrays_and_promote_like_them(cupy, a):
    for scalar in (a.sum(), a[0, 0], cupy.max(a), a.argmax()):
        assert type(scalar) is cupy.ndarray
        assert scalar.shape == ()
    assert (a + a.astype(np.float64).sum()).dtype == np.float64
    assert (a * np.float64(2)).dtype == np.float64
    assert (a * 2.0).dtype == (2.0 * a).dtype == np.float32
    assert a.__iadd__(np.float64(1)).dtype == np.float32
    corner = a[0, 0]
    corner[...] = 7
    assert a.get()[0, 0] == 7  # a view, as CuPy's


def test_functions_that_cupy_lacks_do_not_exist(cupy, a):
    for name in ("block", "insert", "einsum_path", "nanpercentile", "frompyfunc", "vecdot", "matvec", "seterr"):
        with pytest.raises(AttributeError):
            getattr(cupy, name)
    for name in ("setflags", "resize", "__imatmul__", "__index__", "__round__"):
        assert not hasattr(a, name)
    assert not hasattr(a.flags, "writeable")
    with pytest.raises(TypeError, match=r"numpy\.insert"):
        np.insert(a, 0, 1)


def test_only_some_ufuncs_reduce_or_scatter(cupy, a):
    np.testing.assert_array_equal(cupy.add.reduce(a).get(), [3, 5, 7])
    np.testing.assert_array_equal(cupy.multiply.reduce(a).get(), [0, 4, 10])
    for name in ("maximum", "minimum", "subtract", "logical_or"):
        with pytest.raises(NotImplementedError, match=rf"cupy_{name}\.reduce"):
            getattr(cupy, name).reduce(a)
    with pytest.raises(NotImplementedError, match=r"cupy_multiply\.at"):
        cupy.multiply.at(a, 0, a[0])


@pytest.mark.parametrize("keyword", ["where", "initial"])
def test_keywords_that_cupy_lacks(cupy, a, keyword):
    with pytest.raises(TypeError, match=keyword):
        a.sum(**{keyword: 1})
    with pytest.raises(TypeError, match=keyword):
        cupy.add(a, a, **{keyword: 1})


def test_integer_arrays_wrap_round_and_integers_do_not(cupy, a):
    there = cupy.asarray(np.array([0, 5, -3]))
    np.testing.assert_array_equal(a[there].get(), [[0, 1, 2], [3, 4, 5], [3, 4, 5]])
    np.testing.assert_array_equal(a[:, there].get(), [[0, 2, 0], [3, 5, 3]])
    np.testing.assert_array_equal(a[..., there].get(), [[0, 2, 0], [3, 5, 3]])
    np.testing.assert_array_equal(cupy.take(a, there, axis=0).get(), [[0, 1, 2], [3, 4, 5], [3, 4, 5]])
    with pytest.raises(IndexError):
        a[5]


def test_writes_that_race_are_refused(cupy, a):
    twice = cupy.asarray(np.array([0, 0]))
    with pytest.raises(Undefined, match="twice"):
        a[twice] = a
    with pytest.raises(Undefined, match="twice"):
        a[cupy.asarray(np.array([0, 2]))] = a  # wraps round to 0
    stretched = cupy.broadcast_to(a[0], (4, 3))
    sliding = cupy.lib.stride_tricks.as_strided(a, (4, 2), (4, 4))
    for view in (stretched, sliding):
        for write in (
            lambda v: cupy.add.at(v, 0, 1.0),
            lambda v: v.__iadd__(1),
            lambda v: v.__setitem__(..., 1),
            lambda v: v.fill(0),
            lambda v: cupy.exp(v, out=v),
        ):
            with pytest.raises(Undefined, match="overlaps"):
                write(view)
    cupy.add.at(a, twice, a)  # adding commutes: this is what add.at is for
    np.testing.assert_array_equal(a.get(), [[3, 6, 9], [3, 4, 5]])
    a.T[::2] += 1  # strided, but no element twice
    np.testing.assert_array_equal(a.get(), [[4, 6, 10], [4, 4, 6]])


def test_fresh_memory_is_garbage_and_chance_is_refused(cupy, a):
    assert np.isnan(cupy.empty((2, 2), dtype=np.float32).get()).all()
    assert np.isnan(cupy.empty_like(a).get()).all()
    assert (cupy.empty((3,), dtype=np.int64).get() != 0).all()
    assert (cupy.empty((), dtype=np.uint8).get() != 0).all()
    with pytest.raises(Undefined, match="draw on the host"):
        cupy.random.rand(3)


def test_work_happens_where_the_array_lives():
    with strict_cupy.installed(gpus=2) as cupy:
        with cupy.cuda.Device(1):
            b = cupy.ones((2, 3))
        assert (b.device.id, b.T.device.id, b[0].device.id) == (1, 1, 1)
        for work in (lambda: b + 1, lambda: b.sum(), lambda: cupy.exp(b), lambda: b.__iadd__(1), lambda: b.fill(1)):
            with pytest.raises(ValueError, match="array device = 1 while current = 0"):
                work()
        with cupy.cuda.Device(1):
            assert (b + 1).device.id == 1
        assert b.get().sum() == 6
        with pytest.raises(RuntimeError, match="invalid device"), cupy.cuda.Device(2):
            pass


def test_nothing_to_do_gives_the_same_array_not_a_copy(cupy, a):
    assert cupy.asarray(a) is a
    assert cupy.ascontiguousarray(a) is a
    assert a.astype(np.float32, copy=False) is a
    out = cupy.empty_like(a)
    assert cupy.exp(a, out=out) is out
    assert a.base is None
    assert a.T.base is not None


def test_afterwards_everything_is_as_before():
    import sys

    before = sys.modules.get("cupy")
    with strict_cupy.installed() as cupy:
        assert sys.modules["cupy"] is cupy
    assert sys.modules.get("cupy") is before
    assert backend.load_cupy.cache_info().currsize == 0


@pytest.mark.skipif(importlib.util.find_spec("cupy") is None, reason="needs a GPU's CuPy, installed")
def test_every_name_exists_in_the_real_cupy():
    import cupy as real

    with strict_cupy.installed() as standin:
        names = {n for n in vars(standin) if not n.startswith("__")}
    assert sorted(n for n in names if not hasattr(real, n)) == []
    methods = {n for n in vars(strict_cupy.ndarray) if not n.startswith("_")}
    assert sorted(n for n in methods if not hasattr(real.ndarray, n)) == []


# Every op of the table, under these rules.

TABLE = CASES | NOT_FINITE


def run(case, boxed):
    """Output and gradients of a case in float32, its arrays made by `boxed`; and what the host had to do meanwhile."""
    tensors = [Tensor(boxed(x.astype(np.float32)), requires_grad=True) for x in case.inputs(np.random.default_rng(0))]
    counts.reset()
    y = case.fn(*tensors)
    waited = [counts.synchronised, *counts.to_host]
    gy = boxed(np.random.default_rng(1).normal(size=y.shape).astype(y.dtype))
    counts.reset()
    y.backward(gy)
    waited += [counts.synchronised, *counts.to_host, *counts.to_device]
    return [y.data, *(t.grad for t in tensors)], waited


@pytest.fixture
def copied_in_forward(monkeypatch):
    """What ops copy to the device once their arguments have been checked (constants and labels come with those)."""
    copied, call = [], Op.__call__

    def watched(op, *inputs):
        before = len(counts.to_device)
        y = call(op, *inputs)
        copied.extend(counts.to_device[before:])
        return y

    monkeypatch.setattr(Op, "__call__", watched)
    return copied


@pytest.mark.parametrize("name", TABLE)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's remarks on NaN and infinity
def test_case_runs_under_cupys_rules(cupy, copied_in_forward, name):
    """Boxed with their strides, so that what was broadcast overlaps itself on the device too."""
    with use_kernels("textbook"):
        expected, _ = run(TABLE[name], boxed=lambda x: x)
        got, waited = run(TABLE[name], boxed=strict_cupy.ndarray)
    assert waited == [0, 0], "the host waits for the device, or copies to or from it"
    assert copied_in_forward == []
    for a, b in zip(got, expected, strict=True):
        assert type(a) is strict_cupy.ndarray
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a._a, b)
