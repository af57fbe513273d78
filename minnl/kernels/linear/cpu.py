"""Linear maps and matrix products on one BLAS thread: docs/kernels/runtime.md.

After a product on several threads of BLAS, OpenBLAS's threads wait for the next product by spinning, for about 100 ms.
They spin on the cores that the kernels after the product need.
"""

from minnl.kernels.runtime import threads
from minnl.kernels.runtime.cpu_kernel import CpuKernel
from minnl.ops.linear import Linear, MatMul

LARGE = 64_000_000  # Multiply-adds from which on a batched product gains more by BLAS's threads than other ops lose.


class OneBlasThread(CpuKernel):
    """The textbook body, on one BLAS thread."""

    def forward(self, *arrays):
        with threads.one_blas_thread:
            return super().forward(*arrays)

    def backward(self, gy):
        with threads.one_blas_thread:
            return super().backward(gy)


class CpuLinear(OneBlasThread, Linear):
    pass


class CpuMatMul(OneBlasThread, MatMul):
    @staticmethod
    def suits(op, arrays):
        return CpuKernel.suits(op, arrays) and arrays[0].size * arrays[1].shape[-1] < LARGE
