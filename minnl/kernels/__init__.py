"""The speed: faster bodies for ops, and the table that picks one.

ops/ holds the mathematics; a kernel here computes the same numbers for some backend, dtypes and shapes. It is an
object with ``forward(op, *arrays)`` and ``backward(op, gy)`` that leaves on `op` what the op declares in `keeps`;
``suits(op, arrays)`` says whether it applies. No kernel, or none that suits: the op's own textbook body runs.
Which class has which kernels is written in minnl/bodies.py.
"""

from __future__ import annotations

import contextlib
import os

MODES = ("textbook", "fast")
_mode = os.environ.get("MINNL_KERNELS", "fast")
_table: dict[type, tuple] = {}


def mode():
    """Which bodies run: "textbook" or "fast"."""
    return _mode


def register(kind, *bodies):
    """Give a class of ops, or of optimisers, its kernels; those in front are asked first."""
    if not isinstance(kind, type):
        raise TypeError(f"register: a class expected, got {kind!r}")
    _table[kind] = bodies


def pick(op, arrays):
    """The first kernel of the table that suits, or None for the textbook body."""
    if _mode == "textbook":
        return None
    return next((k for k in _table.get(type(op), ()) if k.suits(op, arrays)), None)


def use_kernels(mode):
    """Switch between the "textbook" bodies of ops/ and the "fast" ones, at once and for all threads.

    Also a context manager, which puts back what was there: ``with use_kernels("textbook"): ...``. The environment
    variable MINNL_KERNELS sets what a process starts with.
    """
    global _mode
    if mode not in MODES:
        raise ValueError(f'use_kernels: mode must be "textbook" or "fast", got {mode!r}')
    before, _mode = _mode, mode
    return _restoring(before)


@contextlib.contextmanager
def _restoring(before):
    global _mode
    try:
        yield
    finally:
        _mode = before


if _mode not in MODES:
    raise ValueError(f'MINNL_KERNELS is {_mode!r}, expected "textbook" or "fast"')
