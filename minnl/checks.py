"""Checks of plain arguments; every message names the function, the argument, what came and what would do."""

from __future__ import annotations

import math
import operator

import numpy as np


def count(where, name, value, least=1):
    """`value` as an int of at least `least`."""
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{where}: {name} must be an int, got {value!r}") from None
    if isinstance(value, bool):
        raise TypeError(f"{where}: {name} must be an int, got {value!r}")
    if number < least:
        raise ValueError(f"{where}: {name} must be {least} or more, got {number}")
    return number


def pair(where, name, value, least=1):
    """An int, or two, as a tuple of two ints."""
    values = tuple(value) if isinstance(value, (tuple, list)) else (value, value)
    if len(values) != 2:
        raise ValueError(f"{where}: {name} must be one int or two, got {value!r}")
    return tuple(count(where, name, v, least) for v in values)


def choice(where, name, value, allowed):
    """`value`, if it is one of those allowed."""
    if value not in allowed:
        raise ValueError(f"{where}: {name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")
    return value


def number(where, name, value, low=None, high=None):
    """A Python float within [low, high]."""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise TypeError(f"{where}: {name} must be a number, got {type(value).__name__}")
    if not (low is None or value >= low) or not (high is None or value <= high):
        bounds = f"{low} or more" if high is None else f"from {low} to {high}"
        raise ValueError(f"{where}: {name} must be {bounds}, got {value}")
    return float(value)


def finite(where, name, value, low=None, high=None):
    """`number`, and neither NaN nor an infinity."""
    value = number(where, name, value, low, high)
    if not math.isfinite(value):
        raise ValueError(f"{where}: {name} must be finite, got {value}")
    return value


def positive(where, name, value):
    """A finite Python float above 0."""
    value = finite(where, name, value)
    if value <= 0:
        raise ValueError(f"{where}: {name} must be above 0, got {value}")
    return value
