"""The dot product on all threads, in the cheaper of two orders: docs/kernels/non_local_dot.md.

theta (phi^T g), the textbook's, takes (L + P) I D multiply-adds, and (theta phi^T) g takes L P (I + D): fewer, if there
are fewer keys than about half the channels.
"""

from __future__ import annotations

from minnl.kernels.cpu.gemm import multiply
from minnl.kernels.cpu.kernel import Float32Kernel
from minnl.kernels.cpu.positions import Gradients, fold, summed, turned
from minnl.kernels.memory import empty


class DotOfSums(Float32Kernel):
    """The textbook's order: y = theta m with m = phi^T g / P."""

    @staticmethod
    def forward(op, theta, phi, g):
        y = fold(op, theta, phi, g)

        def of_keys(e, j, m):
            multiply(op.phi[e, j].swapaxes(1, 2), op.g[e, j], m)

        def of_queries(e, i):
            multiply(op.theta[e, i], op.m[e], y[e, i])

        (op.m,) = summed(op, op.phi, of_keys, (theta.shape[-1], g.shape[-1]))
        op.m /= op.phi.shape[1]
        summed(op, op.theta, of_queries)
        return op.unfold(y, theta.shape)

    @staticmethod
    def backward(op, gy):
        gradients = Gradients(op, gy)
        gy, gtheta, gphi, gg = gradients.lists
        turned_m = turned(op.m, 1)

        def of_queries(e, i, gm):
            multiply(gy[e, i], turned_m[e], gtheta[e, i])
            multiply(op.theta[e, i].swapaxes(1, 2), gy[e, i], gm)

        def of_keys(e, j):
            multiply(op.g[e, j], turned_gm[e], gphi[e, j])
            multiply(op.phi[e, j], gm[e], gg[e, j])

        (gm,) = summed(op, op.theta, of_queries, op.m.shape[1:])
        gm /= op.phi.shape[1]
        turned_gm = turned(gm, 1)
        summed(op, op.phi, of_keys)
        return gradients.unfolded()


class DotOfPairs(Float32Kernel):
    """The order of the formula: y = f g with f = theta phi^T / P, which takes the place of m."""

    @classmethod
    def suits(cls, op, arrays):
        op.shapes(*arrays)
        return super().suits(op, arrays) and op.few_pairs()

    @staticmethod
    def forward(op, theta, phi, g):
        y, keys = fold(op, theta, phi, g), op.phi.shape[1]
        op.m = empty((*op.theta.shape[:2], keys), g.dtype)
        turned_phi = turned(op.phi, 1 / keys)

        def run(e, i):
            multiply(op.theta[e, i], turned_phi[e], op.m[e, i])
            multiply(op.m[e, i], op.g[e], y[e, i])

        summed(op, op.theta, run)
        return op.unfold(y, theta.shape)

    @staticmethod
    def backward(op, gy):
        gradients = Gradients(op, gy)
        gy, gtheta, gphi, gg = gradients.lists
        turned_g = turned(op.g, 1 / op.phi.shape[1])

        def run(e, i, gphi, gg):
            gf = multiply(gy[e, i], turned_g[e], empty(op.m[e, i].shape, gy.dtype))
            multiply(gf, op.phi[e], gtheta[e, i])
            multiply(gf.swapaxes(1, 2), op.theta[e, i], gphi)
            multiply(op.m[e, i].swapaxes(1, 2), gy[e, i], gg)

        gphi[...], gg[...] = summed(op, op.theta, run, op.phi.shape[1:], op.g.shape[1:])
        return gradients.unfolded()
