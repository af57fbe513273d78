"""Devices: NumPy on the CPU and CuPy on a GPU.

Only this file imports cupy, and only at the first use of a GPU, so ``import minnl`` is quick and works without CuPy.
All other code works on plain arrays and gets their module (``numpy`` or ``cupy``) from :func:`namespace`.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from minnl import checks

WHEELS = ("cupy-cuda11x", "cupy-cuda12x", "cupy-cuda13x", "cupy-rocm-7-0", "cupy")
Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]  # also stands for CuPy's arrays, which type checkers do not know
OLDEST = 14  # the oldest supported version of CuPy, since CuPy 13 cannot pass a struct to a kernel
INSTALL = 'pip install "cupy-cuda12x[ctk]>=14" (CUDA 12 driver) or pip install "cupy-cuda13x[ctk]>=14" (CUDA 13 driver)'


@dataclass(frozen=True)
class Device:
    """Where an array lives: ``Device("cpu")`` or ``Device("gpu", index)``."""

    kind: str
    index: int = 0

    def __str__(self) -> str:
        return "cpu" if self.kind == "cpu" else f"gpu:{self.index}"


CPU = Device("cpu")


def device(name: str | Device) -> Device:
    """Turn "cpu", "gpu" or "gpu:1" into a :class:`Device`; a GPU must exist to be named.

    Raises
    ------
    TypeError, ValueError
        If the name is none of these, or there is no such GPU on this machine.
    RuntimeError
        If CuPy is missing or cannot load; the message says what to install.
    """
    if isinstance(name, Device):
        return name
    if not isinstance(name, str):
        raise TypeError(f'device: expected "cpu", "gpu" or "gpu:N", got {type(name).__name__} {name!r}')
    kind, colon, index = name.partition(":")
    if name == "cpu":
        return CPU
    if kind != "gpu" or (colon and not index.isdecimal()):
        raise ValueError(f'device: expected "cpu", "gpu" or "gpu:N", got {name!r}')
    cupy = load_cupy()
    if not cupy.cuda.is_available():
        raise RuntimeError(
            "device: CuPy is installed but finds no GPU (no driver, or none visible); "
            '`python -m minnl doctor` says more, device="cpu" works everywhere'
        )
    count = cupy.cuda.runtime.getDeviceCount()
    found = Device("gpu", int(index or 0))
    if found.index >= count:
        raise ValueError(f"device: {name!r} does not exist, this machine has {count} GPU(s), numbered from 0")
    return found


def installed_cupy():
    """Names of the CuPy wheels that are installed; more than one break each other."""
    from importlib import metadata  # here, for it takes a while to load

    found = []
    for wheel in WHEELS:
        with contextlib.suppress(metadata.PackageNotFoundError):
            metadata.version(wheel)
            found.append(wheel)
    return found


@functools.cache
def load_cupy():
    """Import CuPy once; RuntimeError with the pip line that mends it if that is not possible, or CuPy is too old."""
    wheels = installed_cupy()
    if len(wheels) > 1:
        raise RuntimeError(
            f"device: {' and '.join(wheels)} are both installed and break each other; "
            f"pip uninstall -y {' '.join(wheels)}, then {INSTALL}"
        )
    try:
        cupy = importlib.import_module("cupy")
    except ImportError as error:
        raise RuntimeError(f"device: CuPy cannot be imported ({error}); {INSTALL}") from error
    if int(cupy.__version__.partition(".")[0]) < OLDEST:
        raise RuntimeError(
            f"device: CuPy {cupy.__version__} is too old, minnl needs {OLDEST} or newer; "
            f"pip uninstall -y {' '.join(wheels) or 'cupy'}, then {INSTALL}, and start Python anew"
        )
    return cupy


def tf32():
    """Whether float32 products on a GPU keep only 10 bits: CuPy reads CUPY_TF32 once, when first asked, as here."""
    core = load_cupy()._core
    return core.get_compute_type(np.dtype(np.float32)) == core._routines_linalg.COMPUTE_TYPE_TF32


def is_gpu_array(array):
    """True for a CuPy array; does not import cupy to find out."""
    return type(array).__module__.partition(".")[0] == "cupy"


def compiles_cuda():
    """Whether CuPy compiles CUDA C++ for warps of 32 threads: no stand-in does, and AMD's warps are wider."""
    cupy = load_cupy()
    return hasattr(cupy, "RawModule") and not cupy.cuda.runtime.is_hip


def is_array(value):
    return isinstance(value, np.ndarray) or is_gpu_array(value)


def device_of(array):
    """The :class:`Device` that holds an array."""
    return CPU if isinstance(array, np.ndarray) or not is_gpu_array(array) else Device("gpu", int(array.device.id))


def namespace(op, *arrays):
    """The module (numpy or cupy) that all arrays belong to.

    Raises TypeError, with the op and every shape, if the arrays are on different devices. CuPy's ``get_array_module``
    would return cupy for such a mixture, and the error would come later or not at all.
    """
    devices = {device_of(a) for a in arrays}
    if len(devices) > 1:
        what = ", ".join(f"{a.shape} on {device_of(a)}" for a in arrays)
        raise TypeError(f"{op}: arrays on different devices: {what}; move them with .to(device)")
    return load_cupy() if devices and devices.pop().kind == "gpu" else np


def to_device(array, target):
    """The array on another device; the same object if it is there already."""
    source = device_of(array)
    if source == target:
        return array
    if target == CPU:
        return array.get()
    cupy = load_cupy()
    with cupy.cuda.Device(target.index):
        return cupy.asarray(array)


def to_host(array):
    """The array as NumPy (synchronises with the GPU if it is there)."""
    return to_device(array, CPU)


def on(where: Any) -> AbstractContextManager[Any]:
    """Context whose current device is `where`, a device, or the device of the array `where`.

    CuPy allocates and computes on the current device (by default the first), even for arrays on another device. For the
    CPU the context does nothing.
    """
    target = where if isinstance(where, Device) else device_of(where)
    return contextlib.nullcontext() if target.kind == "cpu" else load_cupy().cuda.Device(target.index)


def copied(array):
    """A copy of an array, on its device."""
    with on(array):
        return array.copy()


def assign(array, value):
    """``array[...] = value`` on the array's device, for a number or for an array on any device."""
    with on(array):
        array[...] = to_device(value, device_of(array)) if is_array(value) else value


def memory_of(target):
    """The total memory of a device in bytes; None if the system does not tell (the host memory on Windows)."""
    if target.kind == "cpu":
        if not hasattr(os, "sysconf"):
            return None
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with on(target):
        return load_cupy().cuda.Device().mem_info[1]


def usable_cores():
    """The number of cores that this process may use (its affinity, not the machine's count)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


_threads = usable_cores()


def threads():
    """The number of threads that the CPU kernels use."""
    return _threads


def set_threads(n: int) -> None:
    """Use n threads in minnl's CPU kernels and in NumPy's BLAS. By default it is the number of usable cores.

    The results of fast kernels have the same bits for every number of threads.
    """
    global _threads
    import threadpoolctl  # imported here because it takes a while to load

    _threads = n = checks.count("set_threads", "n", n)
    threadpoolctl.threadpool_limits(limits=n, user_api="blas")
