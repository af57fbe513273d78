"""Training or evaluation: the mode that a module is in, and contexts in which this thread sees it in another."""

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
    """What contexts have lent to a thread: id of a module -> mode."""

    def __init__(self):
        self.lent = {}


_state = _State()


def seen(module):
    """The mode that this thread sees a module in: that of the innermost context, or the module's own."""
    return _state.lent.get(id(module), module.__dict__.get("_mode", True))


def of(module):
    """As `seen`; an error in training mode while another thread evaluates.

    Such a thread may have been started by the one that evaluates, and then its outputs would be wrong; or it may train,
    and then it changes what the other one measures.
    """
    mode = seen(module)
    if mode and id(module) not in _state.lent and os.getpid() in module.__dict__.get("_evaluated", ()):
        raise RuntimeError(
            f"{type(module).__name__}: used in training mode while another thread is in nn.evaluating with it; enter "
            "nn.evaluating in this thread too, or give one of them a copy (copy.deepcopy)"
        )
    return mode


def switch(module, mode):
    """Put a module into a mode: within a context that keeps modes for this thread and until its end, else for all."""
    if id(module) in _state.lent:
        _state.lent[id(module)] = mode
    else:
        module.__dict__["_mode"] = mode


@contextlib.contextmanager
def keeping_modes(module):
    """Context in which switches of a module and its parts are this thread's own, and after which they are undone."""
    before, parts = _state.lent, module.modules()  # held, so that no other module gets the id of one
    _state.lent = before | {id(m): seen(m) for m in parts}
    try:
        yield module
    finally:
        _state.lent = before


@contextlib.contextmanager
def evaluating(module: M) -> Iterator[M]:
    """Context in which a module is in eval mode and no graph is recorded, for this thread; its modes stay as they are.

    Several threads may be in here with one module. What uses a module in training mode in another thread meanwhile, be
    it a worker that this thread has started or one that trains, gets a RuntimeError.
    """
    process, parts = os.getpid(), module.modules()  # a forked child has but one of the threads
    with keeping_modes(module), engine.no_grad():
        for part in parts:
            part.__dict__.setdefault("_evaluated", []).append(process)
        try:
            yield module.eval()
        finally:
            for part in parts:
                part.__dict__["_evaluated"].remove(process)
