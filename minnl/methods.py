"""What a Tensor does beside holding an array: operators, methods, and how it meets the habits of Python and NumPy.

A method is a function of minnl.functional, by the same name (`t.sum(axis)` is `F.sum(t, axis)`), or one of the few
below that F has no word for. What NumPy or PyTorch call otherwise gets no second name here: an error says which one to
write. docs/engine.md tells the rules.
"""

from __future__ import annotations

import operator

import numpy as np

from minnl import backend
from minnl import functional as F
from minnl.engine import Tensor, state
from minnl.ops.arguments import axis_tuple, broadcast_shape, one_axis, tensors

OPERATORS = {
    "add": ("+=", F.add), "sub": ("-=", F.sub), "mul": ("*=", F.mul), "truediv": ("/=", F.div), "pow": ("**=", F.pow),
    "matmul": ("@=", F.matmul),
}  # fmt: skip
COMPARISONS = {"lt": "<", "le": "<=", "eq": "==", "ne": "!=", "gt": ">", "ge": ">="}
METHODS = (
    "abs", "broadcast_to", "clip", "exp", "flip", "log", "log_softmax", "max", "mean", "min", "pad", "relu", "sigmoid",
    "softmax", "split", "sqrt", "sum", "tanh", "to", "var",
)  # fmt: skip
SHAPES = (np.shape, np.ndim, np.size, np.zeros_like, np.ones_like, np.empty_like, np.full_like)  # look at no number


def method(function):
    """Give Tensor a method."""
    setattr(Tensor, function.__name__, function)
    return function


for _name in METHODS:
    setattr(Tensor, _name, getattr(F, _name))
Tensor.__neg__, Tensor.__abs__, Tensor.__getitem__ = F.neg, F.abs, F.index
Tensor.T = property(lambda x: F.transpose(x))


# Shapes, and answers without a gradient.


def _one_or_several(values):
    """x.reshape(2, 3) beside x.reshape((2, 3))."""
    return values[0] if len(values) == 1 and isinstance(values[0], (tuple, list)) else values


@method
def reshape(x, *shape):
    return F.reshape(x, _one_or_several(shape))


@method
def transpose(x, *axes):
    if axes == (0, 1) and x.ndim == 2:
        raise ValueError("transpose: (0, 1) leaves a matrix as it is (PyTorch swaps them); write x.T to swap the axes")
    return F.transpose(x, _one_or_several(axes) if axes else None)


@method
def flatten(x, start=0):
    """All axes from `start` on as one."""
    start = one_axis("flatten", start, max(x.ndim, 1))
    return F.reshape(x, (*x.shape[:start], int(np.prod(x.shape[start:]))))


@method
def squeeze(x, axis=None):
    """Without its axes of size 1 (all, or those of `axis`, which must be of size 1)."""
    axes = axis_tuple("squeeze", axis, x.ndim)
    wide = [a for a in axes if x.shape[a] != 1]
    if axis is not None and wide:
        raise ValueError(f"squeeze: axis {wide[0]} of shape {x.shape} has size {x.shape[wide[0]]}, not 1")
    return F.reshape(x, [n for a, n in enumerate(x.shape) if a not in axes or n != 1])


@method
def std(x, axis=None, correction=1, keepdims=False):
    """Square root of the variance; with gradient 0 where nothing varies."""
    v = F.var(x, axis, correction, keepdims)
    return F.where(v == 0, v, F.sqrt(F.where(v == 0, 1.0, v)))


@method
def argmax(x, axis=None):
    """Where the largest element is (the first, in row-major order), as an array of integers; of all axes if None."""
    return _place("argmax", x, axis)


@method
def argmin(x, axis=None):
    """Where the smallest element is, as :func:`argmax`."""
    return _place("argmin", x, axis)


def _place(name, x, axis):
    axis = None if axis is None else one_axis(name, axis, x.ndim)
    if 0 in (x.shape if axis is None else x.shape[axis : axis + 1]):
        raise ValueError(f"{name}: no elements along axis {axis} of shape {x.shape}")
    with backend.on(x.device):
        return backend.namespace(name, x.data).asarray(getattr(x.data, name)(axis=axis))


@method
def tolist(x):
    """The numbers as Python floats, in lists in lists."""
    return x.numpy().tolist()


# One element as a Python number; rows, one after the other.


@method
def __bool__(x):
    if x.size != 1:
        raise ValueError(f"bool: a tensor of shape {x.shape} is neither true nor false; write (t != 0).any() or .all()")
    return bool(x.item())


@method
def __format__(x, spec):
    return format(x.item(), spec) if spec else str(x)


@method
def __round__(x, digits=None):
    return round(x.item(), digits)


@method
def __iter__(x):
    if x.ndim == 0:
        raise TypeError("iteration over a tensor without axes; write t.item() for its number")
    return (F.index(x, i) for i in range(x.shape[0]))


Tensor.__float__ = Tensor.item
Tensor.__int__ = lambda x: int(x.item())


# Comparisons: arrays of bool, element by element. As keys of a dict tensors stay themselves.


def _comparison(name, symbol):
    compare = getattr(operator, name)

    def compared(x, other):
        if isinstance(other, (list, tuple)):
            raise TypeError(f"{symbol}: a Tensor, an array or a number expected beside the tensor, got {other!r:.60}")
        if isinstance(other, Tensor):
            other = other.data
        array = backend.is_array(other)
        if not array and not isinstance(other, (bool, int, float, np.generic)):
            return NotImplemented  # None, a text: not equal, and no order
        xp = backend.namespace(symbol, x.data, *((other,) if array else ()))
        broadcast_shape(symbol, x.shape, np.shape(other) if not array else other.shape)
        with backend.on(x.device):
            return xp.asarray(compare(x.data, other))

    return compared


for _name, _symbol in COMPARISONS.items():
    setattr(Tensor, f"__{_name}__", _comparison(_name, _symbol))
Tensor.__hash__ = object.__hash__


# Arithmetic: a new tensor. In place (t += u, t[...] = u) where no graph is recorded: an edit of the array. Where one is
# recorded, t += u gives the name t to the new tensor t + u, so that losses can be summed up.


def _editable(x, symbol):
    """The array of x, if nothing that a backward needs can change with it."""
    if state.recording:
        raise RuntimeError(
            f"{symbol}: no graph can follow an edit in place; write t = t + u (or F.where) for a new tensor, or "
            "edit a leaf inside `with no_grad():`"
        )
    if x.op is not None:
        raise RuntimeError(
            f"{symbol}: the tensor was computed by {x.op.name}, and backward may need its numbers as they are; write "
            "t = t + u, or edit a copy: Tensor(t.data.copy())"
        )
    if not getattr(x.data.flags, "writeable", True):  # CuPy's arrays always are
        raise ValueError(f"{symbol}: the tensor's array is read-only; edit a copy: Tensor(t.data.copy())")
    return x.data


def _in_place(symbol, function):
    def edit(x, other):
        rebinds = state.recording and not (x.is_leaf and x.requires_grad)
        array = None if rebinds else _editable(x, symbol)
        y = function(x, other)
        if y.shape != x.shape:
            raise ValueError(f"{symbol}: the result has shape {y.shape}, the tensor has {x.shape}; write t = t + u")
        if rebinds:
            return y
        with backend.on(x.device):
            array[...] = y.data
        return x

    return edit


for _name, (_symbol, _function) in OPERATORS.items():
    _function = _function.__wrapped__  # an operator has no named arguments to give hints about
    setattr(Tensor, f"__{_name}__", _function)
    setattr(Tensor, f"__r{_name}__", lambda a, b, function=_function: function(b, a))
    setattr(Tensor, f"__i{_name}__", _in_place(_symbol, _function))


@method
def __setitem__(x, key, value):
    array = _editable(x, "t[...] =")
    keys, value = F.index_keys(x, key)[0], tensors("t[...] =", x, value)[1]
    backend.namespace("t[...] =", array, value.data)
    if value.dtype != x.dtype:
        raise TypeError(
            f"t[...] =: the value is {value.dtype}, the tensor is {x.dtype}; convert it with .to(dtype=...)"
        )
    with backend.on(x.device):
        array[keys] = value.data


# NumPy. Its functions see the array, and would lose the graph: a tensor that wants a gradient refuses.

Tensor.__array_ufunc__ = None  # array + tensor asks Tensor.__radd__; np.exp(tensor) is a TypeError


@method
def __array__(x, dtype=None, copy=None):
    if x.requires_grad:
        raise TypeError(
            "NumPy cannot see the graph of a tensor that requires a gradient, and would lose it; write t.numpy() (or "
            "t.item()) for the numbers alone, or a function of minnl.functional (F.stack, F.mean, ...)"
        )
    if x.device != backend.CPU:
        raise TypeError(f"the tensor is on {x.device}; write t.numpy() for a copy on the host")
    return np.array(x.data, dtype=dtype, copy=copy) if copy is not None else np.asarray(x.data, dtype=dtype)


@method
def __array_function__(x, function, types, args, options):
    """np.mean(t), np.stack([t, u]): NumPy's result, of the arrays."""

    def plain(value):
        if isinstance(value, (list, tuple)):
            return type(value)(map(plain, value))
        if isinstance(value, Tensor):
            return value.data if function in SHAPES else np.asarray(value)
        return value

    return function(*plain(args), **{name: plain(value) for name, value in options.items()})


# Other libraries' names, and which to write.

_LOOK = "t.numpy() and NumPy's function, which has no gradient"
_OWN = "an expression of functional's, or an op of your own"
INSTEAD = {
    **dict.fromkeys(("astype", "type", "float", "double", "half"), "t.to(dtype=np.float64)"),
    **dict.fromkeys(("int", "long", "bool"), "t.numpy().astype(int), an array: tensors hold floats"),
    **dict.fromkeys(("cuda", "gpu"), 't.to("gpu")'),
    **dict.fromkeys(("get", "cpu"), 't.to("cpu"), or t.numpy() for an array'),
    **dict.fromkeys(("clone", "copy"), "Tensor(t.data.copy()) for a leaf, t * 1 within a graph"),
    **dict.fromkeys(("view", "view_as", "reshape_as", "unflatten", "resize"), "t.reshape(shape)"),
    **dict.fromkeys(("permute", "swapaxes", "swapdims", "moveaxis", "movedim"), "t.transpose(order of all axes)"),
    **dict.fromkeys(("t", "mT", "H", "adjoint"), "t.T, or t.transpose(order of all axes)"),
    **dict.fromkeys(("expand", "expand_as", "repeat", "tile"), "t.broadcast_to(shape), or F.concatenate([t, t])"),
    **dict.fromkeys(("mm", "bmm", "mv", "dot", "matmul"), "t @ u"),
    **dict.fromkeys(("chunk", "unbind"), "t.split(parts, axis)"),
    **dict.fromkeys(("gather", "take", "index_select", "masked_select", "narrow", "select"), "t[...]"),
    **dict.fromkeys(("where", "masked_fill"), "F.where(condition, a, b)"),
    **dict.fromkeys(("maximum", "minimum", "fmax", "fmin"), "F.maximum(t, u)"),
    **dict.fromkeys(("clamp", "clamp_min", "clamp_max"), "t.clip(low, high)"),
    **dict.fromkeys(("fill", "put", "itemset"), "t[...] = value, inside `with no_grad():`"),
    **dict.fromkeys(("add_", "sub_", "mul_", "div_", "pow_"), "t += u, inside `with no_grad():`"),
    **dict.fromkeys(("fill_", "zero_", "copy_", "clamp_"), "t[...] = value, inside `with no_grad():`"),
    **dict.fromkeys(("eq", "ne", "lt", "le", "gt", "ge", "equal"), "t == u, t < u, ..."),
    **dict.fromkeys(("numel", "nelement"), "t.size"),
    **dict.fromkeys(("any", "all", "nonzero"), "(t != 0).any() and the like"),
    **dict.fromkeys(("sort", "argsort", "topk", "median", "quantile", "unique", "cumsum", "diagonal", "trace"), _LOOK),
    **dict.fromkeys(("round", "floor", "ceil", "sign", "isnan", "isinf", "isfinite", "allclose"), _LOOK),
    **dict.fromkeys(("prod", "cumprod", "erf", "log1p", "log2", "log10", "expm1", "sin", "cos", "logsumexp"), _OWN),
    **dict.fromkeys(("strides", "nbytes", "itemsize", "flags"), "t.data.strides, t.data.nbytes, ..."),
    **dict.fromkeys(("contiguous", "is_contiguous", "pin_memory"), "t alone: memory needs no care here"),
    "add": "t + u", "sub": "t - u", "mul": "t * u", "div": "t / u", "pow": "t ** p", "neg": "-t", "square": "t * t",
    "reciprocal": "1 / t", "rsqrt": "t ** -0.5", "norm": "(t * t).sum(axis) ** 0.5", "amax": "t.max(axis)",
    "amin": "t.min(axis)", "ravel": "t.flatten()", "unsqueeze": "t[None], t[:, None], ...", "dim": "t.ndim",
    "is_cuda": "t.device", "grad_fn": "t.op", "requires_grad_": "t.requires_grad = True", "detach_": "t.detach()",
    "register_hook": "t.retain_grad(), and look at t.grad after backward",
}  # fmt: skip


def _elsewhere(name, instead):
    """A property that says what to write. (Not `__getattr__`, which makes each look at any attribute slower.)"""

    def refuse(x):
        raise AttributeError(f"Tensor has no {name!r}; write {instead}")

    return property(refuse)


for _name, _instead in INSTEAD.items():
    setattr(Tensor, _name, _elsewhere(_name, _instead))
