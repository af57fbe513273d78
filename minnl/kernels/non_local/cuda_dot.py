"""The dot product on a GPU, by cuBLAS: docs/kernels/cuda_non_local.md."""

from __future__ import annotations

from minnl import backend
from minnl.kernels.non_local.cuda_positions import fold, fold_gradient, unfold_gradients
from minnl.kernels.runtime.cublas import multiply
from minnl.kernels.runtime.cuda_kernel import CudaKernel
from minnl.ops.non_local import NonLocalDot


class CudaNonLocalDot(CudaKernel, NonLocalDot):
    """The textbook's order: y = theta m with m = phi^T g / P."""

    def forward(self, theta, phi, g):
        y = fold(self, theta, phi, g)
        self.m = empty(y, len(y), theta.shape[-1], g.shape[-1])
        multiply(turned(self.phi), self.g, self.m, 1 / self.phi.shape[1])
        return self.unfold(multiply(self.theta, self.m, y), theta.shape)

    def backward(self, gy):
        gy, (of_theta, of_phi, of_g) = fold_gradient(self, gy), self.needs
        gtheta = multiply(gy, turned(self.m), empty(gy, *self.theta.shape)) if of_theta else None
        gphi = gg = None
        if of_phi or of_g:
            gm = multiply(turned(self.theta), gy, empty(gy, *self.m.shape), 1 / self.phi.shape[1])
            gphi = multiply(self.g, turned(gm), empty(gy, *self.phi.shape)) if of_phi else None
            gg = multiply(self.phi, gm, empty(gy, *self.g.shape)) if of_g else None
        return unfold_gradients(self, gtheta, gphi, gg)


def empty(like, *shape):
    return backend.load_cupy().empty(shape, like.dtype)


def turned(x):
    return x.swapaxes(1, 2)
