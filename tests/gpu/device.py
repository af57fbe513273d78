"""What the tests of the GPU share. Importing this skips the whole module of tests where there is no GPU.

NumPy's textbook body is the judge of everything: of CuPy running the same body, and of our kernels.
"""

import contextlib
from unittest import mock

import numpy as np
import pytest
from hypothesis import settings

import minnl
from minnl import Tensor, backend, dispatch
from minnl.kernels.runtime import cuda as source
from minnl.kernels.runtime.cuda import CudaKernel

try:
    GPU = minnl.device("gpu")
except RuntimeError as reason:
    pytest.skip(f"needs a GPU: {reason}", allow_module_level=True)

TOLERANCE = {"float32": 2e-5, "float64": 1e-12}  # of the largest value: sums in another order
QUICK = settings(max_examples=25, deadline=None, derandomize=True, database=None)


def outcome(fn, inputs, dtype="float32", device=GPU, mode="fast", wanted=None):
    """Output and gradients (None of inputs that are not `wanted`), on the host; and the CUDA kernels that were picked.

    The output is weighted at random for backward.
    """
    picked, pick = [], dispatch.kernel_of

    def watched(op, given, *device):
        kernel = pick(op, given, *device)
        if kernel and issubclass(kernel, CudaKernel):
            picked.append(kernel)
        return kernel

    with minnl.use_kernels(mode), mock.patch.object(dispatch, "kernel_of", watched):
        leaves = [
            Tensor(a.astype(dtype), requires_grad=wanted is None or i in wanted, device=device)
            for i, a in enumerate(inputs)
        ]
        y = fn(*leaves)
        gy = np.random.default_rng(1).normal(size=y.shape).astype(y.dtype)
        y.backward(backend.to_device(gy, y.device))
    return [None if a is None else backend.to_host(a) for a in (y.data, *(x.grad for x in leaves))], picked


def close(got, expected, tolerance):
    """Whether arrays agree, beside the largest value of each; their shapes and dtypes must."""
    for a, b in zip(got, expected, strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        largest = np.abs(b, where=np.isfinite(b), out=np.ones_like(b)).max(initial=1)
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * largest)


def agree(fn, inputs, kernel, dtype="float32", tolerance=None):
    """That kernel ran, and its results are those of NumPy's textbook, from inputs that `dtype` holds exactly.

    The judge computes in float64: two roundings in float32 may differ by twice what each is off.
    """
    inputs = [a.astype(dtype).astype(float) for a in inputs]
    got, picked = outcome(fn, inputs, dtype)
    assert kernel in picked, f"{kernel.__name__} was not picked, but {picked}"
    judge, _ = outcome(fn, inputs, "float64", backend.CPU, "textbook")
    close(got, [a.astype(dtype) for a in judge], tolerance or TOLERANCE[dtype])


def only_wanted(some, everything, wanted):
    """Of two outcomes of a function: `some` has the gradients that are `wanted`, as `everything` has them, and None."""
    for i, (got, expected) in enumerate(zip(some[1:], everything[1:], strict=True)):
        if i in wanted:
            np.testing.assert_array_equal(got, expected)
        else:
            assert got is None


def same_bits(fn, inputs, dtype="float32"):
    """Two runs give the same bits."""
    first, second = ([a.tobytes() for a in outcome(fn, inputs, dtype)[0]] for _ in range(2))
    assert first == second


class Peak:
    """``with Peak() as peak``: the most bytes that arrays made in there took at once, `peak.bytes`."""

    def __enter__(self):
        cuda, taken, peak = backend.load_cupy().cuda, {}, self

        class Hook(cuda.MemoryHook):
            def malloc_postprocess(self, device_id, size, mem_size, mem_ptr, pmem_id):
                taken[pmem_id] = size
                peak.bytes = max(peak.bytes, sum(taken.values()))

            def free_postprocess(self, device_id, mem_size, mem_ptr, pmem_id):
                taken.pop(pmem_id, None)

        self.bytes, self.contexts = 0, contextlib.ExitStack()
        self.contexts.enter_context(cuda.using_allocator(cuda.MemoryPool().malloc))
        self.contexts.enter_context(Hook())
        return self

    def __exit__(self, *error):
        self.contexts.close()


def arrays(*shapes, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=shape) for shape in shapes]


def broken(monkeypatch, code, file, old, new):
    """From now on kernels of the source `code` are compiled with `new` in the place of `old`, in one of its files."""
    original, found = source.read, source.read(file).count(old)
    assert found == 1, f"{file} has changed: {old!r} is there {found} times"  # now: later it would pass for the mistake

    def mistaken(name):
        return original(name).replace(old, new) if name == file else original(name)

    monkeypatch.setattr(source, "read", mistaken)
    monkeypatch.setattr(code, "compiled", {})
