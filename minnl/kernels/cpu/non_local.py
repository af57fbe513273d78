"""The softmax non-local operation on all threads, in blocks that stay in the caches: docs/kernels/non_local.md.

The textbook body already streams over blocks of queries. This one cuts the keys too, into blocks of a size that matrix
products like, spares passes over the logits, and where keys are few, keeps their exponentials for backward.
"""

from __future__ import annotations

import functools
import math

import numpy as np

from minnl.kernels import threads
from minnl.kernels.cpu.gemm import add_product, multiply
from minnl.kernels.cpu.kernel import Float32Kernel
from minnl.kernels.cpu.positions import SHORTEST_RUN, Gradients, division, even, fold, turned
from minnl.kernels.memory import empty

BLOCK_ELEMENTS = 512 * 1024  # logits at once: 2 MB, in backward twice
FEWEST_QUERIES = 64  # of a block, however many keys there are: products with fewer rows are slow
MOST_KEYS = 1024  # of a block in backward
SAFE = 40 * math.log(2)  # a row of exponentials that sum up to between 2^-40 and 2^40 needs no shift


class StreamedSoftmax(Float32Kernel):
    @staticmethod
    def forward(op, theta, phi, g):
        op.y = fold(op, theta, phi, g)
        (batch, length, _), keys = op.theta.shape, op.phi.shape[1]
        op.log_sum = empty((batch, length, 1), g.dtype)
        kept = any(op.needs) and op.few_keys()
        op.exponentials = empty((batch, length, keys), g.dtype) if kept else None
        most = max(FEWEST_QUERIES, BLOCK_ELEMENTS // keys)
        _, log_base = base()
        phi = turned(op.phi, op.scale / log_base)

        def run(elements, queries):
            shifted = False
            for b in threads.cuts(elements, most // max(1, queries.stop - queries.start)):
                for i in threads.cuts(queries, most, multiple=16):
                    shape = (*op.theta[b, i].shape[:2], keys)
                    e = empty(shape, g.dtype) if op.exponentials is None else op.exponentials[b, i]
                    total, top = exponentiate(op.theta[b, i], phi[b], e, shifted)
                    shifted = top is not None
                    y = multiply(e, op.g[b], op.y[b, i])
                    y /= total
                    np.log(total, out=op.log_sum[b, i])
                    if shifted and op.exponentials is None:
                        op.log_sum[b, i] += top * log_base

        elements, runs = division(op)
        threads.run(lambda task: run(*task), [(b, i) for b in elements for i in threads.shares(length, runs)])
        return op.unfold(op.y, theta.shape)

    @staticmethod
    def backward(op, gy):
        gradients = Gradients(op, gy)
        gy, gtheta, gphi, gg = gradients.lists
        phi = turned(op.phi, op.scale / base()[1]) if op.exponentials is None else None
        g = turned(op.g, op.scale, ones=True)

        def run(elements, queries, keys, first):
            columns = threads.cuts(keys, MOST_KEYS, multiple=16)
            longest = max(j.stop - j.start for j in columns)
            most = max(FEWEST_QUERIES, BLOCK_ELEMENTS // longest)
            for b in threads.cuts(elements, most // max(1, queries.stop - queries.start)):
                for j in columns:
                    for i in threads.cuts(queries, most, multiple=16):
                        e, inverse = recalled(op, phi, b, i, j)
                        received = augmented(gy[b, i], inverse, op.y[b, i])
                        gs = multiply(received, g[b, :, j], empty(e.shape, e.dtype))
                        gs *= e
                        fresh = first and i.start == queries.start
                        add_product(e.swapaxes(1, 2), received[..., :-1], gg[b, j], fresh)
                        add_product(gs.swapaxes(1, 2), op.theta[b, i], gphi[b, j], fresh)
                        add_product(gs, op.phi[b, j], gtheta[b, i], first and j.start == keys.start)

        elements, runs = division(op)
        runs = even(min(runs, op.phi.shape[1] // SHORTEST_RUN))
        i, j = (threads.shares(a.shape[1], runs) for a in (op.theta, op.phi))
        for turn in range(runs):  # in each, every run of queries meets one run of keys, and no two meet the same
            tasks = [(b, i[(k + turn) % runs], j[k], turn == 0) for b in elements for k in range(runs)]
            threads.run(lambda task: run(*task), tasks)
        return gradients.unfolded()


@functools.cache
def base():
    """(power, ln of its base): 2^x where NumPy computes that in the processor's vectors, which is quicker, else e^x."""
    loops = np.lib.introspect.opt_func_info(func_name="^exp2$", signature="float32").get("exp2", {})
    vectors = any(not loop["current"].startswith("baseline") for loop in loops.values())
    return (np.exp2, math.log(2)) if vectors else (np.exp, 1.0)


def exponentiate(theta, phi, e, shifted):
    """Powers of theta @ phi into e. Returns the sum of each row, and its largest logit if that was taken off."""
    power, _ = base()
    ones = np.ones((e.shape[-1], 1), e.dtype)
    multiply(theta, phi, e)
    if not shifted:
        with np.errstate(over="ignore", divide="ignore"):
            total = power(e, out=e) @ ones
            safe = abs(np.log(total)).max() <= SAFE  # not if one is 0, infinite or NaN
        if safe:
            return total, None
        multiply(theta, phi, e)
    top = e.max(axis=-1, keepdims=True)
    e -= top
    return power(e, out=e) @ ones, top


def recalled(op, phi, b, i, j):
    """e and r of a block such that its weights are p_ij = e_ij r_i."""
    log_sum = op.log_sum[b, i]
    if op.exponentials is not None:
        return op.exponentials[b, i, j], np.exp(-log_sum)
    power, log_base = base()
    e = multiply(op.theta[b, i], phi[b, :, j], empty((*log_sum.shape[:2], j.stop - j.start), log_sum.dtype))
    if abs(log_sum).max() <= SAFE:
        return power(e, out=e), np.exp(-log_sum)
    e -= log_sum / log_base
    return power(e, out=e), np.ones_like(log_sum)


def augmented(gy, r, y):
    """[r gy, -r gy^T y], a row for each query: its product with [g, 1] is r gy^T (g - y)."""
    depth = gy.shape[-1]
    out = empty((*gy.shape[:2], depth + 16), gy.dtype)[..., : depth + 1]
    np.multiply(gy, r, out=out[..., :depth])
    out[..., depth] = -np.vecdot(out[..., :depth], y)
    return out
