"""The debug mode: it finds the first NaN or infinity, and edits of arrays that are saved for backward.

``with minnl.debug():`` costs a pass over every array. Without it the engine checks a single boolean per op. The mode,
and the stack of modules that are being called (nn.Module keeps it), belong to one thread.
"""

from __future__ import annotations

import contextlib
import threading
import zlib
from collections.abc import Iterator

import numpy as np

from minnl import backend


class _State(threading.local):
    active = False
    tracking = False

    def __init__(self):
        self.modules = []


_state = _State()


def active():
    return _state.active


def tracking():
    """Whether modules record their names when they are called: in debug mode, and for the cost summary."""
    return _state.active or _state.tracking


@contextlib.contextmanager
def debug() -> Iterator[None]:
    """Context in which every op is checked.

    The errors name the op, its shapes and the path of the module that called it:

    FloatingPointError
        At the first NaN or infinity, in forward or backward.
    RuntimeError
        If an array that is saved for backward was edited between forward and backward.
    """
    before, _state.active = _state.active, True
    try:
        yield
    finally:
        _state.active = before


@contextlib.contextmanager
def module_paths():
    """Context in which modules record their names without the checks of the debug mode, for the cost summary."""
    before, _state.tracking = _state.tracking, True
    try:
        yield
    finally:
        _state.tracking = before


@contextlib.contextmanager
def inside(module):
    """Context of a module's call, in which its name within its caller is part of :func:`path`."""
    caller = _state.modules[-1][1] if _state.modules else None
    children = getattr(caller, "_modules", {})
    name = next((n for n, child in children.items() if child is module), type(module).__name__)
    _state.modules.append((name, module))
    try:
        yield
    finally:
        _state.modules.pop()


@contextlib.contextmanager
def at(modules):
    """Context with the stack of an earlier :func:`modules`."""
    before, _state.modules = _state.modules, list(modules)
    try:
        yield
    finally:
        _state.modules = before


def modules():
    """The stack of (name, module) pairs, outermost first, that :func:`path` is made of."""
    return tuple(_state.modules)


def path():
    """The path of the module that is being called, such as "Small.res2.0.conv1"; empty outside of modules."""
    return ".".join(name for name, _ in _state.modules)


def _finite(array):
    with backend.on(array):
        return bool(backend.namespace("debug", array).isfinite(array).all())


def _shapes(arrays):
    return ", ".join("None" if a is None else str(a.shape) for a in arrays)


def _blame(op, stage, what):
    place = f" in {op.where}" if op.where else ""
    raise FloatingPointError(f"{op.name}{place}: {stage}: {what}")


def _fingerprint(value):
    if not backend.is_array(value):
        return None
    return zlib.crc32(np.ascontiguousarray(backend.to_host(value)).view(np.uint8))


def after_forward(op, arrays, y):
    op.where = path()
    for i, x in enumerate(arrays):
        if not _finite(x):
            _blame(op, "forward", f"input {i} of shape {x.shape} has NaN or infinity already")
    if not _finite(y):
        _blame(
            op, "forward", f"the output of shape {y.shape} is the first with NaN or infinity; inputs {_shapes(arrays)}"
        )
    op.fingerprints = {key: _fingerprint(getattr(op, key, None)) for key in op.saved_for_backward}


def before_backward(op):
    for key, fingerprint in getattr(op, "fingerprints", {}).items():
        if fingerprint != _fingerprint(getattr(op, key, None)):
            place = f" in {op.where}" if op.where else ""
            raise RuntimeError(
                f"{op.name}{place}: the array saved as `{key}` was edited between forward and backward; "
                "edit a copy, or edit after backward"
            )


def after_backward(op, gy, grads):
    if not hasattr(op, "where"):  # forward ran outside of debug mode
        op.where = ""
    if not _finite(gy):
        _blame(op, "backward", f"the incoming gradient of shape {gy.shape} has NaN or infinity already")
    for i, gx in enumerate(grads):
        if gx is not None and not _finite(gx):
            _blame(op, "backward", f"the gradient of input {i}, shape {gx.shape}, is the first with NaN or infinity")
