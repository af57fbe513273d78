"""Watching a real CuPy at work: what crosses the bus, what makes the host wait, and what meets a NumPy array.

CuPy's own C code cannot be watched from Python, so this looks at every way in: the functions of ``cupy``, the methods
and operators of its arrays, and the waits of streams and events. tests/strict_cupy sees the rest.
"""

import contextlib
import functools
import types

import numpy as np
import pytest

READS = ("get", "item", "tolist", "__float__", "__int__", "__bool__", "__complex__", "__index__", "__array__")
OPERATORS = (
    *("__getitem__", "__setitem__", "__matmul__", "__rmatmul__"),
    *(f"__{name}__" for name in ("eq", "ne", "lt", "le", "gt", "ge")),
    *(f"__{side}{name}__" for name in ("add", "sub", "mul", "truediv", "pow", "and", "or") for side in ("", "r", "i")),
)
UPLOADS = ("array", "asarray", "asanyarray", "ascontiguousarray", "asfortranarray")
MAKERS = (*UPLOADS, "asnumpy", "get_array_module", "may_share_memory", "shares_memory")  # these take any array


class Watch:
    """Attributes: `to_device` and `to_host`, as (shape, dtype name); `waited` and `mixed`, names of what was called."""

    def __init__(self):
        self.to_device, self.to_host, self.waited, self.mixed = [], [], [], []

    def read(self, array):
        self.to_host.append((array.shape, str(array.dtype)))

    def uploaded(self, value):
        if not isinstance(value, self.cupy.ndarray):
            value = np.asarray(value)
            self.to_device.append((value.shape, str(value.dtype)))

    def met(self, name, values):
        if any(isinstance(v, np.ndarray) for v in _flat(values)):
            self.mixed.append(name)


def _flat(values):
    for v in values:
        if isinstance(v, (list, tuple)):
            yield from _flat(v)
        else:
            yield v


@contextlib.contextmanager
def watched(cupy):
    """Context in which a :class:`Watch` takes note of all that CuPy is asked for."""
    watch = Watch()
    watch.cupy = cupy
    with pytest.MonkeyPatch.context() as patch:

        def before(owner, name, note):
            original = getattr(owner, name)

            @functools.wraps(original, updated=())
            def function(*arguments, **options):
                note(arguments, options)
                return original(*arguments, **options)

            patch.setattr(owner, name, function)

        for name in READS:
            if hasattr(cupy.ndarray, name):
                before(cupy.ndarray, name, lambda a, o: watch.read(a[0]))
        before(cupy, "asnumpy", lambda a, o: watch.read(a[0]))
        before(cupy.ndarray, "set", lambda a, o: watch.uploaded(a[1]))
        for name in UPLOADS:
            before(cupy, name, lambda a, o: watch.uploaded(a[0]))
        for name in OPERATORS:
            before(cupy.ndarray, name, lambda a, o, name=name: watch.met(name, a[1:]))
        for name, thing in list(vars(cupy).items()):
            if isinstance(thing, types.FunctionType | types.BuiltinFunctionType) and name not in MAKERS:
                before(cupy, name, lambda a, o, name=name: watch.met(name, (*a, *o.values())))
            elif isinstance(thing, cupy.ufunc):
                patch.setattr(cupy, name, _Ufunc(thing, watch))
        cuda = cupy.cuda
        waits = [(cuda.Stream, "synchronize"), (cuda.Event, "synchronize")]
        waits += [(cuda.runtime, f"{what}Synchronize") for what in ("device", "stream", "event")]
        waits += [(cuda.runtime, "memcpy")]  # the kind that waits
        for owner, name in waits:
            before(owner, name, lambda a, o, name=f"{owner.__name__}.{name}": watch.waited.append(name))
        yield watch


class _Ufunc:
    def __init__(self, ufunc, watch):
        self.ufunc, self.watch = ufunc, watch

    def __call__(self, *arguments, **options):
        self.watch.met(self.ufunc.name, (*arguments, *options.values()))
        return self.ufunc(*arguments, **options)

    def __getattr__(self, name):
        return getattr(self.ufunc, name)
