"""What the engine asks for: numbers for a Tensor, one array from a forward, a gradient an input from a backward."""

import numpy as np

from minnl import backend

FLOATS = (np.dtype(np.float32), np.dtype(np.float64))


class Size(int):
    """A number of elements. Called, as PyTorch's method of that name is, it says what to write."""

    def __call__(self, axis=None):
        raise TypeError("size: the number of elements, not a method; write t.shape or t.shape[axis]")


def numbers(data, dtype=None):
    """An array of what a Tensor is made from: another dtype, lists or a number, which become float32."""
    kind = type(data).__name__
    if isinstance(data, np.ndarray) and kind in ("matrix", "MaskedArray"):
        raise TypeError(
            f"Tensor: data is a {kind}, which computes by other rules; write np.asarray(data) or data.filled(0)"
        )
    given = hasattr(data, "dtype")  # np.float64(1), and other libraries' arrays, keep the dtype that they have
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


def check_data(array, grad):
    """What `tensor.data` is set to, as an array; refuses what a Tensor could not hold, or not beside its gradient."""
    array = _as_array(array)
    if not backend.is_array(array) or array.dtype not in FLOATS:
        what = f"an array of {array.dtype}" if backend.is_array(array) else type(array).__name__
        raise TypeError(
            f"data: an array of float32 or float64 expected, got {what}; to fill it write t.data[...] = value"
        )
    if grad is not None and (grad.shape, grad.dtype) != (array.shape, array.dtype):
        raise ValueError(
            f"data: shape {array.shape}, {array.dtype} given; the tensor has a gradient of {grad.shape}, {grad.dtype}: "
            "write t.grad = None before"
        )
    return array


def check_grad(array, data):
    """What `tensor.grad` is set to, as an array; refuses what is not like the tensor's own."""
    array = _as_array(array)
    if not backend.is_array(array):
        raise TypeError(f"grad: an array, a Tensor or None expected, got {type(array).__name__}")
    given, own = ((a.shape, str(a.dtype), str(backend.device_of(a))) for a in (array, data))
    if given != own:
        raise ValueError("grad: shape {}, {} on {} given; the tensor has {}, {} on {}".format(*given, *own))
    return array


def _as_array(value):
    """NumPy's scalars as arrays: of arrays without axes its arithmetic makes such."""
    return np.asarray(value) if isinstance(value, np.generic) else value


def refuse_call(op):
    """An op object is called once: a second call would overwrite what the backward of the first one needs."""
    kind = type(op).__name__
    raise RuntimeError(
        f"{op.name}: this {kind} object was called already and carries what the backward of that call needs; "
        f"make a new one for each call: {kind}(...)(x)"
    )


def check_result(op, y, x):
    """What forward returned, as an array; refuses what is none, or has another dtype or device than the input x."""
    y = _as_array(y)
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
    grads, kind = list(grads), op.xp.ndarray
    for i, (gx, (shape, dtype)) in enumerate(zip(grads, op.expected, strict=True)):
        if gx is None:
            continue
        if type(gx) is not kind:
            grads[i] = gx = _as_array(gx)
            if not isinstance(gx, kind):
                raise TypeError(
                    f"{op.name}: backward returned {type(gx).__name__} for input {i} of shape {shape}, "
                    f"an array of {op.xp.__name__} or None expected"
                )
        if gx.shape != shape or gx.dtype != dtype:
            raise RuntimeError(
                f"{op.name}: backward made a gradient of shape {gx.shape} {gx.dtype} for input {i} "
                f"of shape {shape} {dtype}; this is a bug in the op"
            )
    return grads
