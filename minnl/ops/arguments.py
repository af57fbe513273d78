"""What the public functions share: turning numbers and arrays into tensors, checking axes, and hints at names."""

from __future__ import annotations

import functools
import operator
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np

from minnl import backend
from minnl.backend import Array
from minnl.engine import Tensor

Operand: TypeAlias = Tensor | Array | float | np.integer[Any] | np.floating[Any]

INSTEAD = {  # of arguments that have another name in NumPy or PyTorch, or none here
    "dim": "write axis=",
    "keepdim": "write keepdims=",
    "inplace": "leave it out: the result is a new tensor",
    "out": "leave it out: the result is a new tensor",
    "min": "write low=",
    "max": "write high=",
    "a_min": "write low=",
    "a_max": "write high=",
    "ddof": "write correction=",
    "unbiased": "write correction=1 (or 0 where it is False)",
    "input": "write x first, without a name",
}


def tensors(op: str, *values: Any) -> tuple[Tensor, ...]:
    """Tensors from tensors, arrays and Python numbers.

    A number is weak: it becomes a constant of the dtype and on the device of the tensors beside it. NumPy's scalars
    (np.float64(2)) count as numbers too, so that they cannot promote a float32 tensor behind one's back.
    """
    first = next((v for v in values if isinstance(v, Tensor)), None)
    if first is None:
        arrays = [v for v in values if backend.is_array(v)]
        if not arrays:
            raise TypeError(
                f"{op}: at least one input must be a Tensor, got {', '.join(type(v).__name__ for v in values)}"
            )
        first = Tensor(arrays[0])
    return tuple(v if isinstance(v, Tensor) else _constant(op, v, first) for v in values)


def _constant(op, value, like):
    if backend.is_array(value):
        return Tensor(value)
    if isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool):
        with backend.on(like.device):
            return Tensor(backend.namespace(op, like.data).full((), float(value), dtype=like.dtype))
    raise TypeError(f"{op}: expected a Tensor, an array or a number, got {type(value).__name__}")


def tensor(op: str, name: str, value: Any, ndim: int | None = None, layout: str = "") -> Tensor:
    """A Tensor (or an array made one) of the expected number of axes."""
    if backend.is_array(value):
        value = Tensor(value)
    if not isinstance(value, Tensor):
        raise TypeError(f"{op}: {name} must be a Tensor, got {type(value).__name__}")
    if ndim is not None and value.ndim != ndim:
        raise ValueError(f"{op}: {name} must have {ndim} axes {layout}, got shape {value.shape}")
    return value


def layout(x, channels):
    """For an error: which axis of x is which, and what to write if `channels` stand first in it."""
    said = f"; x of shape {x.shape} is read as {'(N, T, H, W, C)' if x.ndim == 5 else '(..., C)'}"
    if x.ndim > 2 and x.shape[1] == channels:
        said += f", if its channels stand first write x.transpose({', '.join(map(str, (0, *range(2, x.ndim), 1)))})"
    return said


def broadcast_shape(op: str, *shapes: tuple[int, ...]) -> tuple[int, ...]:
    """The shape that all broadcast to, or a ValueError naming them."""
    try:
        return np.broadcast_shapes(*shapes)
    except ValueError:
        raise ValueError(f"{op}: shapes {', '.join(map(str, shapes))} do not broadcast together") from None


def axis_tuple(op: str, axis: int | Sequence[int] | None, ndim: int) -> tuple[int, ...]:
    """axis (None, int or several, negative from the end) as a sorted tuple of distinct axes."""
    if axis is None:
        return tuple(range(ndim))
    values = axis if isinstance(axis, (tuple, list)) else (axis,)
    try:
        values = [operator.index(a) for a in values]
    except TypeError:
        raise TypeError(f"{op}: axis must be None, an int or a tuple of ints, got {axis!r}") from None
    for a in values:
        if not -ndim <= a < ndim:
            raise ValueError(f"{op}: axis {a} is out of range for a tensor of {ndim} axes")
    axes = sorted(a % ndim for a in values)
    if len(set(axes)) != len(axes):
        raise ValueError(f"{op}: axis {axis!r} names an axis twice")
    return tuple(axes)


def one_axis(op: str, axis: int, ndim: int) -> int:
    """A single axis, from 0."""
    if isinstance(axis, (tuple, list)) or axis is None:
        raise TypeError(f"{op}: axis must be one int, got {axis!r}")
    return axis_tuple(op, axis, ndim)[0]


def with_hints(function):
    """The function; an argument that it has by another name in NumPy or PyTorch is an error that says its name here."""

    @functools.wraps(function)
    def called(*args, **options):
        for name in options:
            if name in INSTEAD:
                raise TypeError(f"{function.__name__}: there is no argument {name!r} here; {INSTEAD[name]}")
        return function(*args, **options)

    return called
