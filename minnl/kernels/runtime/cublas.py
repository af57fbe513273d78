"""Products of matrices by cuBLAS as it can do them: of transposed operands and of slices, and added to what is there.

CuPy's matmul copies an operand of a batch that does not lie row behind row, and it cannot add.
"""

from __future__ import annotations

import numpy as np

from minnl import backend

READ_BY_COLUMNS = 1  # cuBLAS calls it transposed


def multiply(a, b, out, factor=1.0, add=False):
    """out = factor * a @ b, or out += factor * a @ b; returns out.

    a (B, M, K), b (B, K, N) and out (B, M, N) are CuPy arrays of one float type. Along one of their last two axes
    numbers lie next to each other; in out along the last. They use TF32 if CuPy does.
    """
    cuda = backend.load_cupy().cuda
    cublas, handle = cuda.cublas, cuda.device.get_cublas_handle()
    kind, compute = _types(cublas, out.dtype)
    factors = np.array([factor, 1.0 if add else 0.0], out.dtype)  # cuBLAS reads them on the host, during the call
    alpha, beta = factors.ctypes.data, factors.ctypes.data + factors.itemsize
    (ways_a, step_a), (ways_b, step_b), (ways_out, step_out) = map(_layout, (a, b, out))
    if ways_out[0] == READ_BY_COLUMNS:
        raise ValueError(f"multiply: out, of shape {out.shape} and strides {out.strides}, must lie by rows")
    # cuBLAS thinks in columns: a matrix that lies by rows is its transpose there, and out^T = b^T a^T.
    cublas.gemmStridedBatchedEx(
        handle, ways_b[0], ways_a[0], out.shape[2], out.shape[1], a.shape[2],
        alpha, b.data.ptr, kind, ways_b[1], step_b, a.data.ptr, kind, ways_a[1], step_a,
        beta, out.data.ptr, kind, ways_out[1], step_out, len(out), compute, cublas.CUBLAS_GEMM_DEFAULT,
    )  # fmt: skip
    return out


def _types(cublas, dtype):
    """cuBLAS's names of the numbers' type and of how they are multiplied."""
    runtime = backend.load_cupy().cuda.runtime
    if dtype == "float64":
        return runtime.CUDA_R_64F, cublas.CUBLAS_COMPUTE_64F
    return runtime.CUDA_R_32F, cublas.CUBLAS_COMPUTE_32F_FAST_TF32 if backend.tf32() else cublas.CUBLAS_COMPUTE_32F


def _layout(x):
    """((by columns or rows, from one of these to the next), from one matrix to the next), in numbers."""
    batch, row, column = (stride // x.itemsize for stride in x.strides)
    _, rows, columns = x.shape
    if columns == 1 or column == 1:
        return (0, columns if rows == 1 else row), batch
    if rows == 1 or row == 1:
        return (READ_BY_COLUMNS, column), batch
    raise ValueError(
        f"multiply: an operand of shape {x.shape} and strides {x.strides} lies neither by rows nor by columns"
    )
