"""A strict stand-in for CuPy: NumPy arrays that obey CuPy's rules, so that GPU code runs where there is no GPU.

``with installed() as cupy:`` puts it in sys.modules; from then on ``device("gpu")`` works and everything above
backend.py takes its GPU path, in NumPy. It refuses what CuPy refuses (tried on CuPy 14.2;
tests/engine/test_cupy_rules.py compares the names with the real ones where CuPy is installed):

- an array is no ``np.ndarray``, never becomes one by itself, and never meets one in an operation;
- reductions and single elements are 0-d arrays, whose dtype promotes as an array's does;
- only ``get``, ``asnumpy``, ``asarray``, ``array`` and ``set`` move data; `counts` counts
  them, and every synchronisation;
- a function that CuPy does not have does not exist; ``reduce`` is for add and multiply, no ``where=``, no ``initial=``;
- work on an array happens on the device that holds it.

It is stricter where CuPy goes on and leaves the answer to chance: memory from ``empty`` holds NaN; a write through a
view that overlaps itself or through an index that names an element twice raises :class:`Undefined`, and so does
anything of ``cupy.random``. Indexing with a NumPy array or a list (an upload at every use) is refused too. Where CuPy
does something definite but surprising, so does this: an integer array used as an index wraps round at the end of its
axis. There are no kernels of one's own (RawKernel, ElementwiseKernel, fuse): a CPU cannot run those.
"""

import contextlib
import functools
import os
import sys
import types
from unittest import mock

import numpy as np

from minnl import backend
from tests.strict_cupy.array import (
    Device,
    Undefined,
    boxed,
    checked,
    counts,
    devices,
    ndarray,
    opened,
    opened_key,
    operand,
    refuse_overlap,
    words,
)

__all__ = ["Undefined", "counts", "devices", "installed", "ndarray"]

UFUNCS = words("""
abs absolute add arctan arctan2 bitwise_and bitwise_or bitwise_xor cbrt ceil copysign cos cosh divide equal exp exp2
expm1 floor floor_divide fmax fmin greater greater_equal hypot invert isfinite isinf isnan left_shift less less_equal
log log10 log1p log2 logaddexp logical_and logical_not logical_or logical_xor maximum minimum multiply negative
nextafter not_equal positive power reciprocal remainder right_shift rint sign signbit sin sinh sqrt square subtract tan
tanh true_divide trunc
""")
REDUCES = ("add", "multiply")
SCATTERS = ("add", "subtract", "maximum", "minimum", "bitwise_and", "bitwise_or", "bitwise_xor")
FUNCTIONS = words("""
all allclose amax amin any arange argmax argmin argsort array_equal array_split ascontiguousarray atleast_1d atleast_2d
average broadcast_arrays broadcast_to clip column_stack concatenate copy count_nonzero cumprod cumsum diag diagonal diff
dot einsum expand_dims eye flip full full_like hstack identity inner isclose kron linspace matmul max mean median
meshgrid min moveaxis nan_to_num nanmax nanmean nanmin nansum ndim ones ones_like outer pad permute_dims prod ptp
quantile ravel repeat reshape result_type roll rollaxis round shape size sort split squeeze stack std sum swapaxes
tensordot tile trace transpose tril triu var vdot vstack where zeros zeros_like
""")
SYNCHRONISES = ("argwhere", "flatnonzero", "nonzero", "unique")  # the size of the answer depends on data
ABOUT_MEMORY = ("may_share_memory", "shares_memory")
NOT_OF_ARRAYS = words("""
bool_ broadcast_shapes can_cast dtype e finfo float16 float32 float64 floating iinfo inf int16 int32 int64 int8 integer
intp nan ndindex newaxis pi promote_types uint16 uint32 uint64 uint8
""")


def _function(name, unbox=opened):
    original = getattr(np, name)

    def function(*args, **kwargs):
        arrays, kwargs, out = checked(name, args, kwargs, unbox)
        answer = original(*arrays, **kwargs)
        same = next((a for a in args if isinstance(a, ndarray) and a._a is answer), out)  # nothing to do: no new array
        return boxed(answer) if same is None else same

    return function


def _synchronising(name):
    function = _function(name)

    def waits(*args, **kwargs):
        counts.synchronised += 1
        return function(*args, **kwargs)

    return waits


def _about_memory(name):
    return lambda a, b: getattr(np, name)(a._a, b._a)


class Ufunc:
    def __init__(self, name):
        self.name, self.original, self.call = name, getattr(np, name), _function(name, unbox=operand)

    def __call__(self, *args, **kwargs):
        return self.call(*args, **kwargs)

    def reduce(self, array, axis=0, dtype=None, keepdims=False):
        if self.name not in REDUCES:
            raise NotImplementedError(f"`cupy_{self.name}.reduce` is not supported yet")
        return boxed(self.original.reduce(operand(array), axis=axis, dtype=dtype, keepdims=keepdims))

    def at(self, array, index, value):
        if self.name not in SCATTERS:
            raise NotImplementedError(f"`cupy_{self.name}.at` is not supported yet")
        refuse_overlap(array)
        self.original.at(operand(array), opened_key(array, index), operand(value))


def array(data, dtype=None):
    if isinstance(data, ndarray):
        return boxed(np.array(opened(data), dtype=dtype))
    if isinstance(data, (list, tuple)) and any(isinstance(d, ndarray) for d in data):
        raise TypeError("a list of cupy arrays: use stack")
    host = np.array(data, dtype=dtype)
    counts.to_device.append((host.shape, str(host.dtype)))
    return ndarray(host)


def asarray(data, dtype=None):
    if isinstance(data, ndarray) and data.device.id != devices.current:
        data = data.copy()  # to the current device
    return data if isinstance(data, ndarray) and dtype in (None, data.dtype) else array(data, dtype)


def asnumpy(data):
    return data.get() if isinstance(data, ndarray) else np.asarray(data)


def empty(shape, dtype=float):
    """Memory as the pool hands it out, full of what was there before."""
    fresh = np.empty(shape, dtype)
    if fresh.dtype.kind == "f":
        fresh.fill(np.nan)
    else:
        fresh.view(np.uint8 if fresh.ndim else fresh.dtype).fill(1 if fresh.dtype == bool else 0x5B)
    return ndarray(fresh)


def empty_like(prototype, dtype=None, shape=None):
    return empty(prototype.shape if shape is None else shape, prototype.dtype if dtype is None else dtype)


def take(a, indices, axis=None):
    return boxed(np.take(opened(a), opened(indices), axis=axis, mode="wrap"))


def take_along_axis(a, indices, axis):
    return boxed(np.take_along_axis(opened(a), opened(indices) % a.shape[axis], axis))


def as_strided(x, shape=None, strides=None):
    return ndarray(np.lib.stride_tricks.as_strided(x._a, shape, strides), x.device)


def get_array_module(*args):
    return sys.modules["cupy"] if any(isinstance(a, ndarray) for a in args) else np


class OutOfMemoryError(MemoryError):
    pass


class MemoryPool:
    def used_bytes(self):
        return 0

    def total_bytes(self):
        return 0

    def free_bytes(self):
        return 0

    def get_limit(self):
        return 0

    def free_all_blocks(self):
        pass

    def set_limit(self, size=None):
        pass


class Stream:
    """Work that is done at once; tests/data/test_ahead.py has streams that take their time."""

    def __init__(self, non_blocking=False):
        pass

    def wait_event(self, event):
        pass

    def synchronize(self):
        counts.synchronised += 1


class Event:
    done = True

    def __init__(self, disable_timing=False):
        pass

    def record(self, stream):
        pass

    def synchronize(self):
        counts.synchronised += 1


class _Module(types.ModuleType):
    @property
    def random(self):
        raise Undefined("cupy.random: its state cannot be saved; draw on the host")


def _make_module():
    cupy = _Module("cupy")
    cupy.__version__ = "14.2.0"
    for names, make in (
        (UFUNCS, Ufunc), (FUNCTIONS, _function), (SYNCHRONISES, _synchronising), (ABOUT_MEMORY, _about_memory),
        (NOT_OF_ARRAYS, lambda name: getattr(np, name)),
    ):  # fmt: skip
        for name in names:
            setattr(cupy, name, make(name))
    for thing in (array, asarray, asnumpy, empty, empty_like, get_array_module, ndarray, take, take_along_axis):
        setattr(cupy, thing.__name__, thing)
    cupy.get_default_memory_pool = MemoryPool
    cupy._core = types.SimpleNamespace(
        get_compute_type=functools.cache(lambda dtype: 7 if os.environ.get("CUPY_TF32") == "1" else 1),  # read once
        _routines_linalg=types.SimpleNamespace(COMPUTE_TYPE_TF32=7),
    )
    cupy.lib = types.SimpleNamespace(stride_tricks=types.SimpleNamespace(as_strided=as_strided))
    cupy.cuda = types.SimpleNamespace(
        Device=Device,
        Event=Event,
        Stream=Stream,
        alloc_pinned_memory=bytearray,
        get_current_stream=Stream,
        is_available=lambda: devices.count > 0,
        memory=types.SimpleNamespace(OutOfMemoryError=OutOfMemoryError),
        runtime=types.SimpleNamespace(
            getDeviceCount=lambda: devices.count,
            getDeviceProperties=lambda index: {"name": b"stand-in"},
            driverGetVersion=lambda: 13000,
            runtimeGetVersion=lambda: 13000,
        ),
    )
    return cupy


@contextlib.contextmanager
def installed(gpus=1):
    """`import cupy` gives a fresh stand-in with so many devices; afterwards everything is as before."""
    counts.reset()
    devices.count, devices.current, devices.used = gpus, 0, set()
    forget = backend.load_cupy.cache_clear
    forget()
    wheels = mock.patch.object(backend, "installed_cupy", lambda: ["cupy-cuda13x"])
    with wheels, mock.patch.dict(sys.modules, cupy=_make_module()):
        try:
            yield sys.modules["cupy"]
        finally:
            forget()
