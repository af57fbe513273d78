"""Elementwise functions in one launch each way: docs/kernels/cuda_pointwise.md."""

from __future__ import annotations

from minnl import backend
from minnl.kernels.cuda.kernel import GpuKernel
from minnl.kernels.cuda.norm import MOST_WRITTEN, WRITTEN, Walk
from minnl.kernels.cuda.source import Source, contiguous, grid

POINTWISE = Source(
    "pointwise.cu", "relu_gradient<T>", "sigmoid<T>", "sigmoid_gradient<T>", "tanh_gradient<T>", "affine<T>"
)


class _FromResult(GpuKernel):
    """An op whose gradient follows from what it returned; CuPy has its forward in one launch."""

    @staticmethod
    def forward(op, x):
        return op.forward(x)

    @classmethod
    def backward(cls, op, gy):
        return (elementwise(cls.gradient, *contiguous(gy, op.y)),)


class GpuReLU(_FromResult):
    gradient = "relu_gradient<T>"


class GpuTanh(_FromResult):
    gradient = "tanh_gradient<T>"


class GpuSigmoid(_FromResult):
    gradient = "sigmoid_gradient<T>"

    @staticmethod
    def forward(op, x):
        op.y = elementwise("sigmoid<T>", *contiguous(x))
        return op.y


class GpuAffine(GpuKernel):
    """Its gradients are the textbook's: a launch each, and in networks only that of x is wanted."""

    @staticmethod
    def forward(op, x, scale, shift):
        x, op.scale, shift = contiguous(x, scale, shift)
        op.x, y, walk = x if op.needs[1] else None, backend.load_cupy().empty_like(x), Walk(x)
        blocks = walk.across, walk.slices(WRITTEN, MOST_WRITTEN)
        POINTWISE.launch("affine<T>", x.dtype, blocks, walk.threads, x, op.scale, shift, *walk.sizes, y)
        return y

    @staticmethod
    def backward(op, gy):
        return op.backward(gy)


def elementwise(kernel, *arrays):
    """A new array, each element from those of the arrays in the same place."""
    like = arrays[0]
    made = backend.load_cupy().empty_like(like)
    POINTWISE.launch(kernel, like.dtype, *grid(like.size), *arrays, like.size, made)
    return made
