"""The softmax non-local operation on all threads, in blocks that stay in the cache: docs/kernels/non_local.md.

The textbook body already streams over blocks of queries; this one makes the blocks small enough for a core's cache,
gives runs of queries to different threads, and lets each sum the keys' gradients for itself.
"""

from __future__ import annotations

import numpy as np

from minnl.kernels import threads
from minnl.kernels.cpu.kernel import Float32Kernel

BLOCK_ELEMENTS = 64 * 1024  # logits at once: 256 KB, twice in backward


class StreamedSoftmax(Float32Kernel):
    @staticmethod
    def forward(op, theta, phi, g):
        op.shapes(theta, phi, g)
        op.theta, op.phi, op.g = (np.ascontiguousarray(op.fold(a)) for a in (theta, phi, g))
        op.y = np.empty((*op.theta.shape[:2], g.shape[-1]), g.dtype)
        op.log_sum = np.empty((*op.theta.shape[:2], 1), g.dtype)

        def run(b, queries):
            for i in blocks(queries, op.phi.shape[1]):
                s = logits(op, b, i)
                top = s.max(axis=1, keepdims=True)
                s -= top
                np.exp(s, out=s)
                total = s.sum(axis=1, keepdims=True)
                y = np.matmul(s, op.g[b], out=op.y[b, i])
                y /= total
                op.log_sum[b, i] = top + np.log(total)

        threads.run(lambda task: run(*task), tasks(op.theta))
        return op.unfold(op.y, theta.shape)

    @staticmethod
    def backward(op, gy):
        gy = np.ascontiguousarray(op.fold(gy))
        gtheta = np.empty_like(op.theta)

        def run(b, queries):
            gphi, gg = np.zeros_like(op.phi[b]), np.zeros_like(op.g[b])
            for i in blocks(queries, op.phi.shape[1]):
                p = logits(op, b, i)
                p -= op.log_sum[b, i]
                np.exp(p, out=p)
                gg += p.T @ gy[b, i]
                gs = gy[b, i] @ op.g[b].T
                gs -= np.einsum("id,id->i", gy[b, i], op.y[b, i])[:, None]
                gs *= p
                gs *= op.scale
                np.matmul(gs, op.phi[b], out=gtheta[b, i])
                gphi += gs.T @ op.theta[b, i]
            return b, gphi, gg

        gphi, gg = np.zeros_like(op.phi), np.zeros_like(op.g)
        for b, one_gphi, one_gg in threads.run(lambda task: run(*task), tasks(op.theta)):
            gphi[b] += one_gphi
            gg[b] += one_gg
        return op.unfold(gtheta, op.theta_shape), op.unfold(gphi, op.phi_shape), op.unfold(gg, op.g_shape)


def logits(op, b, i):
    s = op.theta[b, i] @ op.phi[b].T
    s *= op.scale
    return s


def tasks(theta):
    """(batch element, run of its queries): an element is cut up only where there are too few to share out."""
    batch, length, _ = theta.shape
    runs = threads.shares(length, most=max(1, 8 // max(batch, 1)))
    return [(b, run) for b in range(batch) for run in runs]


def blocks(queries, keys):
    """A run of queries, cut so that the logits of one part stay in the cache."""
    step = max(16, BLOCK_ELEMENTS // keys)
    return [slice(i, min(i + step, queries.stop)) for i in range(queries.start, queries.stop, step)]
