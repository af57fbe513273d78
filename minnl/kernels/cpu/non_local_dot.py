"""The dot product on all threads, in the cheaper of two orders: docs/kernels/non_local_dot.md.

theta (phi^T g), the textbook's, takes (L + P) I D multiply-adds, and (theta phi^T) g takes L P (I + D): fewer, if there
are fewer keys than about half the channels.
"""

from __future__ import annotations

from minnl.kernels.cpu import panels
from minnl.kernels.cpu.gemm import multiply
from minnl.kernels.cpu.kernel import Float32Kernel
from minnl.kernels.cpu.positions import Copies, Gradients, fold, summed
from minnl.kernels.memory import empty


class DotOfSums(Float32Kernel):
    """The textbook's order: y = theta m with m = phi^T g / P."""

    @staticmethod
    def forward(op, theta, phi, g):
        y = fold(op, theta, phi, g)

        def of_keys(e, j, m):
            multiply(op.phi[e, j].swapaxes(1, 2), op.g[e, j], m)

        def of_queries(e, i):
            panels.multiply(op.theta[e, i], m[e], y[e, i])

        (op.m,) = summed(op, op.phi, of_keys, (theta.shape[-1], g.shape[-1]), cost=cost(op))
        op.m /= op.phi.shape[1]
        with Copies() as copies:
            m = copies.upright(op.m, op.m.shape[1], rows=y.shape[1])
        summed(op, op.theta, of_queries, cost=cost(op))
        return op.unfold(y, theta.shape)

    @staticmethod
    def backward(op, gy):
        gradients = Gradients(op, gy)
        gy, gtheta, gphi, gg = gradients.lists
        with Copies() as copies:
            turned_m = copies.turned(op.m, 1)

        def of_queries(e, i, gm):
            panels.multiply(gy[e, i], turned_m[e], gtheta[e, i])
            multiply(op.theta[e, i].swapaxes(1, 2), gy[e, i], gm)

        def of_keys(e, j):
            panels.multiply(op.g[e, j], turned_gm[e], gphi[e, j])
            panels.multiply(op.phi[e, j], upright_gm[e], gg[e, j])

        (gm,) = summed(op, op.theta, of_queries, op.m.shape[1:], cost=cost(op))
        gm /= op.phi.shape[1]
        with Copies() as copies:
            turned_gm, upright_gm = copies.turned(gm, 1), copies.upright(gm, gm.shape[1], rows=gphi.shape[1])
        summed(op, op.phi, of_keys, cost=cost(op))
        return gradients.unfolded()


def cost(op):
    """Multiply-adds of the textbook's order."""
    return (op.theta.size + op.phi.size) * op.g.shape[-1]


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
        with Copies() as copies:
            turned_phi, g = copies.turned(op.phi, 1 / keys), copies.upright(op.g, keys, rows=y.shape[1])

        def run(e, i):
            panels.multiply(op.theta[e, i], turned_phi[e], op.m[e, i])
            panels.multiply(op.m[e, i], g[e], y[e, i])

        summed(op, op.theta, run)
        return op.unfold(y, theta.shape)

    @staticmethod
    def backward(op, gy):
        gradients = Gradients(op, gy)
        gy, gtheta, gphi, gg = gradients.lists
        keys = op.phi.shape[1]
        with Copies() as copies:
            turned_g, phi = copies.turned(op.g, 1 / keys), copies.upright(op.phi, keys, rows=gy.shape[1])

        def run(e, i, gphi, gg):
            gf = panels.multiply(gy[e, i], turned_g[e], empty(op.m[e, i].shape, gy.dtype))
            panels.multiply(gf, phi[e], gtheta[e, i])
            multiply(gf.swapaxes(1, 2), op.theta[e, i], gphi)
            multiply(op.m[e, i].swapaxes(1, 2), gy[e, i], gg)

        gphi[...], gg[...] = summed(op, op.theta, run, op.phi.shape[1:], op.g.shape[1:])
        return gradients.unfolded()
