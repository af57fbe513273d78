"""The mode of a module, training or evaluation, and contexts that change the mode in the current thread only."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, TypeVar

from minnl import engine

if TYPE_CHECKING:
    from minnl.nn.module import Module


M = TypeVar("M", bound="Module")


class _State(threading.local):
    """The modes that contexts have set in a thread: id of a module -> mode."""

    def __init__(self):
        self.modes = {}


_state = _State()


def current(module):
    """The mode of a module in this thread: that of the innermost context, or else the module's own mode."""
    return _state.modes.get(id(module), module.__dict__.get("_mode", True))


def of(module):
    """As `current`, but an error in training mode while another thread evaluates the module.

    If the evaluating thread started this thread, the outputs here would be wrong. If this thread trains, it changes the
    module that the other thread evaluates.
    """
    mode = current(module)
    if mode and id(module) not in _state.modes and os.getpid() in module.__dict__.get("_evaluated", ()):
        raise RuntimeError(
            f"{type(module).__name__}: used in training mode while another thread is in nn.evaluating with it; enter "
            "nn.evaluating in this thread too, or give one of the threads a copy (copy.deepcopy)"
        )
    return mode


def switch(module, mode):
    """Set the mode of a module: inside `keeping_modes` for this thread and until its end, else for all threads."""
    if id(module) in _state.modes:
        _state.modes[id(module)] = mode
    else:
        module.__dict__["_mode"] = mode


@contextlib.contextmanager
def keeping_modes(module):
    """Context in which mode switches of a module and all below concern only this thread and are undone at its end."""
    before, modules = _state.modes, module.modules()  # the list keeps the modules alive, so ids are not reused
    _state.modes = before | {id(m): current(m) for m in modules}
    try:
        yield module
    finally:
        _state.modes = before


@contextlib.contextmanager
def evaluating(module: M) -> Iterator[M]:
    """Context in which, for this thread, a module is in eval mode and no graph is recorded.

    The modes are restored at the end. Several threads may evaluate one module at a time. Until the end, the use of the
    module in training mode in another thread is a RuntimeError, whether this thread started the other one or not.
    """
    process, modules = os.getpid(), module.modules()  # the process, since a forked child has only one of the threads
    with keeping_modes(module), engine.no_grad():
        for m in modules:
            m.__dict__.setdefault("_evaluated", []).append(process)
        try:
            yield module.eval()
        finally:
            for m in modules:
                m.__dict__["_evaluated"].remove(process)
