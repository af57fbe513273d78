"""The addition of two large gradients in blocks, on all threads: docs/kernels/runtime.md."""

import numpy as np

from minnl.dispatch import CpuKernel
from minnl.engine import Accumulation
from minnl.kernels.runtime import memory, threads

BLOCK = 512 * 1024  # Elements of a block, 2 MB; gradients of fewer are added before a second thread starts.


class CpuAccumulation(CpuKernel, Accumulation):
    @staticmethod
    def suits(op, arrays):
        """Not for arrays that differ in shape or dtype: the engine says what is wrong with these."""
        a, b = arrays
        return a.size >= BLOCK and a.shape == b.shape and all(CpuKernel.suits(op, [array]) for array in arrays)

    def forward(self, a, b):
        total = memory.empty(a.shape, a.dtype)
        a, b, out = a.reshape(-1), b.reshape(-1), memory.view(total, -1)
        threads.run(lambda block: np.add(a[block], b[block], out=out[block]), threads.chunks(out.size, BLOCK))
        return total
