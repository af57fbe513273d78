"""Elementwise functions in one launch each way: docs/kernels/cuda_pointwise.md."""

from __future__ import annotations

from minnl import backend
from minnl.kernels.batch_norm.cuda import MOST_WRITTEN, WRITTEN, Walk
from minnl.kernels.runtime.cuda import Source, contiguous, grid
from minnl.kernels.runtime.cuda_kernel import CudaKernel
from minnl.ops.norm import Affine
from minnl.ops.pointwise import ReLU, Sigmoid, Tanh

POINTWISE = Source(
    "pointwise/pointwise.cu", "relu_gradient<T>", "sigmoid<T>", "sigmoid_gradient<T>", "tanh_gradient<T>", "affine<T>"
)


class _FromResult(CudaKernel):
    """An op whose gradient follows from what it returned; CuPy has its forward in one launch."""

    def backward(self, gy):
        return (elementwise(self.gradient_kernel, *contiguous(gy, self.y)),)


class CudaReLU(_FromResult, ReLU):
    gradient_kernel = "relu_gradient<T>"


class CudaTanh(_FromResult, Tanh):
    gradient_kernel = "tanh_gradient<T>"


class CudaSigmoid(_FromResult, Sigmoid):
    gradient_kernel = "sigmoid_gradient<T>"

    def forward(self, x):
        self.y = elementwise("sigmoid<T>", *contiguous(x))
        return self.y


class CudaAffine(CudaKernel, Affine):
    """Its gradients are the textbook's: a launch each, and in networks only that of x is wanted."""

    def forward(self, x, scale, shift):
        x, self.scale, shift = contiguous(x, scale, shift)
        self.x, y, walk = x if self.needs[1] else None, backend.load_cupy().empty_like(x), Walk(x)
        blocks = walk.across, walk.slices(WRITTEN, MOST_WRITTEN)
        POINTWISE.launch("affine<T>", x.dtype, blocks, walk.threads, x, self.scale, shift, *walk.sizes, y)
        return y


def elementwise(kernel, *arrays):
    """A new array, each element from those of the arrays in the same place."""
    like = arrays[0]
    made = backend.load_cupy().empty_like(like)
    POINTWISE.launch(kernel, like.dtype, *grid(like.size), *arrays, like.size, made)
    return made
