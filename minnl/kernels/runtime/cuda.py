"""What the CUDA kernels share: the class they derive from, and how their sources are compiled and launched.

A ``.cu`` file holds kernels that are templates over T, the float type. The text of common.cuh precedes each file. CuPy
caches compiled code on disk under a hash of the text, so a second process does not compile again.
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
SCALARS = {"bool": np.bool_, "index_t": np.int64, "double": np.float64}  # the types of a kernel's scalar parameters
THREADS = 256  # A block has 256 threads: four or more such blocks fit on a multiprocessor of any GPU since sm_70.
MAX_BLOCKS = 8192  # A striding grid has at most 8,192 blocks: about 8 waves on 132 multiprocessors, and a quick start.
LONG_ROW = 1024  # A row of more than 1,024 numbers takes a block of threads, a shorter row a warp or less (not timed).
MAX_BLOCKS_Y = 32768  # A grid has at most 32,768 blocks along y, where CUDA allows 65,535.


class CudaKernel:
    """A kernel for float32 and float64 on a GPU whose CuPy compiles CUDA. Empty arrays take the textbook body."""

    @staticmethod
    def suits(op, arrays):
        return backend.compiles_cuda() and all(a.size for a in arrays)

    def workspace(self):
        """Memory that forward, the gradient of input 0 and the gradients of the other inputs need beside their results.

        Three lists of moments. A moment is a list of the sizes, in bytes, of arrays that exist at the same time.
        """
        return [], [], []


class Source:
    """A ``.cu`` file and the kernels in it, as C++ instantiates them: ``Source("softmax/softmax.cu", "gradient<T>")``.

    T stands for float or double. Further template arguments are written out: ``"gather<T, 4>"``.
    """

    def __init__(self, file, *kernels):
        self.file, self.kernels = file, kernels
        self.compiled = {}  # {(device, dtype): {kernel: (CuPy's function, its parameters)}}
        self.lock = threading.Lock()

    def text(self):
        """The text that the compiler gets. Compiler errors name the file and the line in that file."""
        return "\n".join(f'#line 1 "{file}"\n{read(file)}' for file in ("runtime/common.cuh", self.file))

    def instances(self, dtype):
        """{kernel: its name with T replaced by C++'s float type}."""
        return {kernel: re.sub(r"\bT\b", FLOATS[dtype], kernel) for kernel in self.kernels}

    def functions(self, dtype):
        """The value in `compiled` for the current device. The first thread that asks compiles."""
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
        """Queue a kernel on CuPy's current stream, without waiting for the kernel.

        Parameters
        ----------
        kernel : str, one of the names given to the constructor
        dtype : dtype of the arrays that the kernel declares as T*
        blocks, threads : int or tuple of up to three
        arguments : contiguous CuPy arrays, None for a null pointer, bool, int, float, NumPy records
            Each argument is converted to the type that the kernel declares, or refused. A kernel declares pointers,
            ``bool``, ``index_t`` (64 bits), ``double``, and structs by value. A struct is passed as a NumPy record
            (``np.void``) of the same layout; a static_assert in the source checks the size of the struct.
        shared : int, bytes of dynamic shared memory
        """
        function, declared = self.functions(dtype.name)[kernel]
        if len(arguments) != len(declared):
            raise TypeError(f"{kernel}: {len(declared)} arguments expected, got {len(arguments)}")
        passed = tuple(
            _converted(kernel, name, ctype, value, dtype)
            for (name, ctype), value in zip(declared, arguments, strict=True)
        )
        blocks, threads = (size if isinstance(size, tuple) else (size,) for size in (blocks, threads))
        function(blocks, threads, passed, shared_mem=shared)


def _converted(kernel, name, ctype, value, dtype):
    """An argument as CuPy takes it, of the type that the kernel declares."""
    if ctype in SCALARS:
        return SCALARS[ctype](value)
    if ctype.endswith("*"):
        return _pointer(kernel, name, ctype, value, dtype)
    if not isinstance(value, np.void):
        raise TypeError(f"{kernel}: {name} is {type(value).__name__}, a NumPy record for {ctype} expected")
    return value


def _pointer(kernel, name, ctype, value, dtype):
    if value is None:
        return np.intp(0)
    if not backend.is_gpu_array(value):
        raise TypeError(f"{kernel}: {name} is {type(value).__name__}, a CuPy array or None expected")
    if ctype == "T*" and value.dtype != dtype:
        raise TypeError(f"{kernel}: {name} is {value.dtype}, {dtype} expected")
    current = backend.load_cupy().cuda.runtime.getDevice()
    if value.data.device_id != current:  # a race where GPUs can read each other's memory, else a crash
        device = value.data.device_id
        raise ValueError(f"{kernel}: {name} is on gpu:{device}, launched on gpu:{current}; use backend.on")
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
    for declaration in declared[1].split(","):
        plain = re.sub(r"\b(const|__restrict__)\b|\s+", " ", declaration).strip()
        ctype, _, name = plain.rpartition(" ")
        stars = "*" * plain.count("*")
        found.append((name.strip("* "), ctype.strip("* ") + stars))
        struct = re.search(rf"\bstruct {re.escape(ctype.partition('<')[0].strip())}\b", text)
        if not stars and ctype.strip() not in SCALARS and not struct:
            raise TypeError(
                f"{kernel}: {name} is declared as {ctype}, a pointer, {', '.join(SCALARS)} or a struct expected"
            )
    return found


def contiguous(*arrays):
    """The arrays. Those that are not contiguous are copied; None stays None."""
    copy = backend.load_cupy().ascontiguousarray  # which would turn an array without axes into one of shape (1,)
    return tuple(a if a is None or a.flags.c_contiguous else copy(a) for a in arrays)


def ceil_div(n, size):
    return -(-n // size)


def power_of_two(n, most=32):
    """The smallest power of two that is at least n, but at most `most`, by default a warp."""
    return min(1 << (n - 1).bit_length(), most)


def grid(n, threads=THREADS):
    """(blocks, threads) along one axis, for a kernel that strides over n elements by the size of the grid."""
    return min(ceil_div(n, threads), MAX_BLOCKS), threads


def row_grid(rows, n):
    """(blocks, threads) of a kernel that strides, along y, over rows of n numbers.

    The threads along x share a row: the smallest power of two that covers the row, up to a warp, or else a block. The
    shape alone decides, so sums have the same bits on any GPU.
    """
    width = THREADS if n > LONG_ROW else power_of_two(n)
    height = THREADS // width
    return (1, min(ceil_div(rows, height), MAX_BLOCKS)), (width, height)
