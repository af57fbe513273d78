"""Matrix products without the threads of BLAS: docs/kernels/runtime.md.

When a product on several BLAS threads is done they wait for the next one, and OpenBLAS waits by spinning, for about
100 ms, on the cores that the kernels after it need: a classifier's small product made the convolutions around it up to
twice as slow. So the fast bodies of all products run on this library's threads, with one BLAS thread in each.
"""

from __future__ import annotations

import numpy as np

from minnl.kernels.runtime import memory, threads
from minnl.kernels.runtime.cpu_kernel import CpuKernel
from minnl.kernels.runtime.matmul import multiply
from minnl.kernels.runtime.sums import column_sums
from minnl.ops.linear import Linear, MatMul
from minnl.sums import RUN

LARGE = 64_000_000  # multiply-adds from which on a batched product is left to BLAS: it gains more than others lose


class CpuLinear(CpuKernel, Linear):
    def forward(self, x, weight, bias=None):
        self.x, self.weight = x, weight
        y = product(x.reshape(-1, x.shape[-1]), weight).reshape(*x.shape[:-1], weight.shape[1])
        if bias is not None:
            y += bias
        return y

    def backward(self, gy):
        x, gy = self.x.reshape(-1, self.x.shape[-1]), gy.reshape(-1, gy.shape[-1])
        gx = product(gy, self.weight.T).reshape(self.x.shape) if self.needs[0] else None
        gw = product_of_columns(x, gy) if self.needs[1] else None
        return gx, gw, *((column_sums(gy),) if len(self.needs) == 3 else ())


class CpuMatMul(CpuKernel, MatMul):
    """The textbook body, on one BLAS thread."""

    @staticmethod
    def suits(op, arrays):
        return CpuKernel.suits(op, arrays) and arrays[0].size * arrays[1].shape[-1] < LARGE

    def forward(self, *arrays):
        forward = super().forward
        return threads.run(lambda _: forward(*arrays), [None])[0]

    def backward(self, gy):
        backward = super().backward
        return threads.run(lambda _: backward(gy), [None])[0]


def product(a, b):
    """a @ b for (M, D) and (D, N), rows in tasks."""
    out = memory.empty((len(a), b.shape[1]), a.dtype)
    parts = threads.tasks_for(2 * a.size * b.shape[1])
    threads.run(lambda rows: multiply(a[rows], b, out[rows]), threads.shares(len(a), parts))
    return out


def product_of_columns(a, b):
    """a.T @ b, of (P, I) and (P, O): where P is large in runs of rows, on all threads, that are added up in float64."""
    runs = threads.pieces(len(a), RUN)
    if len(runs) == 1:
        return product(a.T, b)
    products = threads.run(lambda some: a[some].T @ b[some], runs)
    return np.sum(products, axis=0, dtype=np.float64).astype(a.dtype)
