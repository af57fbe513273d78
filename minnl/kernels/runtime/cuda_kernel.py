"""What the CUDA kernels share: for which arrays they are made."""

from minnl import backend


class CudaKernel:
    """A kernel for float32 and float64 on a GPU whose CuPy compiles CUDA. The textbook body computes empty arrays."""

    @staticmethod
    def suits(op, arrays):
        return backend.compiles_cuda() and all(a.size for a in arrays)

    def workspace(self):
        """Memory that forward, the gradient of input 0 and the gradients of the others need beside their results.

        Three lists of moments. A moment is a list of the bytes of arrays that exist together.
        """
        return [], [], []
