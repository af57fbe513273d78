"""What the engine asks for: numbers for a Tensor, one array from a forward, a gradient an input from a backward."""

from __future__ import annotations

import numpy as np

from minnl import backend

FLOATS = (np.dtype(np.float32), np.dtype(np.float64))


def numbers(data, dtype=None):
    """An array of what a Tensor is made from: another dtype, lists or a number, which become float32."""
    kind = type(data).__name__
    if isinstance(data, (np.matrix, np.ma.MaskedArray)):
        raise TypeError(
            f"Tensor: data is a {kind}, which computes by other rules; write np.asarray(data) or data.filled(0)"
        )
    given = backend.is_array(data) or isinstance(data, np.generic)  # np.float64(1) has a dtype of its own, and keeps it
    if not backend.is_array(data):
        try:
            data = np.asarray(data)
        except ValueError as error:
            raise ValueError(f"Tensor: data is a {kind} that is no array: {error}") from None
    if data.dtype.kind not in "fiub":
        raise TypeError(
            f"Tensor: data holds {data.dtype} (of a {kind}), real numbers expected, as an array or in lists"
        )
    if dtype is None and not given:
        dtype = np.float32
    if dtype is None:
        return data
    with backend.on(data):
        return data.astype(float_dtype("Tensor", dtype), copy=False)


def float_dtype(op, dtype):
    dtype = np.dtype(dtype)
    if dtype not in FLOATS:
        raise TypeError(f"{op}: dtype must be float32 or float64, got {dtype}")
    return dtype


def check_first_call(op):
    """Refuses the second call of an op object, which would overwrite what the first one's backward needs."""
    call = object()
    if op.__dict__.setdefault("call", call) is not call:  # in one step, so that of two threads one is refused
        kind = type(op).__name__
        raise RuntimeError(
            f"{op.name}: this {kind} object was called already and carries what the backward of that call needs; "
            f"make a new one for each call: {kind}(...)(x)"
        )


def check_kept(op):
    """Refuses names in `keeps` of what forward has not left."""
    for key in op.keeps:
        if not hasattr(op, key):
            raise TypeError(f"{op.name}: keeps names {key!r}, but forward left no self.{key}")


def check_result(op, y, x):
    """What forward returned, as an array; refuses what is none, or has another dtype or device than the input x."""
    if isinstance(y, np.generic):  # NumPy makes scalars of arrays without axes
        y = np.asarray(y)
    if not backend.is_array(y):
        raise TypeError(
            f"{op.name}: forward returned {type(y).__name__}, one array expected"
            "; forward computes on arrays, with self.xp.exp and the like, not with functional"
        )
    made, given = (f"{a.dtype} on {backend.device_of(a)}" for a in (y, x))
    if y.dtype not in FLOATS or (made != given and not op.converts):
        raise TypeError(
            f"{op.name}: forward returned {made} for inputs of {given}; keep to the inputs' (y.astype(x.dtype)), "
            "or say converts = True in the class if it turns one float type into another"
        )
    return y


def check_gradients(op, grads):
    """What backward returned, as a list; refuses what does not fit the inputs one by one."""
    if not isinstance(grads, (tuple, list)):
        raise TypeError(
            f"{op.name}: backward returned {type(grads).__name__}, a tuple expected with a gradient or None for each "
            f"input ({len(op.expected)}); for one input write return (gx,)"
        )
    if len(grads) != len(op.expected):
        shapes = ", ".join(str(shape) for shape, _ in op.expected)
        raise ValueError(
            f"{op.name}: backward returned {len(grads)} gradients for {len(op.expected)} inputs ({shapes})"
        )
    checked = []
    for i, (gx, (shape, dtype)) in enumerate(zip(grads, op.expected, strict=True)):
        if isinstance(gx, np.generic):  # NumPy makes scalars of arrays without axes
            gx = op.xp.asarray(gx)
        if gx is not None:
            if not isinstance(gx, op.xp.ndarray):
                raise TypeError(
                    f"{op.name}: backward returned {type(gx).__name__} for input {i} of shape {shape}, "
                    f"an array of {op.xp.__name__} or None expected"
                )
            if (gx.shape, gx.dtype) != (shape, dtype):
                raise RuntimeError(
                    f"{op.name}: backward made a gradient of shape {gx.shape} {gx.dtype} for input {i} "
                    f"of shape {shape} {dtype}; this is a bug in the op"
                )
        checked.append(gx)
    return checked
