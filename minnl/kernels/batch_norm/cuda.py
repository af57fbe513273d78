"""Batch norm with residual and ReLU in few launches: docs/kernels/batch_norm.md."""

from __future__ import annotations

from minnl import backend
from minnl.engine import meta_array
from minnl.kernels.runtime.cuda import CudaKernel, Source, contiguous, grid
from minnl.kernels.runtime.row_tiles import RowTiles
from minnl.ops.norm import BatchNorm, FrozenBatchNorm

NORM = Source(
    "batch_norm/batch_norm.cu",
    "moments<T>", "merge_moments<T>", "inverse_std<T>", "normalise<T>", "sums<T>", "merge_sums<T>", "gradient<T>",
)  # fmt: skip


class _Normalises(CudaKernel):
    """The launches that batch norm with statistics of the batch and with given statistics share."""

    def normalised(self, tiles, x, weight, bias, residual=None):
        y = backend.load_cupy().empty_like(x)
        numbers = self.mean, self.mean_error, self.rstd, weight, bias
        tiles.write(NORM, "normalise<T>", x, *numbers, residual, self.relu, tiles.rows, tiles.channels, y)
        return y

    def channel_gradients(self, tiles, gy):
        """gweight and gbias. gweight is meaningless if the op saved no x."""
        xp = backend.load_cupy()
        gweight, gbias, partial = xp.empty_like(self.weight), xp.empty_like(self.weight), tiles.partial(2)
        numbers = self.mean, self.mean_error, self.rstd
        tiles.sum(NORM, "sums<T>", gy, self.y, self.x, *numbers, tiles.rows, tiles.channels, partial)
        tiles.merge(NORM, "merge_sums<T>", partial, len(partial), tiles.channels, gbias, gweight)
        return gweight, gbias

    def element_gradients(self, tiles, gy, gbias=None, gweight=None):
        """The gradients of x and of the residual, in one launch. Without gbias the statistics were given."""
        xp = backend.load_cupy()
        gx = xp.empty_like(gy) if self.needs[0] else None
        masked = any(self.needs[3:]) and self.relu  # without ReLU the residual's gradient is gy
        gresidual = xp.empty_like(gy) if masked else gy
        if gx is not None or masked:
            x = None if gbias is None else self.x
            tiles.write(
                NORM, "gradient<T>", gy, self.y, x, self.mean, self.mean_error, self.rstd, self.weight, gbias, gweight,
                tiles.rows, tiles.channels, gx, gresidual if masked else None,
            )  # fmt: skip
        return gx, gresidual


class CudaBatchNorm(_Normalises, BatchNorm):
    """With the statistics of the batch."""

    saved_for_backward = (*BatchNorm.saved_for_backward, "mean_error")

    def forward(self, x, weight, bias, *residual):
        self.x, self.weight, bias, *residual = contiguous(x, weight, bias, *residual)
        tiles, xp = RowTiles(self.x), backend.load_cupy()
        partial, running = tiles.partial(3), contiguous(*(self.running or (None, None)))
        self.mean, self.mean_error, self.rstd = (xp.empty_like(self.weight) for _ in range(3))
        tiles.sum(NORM, "moments<T>", self.x, tiles.rows, tiles.channels, partial)
        tiles.merge(
            NORM, "merge_moments<T>", partial, self.x, len(partial), tiles.channels, self.eps, self.momentum,
            self.mean, self.mean_error, self.rstd, *running,
        )  # fmt: skip
        for array, updated in zip(self.running or (), running, strict=False):
            if updated is not array:
                array[...] = updated
        y = self.normalised(tiles, self.x, self.weight, bias, *residual)
        self.y = y if self.relu else None
        return y

    def backward(self, gy):
        (gy,) = contiguous(gy)
        tiles = RowTiles(gy)
        gweight, gbias = self.channel_gradients(tiles, gy)
        gx, gresidual = self.element_gradients(tiles, gy, gbias, gweight)
        return (gx, gweight, gbias, gresidual)[: len(self.needs)]

    def workspace(self):
        """The partial sums of backward: see :meth:`CudaKernel.workspace`. `infer` makes those of forward, before y."""
        tiles = RowTiles(self.x)
        return [], [], [[2 * tiles.slices * tiles.channels * self.x.itemsize]]

    def infer(self, x, weight, *others):
        _partial = meta_array((RowTiles(x).slices, *weight.shape, 3), x.dtype)  # exists until y does, as in forward
        self.mean_error = meta_array(weight.shape, x.dtype)
        return super().infer(x, weight, *others)


class CudaFrozenBatchNorm(_Normalises, FrozenBatchNorm):
    """With given statistics."""

    saved_for_backward = (*FrozenBatchNorm.saved_for_backward, "mean_error")

    def forward(self, x, weight, bias, *residual):
        x, weight, bias, self.mean, var, *residual = contiguous(x, weight, bias, self.mean, self.var, *residual)
        self.mean_error, self.rstd = None, backend.load_cupy().empty_like(weight)
        NORM.launch("inverse_std<T>", x.dtype, *grid(var.size), var, var.size, self.eps, self.rstd)
        y = self.normalised(RowTiles(x), x, weight, bias, *residual)
        self.keep(x, weight, y)
        return y

    def backward(self, gy):
        (gy,) = contiguous(gy)
        tiles = RowTiles(gy)
        gweight, gbias = self.channel_gradients(tiles, gy) if any(self.needs[1:3]) else (None, None)
        gx, gresidual = self.element_gradients(tiles, gy)
        return (gx, gweight if self.needs[1] else None, gbias, gresidual)[: len(self.needs)]

    def infer(self, *inputs):
        self.mean_error = None
        return super().infer(*inputs)
