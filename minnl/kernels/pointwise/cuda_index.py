"""The gradient of an integer index, without atomic additions: docs/kernels/cuda_pointwise.md."""

from __future__ import annotations

import math

from minnl import backend
from minnl.kernels.runtime.cuda import Source, contiguous, grid
from minnl.kernels.runtime.cuda_kernel import CudaKernel
from minnl.ops.shape import Index

INDEX = Source("pointwise/index.cu", "sum_picked<T>")


class CudaIndex(CudaKernel, Index):
    """Of indices that may name an element several times; CuPy's add.at adds in an order that varies."""

    @staticmethod
    def suits(op, arrays):
        return op.gathers and CudaKernel.suits(op, arrays)

    def backward(self, gy):
        (gy,), xp, n = contiguous(gy), backend.load_cupy(), math.prod(self.shape)
        picked = xp.arange(n).reshape(self.shape)[self.index].ravel()
        keys = xp.sort(picked * gy.size + xp.arange(gy.size))  # which element was picked, and then by which
        gx = xp.empty(self.shape, gy.dtype)
        INDEX.launch("sum_picked<T>", gy.dtype, *grid(n), gy, keys, gy.size, n, gx)
        return (gx,)
