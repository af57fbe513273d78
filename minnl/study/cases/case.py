"""What a case is, and the inputs that cases are made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from minnl import backend, functional


@dataclass(frozen=True)
class Case:
    """An op with its arguments, and inputs to call it with.

    Attributes
    ----------
    name : str
        "conv3d/stride-does-not-divide": the op's public name, then what is particular.
    fn : partial
        ``fn(*tensors) -> Tensor``, on any device; `fn.func` and `fn.keywords` tell the function and the arguments.
    inputs : callable
        ``inputs(rng) -> tuple`` of float64 arrays, one for each differentiable input.
    smooth : bool
        False where an input may lie on a kink or a tie.
    """

    name: str
    fn: Callable
    inputs: Callable
    smooth: bool = True

    @property
    def op(self):
        return self.name.partition("/")[0]


def case(name, inputs, fn=None, smooth=True, **arguments):
    """A :class:`Case`; fn is the function of minnl.functional that the name begins with, if not given."""
    fn = fn or getattr(functional, name.partition("/")[0])
    return Case(name, partial(fn, **arguments), inputs, smooth)


def normal(*shapes):
    """Inputs from the normal distribution."""
    return lambda rng: tuple(rng.normal(size=shape) for shape in shapes)


def positive(*shapes):
    """Inputs from 0.5 to 2, clear of 0."""
    return lambda rng: tuple(rng.uniform(0.5, 2, size=shape) for shape in shapes)


def whole(low, high, *shapes):
    """Whole numbers from low to high: inputs with ties."""
    return lambda rng: tuple(rng.integers(low, high, size=shape, endpoint=True).astype(float) for shape in shapes)


def with_zeros(*shapes):
    """Normal inputs with a zero in every fourth place."""

    def make(rng):
        arrays = normal(*shapes)(rng)
        for array in arrays:
            array.reshape(-1)[::4] = 0
        return arrays

    return make


def beside(x, values, dtype=None):
    """A constant array on x's device and of its dtype, for arguments that ops want as arrays."""
    made = np.asarray(values, dtype=x.dtype).astype(dtype or x.dtype)
    return backend.to_device(made, backend.device(x.device))
