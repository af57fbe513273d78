"""Elementwise functions, dropout and the gradient of indexing, in one launch each way: docs/kernels/pointwise.md."""

from __future__ import annotations

import math

from minnl import backend
from minnl.kernels.runtime.cuda import CudaKernel, Source, contiguous, grid
from minnl.kernels.runtime.row_tiles import RowTiles
from minnl.ops.dropout import Dropout
from minnl.ops.norm import Affine
from minnl.ops.pointwise import ReLU, Sigmoid, Tanh
from minnl.ops.shape import Index

POINTWISE = Source(
    "pointwise/pointwise.cu", "relu_gradient<T>", "sigmoid<T>", "sigmoid_gradient<T>", "tanh_gradient<T>", "affine<T>",
    "draw_mask<T>", "apply_mask<T>", "apply_channel_mask<T>", "index_gradient<T>",
)  # fmt: skip


class _FromResult(CudaKernel):
    """An op whose gradient follows from its result. CuPy computes the forward of ReLU and tanh in one launch."""

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
    """Backward is the textbook's: a launch for each gradient, and networks want that of x alone."""

    def forward(self, x, scale, shift):
        x, self.scale, shift = contiguous(x, scale, shift)
        self.x, y, tiles = x if self.needs[1] else None, backend.load_cupy().empty_like(x), RowTiles(x)
        tiles.write(POINTWISE, "affine<T>", x, self.scale, shift, tiles.rows, tiles.channels, y)
        return y


class CudaDropout(CudaKernel, Dropout):
    """The mask is drawn and applied in one launch, or for whole channels in two."""

    def forward(self, x):
        (x,) = contiguous(x)
        xp, shape = backend.load_cupy(), self.mask_shape(x)
        self.stays, y = xp.empty(shape, dtype=bool), xp.empty_like(x)
        n, low, high = math.prod(shape), self.seed & 0xFFFFFFFF, self.seed >> 32
        draw = None if self.channels else x, low, high, self.least, 1 / (1 - self.p), n, self.stays, y
        POINTWISE.launch("draw_mask<T>", x.dtype, *grid(n), *draw)
        return self.masked(x, y) if self.channels else y

    def masked(self, x, y=None):
        """x times the mask, written to y if given."""
        (x,) = contiguous(x)
        y = backend.load_cupy().empty_like(x) if y is None else y
        scale, mask = 1 / (1 - self.p), self.stays
        if mask.size == x.size:
            POINTWISE.launch("apply_mask<T>", x.dtype, *grid(x.size), x, mask, scale, x.size, y)
        else:
            tiles, positions = RowTiles(x), x.size // mask.size
            sizes = tiles.rows, positions, tiles.channels
            tiles.write(POINTWISE, "apply_channel_mask<T>", x, mask, scale, *sizes, y)
        return y


class CudaIndex(CudaKernel, Index):
    """An index that may pick an element several times. CuPy's add.at adds in an order that varies from run to run."""

    @staticmethod
    def suits(op, arrays):
        return op.gathers and CudaKernel.suits(op, arrays)

    def backward(self, gy):
        (gy,), xp, n = contiguous(gy), backend.load_cupy(), math.prod(self.shape)
        picked = xp.arange(n).reshape(self.shape)[self.index].ravel()
        keys = xp.sort(picked * gy.size + xp.arange(gy.size))  # by the element picked, then by the place in gy
        gx = xp.empty(self.shape, gy.dtype)
        POINTWISE.launch("index_gradient<T>", gy.dtype, *grid(n), gy, keys, gy.size, n, gx)
        return (gx,)


def elementwise(kernel, *arrays):
    """A new array: each element follows from the elements of the arrays at the same place."""
    first = arrays[0]
    out = backend.load_cupy().empty_like(first)
    POINTWISE.launch(kernel, first.dtype, *grid(first.size), *arrays, first.size, out)
    return out
