"""What the CUDA kernels share: for which arrays they are made."""

from minnl import backend


class GpuKernel:
    """A kernel for float32 and float64 on a GPU whose CuPy compiles CUDA; empty arrays are left to the textbook."""

    @staticmethod
    def suits(op, arrays):
        return backend.is_gpu_array(arrays[0]) and backend.compiles_cuda() and all(a.size for a in arrays)
