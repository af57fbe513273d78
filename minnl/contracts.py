"""What the engine requires: numbers for a Tensor, one array from forward, one gradient per input from backward."""

import numpy as np

from minnl import backend

FLOATS = (np.dtype(np.float32), np.dtype(np.float64))


class Size(int):
    """A number of elements. A call, as of PyTorch's method of that name, is an error that says what to write."""

    def __call__(self, axis=None):
        raise TypeError("size: the number of elements, not a method; write t.shape or t.shape[axis]")


def numbers(data, dtype=None):
    """The data of a Tensor as an array. Lists and Python numbers become float32 unless `dtype` is given."""
    type_name = type(data).__name__
    if isinstance(data, np.ndarray) and type_name in ("matrix", "MaskedArray"):
        raise TypeError(
            f"Tensor: data is a {type_name}, which computes by other rules; write np.asarray(data) or data.filled(0)"
        )
    has_dtype = hasattr(data, "dtype")  # np.float64(1) and the arrays of other libraries keep their dtype
    if not backend.is_array(data):
        try:
            data = np.asarray(data)
        except ValueError as error:
            raise ValueError(f"Tensor: data is a {type_name} that makes no array: {error}") from None
    if data.dtype.kind not in "fiub":
        raise TypeError(
            f"Tensor: data is a {type_name} and holds {data.dtype}, real numbers expected, as an array or in lists"
        )
    if dtype is None and not has_dtype:
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
    """The new value of `tensor.data` as an array; an error unless it is a float array that fits the gradient."""
    array = _as_array(array)
    if not backend.is_array(array) or array.dtype not in FLOATS:
        what = f"an array of {array.dtype}" if backend.is_array(array) else type(array).__name__
        raise TypeError(
            f"data: an array of float32 or float64 expected, got {what}; to fill it write t.data[...] = value"
        )
    if grad is not None and (grad.shape, grad.dtype) != (array.shape, array.dtype):
        raise ValueError(
            f"data: shape {array.shape}, {array.dtype} given; the tensor has a gradient of {grad.shape}, {grad.dtype}; "
            "write t.grad = None first"
        )
    return array


def check_grad(array, data):
    """The new value of `tensor.grad` as an array; an error unless shape, dtype and device are the tensor's."""
    array = _as_array(array)
    if not backend.is_array(array):
        raise TypeError(f"grad: an array, a Tensor or None expected, got {type(array).__name__}")
    given, own = ((a.shape, str(a.dtype), str(backend.device_of(a))) for a in (array, data))
    if given != own:
        raise ValueError("grad: shape {}, {} on {} given; the tensor has {}, {} on {}".format(*given, *own))
    return array


def _as_array(value):
    """A NumPy scalar as an array: NumPy's arithmetic on arrays without axes returns scalars."""
    return np.asarray(value) if isinstance(value, np.generic) else value


def refuse_call(op):
    """An op object is called once: a second call would overwrite what the backward of the first one needs."""
    cls = type(op).__name__
    raise RuntimeError(
        f"{op.name}: this {cls} object was called already and holds what the backward of that call needs; "
        f"make a new object for each call: {cls}(...)(x)"
    )


def check_result(op, y, x):
    """The result y of forward as an array; an error unless it is an array of the dtype and device of the input x."""
    y = _as_array(y)
    if not backend.is_array(y):
        raise TypeError(
            f"{op.name}: forward returned {type(y).__name__}, one array expected; "
            "forward computes on arrays with self.xp (self.xp.exp), not with functional"
        )
    made, given = (f"{a.dtype} on {backend.device_of(a)}" for a in (y, x))
    if y.dtype not in FLOATS or (made != given and not op.converts):
        raise TypeError(
            f"{op.name}: forward returned {made} for inputs of {given}; return y.astype(x.dtype), "
            "or write converts = True in the class if the op converts to another dtype or device"
        )
    return y


def check_gradients(op, grads):
    """The gradients of backward as a list; an error unless each fits its input in shape, dtype and array type."""
    if not isinstance(grads, (tuple, list)):
        raise TypeError(
            f"{op.name}: backward returned {type(grads).__name__}, a tuple expected with a gradient or None for each "
            f"of {len(op.expected)} inputs; for a single input write return (gx,)"
        )
    if len(grads) != len(op.expected):
        shapes = ", ".join(str(shape) for shape, _ in op.expected)
        raise ValueError(
            f"{op.name}: backward returned {len(grads)} gradients for {len(op.expected)} inputs ({shapes})"
        )
    grads, array_type = list(grads), op.xp.ndarray
    for i, (gx, (shape, dtype)) in enumerate(zip(grads, op.expected, strict=True)):
        if gx is None:
            continue
        if type(gx) is not array_type:
            grads[i] = gx = _as_array(gx)
            if not isinstance(gx, array_type):
                raise TypeError(
                    f"{op.name}: backward returned {type(gx).__name__} for input {i} of shape {shape}, "
                    f"an array of {op.xp.__name__} or None expected"
                )
        if gx.shape != shape or gx.dtype != dtype:
            raise RuntimeError(
                f"{op.name}: backward returned a gradient of shape {gx.shape} {gx.dtype} for input {i} "
                f"of shape {shape} {dtype}; this is a bug in the op"
            )
    return grads
