"""The mean over all positions: docs/kernels/pooling.md."""

from __future__ import annotations

import numpy as np

from minnl.kernels import memory, threads
from minnl.kernels.cpu.kernel import Float32Kernel
from minnl.kernels.cpu.sums import over_positions


class MeanOverPositions(Float32Kernel):
    """The mean over all axes but the first and the last."""

    @staticmethod
    def suits(op, arrays):
        x = arrays[0]
        return Float32Kernel.suits(op, arrays) and x.ndim > 2 and x.size > 0 and op.axis == tuple(range(1, x.ndim - 1))

    @staticmethod
    def forward(op, x):
        op.remember(x)
        y = mean(x)
        return op.spread(y) if op.keepdims else y

    @staticmethod
    def backward(op, gy):
        return (stretched(gy, op.shape),)


class GlobalAveragePool(Float32Kernel):
    """Average pooling to a single position."""

    @staticmethod
    def suits(op, arrays):
        return Float32Kernel.suits(op, arrays) and arrays[0].size > 0 and op.sizes == (1, 1, 1)

    @staticmethod
    def forward(op, x):
        op.shape = x.shape
        return mean(x).reshape(len(x), 1, 1, 1, -1)

    @staticmethod
    def backward(op, gy):
        return (stretched(gy, op.shape),)


def mean(x):
    """(N, ..., C) -> (N, C)"""
    positions = x.reshape(len(x), -1, x.shape[-1])
    sums = threads.run(over_positions, [positions])[0]  # BLAS on one thread, for the same bits on any number
    return (sums / positions.shape[1]).astype(x.dtype)


def stretched(gy, shape):
    """gy (N, ..., C), of one position, shared out among those of `shape`."""
    gx = memory.empty(shape, gy.dtype)
    positions = memory.view(gx, shape[0], -1, shape[-1])
    positions[...] = gy.reshape(shape[0], 1, -1) / np.float32(positions.shape[1])
    return gx
