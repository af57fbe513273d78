"""The softmax non-local operation on all threads, in blocks that stay in the caches: docs/kernels/non_local.md.

The textbook body already streams over blocks of queries. This one cuts the keys too, into blocks of a size that matrix
products like, spares passes over the logits, and where keys are few, keeps their exponentials for backward.
"""

from __future__ import annotations

import functools
import itertools
import math

import numpy as np

from minnl.kernels.non_local.exponentials import SavesExponentials
from minnl.kernels.non_local.positions import SHORTEST_RUN, Copies, Gradients, division, even, fold
from minnl.kernels.runtime import panels, threads
from minnl.kernels.runtime.cpu_kernel import CpuKernel
from minnl.kernels.runtime.memory import empty

BLOCK_ELEMENTS = 512 * 1024  # logits at once: 2 MB, in backward twice
FEWEST_QUERIES = 64  # of a block, however many keys there are: products with fewer rows are slow
MOST_KEYS = 1024  # of a product
ALIGNED = panels.WIDTHS[0]  # positions are cut at multiples of it, for panels of equal width
LEAST, MOST = 2.0**-3, 2.0**40  # a row of exponentials with a sum in between needs no shift


class CpuNonLocalSoftmax(CpuKernel, SavesExponentials):
    def forward(self, theta, phi, g):
        self.y = fold(self, theta, phi, g)
        (batch, length, _), keys = self.theta.shape, self.phi.shape[1]
        self.log_sum = empty((batch, length, 2), g.dtype)
        kept = self.saves_exponentials()
        self.exponentials = empty((batch, length, keys), g.dtype) if kept else None
        columns = cut(slice(0, keys))
        with Copies() as copies:
            turned_phi = [copies.turned(self.phi[:, j], self.scale / base()[1]) for j in columns]
            upright_g = copies.upright(self.g, columns[0].stop, rows=length)

        def run(elements, queries):
            shifted = False
            for b, i in blocks(elements, queries, keys):
                theta, y = self.theta[b, i], self.y[b, i]
                e = self.exponentials[b, i] if kept else empty((*y.shape[:2], keys), y.dtype)
                logits = [(theta, phi[b], e[..., j]) for phi, j in zip(turned_phi, columns, strict=True)]
                total, top = exponentiate(logits, e, shifted)
                shifted = top is not None
                for j in columns:
                    panels.add_product(e[..., j], upright_g[b, :, j], y, fresh=j.start == 0)
                y /= total
                self.log_sum[b, i, :1], self.log_sum[b, i, 1:] = top if shifted else 0, total

        elements, runs = division(self)
        tasks = itertools.product(elements, threads.shares(length, runs, multiple=ALIGNED))
        threads.run(lambda task: run(*task), tasks)
        return self.unfold(self.y, theta.shape)

    def backward(self, gy):
        gradients = Gradients(self, gy)
        gy, gtheta, gphi, gg = gradients.lists
        (elements, runs), keys = division(self), self.phi.shape[1]
        runs = even(min(runs, keys // SHORTEST_RUN))
        queries = threads.shares(gy.shape[1], runs, multiple=ALIGNED)
        columns = [cut(run) for run in threads.shares(keys, runs, multiple=ALIGNED)]
        longest = max(j.stop - j.start for run in columns for j in run)
        with Copies() as copies:
            recalled = Exponentials(self, columns, copies)
        if recalled.shifted:
            threads.run(lambda task: recalled.sum_up(*task, columns, longest), itertools.product(elements, queries))
        with Copies() as copies:
            turned_g = {j.start: copies.turned(self.g[:, j], self.scale, ones=True) for run in columns for j in run}
            received = augmented(gy, 1 / recalled.total, self.y, copies)
            upright_phi = copies.upright(self.phi, longest, rows=gy.shape[1])
            upright_theta = copies.upright(self.theta, most_queries(longest), rows=keys, turned=True)
        with Copies() as copies:
            upright_received = copies.upright(received[..., :-1], most_queries(longest), rows=keys, turned=True)
        rows = Rows(self, recalled.total)

        def run(elements, queries, columns, first):
            for (b, i), j in itertools.product(blocks(elements, queries, longest), columns):
                e = recalled(b, i, j)
                gs = panels.multiply(received[b, i], turned_g[j.start][b], empty(e.shape, e.dtype))
                gs *= e
                rows.see(e, gs, b, i, j)
                fresh = first and i.start == queries.start
                panels.add_product(e.swapaxes(1, 2), upright_received[b, :, i], gg[b, j], fresh)
                panels.add_product(gs.swapaxes(1, 2), upright_theta[b, :, i], gphi[b, j], fresh)
                panels.add_product(gs, upright_phi[b, :, j], gtheta[b, i], first and j is columns[0])

        for turn in range(runs):  # in each, every run of queries meets one run of keys, and no two meet the same
            tasks = [(b, queries[(k + turn) % runs], columns[k], turn == 0) for b in elements for k in range(runs)]
            threads.run(lambda task: run(*task), tasks)
        rows.settle(gtheta, gphi)
        return gradients.unfolded()


class Exponentials:
    """Those of forward: kept, or made again. The weights are p_ij = e_ij / total_i."""

    def __init__(self, op, columns, copies):
        self.op, self.kept = op, op.exponentials is not None
        self.shifted = not self.kept and op.log_sum[..., 0].any()
        of_rows = op.log_sum.copy() if self.shifted else op.log_sum
        self.top, self.total = of_rows[..., :1], of_rows[..., 1:]
        blocks = [] if self.kept else itertools.chain.from_iterable(columns)
        self.phi = {j.start: copies.turned(op.phi[:, j], op.scale / base()[1]) for j in blocks}

    def logits(self, b, i, j):
        theta = self.op.theta[b, i]
        return panels.multiply(theta, self.phi[j.start][b], empty((*theta.shape[:2], j.stop - j.start), theta.dtype))

    def __call__(self, b, i, j):
        if self.kept:
            return self.op.exponentials[b, i, j]
        e = self.logits(b, i, j)
        if self.shifted:
            e -= self.top[b, i]
        return base()[0](e, out=e)

    def sum_up(self, elements, queries, columns, longest):
        """The largest logit and the sum of these rows anew, of the very numbers that backward will see.

        A product of another shape may round a logit of 10,000 to its neighbour, 1e-3 away, and all the row with it.
        """
        for b, i in blocks(elements, queries, longest):
            top, total = self.top[b, i], self.total[b, i]
            top[...], total[...] = -np.inf, 0
            for j in itertools.chain.from_iterable(columns):
                s = self.logits(b, i, j)
                larger = np.maximum(top, s.max(axis=-1, keepdims=True))
                total *= base()[0](top - larger)
                total += base()[0](np.subtract(s, larger, out=s), out=s).sum(axis=-1, keepdims=True)
                top[...] = larger


class Rows:
    """Rows of the logits' gradient sum up to 0: what rounding leaves is taken off at the key with most of the weight.

    Where its weight is nearly 1, its gradient is a difference of nearly equal numbers, and minus all others is exact.
    """

    def __init__(self, op, total):
        self.op, self.total = op, total
        self.sums = np.zeros(total.shape, total.dtype)
        self.keys = np.full(total.shape[:2], -1)

    def see(self, e, gs, b, i, j):
        self.sums[b, i] += gs @ np.ones((gs.shape[-1], 1), gs.dtype)
        largest = e.argmax(axis=-1)
        most = np.take_along_axis(e, largest[..., None], axis=-1) > self.total[b, i] / 2
        np.copyto(self.keys[b, i], j.start + largest, where=most[..., 0])

    def settle(self, gtheta, gphi):
        queries = np.nonzero(self.keys >= 0)
        if not queries[0].size:
            return
        elements, keys, left = queries[0], self.keys[queries], self.sums[queries]
        gtheta[queries] -= left * self.op.phi[elements, keys]
        order = np.lexsort((keys, elements))  # queries of one key side by side, for np.subtract.at is slow
        elements, keys = elements[order], keys[order]
        first = np.flatnonzero(np.diff(elements * self.op.phi.shape[1] + keys, prepend=-1))
        gphi[elements[first], keys[first]] -= np.add.reduceat((left * self.op.theta[queries])[order], first)


def cut(keys):
    """A run of keys in blocks, each for one product."""
    return threads.cuts(keys, MOST_KEYS, multiple=ALIGNED)


def blocks(elements, queries, keys):
    """(batch slice, query slice) for each block of logits of a task."""
    most = most_queries(keys)
    runs = threads.cuts(queries, most, multiple=16)
    return [(b, i) for b in threads.cuts(elements, most // max(1, queries.stop - queries.start)) for i in runs]


def most_queries(keys):
    """How many queries a block has with so many keys."""
    return max(FEWEST_QUERIES, BLOCK_ELEMENTS // keys)


@functools.cache
def base():
    """(power, ln of its base): 2^x where NumPy computes that in the processor's vectors, which is quicker, else e^x."""
    loops = np.lib.introspect.opt_func_info(func_name="^exp2$", signature="float32").get("exp2", {})
    vectors = any(not loop["current"].startswith("baseline") for loop in loops.values())
    return (np.exp2, math.log(2)) if vectors else (np.exp, 1.0)


def exponentiate(logits, e, shifted):
    """Powers of the logits into e. Returns the sum of each row, and its largest logit if that was taken off.

    logits are products (theta, phi in panels, out), for some keys each; their outs make up e.
    """
    power, _ = base()
    ones = np.ones((e.shape[-1], 1), e.dtype)
    for product in logits:
        panels.multiply(*product)
    if not shifted:
        with np.errstate(over="ignore"):
            total = power(e, out=e) @ ones
        if total.min() >= LEAST and total.max() <= MOST:  # not if one is NaN
            return total, None
        for product in logits:
            panels.multiply(*product)
    top = e.max(axis=-1, keepdims=True)
    e -= top
    return power(e, out=e) @ ones, top


def augmented(gy, r, y, copies):
    """[r gy, -r gy^T y], a row for each query: its product with [g, 1] is r gy^T (g - y). Made with the copies."""
    batch, length, depth = gy.shape
    out = empty((batch, length, depth + 16), gy.dtype)[..., : depth + 1]

    def rows(part):
        np.multiply(gy[part], r[part], out=out[part][..., :depth])
        out[part][..., depth] = -np.vecdot(out[part][..., :depth], y[part])

    copies.later(rows, out.shape)
    return out
