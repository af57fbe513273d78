"""The public functions: ``from minnl import functional as F``.

Functions with many arguments are defined next to their op in minnl/ops/ and imported here; the others are defined here.
`axis` and `keepdims` have NumPy's names, all else has PyTorch's. Functions of one tensor are also its methods
(minnl/methods.py).
"""

from __future__ import annotations

import builtins
import math
import operator
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from minnl import backend
from minnl.backend import Array, Device
from minnl.checks import number
from minnl.engine import Tensor
from minnl.ops import arithmetic, convert, pointwise, reduce, shape
from minnl.ops.adaptive_pool import adaptive_avg_pool3d, adaptive_max_pool3d
from minnl.ops.arguments import Operand, axis_tuple, broadcast_shape, one_axis, tensor, with_hints
from minnl.ops.attention import attention, non_local
from minnl.ops.conv import conv3d
from minnl.ops.dropout import dropout
from minnl.ops.linear import linear, matmul
from minnl.ops.loss import binary_cross_entropy_with_logits, cross_entropy
from minnl.ops.norm import affine, batch_norm, frozen_batch_norm
from minnl.ops.pool import avg_pool3d, max_pool3d
from minnl.ops.softmax import log_softmax, softmax

if TYPE_CHECKING:
    from numpy.typing import DTypeLike

__all__ = [
    "abs",
    "adaptive_avg_pool3d",
    "adaptive_max_pool3d",
    "add",
    "affine",
    "attention",
    "avg_pool3d",
    "batch_norm",
    "binary_cross_entropy_with_logits",
    "broadcast_to",
    "clip",
    "concatenate",
    "conv3d",
    "cross_entropy",
    "div",
    "dropout",
    "exp",
    "flip",
    "frozen_batch_norm",
    "index",
    "linear",
    "log",
    "log_softmax",
    "matmul",
    "max",
    "max_pool3d",
    "maximum",
    "mean",
    "min",
    "minimum",
    "mul",
    "neg",
    "non_local",
    "pad",
    "pow",
    "relu",
    "reshape",
    "sigmoid",
    "softmax",
    "split",
    "sqrt",
    "stack",
    "sub",
    "sum",
    "tanh",
    "to",
    "transpose",
    "var",
    "where",
]


def add(a: Operand, b: Operand) -> Tensor:
    """a + b, with broadcasting. Formula: :class:`minnl.ops.arithmetic.Add`."""
    return arithmetic.Add()(a, b)


def sub(a: Operand, b: Operand) -> Tensor:
    """a - b, with broadcasting. Formula: :class:`minnl.ops.arithmetic.Sub`."""
    return arithmetic.Sub()(a, b)


def mul(a: Operand, b: Operand) -> Tensor:
    """a * b, with broadcasting. Formula: :class:`minnl.ops.arithmetic.Mul`."""
    return arithmetic.Mul()(a, b)


def div(a: Operand, b: Operand) -> Tensor:
    """a / b, with broadcasting. Formula: :class:`minnl.ops.arithmetic.Div`."""
    return arithmetic.Div()(a, b)


def pow(a: Operand, b: Operand) -> Tensor:
    """a ** b, with broadcasting. Formula: :class:`minnl.ops.arithmetic.Pow`."""
    return arithmetic.Pow()(a, b)


def maximum(a: Operand, b: Operand) -> Tensor:
    """The larger of two, element by element. Formula: :class:`minnl.ops.arithmetic.Maximum`."""
    return arithmetic.Maximum()(a, b)


def minimum(a: Operand, b: Operand) -> Tensor:
    """The smaller of two, element by element. Formula: :class:`minnl.ops.arithmetic.Minimum`."""
    return arithmetic.Minimum()(a, b)


def where(condition: Array, a: Operand, b: Operand) -> Tensor:
    """a where the boolean array `condition` holds, else b; all three broadcast."""
    if isinstance(condition, Tensor) or not backend.is_array(condition) or condition.dtype != bool:
        what = getattr(condition, "dtype", type(condition).__name__)
        raise TypeError(f"where: condition must be a boolean array, got {what}; as x > 0 gives")
    return arithmetic.Where(condition)(a, b)


def neg(x: Tensor | Array) -> Tensor:
    """-x."""
    return pointwise.Neg()(tensor("neg", "x", x))


def exp(x: Tensor | Array) -> Tensor:
    """e ** x."""
    return pointwise.Exp()(tensor("exp", "x", x))


def log(x: Tensor | Array) -> Tensor:
    """Natural logarithm."""
    return pointwise.Log()(tensor("log", "x", x))


def sqrt(x: Tensor | Array) -> Tensor:
    """Square root."""
    return pointwise.Sqrt()(tensor("sqrt", "x", x))


def tanh(x: Tensor | Array) -> Tensor:
    """Hyperbolic tangent."""
    return pointwise.Tanh()(tensor("tanh", "x", x))


def sigmoid(x: Tensor | Array) -> Tensor:
    """1 / (1 + e ** -x)."""
    return pointwise.Sigmoid()(tensor("sigmoid", "x", x))


def relu(x: Tensor | Array) -> Tensor:
    """max(x, 0)."""
    return pointwise.ReLU()(tensor("relu", "x", x))


def abs(x: Tensor | Array) -> Tensor:
    """|x|."""
    return pointwise.Abs()(tensor("abs", "x", x))


def clip(x: Tensor | Array, low: float | None = None, high: float | None = None) -> Tensor:
    """x limited to [low, high]; None for no limit on a side."""
    x = tensor("clip", "x", x)
    if low is None and high is None:
        raise ValueError("clip: give low, high or both")
    low, high = (None if v is None else number("clip", k, v) for k, v in (("low", low), ("high", high)))
    if low is not None and high is not None and low > high:
        raise ValueError(f"clip: low {low} is above high {high}")
    return pointwise.Clip(low, high)(x)


def sum(x: Tensor | Array, axis: int | Sequence[int] | None = None, keepdims: bool = False) -> Tensor:
    """Sum over axes (all if None)."""
    x = tensor("sum", "x", x)
    return reduce.Sum(axis_tuple("sum", axis, x.ndim), _flag("sum", keepdims))(x)


def mean(x: Tensor | Array, axis: int | Sequence[int] | None = None, keepdims: bool = False) -> Tensor:
    """Mean over axes (all if None)."""
    x = tensor("mean", "x", x)
    return reduce.Mean(_nonempty_axes("mean", x, axis), _flag("mean", keepdims))(x)


def var(
    x: Tensor | Array, axis: int | Sequence[int] | None = None, correction: int = 1, keepdims: bool = False
) -> Tensor:
    """Variance over axes, divided by n - correction (1: unbiased, as in PyTorch; 0: NumPy's default)."""
    x = tensor("var", "x", x)
    axes = _nonempty_axes("var", x, axis)
    count = math.prod(x.shape[a] for a in axes)
    if count <= correction:
        raise ValueError(f"var: {count} values leave nothing to divide by with correction={correction}")
    return reduce.Var(axes, _flag("var", keepdims), correction)(x)


def max(x: Tensor | Array, axis: int | Sequence[int] | None = None, keepdims: bool = False) -> Tensor:
    """Largest element over axes; the gradient goes to the first one in row-major order."""
    x = tensor("max", "x", x)
    return reduce.Max(_nonempty_axes("max", x, axis), _flag("max", keepdims))(x)


def min(x: Tensor | Array, axis: int | Sequence[int] | None = None, keepdims: bool = False) -> Tensor:
    """Smallest element over axes; the gradient goes to the first one in row-major order."""
    x = tensor("min", "x", x)
    return reduce.Min(_nonempty_axes("min", x, axis), _flag("min", keepdims))(x)


def reshape(x: Tensor | Array, shape: int | Sequence[int]) -> Tensor:
    """The same elements in another shape; one size may be -1."""
    x, shape = tensor("reshape", "x", x), _ints("reshape", "shape", shape)
    known = math.prod(n for n in shape if n != -1)
    fits = x.size == known if -1 not in shape else known and x.size % known == 0
    if not fits or shape.count(-1) > 1 or any(n < -1 for n in shape):
        raise ValueError(f"reshape: {x.size} elements of shape {x.shape} do not fill shape {shape}")
    return _reshape(x, shape)


def _reshape(x, new):
    return shape.Reshape(new)(x)


def transpose(x: Tensor | Array, axes: int | Sequence[int] | None = None) -> Tensor:
    """Axes in another order (reversed if None): ``y.shape[i] == x.shape[axes[i]]``."""
    x = tensor("transpose", "x", x)
    order = tuple(range(x.ndim))[::-1] if axes is None else _ints("transpose", "axes", axes)
    normal = tuple(a % x.ndim if -x.ndim <= a < x.ndim else a for a in order)
    if sorted(normal) != list(range(x.ndim)):
        raise ValueError(f"transpose: axes {order} is not an order of the {x.ndim} axes of x")
    return shape.Transpose(normal)(x)


def broadcast_to(x: Tensor | Array, new_shape: int | Sequence[int]) -> Tensor:
    """x repeated to a larger shape, without copying."""
    x, new_shape = tensor("broadcast_to", "x", x), _ints("broadcast_to", "new_shape", new_shape)
    if broadcast_shape("broadcast_to", x.shape, new_shape) != new_shape:
        raise ValueError(f"broadcast_to: x of shape {x.shape} does not broadcast to {new_shape}")
    return shape.BroadcastTo(new_shape)(x)


def concatenate(xs: Sequence[Tensor | Array], axis: int = 0) -> Tensor:
    """Tensors joined along an axis; their other sizes must agree."""
    xs = _several("concatenate", xs)
    axis = one_axis("concatenate", axis, xs[0].ndim)
    others = {(x.ndim, x.shape[:axis] + x.shape[axis + 1 :]) for x in xs}
    if len(others) > 1:
        raise ValueError(f"concatenate: shapes {', '.join(str(x.shape) for x in xs)} differ off axis {axis}")
    return shape.Concatenate(axis)(*xs)


def stack(xs: Sequence[Tensor | Array], axis: int = 0) -> Tensor:
    """Tensors of one shape joined along a new axis."""
    xs = _several("stack", xs)
    if len({x.shape for x in xs}) > 1:
        raise ValueError(f"stack: shapes {', '.join(str(x.shape) for x in xs)} differ")
    return shape.Stack(one_axis("stack", axis, xs[0].ndim + 1))(*xs)


def split(x: Tensor | Array, parts: int | Sequence[int], axis: int = 0) -> list[Tensor]:
    """A list of slices along an axis: `parts` is the number of equal slices, or a list of sizes."""
    x = tensor("split", "x", x)
    axis = one_axis("split", axis, x.ndim)
    n = x.shape[axis]
    if isinstance(parts, (int, np.integer)):
        if parts < 1 or n % parts:
            raise ValueError(f"split: axis {axis} of size {n} does not divide into {parts} equal parts; give sizes")
        parts = [n // parts] * parts
    sizes = _ints("split", "parts", parts)
    if builtins.sum(sizes) != n or builtins.min(sizes, default=0) < 0:
        raise ValueError(f"split: sizes {sizes} do not add up to {n}, the size of axis {axis}")
    ends = np.cumsum((0, *sizes)).tolist()
    lead = (slice(None),) * axis
    return [index(x, (*lead, slice(a, b))) for a, b in zip(ends, ends[1:], strict=False)]


def pad(x: Tensor | Array, widths: Sequence[int | Sequence[int]], value: float = 0.0) -> Tensor:
    """A border of `value`: widths is ((before, after), ...), one pair an axis."""
    x = tensor("pad", "x", x)
    pairs = tuple(_ints("pad", "widths", pair) for pair in (widths if isinstance(widths, (tuple, list)) else [widths]))
    if len(pairs) != x.ndim or any(len(pair) != 2 or builtins.min(pair) < 0 for pair in pairs):
        raise ValueError(f"pad: widths must be {x.ndim} pairs (before, after) of 0 or more, got {pairs}")
    return shape.Pad(pairs, number("pad", "value", value))(x)


def flip(x: Tensor | Array, axis: int | Sequence[int] | None = None) -> Tensor:
    """x reversed along axes (all if None)."""
    x = tensor("flip", "x", x)
    return shape.Flip(axis_tuple("flip", axis, x.ndim))(x)


def index(x: Tensor | Array, key: Any) -> Tensor:
    """x[key], for ints, slices, None, ..., integer arrays and boolean arrays.

    An integer array may select an element several times. A boolean array selects the elements where it is true, over as
    many axes as it has. The size of the result depends on its values, so the host has to wait for a GPU; ``where``
    keeps the shape.

    Raises
    ------
    IndexError, ValueError
        If there are too many indices, an integer is out of range (checked on the host, since a GPU would wrap around
        silently), or a mask does not have the size of its axes.
    TypeError
        If the key is anything else.
    """
    x = tensor("index", "x", x)
    return shape.Index(*index_keys(x, key))(x)


def index_keys(x, key):
    """The index for the array of x, on its device, and whether the index may select an element twice."""
    keys = key if isinstance(key, tuple) else (key,)
    keys = tuple(np.asarray(k) if isinstance(k, list) else k for k in keys)
    gathers = False
    for k in keys:
        if backend.is_array(k) or isinstance(k, np.generic):
            mask = k.dtype.kind == "b" and k.ndim > 0
            if not mask and k.dtype.kind not in "iu":
                raise TypeError(f"index: an index array must hold integers or be a boolean mask, got {k.dtype}")
            gathers |= not mask
        elif isinstance(k, bool) or not (k is None or k is Ellipsis or isinstance(k, (int, slice))):
            if isinstance(k, Tensor):
                raise TypeError("index: cannot index with a Tensor, which holds floats; write .numpy().astype(int)")
            raise TypeError(f"index: cannot index with {type(k).__name__} {k!r}")
    host = tuple(backend.to_host(k) if backend.is_array(k) else k for k in keys)
    try:
        np.broadcast_to(np.zeros((), bool), x.shape)[host]
    except IndexError as error:
        raise IndexError(f"index: {error} (x has shape {x.shape})") from None
    picked = [part for k in host for part in (np.nonzero(k) if backend.is_array(k) and k.dtype.kind == "b" else (k,))]
    return tuple(backend.to_device(k, x.device) if backend.is_array(k) else k for k in picked), gathers


def to(x: Tensor | Array, device: str | Device | None = None, dtype: DTypeLike | None = None) -> Tensor:
    """A tensor on another device and/or of another float dtype; x itself if nothing changes. Differentiable."""
    x = tensor("to", "x", x)
    if isinstance(device, (type, np.dtype)) or str(device).startswith(("float", "torch.")):
        raise TypeError(f"to: the first argument is a device, got {device}; write to(dtype=...)")
    target = x.device if device is None else backend.device(device)
    dtype = x.dtype if dtype is None else np.dtype(dtype)
    if dtype.kind != "f" or dtype.itemsize not in (4, 8):
        raise TypeError(f"to: dtype must be float32 or float64, got {dtype}")
    return x if (target, dtype) == (x.device, x.dtype) else convert.To(target, dtype)(x)


def _nonempty_axes(op, x, axis):
    axes = axis_tuple(op, axis, x.ndim)
    if math.prod(x.shape[a] for a in axes) == 0:
        raise ValueError(f"{op}: no elements along axis {axis} of shape {x.shape}")
    return axes


def _several(op: str, xs: Any) -> list[Tensor]:
    if isinstance(xs, Tensor) or not isinstance(xs, (list, tuple)) or not xs:
        raise TypeError(f"{op}: expected a list of one tensor or more, got {type(xs).__name__}")
    return [tensor(op, f"xs[{i}]", x) for i, x in enumerate(xs)]


def _ints(op: str, name: str, values: Any) -> tuple[int, ...]:
    try:
        return tuple(operator.index(v) for v in (values if isinstance(values, (tuple, list)) else (values,)))
    except TypeError:
        raise TypeError(f"{op}: {name} must be ints, got {values!r}") from None


def _flag(op, keepdims):
    if not isinstance(keepdims, bool):
        raise TypeError(
            f"{op}: keepdims must be True or False, got {keepdims!r}; several axes are a tuple, axis=(0, 1)"
        )
    return keepdims


for _name in __all__:
    globals()[_name] = with_hints(globals()[_name])
