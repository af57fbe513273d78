"""The dot product on a GPU, in the cheaper of two orders: docs/kernels/cuda_non_local.md."""

from __future__ import annotations

from minnl import backend
from minnl.kernels.cuda.gemm import multiply
from minnl.kernels.cuda.kernel import GpuKernel
from minnl.kernels.cuda.positions import fold, fold_gradient, unfold_gradients


class GpuDotOfSums(GpuKernel):
    """The textbook's order: y = theta m with m = phi^T g / P."""

    @staticmethod
    def forward(op, theta, phi, g):
        y = fold(op, theta, phi, g)
        op.m = empty(y, len(y), theta.shape[-1], g.shape[-1])
        multiply(turned(op.phi), op.g, op.m, 1 / op.phi.shape[1])
        return op.unfold(multiply(op.theta, op.m, y), theta.shape)

    @staticmethod
    def backward(op, gy):
        gy, (of_theta, of_phi, of_g) = fold_gradient(op, gy), op.needs
        gtheta = multiply(gy, turned(op.m), empty(gy, *op.theta.shape)) if of_theta else None
        gphi = gg = None
        if of_phi or of_g:
            gm = multiply(turned(op.theta), gy, empty(gy, *op.m.shape), 1 / op.phi.shape[1])
            gphi = multiply(op.g, turned(gm), empty(gy, *op.phi.shape)) if of_phi else None
            gg = multiply(op.phi, gm, empty(gy, *op.g.shape)) if of_g else None
        return unfold_gradients(op, gtheta, gphi, gg)


class GpuDotOfPairs(GpuKernel):
    """The order of the formula: y = f g with f = theta phi^T / P, which takes the place of m."""

    @staticmethod
    def suits(op, arrays):
        op.shapes(*arrays)
        return GpuKernel.suits(op, arrays) and op.few_pairs()

    @staticmethod
    def forward(op, theta, phi, g):
        y = fold(op, theta, phi, g)
        op.m = empty(y, *y.shape[:2], op.phi.shape[1])
        multiply(op.theta, turned(op.phi), op.m, 1 / op.phi.shape[1])
        return op.unfold(multiply(op.m, op.g, y), theta.shape)

    @staticmethod
    def backward(op, gy):
        gy, (of_theta, of_phi, of_g) = fold_gradient(op, gy), op.needs
        gtheta = gphi = None
        if of_theta or of_phi:
            gm = multiply(gy, turned(op.g), empty(gy, *op.m.shape), 1 / op.phi.shape[1])
            gtheta = multiply(gm, op.phi, empty(gy, *op.theta.shape)) if of_theta else None
            gphi = multiply(turned(gm), op.theta, empty(gy, *op.phi.shape)) if of_phi else None
        gg = multiply(turned(op.m), gy, empty(gy, *op.g.shape)) if of_g else None
        return unfold_gradients(op, gtheta, gphi, gg)


def empty(like, *shape):
    return backend.load_cupy().empty(shape, like.dtype)


def turned(x):
    return x.swapaxes(1, 2)
