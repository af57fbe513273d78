"""CUDA C++ sources: compiled when an op first needs them, and launched with arguments that are what they should be.

A ``.cu`` file of this folder holds kernels that are templates over T, the float type. common.cuh is put before each.
CuPy keeps what it has compiled in its cache on disk, under a hash of the text: the second process finds it there.
"""

from __future__ import annotations

import re
import threading
from pathlib import Path

import numpy as np

from minnl import backend

FOLDER = Path(__file__).parents[1]  # minnl/kernels
OPTIONS = ("--std=c++17",)
FLOATS = {"float32": "float", "float64": "double"}
NUMBERS = {"bool": np.bool_, "index_t": np.int64, "double": np.float64}  # how a kernel may declare one
MOST_BLOCKS = 8192  # of a grid that strides: some waves on the largest GPU, and few enough to start quickly


class Source:
    """A ``.cu`` file and the kernels in it, named as C++ instantiates them: ``Source("norm.cu", "moments<T>", ...)``.

    T stands for float or double; other parameters of a template are written out ("columns<T, 3>").
    """

    def __init__(self, file, *kernels):
        self.file, self.kernels = file, kernels
        self.compiled = {}  # {(device, dtype): {kernel: CuPy's function and the types of its parameters}}
        self.lock = threading.Lock()

    def text(self):
        """What the compiler gets; errors in it are reported by the line of the file that they are in."""
        return "\n".join(f'#line 1 "{file}"\n{read(file)}' for file in ("runtime/common.cuh", self.file))

    def instances(self, dtype):
        """{kernel: its name with T replaced by the float type of C++}."""
        return {kernel: re.sub(r"\bT\b", FLOATS[dtype], kernel) for kernel in self.kernels}

    def functions(self, dtype):
        """What `compiled` holds for the current device; compiled by the first thread that asks."""
        cupy = backend.load_cupy()
        key = cupy.cuda.runtime.getDevice(), dtype
        with self.lock:
            if key not in self.compiled:
                text, names = self.text(), self.instances(dtype)
                module = cupy.RawModule(
                    code=text, options=OPTIONS, backend="nvrtc", name_expressions=tuple(names.values())
                )
                self.compiled[key] = {k: (module.get_function(name), parameters(text, k)) for k, name in names.items()}
            return self.compiled[key]

    def launch(self, kernel, dtype, blocks, threads, *arguments, shared=0):
        """Start a kernel on CuPy's current stream; nobody waits for it.

        Parameters
        ----------
        kernel : str, one of those that the source was made with
        dtype : of the arrays that are T* in the kernel
        blocks, threads : int or tuple of up to three
        arguments : contiguous CuPy arrays, or None for a null pointer; bool, int and float
            A kernel reads each by the type that it declares, whatever was passed, so they are converted to that or
            refused. It declares pointers, ``bool``, ``index_t`` (64 bits) and ``double``, nothing else; or a struct of
            its source's, by value, for a NumPy record (``np.void``) of the same layout, which the source has to assert.
        shared : int, bytes of dynamic shared memory
        """
        function, declared = self.functions(dtype.name)[kernel]
        if len(arguments) != len(declared):
            raise TypeError(f"{kernel}: {len(declared)} arguments expected, got {len(arguments)}")
        passed = tuple(
            _passed(kernel, name, kind, value, dtype) for (name, kind), value in zip(declared, arguments, strict=True)
        )
        blocks, threads = (size if isinstance(size, tuple) else (size,) for size in (blocks, threads))
        function(blocks, threads, passed, shared_mem=shared)


def _passed(kernel, name, kind, value, dtype):
    """An argument as CuPy takes it, of the type that the kernel declares."""
    if kind in NUMBERS:
        return NUMBERS[kind](value)
    if kind.endswith("*"):
        return _pointer(kernel, name, kind, value, dtype)
    if not isinstance(value, np.void):
        raise TypeError(f"{kernel}: {name} is {type(value).__name__}, a NumPy record for {kind} expected")
    return value


def _pointer(kernel, name, kind, value, dtype):
    if value is None:
        return np.intp(0)
    if not backend.is_gpu_array(value):
        raise TypeError(f"{kernel}: {name} is {type(value).__name__}, a CuPy array or None expected")
    if kind == "T*" and value.dtype != dtype:
        raise TypeError(f"{kernel}: {name} is {value.dtype}, {dtype} expected")
    here = backend.load_cupy().cuda.runtime.getDevice()
    if value.data.device_id != here:  # where GPUs can read each other's memory that would be a race, else a crash
        raise ValueError(f"{kernel}: {name} is on gpu:{value.data.device_id}, launched on gpu:{here}; use backend.on")
    if not value.flags.c_contiguous:
        raise ValueError(f"{kernel}: {name}, of shape {value.shape}, is not contiguous; contiguous() makes it so")
    return value


def read(file):
    return (FOLDER / file).read_text()


def parameters(text, kernel):
    """(name, type) of each parameter that a kernel declares, without const and __restrict__."""
    text, name = re.sub(r"//.*", "", text), kernel.partition("<")[0]
    declared = re.search(rf"__global__\s+void\s+(?:__launch_bounds__\(\w+\)\s+)?{name}\(([^)]*)\)", text)
    if declared is None:
        raise ValueError(f"{kernel}: the source declares no __global__ void {name}(...)")
    found = []
    for one in declared[1].split(","):
        kind, _, name = re.sub(r"\b(const|__restrict__)\b|\s+", " ", one).strip().rpartition(" ")
        stars = "*" * (kind + name).count("*")
        found.append((name.strip("* "), kind.strip("* ") + stars))
        struct = re.search(rf"\bstruct {re.escape(kind.partition('<')[0].strip())}\b", text)
        if not stars and kind.strip() not in NUMBERS and not struct:
            raise TypeError(
                f"{kernel}: {name} is declared as {kind}, a pointer, {', '.join(NUMBERS)} or a struct expected"
            )
    return found


def contiguous(*arrays):
    """The arrays, each copied if it is not contiguous; None stays None."""
    pack = backend.load_cupy().ascontiguousarray  # which would give an array without axes one
    return tuple(a if a is None or a.flags.c_contiguous else pack(a) for a in arrays)


def ceil_div(n, size):
    """How many pieces of that size cover n."""
    return -(-n // size)


def grid(n, threads=256):
    """Blocks and threads, along one axis, of a kernel that strides over n elements by the size of the grid."""
    return min(ceil_div(n, threads), MOST_BLOCKS), threads
