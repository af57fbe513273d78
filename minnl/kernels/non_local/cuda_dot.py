"""The dot product on a GPU, by cuBLAS: docs/kernels/non_local.md."""

from __future__ import annotations

from minnl import backend
from minnl.kernels.non_local.cuda import FoldsPositions
from minnl.kernels.runtime.cublas import multiply
from minnl.ops.non_local import NonLocalDot


class CudaNonLocalDot(FoldsPositions, NonLocalDot):
    """The textbook's order: y = theta m with m = phi^T g / P."""

    def forward(self, theta, phi, g):
        y = self.fold_inputs(theta, phi, g)
        self.m = empty(y, len(y), theta.shape[-1], g.shape[-1])
        multiply(self.phi.swapaxes(1, 2), self.g, self.m, 1 / self.phi.shape[1])
        return self.unfold(multiply(self.theta, self.m, y), theta.shape)

    def backward(self, gy):
        gy, (of_theta, of_phi, of_g) = self.fold_gradient(gy), self.needs
        gtheta = multiply(gy, self.m.swapaxes(1, 2), empty(gy, *self.theta.shape)) if of_theta else None
        gphi = gg = None
        if of_phi or of_g:
            gm = multiply(self.theta.swapaxes(1, 2), gy, empty(gy, *self.m.shape), 1 / self.phi.shape[1])
            gphi = multiply(self.g, gm.swapaxes(1, 2), empty(gy, *self.phi.shape)) if of_phi else None
            gg = multiply(self.phi, gm, empty(gy, *self.g.shape)) if of_g else None
        return self.unfold_gradients(gtheta, gphi, gg)


def empty(like, *shape):
    return backend.load_cupy().empty(shape, like.dtype)
