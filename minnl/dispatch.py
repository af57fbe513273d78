"""Which class computes: the op's own textbook body, or a kernel that is registered for the op's class and a backend.

A kernel is a subclass of its op. The engine turns the op into an instance of the kernel before forward runs, so the
kernel has the op's options, its name and its formulas, and falls back on the op by calling ``super().forward(...)``.
The table belongs to class objects, not to names: another class of the same name, or a class derived from the op, has no
kernel. docs/kernels/README.md tells how a kernel is written.
"""

from __future__ import annotations

import contextlib
import os
from contextlib import AbstractContextManager
from typing import Literal

from minnl import backend

MODES = ("textbook", "fast")
_mode = os.environ.get("MINNL_KERNELS", "fast")
_kernels: dict[tuple[type, str], type] = {}  # {(class of an op or optimiser, "cpu" or "gpu"): its kernel}


def mode() -> str:
    """Which bodies run: "textbook" or "fast"."""
    return _mode


def register(op_class, device, kernel):
    """Register a kernel, a subclass of the op (or optimiser) `op_class`, for arrays on "cpu" or "gpu".

    Before the engine picks the kernel, the engine asks ``kernel.suits(op, arrays)``: whether the kernel is made for
    these dtypes and shapes.

    Raises
    ------
    TypeError
        If `kernel` is not a subclass of `op_class`, or has no `suits`.
    ValueError
        If `device` is neither "cpu" nor "gpu".
    """
    if not (isinstance(op_class, type) and isinstance(kernel, type) and issubclass(kernel, op_class)):
        raise TypeError(f"register: kernel must be a subclass of op_class {op_class!r}, got {kernel!r}")
    if not callable(getattr(kernel, "suits", None)):
        raise TypeError(f"register: {kernel.__name__} has no method suits(op, arrays)")
    if device not in ("cpu", "gpu"):
        raise ValueError(f'register: device must be "cpu" or "gpu", got {device!r}')
    if "public_name" not in vars(kernel):
        kernel.public_name = getattr(op_class, "public_name", op_class.__name__)
    _kernels[op_class, device] = kernel


def kernel_of(op, arrays, device=None):
    """The kernel registered for the class of `op` that suits the arrays, or None for the textbook body.

    `device` is "cpu" or "gpu", by default where the first array is.
    """
    if _mode == "textbook":
        return None
    kernel = _kernels.get((type(op), device or ("gpu" if backend.is_gpu_array(arrays[0]) else "cpu")))
    return kernel if kernel is not None and kernel.suits(op, arrays) else None


def is_kernel(cls):
    """Whether a class is a registered kernel."""
    return cls in _kernels.values()


def use_kernels(mode: Literal["textbook", "fast"]) -> AbstractContextManager[None]:
    """Switch between the "textbook" bodies of ops/ and the "fast" kernels, at once and for all threads.

    ``with use_kernels("textbook"): ...`` puts the earlier mode back at the end of the block. The environment variable
    MINNL_KERNELS sets the mode that a process starts with.
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
