"""The gradient of an integer index, without atomic additions: docs/kernels/cuda_pointwise.md."""

from __future__ import annotations

import math

from minnl import backend
from minnl.kernels.cuda.kernel import GpuKernel
from minnl.kernels.cuda.source import Source, contiguous, grid

INDEX = Source("index.cu", "sum_picked<T>")


class GpuIndex(GpuKernel):
    """Of indices that may name an element several times; CuPy's add.at adds in an order that varies."""

    @staticmethod
    def suits(op, arrays):
        return op.gathers and GpuKernel.suits(op, arrays)

    @staticmethod
    def forward(op, x):
        return op.forward(x)

    @staticmethod
    def backward(op, gy):
        (gy,), xp, n = contiguous(gy), backend.load_cupy(), math.prod(op.shape)
        picked = xp.arange(n).reshape(op.shape)[op.index].ravel()
        keys = xp.sort(picked * gy.size + xp.arange(gy.size))  # which element was picked, and then by which
        gx = xp.empty(op.shape, gy.dtype)
        INDEX.launch("sum_picked<T>", gy.dtype, *grid(n), gy, keys, gy.size, n, gx)
        return (gx,)
