"""Concatenation without its L x P affinities, by sorting: docs/kernels/non_local_sorted.md.

Put the keys on a line at b_j and the queries at -a_i. A query sees the keys right of it, and what it gathers of them,
the sum of (a_i + b_j) g_j, is a_i times a sum of g plus a sum of b g, both over all keys right of a place. Such
running sums are taken once for all places. Time and memory are linear in positions, but for the sorting.
"""

from __future__ import annotations

import math

import numpy as np

from minnl.kernels import threads
from minnl.kernels.cpu.kernel import Float32Kernel
from minnl.kernels.cpu.positions import Gradients, fold
from minnl.kernels.memory import empty

FEW = 400  # keys: up to so many, all pairs are quicker than sorting

CHUNK_ELEMENTS = 1024 * 1024  # of theta, phi and g together: as many elements of the batch as fit, at least one
STEP = 32  # rows that are added up by one product with a triangle of ones
TRIANGLE = np.tril(np.ones((STEP, STEP), np.float32))


class SortedConcat(Float32Kernel):
    @classmethod
    def suits(cls, op, arrays):
        op.shapes(*arrays)
        return super().suits(op, arrays) and op.pairs() > FEW * math.prod(op.theta_shape[:4])

    @staticmethod
    def forward(op, theta, phi, g, weight):
        y = fold(op, theta, phi, g)
        op.weight = weight

        def run(elements):
            line = Line(*op.halves(op.theta[elements], op.phi[elements]))
            g_seen, bg_seen = line.seen_by_queries(op.g[elements], weighted=True)
            out = np.multiply(line.a[..., None], g_seen, out=y[elements])
            out += bg_seen
            out *= 1 / op.phi.shape[1]

        threads.run(run, chunks(op))
        return op.unfold(y, theta.shape)

    @staticmethod
    def backward(op, gy):
        gradients = Gradients(op, gy)
        gy, gtheta, gphi, gg = gradients.lists
        inner, share = op.theta.shape[-1], 1 / op.phi.shape[1]
        w_theta, w_phi = op.weight[:inner], op.weight[inner:]

        def run(elements):
            theta, phi, g, received = (x[elements] for x in (op.theta, op.phi, op.g, gy))
            line = Line(*op.halves(theta, phi))
            (g_seen,) = line.seen_by_queries(g)
            ga = np.vecdot(received, g_seen) * share
            from_queries, a_from_queries = line.seeing_keys(received, weighted=True)
            gb = np.vecdot(g, from_queries) * share
            out = np.multiply(line.b[..., None], from_queries, out=gg[elements])
            out += a_from_queries
            out *= share
            np.multiply(ga[..., None], w_theta, out=gtheta[elements])
            np.multiply(gb[..., None], w_phi, out=gphi[elements])
            return np.concatenate([ga.reshape(-1) @ theta.reshape(-1, inner), gb.reshape(-1) @ phi.reshape(-1, inner)])

        gweight = np.sum(threads.run(run, chunks(op)), axis=0)
        return *gradients.unfolded(), gweight


class Line:
    """Keys at b_j and queries at -a_i, in order: query i sees key j, f_ij > 0, if the key lies right of it."""

    def __init__(self, a, b):
        keys = b.shape[1]
        order = np.argsort(np.concatenate([b, -a], axis=1), axis=1, kind="stable")  # a key comes before its equal
        is_key = order < keys
        keys_passed, queries_passed = (placed(np.cumsum(kind, axis=1), order) for kind in (is_key, ~is_key))
        self.keys = order[is_key].reshape(b.shape)[:, ::-1]  # from the right end,
        self.seen = keys - keys_passed[:, keys:]  # so the keys that a query sees are the first so many
        self.queries = order[~is_key].reshape(a.shape) - keys  # from the left end,
        self.seeing = queries_passed[:, :keys]  # and so are the queries that see a key
        self.a, self.b = a, b

    def seen_by_queries(self, g, weighted=False):
        """For each query the sum of g, and of b g if `weighted`, over the keys that it sees."""
        return self.sums(g, self.b if weighted else None, self.keys, self.seen)

    def seeing_keys(self, gy, weighted=False):
        """For each key the sum of gy, and of a gy if `weighted`, over the queries that see it."""
        return self.sums(gy, self.a if weighted else None, self.queries, self.seeing)

    @staticmethod
    def sums(x, factor, order, counts):
        terms = (x,) if factor is None else (x, x * factor[..., None])
        return [rows(running(rows(term, order)), counts) for term in terms]


def placed(values, order):
    """What belongs to the k-th in an order, at that one's own place."""
    out = np.empty_like(values)
    np.put_along_axis(out, order, values, axis=1)
    return out


def rows(x, index):
    """x (n, m, C), index (n, k) -> (n, k, C)."""
    n, m, channels = x.shape
    out = empty((*index.shape, channels), x.dtype)
    return np.take(x.reshape(-1, channels), index + m * np.arange(n)[:, None], axis=0, out=out, mode="clip")


def running(x):
    """Sums of the first 0, 1, … m rows: (n, m, C) -> (n, m + 1 or a few more, C).

    Rows in steps, each step as a product with a triangle of ones, on top of the running sums of the steps' totals. An
    error grows with the depth of that tree, not with the number of rows.
    """
    n, m, channels = x.shape
    steps = m // STEP + 1
    padded = empty((n, steps * STEP, channels), x.dtype)
    padded[:, 0], padded[:, 1 : m + 1], padded[:, m + 1 :] = 0, x, 0
    out = empty((n, steps, STEP, channels), x.dtype)
    np.matmul(TRIANGLE, padded.reshape(out.shape), out=out)
    if steps > 1:
        out += running(out[:, :-1, -1])[:, :steps, None]
    return out.reshape(n, steps * STEP, channels)


def chunks(op):
    """Runs of batch elements: eight, or more if they would be large."""
    batch = len(op.theta)
    total = op.theta.size + op.phi.size + op.g.size
    return threads.shares(batch, max(8, total // CHUNK_ELEMENTS))
