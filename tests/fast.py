"""What the tests of fast kernels share: the textbook body in float64 is the judge of the fast one in float32.

An error is measured beside the largest value of what is compared, or the largest input if that is larger: a gradient
may be nearly 0 because terms of the inputs' size cancel, and their rounding stays.
"""

import contextlib
from unittest import mock

import numpy as np
import pytest

import minnl
from minnl import Tensor, backend, dispatch
from minnl.kernels.runtime import matmul as gemm
from minnl.kernels.runtime import panels

TOLERANCE = 1e-5


@pytest.fixture(autouse=True)
def as_before():
    count, mode = backend.threads(), dispatch.mode()
    yield
    minnl.set_threads(count)
    minnl.use_kernels(mode)


@contextlib.contextmanager
def small_panels():
    """Every second factor of more than 16 elements in panels, if its columns allow it, and in small pieces."""
    gemm._piece.cache_clear()
    with (
        mock.patch.multiple(gemm, NEAR=16, SMALL=100),
        mock.patch.multiple(panels, WIDTHS=(4, 2, 1), ROWS=1, WORTH=1, STEP=2, has_small=lambda: True),
    ):
        yield
    gemm._piece.cache_clear()


def arrays(*shapes, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=shape) for shape in shapes]


def outcome(fn, inputs, mode, dtype=np.float32, seed=1):
    """Output and gradients of fn, its output weighted at random; and whether a kernel ran."""
    picked, pick = [], dispatch.kernel_of

    def watched(op, given, *device):
        kernel = pick(op, given, *device)
        picked.append(kernel)
        return kernel

    with minnl.use_kernels(mode), mock.patch.object(dispatch, "kernel_of", watched):
        leaves = [Tensor(a.astype(dtype), requires_grad=True) for a in inputs]
        y = fn(*leaves)
        y.backward(np.random.default_rng(seed).normal(size=y.shape).astype(dtype))
    return [y.data, *(x.grad for x in leaves)], any(picked)


def agree(fn, inputs, tolerance=TOLERANCE):
    """The fast body ran, in float32 throughout, and its results are close to those of the textbook in float64."""
    fast, ran = outcome(fn, inputs, "fast")
    assert ran, "no kernel was picked"
    judge, _ = outcome(fn, inputs, "textbook", np.float64)
    for what, a, b in zip(("output", *(f"gradient {i}" for i in range(9))), fast, judge, strict=False):
        assert a.dtype == np.float32 and a.shape == b.shape, what
        off, largest = (max(np.abs(v).max(initial=0) for v in values) for values in ([a - b], [b, *inputs]))
        assert off <= tolerance * largest, f"{what}: off by {off:.1e}, the largest value is {largest:.1e}"


def same_bits(fn, inputs):
    """Two runs, and runs on one, two and three threads, give the same bits."""
    results = []
    for count in (1, 2, 3, 2):
        minnl.set_threads(count)
        results.append([a.tobytes() for a in outcome(fn, inputs, "fast")[0]])
    assert all(r == results[0] for r in results)
