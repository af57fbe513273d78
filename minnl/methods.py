"""The operators and methods of a Tensor, and its use with Python's built-ins and NumPy.

A method is a function of minnl.functional with the same name (`t.sum(axis)` is `F.sum(t, axis)`), or one of the few
methods below without a counterpart there. Other names of NumPy and PyTorch are errors that say what to write instead.
docs/engine.md has the rules.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from minnl import backend
from minnl import functional as F
from minnl.backend import Array
from minnl.engine import Tensor, state
from minnl.ops.arguments import Operand, axis_tuple, broadcast_shape, one_axis, tensors

# NumPy functions that read only the shape of a tensor, so that they lose no gradient.
SHAPES = (np.shape, np.ndim, np.size, np.zeros_like, np.ones_like, np.empty_like, np.full_like)


# Comparisons return arrays of bool, element by element. As a key of a dict, a tensor equals only itself.


def _comparison(name: str, symbol: str) -> Callable[[Tensor, Any], Array]:
    compare = getattr(operator, name)

    def compared(x, other):
        if isinstance(other, (list, tuple)):
            raise TypeError(f"{symbol}: the other operand must be a Tensor, an array or a number, got {other!r:.60}")
        if isinstance(other, Tensor):
            other = other.data
        array = backend.is_array(other)
        if not array and not isinstance(other, (bool, int, float, np.generic)):
            return NotImplemented  # None and str are not equal to a tensor and have no order
        xp = backend.namespace(symbol, x.data, *((other,) if array else ()))
        broadcast_shape(symbol, x.shape, np.shape(other) if not array else other.shape)
        with backend.on(x.device):
            return xp.asarray(compare(x.data, other))

    return compared


# Arithmetic returns a new tensor. While no graph is recorded, t += u and t[...] = u edit the array. While a graph is
# recorded, t += u binds the name t to the new tensor t + u, so that a loop can sum losses.


def _editable(x, symbol):
    """The array of x for an edit in place; an error if backward may need its present values."""
    if state.recording:
        raise RuntimeError(
            f"{symbol}: no graph can follow an edit in place; write t = t + u (or F.where) for a new tensor, or "
            "edit a leaf inside `with no_grad():`"
        )
    if x.op is not None:
        raise RuntimeError(
            f"{symbol}: {x.op.name} computed the tensor, and backward may need its present values; write t = t + u, or "
            "edit a copy: Tensor(t.data.copy())"
        )
    if not getattr(x.data.flags, "writeable", True):  # CuPy's arrays have no such flag and are writeable
        raise ValueError(f"{symbol}: the tensor's array is read-only; edit a copy: Tensor(t.data.copy())")
    return x.data


def _in_place(symbol: str, function: Callable[[Operand, Operand], Tensor]) -> Callable[[Tensor, Operand], Tensor]:
    function = _plain(function)

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


def _reflected(function: Callable[[Operand, Operand], Tensor]) -> Callable[[Tensor, Operand], Tensor]:
    function = _plain(function)
    return lambda a, b: function(b, a)


def _plain(function):
    """A function of F without the check of argument names, since operators have no named arguments."""
    return getattr(function, "__wrapped__", function)


# Shapes, and methods without a gradient.


def _as_sequence(values):
    """The arguments of x.reshape(2, 3) and of x.reshape((2, 3)) as the same sequence."""
    return values[0] if len(values) == 1 and isinstance(values[0], (tuple, list)) else values


def _place(name, x, axis):
    axis = None if axis is None else one_axis(name, axis, x.ndim)
    if 0 in (x.shape if axis is None else x.shape[axis : axis + 1]):
        raise ValueError(f"{name}: no elements along axis {axis} of shape {x.shape}")
    with backend.on(x.device):
        return backend.namespace(name, x.data).asarray(getattr(x.data, name)(axis=axis))


class Methods:
    """The operators and methods of a Tensor. Type checkers read this class as the base class of Tensor."""

    abs, exp, log, sqrt, relu, sigmoid, tanh = F.abs, F.exp, F.log, F.sqrt, F.relu, F.sigmoid, F.tanh
    sum, mean, var, max, min = F.sum, F.mean, F.var, F.max, F.min
    broadcast_to, clip, flip, pad, split, to = F.broadcast_to, F.clip, F.flip, F.pad, F.split, F.to
    softmax, log_softmax = F.softmax, F.log_softmax

    __add__, __radd__, __iadd__ = F.add, _reflected(F.add), _in_place("+=", F.add)
    __sub__, __rsub__, __isub__ = F.sub, _reflected(F.sub), _in_place("-=", F.sub)
    __mul__, __rmul__, __imul__ = F.mul, _reflected(F.mul), _in_place("*=", F.mul)
    __truediv__, __rtruediv__, __itruediv__ = F.div, _reflected(F.div), _in_place("/=", F.div)
    __pow__, __rpow__, __ipow__ = F.pow, _reflected(F.pow), _in_place("**=", F.pow)
    __matmul__, __rmatmul__, __imatmul__ = F.matmul, _reflected(F.matmul), _in_place("@=", F.matmul)
    __neg__, __abs__, __getitem__ = F.neg, F.abs, F.index

    __eq__: ClassVar[Callable[[Tensor, Any], Array]] = _comparison("eq", "==")  # type: ignore[assignment]
    __ne__: ClassVar[Callable[[Tensor, Any], Array]] = _comparison("ne", "!=")  # type: ignore[assignment]
    __lt__, __le__ = _comparison("lt", "<"), _comparison("le", "<=")
    __gt__, __ge__ = _comparison("gt", ">"), _comparison("ge", ">=")
    __hash__ = object.__hash__

    @property
    def T(self: Tensor) -> Tensor:
        return F.transpose(self)

    def reshape(self: Tensor, *shape: int | Sequence[int]) -> Tensor:
        return F.reshape(self, _as_sequence(shape))

    def transpose(self: Tensor, *axes: int | Sequence[int]) -> Tensor:
        if axes == (0, 1) and self.ndim == 2:
            raise ValueError(
                "transpose: (0, 1) leaves a matrix as it is (PyTorch swaps them); write x.T to swap the axes"
            )
        return F.transpose(self, _as_sequence(axes) if axes else None)

    def flatten(self: Tensor, start: int = 0) -> Tensor:
        """The tensor with all axes from `start` on merged into one."""
        start = one_axis("flatten", start, max(self.ndim, 1))
        return F.reshape(self, (*self.shape[:start], int(np.prod(self.shape[start:]))))

    def squeeze(self: Tensor, axis: int | Sequence[int] | None = None) -> Tensor:
        """The tensor without axes of size 1: all of them, or those of `axis`, which must have size 1."""
        axes = axis_tuple("squeeze", axis, self.ndim)
        wide = [a for a in axes if self.shape[a] != 1]
        if axis is not None and wide:
            raise ValueError(f"squeeze: axis {wide[0]} of shape {self.shape} has size {self.shape[wide[0]]}, not 1")
        return F.reshape(self, [n for a, n in enumerate(self.shape) if a not in axes or n != 1])

    def std(
        self: Tensor, axis: int | Sequence[int] | None = None, correction: int = 1, keepdims: bool = False
    ) -> Tensor:
        """Square root of the variance; the gradient is 0 where the variance is 0."""
        v = F.var(self, axis, correction, keepdims)
        return F.where(v == 0, v, F.sqrt(F.where(v == 0, 1.0, v)))

    def argmax(self: Tensor, axis: int | None = None) -> Array:
        """The index of the first largest element along an axis (over all axes if None), as an array of integers."""
        return _place("argmax", self, axis)

    def argmin(self: Tensor, axis: int | None = None) -> Array:
        """The index of the first smallest element, as in :func:`argmax`."""
        return _place("argmin", self, axis)

    def tolist(self: Tensor) -> Any:
        """The numbers as Python floats, in lists in lists."""
        return self.numpy().tolist()

    # One element as a Python number; rows, one after the other.

    def item(self: Tensor) -> float:
        """The only element as a Python float."""
        if self.size != 1:
            raise ValueError(f"item: the tensor has {self.size} elements (shape {self.shape}), not one")
        return float(self.numpy().reshape(()))

    __float__ = item

    def __int__(self: Tensor) -> int:
        return int(self.item())

    def __bool__(self: Tensor) -> bool:
        if self.size != 1:
            raise ValueError(
                f"bool: a tensor of shape {self.shape} is neither true nor false; write (t != 0).any() or .all()"
            )
        return bool(self.item())

    def __format__(self: Tensor, spec: str) -> str:
        return format(self.item(), spec) if spec else str(self)

    def __round__(self: Tensor, digits: int | None = None) -> Any:
        return round(self.item(), digits)

    def __repr__(self: Tensor) -> str:
        made = f", op={self.op.name}" if self.op else ""
        grad = ", requires_grad=True" if self.requires_grad else ""
        return f"Tensor({self.data}, shape={self.shape}, dtype={self.dtype}, device={self.device}{made}{grad})"

    def __len__(self: Tensor) -> int:
        if not self.shape:
            raise TypeError("len() of a tensor without axes")
        return self.shape[0]

    def __iter__(self: Tensor) -> Iterator[Tensor]:
        if self.ndim == 0:
            raise TypeError("iteration over a tensor without axes; write t.item() for its number")
        return (F.index(self, i) for i in range(self.shape[0]))

    def __setitem__(self: Tensor, key: Any, value: Operand) -> None:
        array = _editable(self, "t[...] =")
        keys, value = F.index_keys(self, key)[0], tensors("t[...] =", self, value)[1]
        backend.namespace("t[...] =", array, value.data)
        if value.dtype != self.dtype:
            raise TypeError(
                f"t[...] =: the value is {value.dtype}, the tensor is {self.dtype}; convert it with .to(dtype=...)"
            )
        with backend.on(self.device):
            array[keys] = value.data

    # NumPy. Its functions see the array, and would lose the graph: a tensor that wants a gradient refuses.

    __array_ufunc__ = None  # array + tensor asks Tensor.__radd__; np.exp(tensor) is a TypeError

    if not TYPE_CHECKING:  # NumPy's hints say of what has this method that array + tensor is an array

        def __array__(self, dtype=None, copy=None):
            if self.requires_grad:
                raise TypeError(
                    "NumPy cannot see the graph of a tensor that requires a gradient, and would lose it; write "
                    "t.numpy() (or t.item()) for the numbers alone, or a function of minnl.functional (F.stack, "
                    "F.mean, ...)"
                )
            if self.device != backend.CPU:
                raise TypeError(f"the tensor is on {self.device}; write t.numpy() for a copy on the host")
            if copy is None:
                return np.asarray(self.data, dtype=dtype)
            return np.array(self.data, dtype=dtype, copy=copy)

    def __array_function__(self: Tensor, function: Any, types: Any, args: Any, options: Any) -> Any:
        """np.mean(t), np.stack([t, u]): NumPy's result, of the arrays."""

        def plain(value):
            if isinstance(value, (list, tuple)):
                return type(value)(map(plain, value))
            if isinstance(value, Tensor):
                return value.data if function in SHAPES else np.asarray(value)
            return value

        return function(*plain(args), **{name: plain(value) for name, value in options.items()})


for _name, _member in vars(Methods).items():
    if _member is None or callable(_member) or isinstance(_member, property):
        setattr(Tensor, _name, _plain(_member) if _name.startswith("__") else _member)


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
