"""Dropout's mask drawn and applied in one launch: docs/kernels/cuda_pointwise.md."""

from __future__ import annotations

import math

from minnl import backend
from minnl.kernels.batch_norm.cuda import MOST_WRITTEN, WRITTEN, Walk
from minnl.kernels.runtime.cuda import Source, contiguous, grid
from minnl.kernels.runtime.cuda_kernel import CudaKernel
from minnl.ops.dropout import Dropout

DROPOUT = Source("pointwise/dropout.cu", "draw<T>", "mask<T>", "mask_channels<T>")


class CudaDropout(CudaKernel, Dropout):
    def forward(self, x):
        (x,) = contiguous(x)
        xp, shape = backend.load_cupy(), self.mask_shape(x)
        self.stays, y = xp.empty(shape, dtype=bool), xp.empty_like(x)
        n, at_once = math.prod(shape), not self.channels
        DROPOUT.launch(
            "draw<T>", x.dtype, *grid(n), x if at_once else None, self.seed & 0xFFFFFFFF, self.seed >> 32, self.least,
            1 / (1 - self.p), n, self.stays, y,
        )  # fmt: skip
        return y if at_once else masked(self, x, y)

    def backward(self, gy):
        (gy,) = contiguous(gy)
        return (masked(self, gy, backend.load_cupy().empty_like(gy)),)


def masked(op, x, y):
    """y, with x times the mask written to it."""
    if op.stays.size == x.size:
        DROPOUT.launch("mask<T>", x.dtype, *grid(x.size), x, op.stays, 1 / (1 - op.p), x.size, y)
    else:
        walk, positions = Walk(x), x.size // op.stays.size
        blocks = walk.across, walk.slices(WRITTEN, MOST_WRITTEN)
        DROPOUT.launch(
            "mask_channels<T>", x.dtype, blocks, walk.threads, x, op.stays, 1 / (1 - op.p), walk.rows, positions,
            walk.channels, y,
        )  # fmt: skip
    return y
