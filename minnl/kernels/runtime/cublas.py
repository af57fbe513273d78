"""Products of matrices by cuBLAS without copies: of transposed operands and of slices, added to `out` if wanted.

CuPy's matmul copies a batched operand unless its rows lie one behind the other, and cannot add.
"""

from __future__ import annotations

import numpy as np

from minnl import backend

TRANSPOSED = 1  # cuBLAS's CUBLAS_OP_T


def multiply(a, b, out, factor=1.0, add=False):
    """out = factor * a @ b, or out += factor * a @ b; returns out.

    a (B, M, K), b (B, K, N) and out (B, M, N) are CuPy arrays of one float type. One of the last two axes of a and of b
    is contiguous; in `out` the last. The product uses TF32 if CuPy does.
    """
    cuda = backend.load_cupy().cuda
    cublas, handle = cuda.cublas, cuda.device.get_cublas_handle()
    number, compute = _types(cublas, out.dtype)
    factors = np.array([factor, 1.0 if add else 0.0], out.dtype)  # cuBLAS reads the factors on the host, in the call
    alpha, beta = factors.ctypes.data, factors.ctypes.data + factors.itemsize
    (op_a, lead_a, step_a), (op_b, lead_b, step_b), (op_out, lead_out, step_out) = map(_layout, (a, b, out))
    if op_out == TRANSPOSED:
        raise ValueError(f"multiply: out, of shape {out.shape} and strides {out.strides}, must lie by rows")
    # cuBLAS stores matrices by columns. To cuBLAS a matrix that lies by rows is its transpose, and out^T = b^T a^T.
    cublas.gemmStridedBatchedEx(
        handle, op_b, op_a, out.shape[2], out.shape[1], a.shape[2],
        alpha, b.data.ptr, number, lead_b, step_b, a.data.ptr, number, lead_a, step_a,
        beta, out.data.ptr, number, lead_out, step_out, len(out), compute, cublas.CUBLAS_GEMM_DEFAULT,
    )  # fmt: skip
    return out


def _types(cublas, dtype):
    """cuBLAS's codes of the numbers' type and of the arithmetic."""
    runtime = backend.load_cupy().cuda.runtime
    if dtype == "float64":
        return runtime.CUDA_R_64F, cublas.CUBLAS_COMPUTE_64F
    return runtime.CUDA_R_32F, cublas.CUBLAS_COMPUTE_32F_FAST_TF32 if backend.tf32() else cublas.CUBLAS_COMPUTE_32F


def _layout(x):
    """(transposed or not, leading dimension, step from one matrix of the batch to the next), in numbers."""
    step, row, column = (stride // x.itemsize for stride in x.strides)
    _, rows, columns = x.shape
    if columns == 1 or column == 1:
        return 0, columns if rows == 1 else row, step
    if rows == 1 or row == 1:
        return TRANSPOSED, column, step
    raise ValueError(
        f"multiply: an operand of shape {x.shape} and strides {x.strides} lies neither by rows nor by columns"
    )
