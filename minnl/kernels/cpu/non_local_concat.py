"""Concatenation with few keys, streamed on all threads: docs/kernels/non_local_concat.md.

The affinities of a block of queries are made again in backward. Their mask takes the place of the products of all
pairs there: what a position's number a_i or b_j receives is a dot product with a sum over what it sees.
"""

from __future__ import annotations

import numpy as np

from minnl.kernels import threads
from minnl.kernels.cpu.gemm import add_product, multiply
from minnl.kernels.cpu.kernel import Float32Kernel
from minnl.kernels.cpu.positions import Gradients, fold, summed
from minnl.kernels.memory import empty

BLOCK_ELEMENTS = 128 * 1024  # affinities at once: 512 KB


class StreamedConcat(Float32Kernel):
    @staticmethod
    def forward(op, theta, phi, g, weight):
        y = fold(op, theta, phi, g)
        op.weight = weight
        a_1, one_b = augmented_halves(op)
        keys = op.phi.shape[1]

        def run(elements, queries):
            for e, i in blocks(elements, queries, keys):
                out = multiply(affinity(a_1[e, i], one_b[e]), op.g[e], y[e, i])
                out /= keys

        summed(op, op.theta, run)
        return op.unfold(y, theta.shape)

    @staticmethod
    def backward(op, gy):
        gradients = Gradients(op, gy)
        gy, gtheta, gphi, gg = gradients.lists
        keys, inner = op.phi.shape[1:]
        a_1, one_b = augmented_halves(op)

        def run(elements, queries, f_gy, seen_gy, gw_theta):
            gw_theta[...] = 0
            for e, i in blocks(elements, queries, keys):
                mine, fresh = slice(e.start - elements.start, e.stop - elements.start), i.start == queries.start
                f = affinity(a_1[e, i], one_b[e])
                add_product(f.swapaxes(1, 2), gy[e, i], f_gy[mine], fresh)
                seen = np.greater(f, 0, out=f, casting="unsafe")  # as 1 and 0
                add_product(seen.swapaxes(1, 2), gy[e, i], seen_gy[mine], fresh)
                ga = np.vecdot(gy[e, i], multiply(seen, op.g[e], empty(gy[e, i].shape, gy.dtype)))
                ga /= keys
                np.multiply(ga[..., None], op.weight[:inner], out=gtheta[e, i])
                gw_theta[mine] += (ga[:, None] @ op.theta[e, i])[:, 0]

        f_gy, seen_gy, gw_theta = summed(op, op.theta, run, op.g.shape[1:], op.g.shape[1:], (inner,))
        gb = np.vecdot(op.g, seen_gy)
        gb /= keys
        np.multiply(gb[..., None], op.weight[inner:], out=gphi)
        np.divide(f_gy, keys, out=gg)
        gweight = np.concatenate([gw_theta.sum(axis=0), gb.reshape(-1) @ op.phi.reshape(-1, inner)])
        return *gradients.unfolded(), gweight


def augmented_halves(op):
    """[a, 1] (B, L, 2) and [1, b] (B, 2, P): their product is the outer sum a_i + b_j, and quicker than adding."""
    a, b = op.halves(op.theta, op.phi)
    return np.stack([a, np.ones_like(a)], axis=-1), np.stack([np.ones_like(b), b], axis=1)


def affinity(a_1, one_b):
    """P f for a block of queries: (n, rows, P)."""
    f = multiply(a_1, one_b, empty((*a_1.shape[:2], one_b.shape[-1]), a_1.dtype))
    return np.maximum(f, np.zeros_like(f), out=f)  # two arrays: NumPy's maximum of an array and a number is slow


def blocks(elements, queries, keys):
    """(batch slice, query slice) pairs of one task."""
    rows = max(1, BLOCK_ELEMENTS // keys)
    runs = threads.cuts(queries, rows)
    return [(e, i) for e in threads.cuts(elements, rows // max(1, queries.stop - queries.start)) for i in runs]
