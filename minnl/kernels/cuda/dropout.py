"""Dropout's mask drawn and applied in one launch: docs/kernels/cuda_pointwise.md."""

from __future__ import annotations

import math

from minnl import backend
from minnl.kernels.cuda.kernel import GpuKernel
from minnl.kernels.cuda.norm import MOST_WRITTEN, WRITTEN, Walk
from minnl.kernels.cuda.source import Source, contiguous, grid

DROPOUT = Source("dropout.cu", "draw<T>", "mask<T>", "mask_channels<T>")


class GpuDropout(GpuKernel):
    @staticmethod
    def forward(op, x):
        (x,) = contiguous(x)
        xp, shape = backend.load_cupy(), op.mask_shape(x)
        op.stays, y = xp.empty(shape, dtype=bool), xp.empty_like(x)
        n, at_once = math.prod(shape), not op.channels
        DROPOUT.launch(
            "draw<T>", x.dtype, *grid(n), x if at_once else None, op.seed & 0xFFFFFFFF, op.seed >> 32, op.least,
            1 / (1 - op.p), n, op.stays, y,
        )  # fmt: skip
        return y if at_once else masked(op, x, y)

    @staticmethod
    def backward(op, gy):
        (gy,) = contiguous(gy)
        return (masked(op, gy, backend.load_cupy().empty_like(gy)),)


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
