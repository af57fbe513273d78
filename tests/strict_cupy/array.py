"""The stand-in's array: what it allows, what it counts, what it refuses."""

import sys
import types

import numpy as np


class Undefined(RuntimeError):
    """What a GPU would answer depends on chance (a race), or cannot be saved (its random state)."""


class Counts:
    """What crossed the bus, as (shape, dtype name); and how often the host waited for the device."""

    def __init__(self):
        self.reset()

    def reset(self):
        self.to_device, self.to_host, self.synchronised = [], [], 0


counts = Counts()
devices = types.SimpleNamespace(count=1, current=0, used=set())


def words(text):
    return tuple(text.split())


NUMBERS = (bool, int, float, complex, np.generic)
METHODS = words("""
all any argmax argmin argsort astype clip cumsum diagonal dot flatten max mean min prod ptp ravel repeat reshape
round squeeze std sum swapaxes trace transpose var view
""")
VIEWS = ("diagonal", "ravel", "reshape", "squeeze", "swapaxes", "transpose", "view")  # no work, so on any device
OPERATORS = {
    "add": "add", "sub": "subtract", "mul": "multiply", "truediv": "divide", "floordiv": "floor_divide",
    "mod": "remainder", "pow": "power", "and": "bitwise_and", "or": "bitwise_or", "xor": "bitwise_xor",
    "lshift": "left_shift", "rshift": "right_shift", "matmul": "matmul",
}  # fmt: skip
COMPARISONS = {
    "lt": "less", "le": "less_equal", "gt": "greater", "ge": "greater_equal", "eq": "equal", "ne": "not_equal",
}  # fmt: skip
UNARY = {"neg": "negative", "pos": "positive", "abs": "absolute", "invert": "invert"}


class Device:
    """A device by number; within ``with`` the current one."""

    def __init__(self, device=None):
        self.id = devices.current if device is None else int(device)
        self.mem_info = (3 * 2**30, 4 * 2**30)  # free, total

    def __enter__(self):
        if not 0 <= self.id < devices.count:
            raise RuntimeError("cudaErrorInvalidDevice: invalid device ordinal")
        self.before, devices.current = devices.current, self.id
        return self

    def __exit__(self, *exception):
        devices.current = self.before

    def synchronize(self):
        counts.synchronised += 1


class ndarray:
    """A NumPy array in a box that opens only where CuPy's does."""

    __module__ = "cupy"  # by which minnl.backend knows a GPU array
    __slots__ = ("_a", "device", "__weakref__")
    __hash__ = None

    def __init__(self, array, device=None):
        self._a, self.device = array, Device() if device is None else device
        devices.used.add(self.device.id)

    shape = property(lambda self: self._a.shape)
    dtype = property(lambda self: self._a.dtype)
    ndim = property(lambda self: self._a.ndim)
    size = property(lambda self: self._a.size)
    nbytes = property(lambda self: self._a.nbytes)
    itemsize = property(lambda self: self._a.itemsize)
    strides = property(lambda self: self._a.strides)
    T = property(lambda self: self.transpose())
    base = property(lambda self: None if self._a.base is None else ndarray(self._a.base, self.device))

    @property
    def flags(self):
        f = self._a.flags
        return types.SimpleNamespace(c_contiguous=f.c_contiguous, f_contiguous=f.f_contiguous, owndata=f.owndata)

    # What crosses the bus, and makes the host wait.

    def set(self, array, stream=None):
        if (array.shape, array.dtype) != (self.shape, self.dtype):
            raise ValueError(f"set: {array.shape} {array.dtype} to {self.shape} {self.dtype}")
        counts.to_device.append((array.shape, str(array.dtype)))
        counts.synchronised += stream is None
        self._a[...] = array

    def get(self):
        counts.synchronised += 1
        counts.to_host.append((self.shape, str(self.dtype)))
        return self._a.copy()

    def item(self, *args):
        return self.get().item(*args)

    def tolist(self):
        return self.get().tolist()

    def __bool__(self):
        return bool(self.get())

    def __float__(self):
        return float(self.get())

    def __int__(self):
        return int(self.get())

    def __repr__(self):
        return repr(self.get())

    def __format__(self, spec):
        return format(self.get(), spec)

    # What NumPy asks when it meets the array.

    def __array__(self, *args, **kwargs):
        raise TypeError(
            "Implicit conversion to a NumPy array is not allowed. "
            "Please use `.get()` to construct a NumPy array explicitly."
        )

    def __array_ufunc__(self, function, method, *args, **kwargs):
        if method != "__call__":
            raise TypeError(f"numpy.{function.__name__}.{method} of a cupy array")
        return _ours(function.__name__)(*args, **kwargs)

    def __array_function__(self, function, kinds, args, kwargs):
        return _ours(function.__name__)(*args, **kwargs)

    # Elements.

    def __len__(self):
        return len(self._a)

    def __iter__(self):
        if self.ndim == 0:
            raise TypeError("iteration over a 0-d array")
        return (self[i] for i in range(len(self)))

    def __getitem__(self, key):
        key = opened_key(self, key)
        if not any(isinstance(k, np.ndarray) for k in key):
            key = key if any(k is ... for k in key) else (*key, ...)  # with ... NumPy gives a 0-d view, not a scalar
            return ndarray(self._a[key], self.device)
        return boxed(opened(self)[key])

    def __setitem__(self, key, value):
        key = opened_key(self, key)
        refuse_overlap(self)
        if any(isinstance(k, np.ndarray) and k.dtype != bool for k in key):
            chosen = np.arange(self.size).reshape(self.shape)[key]
            if np.unique(chosen).size < chosen.size:
                raise Undefined("a[i] = v with an element named twice: any of the values may win")
        opened(self)[key] = operand(value)

    def take(self, indices, axis=None):
        return sys.modules["cupy"].take(self, indices, axis)

    def copy(self):
        return ndarray(self._a.copy())  # on the current device, wherever this one is

    def fill(self, value):
        self[...] = value


def _ours(name):
    try:
        return getattr(sys.modules["cupy"], name)
    except AttributeError:
        raise TypeError(f"no implementation found for 'numpy.{name}' on cupy.ndarray") from None


def boxed(answer):
    """NumPy's answer as CuPy gives it: arrays in boxes, and 0-d ones for NumPy's scalars."""
    if isinstance(answer, (tuple, list)):
        return [boxed(a) for a in answer] if isinstance(answer, list) else tuple(boxed(a) for a in answer)
    return ndarray(np.asarray(answer)) if isinstance(answer, (np.ndarray, np.generic)) else answer


def opened(value):
    """An argument of a function: boxes opened, also within lists, and NumPy arrays refused."""
    if isinstance(value, np.ndarray):
        raise TypeError("Unsupported type <class 'numpy.ndarray'>")
    if isinstance(value, (tuple, list)):
        return type(value)(opened(v) for v in value)
    if not isinstance(value, ndarray):
        return value
    if value.device.id != devices.current:
        raise ValueError(
            "Array device must be same as the current device: "
            f"array device = {value.device.id} while current = {devices.current}"
        )
    return value._a


def operand(value):
    """An argument of arithmetic: a box, or a number."""
    if isinstance(value, (ndarray, *NUMBERS)):
        return opened(value)
    raise TypeError(f"Unsupported type {type(value)}")


def opened_key(array, key):
    """An index as NumPy's: integer arrays wrap round, masks synchronise, NumPy's arrays and lists are refused."""
    key = key if isinstance(key, tuple) else (key,)
    spans = [k.ndim if _is_mask(k) else int(k is not None and k is not ...) for k in key]  # axes that each takes up
    out, axis = [], 0
    for k, span in zip(key, spans, strict=True):
        if isinstance(k, (np.ndarray, list)):
            raise TypeError(f"a cupy array indexed with {type(k)}: copied to the device at every use")
        if _is_mask(k):
            counts.synchronised += 1  # how many elements there are, only the device knows
            out.append(k._a)
        elif isinstance(k, ndarray):
            out.append(k._a % max(array.shape[axis], 1))
        else:
            out.append(k)
        axis += array.ndim - sum(spans) if k is ... else span
    return tuple(out)


def _is_mask(k):
    return isinstance(k, ndarray) and k.dtype == bool


def refuse_overlap(array):
    """No write through a view in which two indices may be the same memory: that is a race."""
    if array.size == 0:
        return
    reach = array.itemsize
    for stride, n in sorted((abs(s), n) for s, n in zip(array.strides, array.shape, strict=True) if n > 1):
        if stride < reach:
            raise Undefined(f"write through a view that overlaps itself: shape {array.shape}, strides {array.strides}")
        reach += stride * (n - 1)


def checked(name, args, kwargs, unbox=opened):
    """Arguments for NumPy, and the box given as `out`."""
    for keyword in ("where", "initial", "like", "subok"):
        if keyword in kwargs:
            raise TypeError(f"cupy.{name}: got an unexpected keyword argument {keyword!r}")
    out = kwargs.get("out")
    if out is not None:
        out = kwargs["out"] = out[0] if isinstance(out, tuple) else out
        operand(out)
        refuse_overlap(out)
    return [unbox(a) for a in args], {k: opened(v) for k, v in kwargs.items()}, out


def _method(name):
    def method(self, *args, **kwargs):
        args, kwargs, out = checked(name, args, kwargs)
        if name in VIEWS:
            return ndarray(getattr(self._a, name)(*args, **kwargs), self.device)
        if name == "astype" and kwargs.get("copy") is False and self.dtype == args[0]:
            return self
        answer = boxed(getattr(opened(self), name)(*args, **kwargs))
        return answer if out is None else out

    return method


def _binary(name, swapped=False):
    def operator(self, other):
        a, b = (other, self) if swapped else (self, other)
        return boxed(getattr(np, name)(operand(a), operand(b)))

    return operator


def _in_place(name):
    def operator(self, other):
        refuse_overlap(self)
        getattr(np, name)(opened(self), operand(other), out=self._a, casting="same_kind")
        return self

    return operator


for _name in METHODS:
    setattr(ndarray, _name, _method(_name))
for _short, _name in OPERATORS.items():
    setattr(ndarray, f"__{_short}__", _binary(_name))
    setattr(ndarray, f"__r{_short}__", _binary(_name, swapped=True))
    if _short != "matmul":  # CuPy has no @=
        setattr(ndarray, f"__i{_short}__", _in_place(_name))
for _short, _name in COMPARISONS.items():
    setattr(ndarray, f"__{_short}__", _binary(_name))
for _short, _name in UNARY.items():
    setattr(ndarray, f"__{_short}__", lambda self, name=_name: boxed(getattr(np, name)(opened(self))))
