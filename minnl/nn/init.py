"""Initial weights: float32 arrays on the CPU, drawn from minnl's own generator (minnl.manual_seed)."""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Iterator, Sequence

import numpy as np

from minnl import random
from minnl.backend import Array


class _State(threading.local):
    drawing = True


_state = _State()


@contextlib.contextmanager
def skipped() -> Iterator[None]:
    """Context in which this thread's new weights are 0 and no random numbers are drawn.

    It serves networks whose weights come from a file, and networks of which only the shapes matter. Zeros that are not
    touched take neither time nor memory.
    """
    before, _state.drawing = _state.drawing, False
    try:
        yield
    finally:
        _state.drawing = before


def normal(shape: int | Sequence[int], std: float) -> Array:
    """N(0, std^2). The released non-local blocks use std 0.01, and so does their classifier."""
    if not _state.drawing:
        return np.zeros(shape, np.float32)
    return random.generator().standard_normal(shape, dtype=np.float32) * np.float32(std)


def uniform(shape: int | Sequence[int], bound: float) -> Array:
    """Uniform in [-bound, bound]."""
    if not _state.drawing:
        return np.zeros(shape, np.float32)
    return random.generator().random(shape, dtype=np.float32) * np.float32(2 * bound) - np.float32(bound)


def he_normal(shape: int | Sequence[int], fan: float) -> Array:
    """N(0, 2 / fan), which preserves the variance in ReLU networks (He et al. 2015)."""
    return normal(shape, math.sqrt(2 / fan))


def he_uniform(shape: int | Sequence[int], fan_in: float) -> Array:
    """Uniform with bound 1 / sqrt(fan_in), the initial weights of PyTorch's layers."""
    return uniform(shape, 1 / math.sqrt(fan_in))


def conv_fans(shape: Sequence[int], groups: int = 1) -> tuple[int, int]:
    """(fan_in, fan_out) of a convolution weight (kT, kH, kW, C // groups, K)."""
    taps = math.prod(shape[:3])
    return taps * shape[3], taps * shape[4] // groups
