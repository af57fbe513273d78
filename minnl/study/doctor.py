"""``python -m minnl doctor``: a report on this machine, its problems, and the pip line that mends each."""

from __future__ import annotations

import ctypes
import importlib.metadata
import math
import os
import platform
import shutil
import subprocess
from dataclasses import dataclass

import numpy as np
import threadpoolctl

from minnl import backend, dispatch
from minnl import functional as F
from minnl.engine import Tensor

REQUIRED = {"tqdm": "progress bars", "matplotlib": "curves and pictures", "safetensors": "checkpoints"}
OPTIONAL = {"av": "video files", "torch": "comparisons in the tests"}
WHEELS = {"cupy-cuda12x": 12, "cupy-cuda13x": 13}  # the major version of CUDA that each wheel was built for
LIBCUDA = ("libcuda.so.1", "nvcuda.dll")  # the library of the NVIDIA driver, on Linux and on Windows
TRIED = {
    "a convolution": lambda x, weight: F.conv3d(x, weight, padding=1),
    "a batch norm": lambda x, weight: F.batch_norm(x, None, None, training=True, relu=True),
    "a gather": lambda x, weight: x[[2, 0, 2]],
}


@dataclass(frozen=True)
class Problem:
    """A problem and the line that mends it. `cpu` is true if minnl does not work on the CPU until then."""

    what: str
    mend: str
    cpu: bool = False


def main() -> int:
    """Print the report; return the exit status: 1 for a problem on the CPU, else 2 for one on the GPU, else 0."""
    problems, status = [], 0
    for section in (_minnl, _blas, _packages, _gpu):
        try:
            lines, found = section()
        except Exception as error:  # a broken installation may raise anything, and the report must still appear
            lines, found = [], [Problem(f"{section.__name__.strip('_')}: {error!r}", "report this to minnl, please")]
        problems += found
        status = 2 if found and section is _gpu else status
        for label, value in lines:
            print(f"{label:<12} {value}")
    print()
    for problem in problems:
        print(f"wrong: {problem.what}\n mend: {problem.mend}")
    if not problems:
        print("nothing is wrong")
    return 1 if any(p.cpu for p in problems) else status


def _minnl():
    lines = [
        ("minnl", f"{_version('minnl') or 'not installed, run from its folder'}, kernels {dispatch.mode()!r}"),
        ("Python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"),
        ("NumPy", np.__version__),
        ("cores", f"{backend.usable_cores()} usable of {os.cpu_count()}"),
    ]
    old = int(np.__version__.partition(".")[0]) < 2
    return lines, [Problem("NumPy is older than 2", "pip install --upgrade numpy", cpu=True)] if old else []


def _blas():
    found = [p for p in threadpoolctl.threadpool_info() if p["user_api"] == "blas"]
    lines = [
        ("BLAS", f"{p['internal_api']} {p['version'] or 'of unknown version'}, {p['num_threads']} thread(s)")
        for p in found
    ]
    problems = []
    if not found:
        lines = [("BLAS", "none that threadpoolctl knows")]
        problems.append(
            Problem("no BLAS was found; matrix products may be slow", "pip install --force-reinstall numpy")
        )
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    if not np.array_equal(x @ x.T, [[5, 14], [14, 50]]):
        problems.append(Problem("NumPy multiplies matrices wrong", "pip install --force-reinstall numpy", cpu=True))
    cores = backend.usable_cores()
    for p in found:
        if p["num_threads"] > cores:
            what = f"BLAS runs {p['num_threads']} threads on {cores} core(s), more threads than cores"
            problems.append(Problem(what, f"minnl.set_threads({cores})"))
    return lines, problems


def _packages():
    lines, problems = [], []
    for name, use in REQUIRED.items():
        version = _version(name)
        lines.append((name, version or f"missing ({use})"))
        if version is None:
            problems.append(Problem(f"{name} is missing ({use})", f"pip install {name}", cpu=True))
    for name, use in OPTIONAL.items():
        lines.append((name, _version(name) or f"not installed; only for {use}: pip install {name}"))
    return lines, problems


def _gpu():
    wheels = backend.installed_cupy()
    cuda = cuda_of_driver() or (cuda_of_cupy() if len(wheels) == 1 else None)
    names = [f"{w} {_version(w)}{' (a source build, or of conda)' * (w == 'cupy')}" for w in wheels]
    lines = [
        ("CuPy", ", ".join(names) or "not installed"),
        ("driver", "none" if cuda is None else f"for CUDA {cuda[0]}.{cuda[1]} and older{_driver_version()}"),
    ]
    if os.environ.get("CUPY_TF32") == "1":
        lines.append(("CUPY_TF32", "1: matrix products in float32 keep 10 bits; check no gradients like this"))
    problems = diagnose(wheels, cuda)
    if not problems and wheels:
        devices, problems = _devices(reinstall(wheels, cuda))
        lines += devices
    return lines, problems


def reinstall(wheels, cuda):
    """The line that replaces these wheels by the right one. It removes all first, since the wheels share a folder."""
    # a driver runs code that was built for its own or an older CUDA, not for a newer CUDA
    right = "cupy-cuda13x" if cuda and cuda[0] >= 13 else "cupy-cuda12x"
    remove = f"pip uninstall -y {' '.join(wheels)} && " if wheels else ""
    return f'{remove}pip install "{right}[ctk]>=14"'


def diagnose(wheels, cuda):
    """The problems of these CuPy wheels with a driver for `cuda`, a version (major, minor) or None for no driver."""
    mend = reinstall(wheels, cuda)
    if len(wheels) > 1:
        gone = " and ".join(w for w in wheels if f'"{w}[ctk]' not in mend)
        return [Problem(f"{' and '.join(wheels)} are both installed and break each other; {gone} should go", mend)]
    if cuda is not None and cuda[0] < 12:
        what = f"the driver supports CUDA up to {cuda[0]}.{cuda[1]}, CuPy 14 needs 12 or newer"
        return [Problem(what, "update the NVIDIA driver")] if wheels else []
    if not wheels:
        return [Problem("there is a GPU driver but no CuPy, so minnl runs on the CPU only", mend)] if cuda else []
    (wheel,) = wheels
    if wheel not in WHEELS:
        return []  # a ROCm wheel or a source build: `_devices` finds out whether it works
    if cuda is None:
        what = f"{wheel} is installed, but there is no NVIDIA driver"
        return [Problem(what, f"install the driver of your GPU, or without a GPU: pip uninstall -y {wheel}")]
    if WHEELS[wheel] > cuda[0]:
        what = f"{wheel} needs a driver for CUDA {WHEELS[wheel]}, this one is for {cuda[0]}.{cuda[1]}"
        return [Problem(what, f"{mend}   (or update the NVIDIA driver)")]
    return []


def _devices(mend):
    """The lines and problems of the GPUs that CuPy finds; `mend` is the line for a CuPy that does not work."""
    try:
        cupy = backend.load_cupy()
    except RuntimeError as error:
        return [], [Problem(str(error), mend)]
    if not cupy.cuda.is_available():
        hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
        if hidden is not None:
            return [], [Problem(f"CUDA_VISIBLE_DEVICES={hidden!r} hides the GPUs", "unset CUDA_VISIBLE_DEVICES")]
        return [], [Problem("CuPy finds no GPU", "see that nvidia-smi lists one")]
    lines, problems = [], []
    for i in range(cupy.cuda.runtime.getDeviceCount()):
        name = cupy.cuda.runtime.getDeviceProperties(i)["name"].decode()
        free, total = cupy.cuda.Device(i).mem_info
        lines.append((f"gpu:{i}", f"{name}, {free / 2**30:.1f} of {total / 2**30:.1f} GiB free"))
        try:
            wrong = [what for what, fn in TRIED.items() if not _right(fn, f"gpu:{i}")]
        except Exception as error:  # CuPy compiles and loads cuBLAS at first use, so missing CUDA libraries show here
            problems.append(Problem(f"CuPy finds gpu:{i} but cannot compute on it: {error}", mend))
            continue
        if wrong:
            what = f"gpu:{i} computes wrong: {', '.join(wrong)}"
            problems.append(Problem(what, "look at its memory errors: nvidia-smi -q"))
    return lines, problems


def _right(fn, device):
    """Whether fn(x, weight) and its gradients on a device agree with those of the textbook bodies on the CPU."""

    def outcome(device):
        shapes = (3, 2, 5, 6, 4), (3, 3, 3, 4, 8)
        arrays = (np.sin(np.arange(math.prod(shape), dtype=np.float32)).reshape(shape) for shape in shapes)
        leaves = [Tensor(array, requires_grad=True, device=device) for array in arrays]
        y = fn(*leaves)
        y.backward(y.data)
        return [backend.to_host(array) for array in (y.data, *(x.grad for x in leaves)) if array is not None]

    got = outcome(device)
    with dispatch.use_kernels("textbook"):
        expected = outcome("cpu")
    close = (np.allclose(a, b, rtol=0, atol=1e-2 * np.abs(b).max()) for a, b in zip(got, expected, strict=True))
    return all(close)  # the tolerance of 1e-2 allows for TF32


def cuda_of_driver():
    """The newest CUDA that the NVIDIA driver supports, as (major, minor); None without a driver."""
    for name in LIBCUDA:
        try:
            driver, version = ctypes.CDLL(name), ctypes.c_int()
            if driver.cuDriverGetVersion(ctypes.byref(version)) == 0:
                return version.value // 1000, version.value % 1000 // 10
        except (OSError, AttributeError):
            continue
    return None


def cuda_of_cupy():
    """The same from CuPy, for a driver in a place that only CuPy searches; None if CuPy finds no driver."""
    try:
        version = backend.load_cupy().cuda.runtime.driverGetVersion()
    except Exception:  # `diagnose` and `_devices` report the cause
        return None
    return (version // 1000, version % 1000 // 10) if version else None


def _driver_version():
    """ ", version 580.65" from nvidia-smi; an empty string if nvidia-smi gives no version."""
    if shutil.which("nvidia-smi") is None:
        return ""
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return f", version {answer.stdout.split()[0]}" if answer.returncode == 0 and answer.stdout.strip() else ""


def _version(package):
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
