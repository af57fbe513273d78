"""The softmax non-local operation in blocks of queries on all threads: docs/kernels/non_local.md.

As in the textbook body a block holds whole rows of weights. Here blocks fit a core's caches, and where keys are few,
forward saves their exponentials.
"""

import itertools
import math

import numpy as np

from minnl.dispatch import CpuKernel
from minnl.engine import meta_array
from minnl.kernels.runtime import threads
from minnl.kernels.runtime.memory import empty
from minnl.ops.non_local import NonLocalSoftmax

BLOCK_ELEMENTS = 512 * 1024  # A block has at most so many logits: 2 MB, as quick as 4 MB and quicker than 512 KB.
FEWEST_QUERIES = 64  # A block has at least so many queries, since products of fewer rows are slow.
RUNS = 4  # The queries of one batch element make at most so many tasks: each task has sums over queries of its own.


class SavesExponentials(NonLocalSoftmax):
    """The op, with :math:`e^{s_{ij}}` of all pairs saved for backward where there are few keys."""

    saved_for_backward = (*NonLocalSoftmax.saved_for_backward, "exponentials")

    def saves_exponentials(self):
        """Whether a number for each pair takes at most 8 MB, or at most four times the memory of y."""
        few = self.pairs() <= max(2**21, 4 * math.prod(self.theta_shape[:4]) * self.g_shape[-1])
        return few and any(self.needs)

    def infer(self, theta, phi, g):
        y = super().infer(theta, phi, g)
        self.exponentials = meta_array(self.pairs(), theta.dtype) if self.saves_exponentials() else None
        return y


class CpuNonLocalSoftmax(CpuKernel, SavesExponentials):
    """The weights are :math:`p_{ij} = e_{ij} / t_i`; log_sum has the largest logit of a row, and its sum t."""

    def forward(self, theta, phi, g):
        self.shapes(theta, phi, g)
        self.theta, self.phi, self.g = (np.ascontiguousarray(self.fold(x)) for x in (theta, phi, g))
        (batch, queries, _), keys = self.theta.shape, self.phi.shape[1]
        self.y = empty((batch, queries, g.shape[-1]), g.dtype)
        self.log_sum = empty((batch, queries, 2), g.dtype)
        saved = self.saves_exponentials()
        self.exponentials = empty((batch, queries, keys), g.dtype) if saved else None
        ones = np.ones((keys, 1), g.dtype)

        def run(task):
            _, blocks = task
            for b, i in blocks:
                y = self.y[b, i]
                e = self.logits(b, i, self.exponentials[b, i] if saved else None)
                largest = e.max(axis=-1, keepdims=True)
                e -= largest
                total = np.exp(e, out=e) @ ones
                np.matmul(e, self.g[b], out=y)
                y /= total
                self.log_sum[b, i, :1], self.log_sum[b, i, 1:] = largest, total

        threads.run(run, self.tasks())
        return self.unfold(self.y, theta.shape)

    def backward(self, gy):
        gy, tasks = np.ascontiguousarray(self.fold(gy)), self.tasks()
        runs = 1 + max(number for number, _ in tasks)
        gtheta = empty(self.theta.shape, gy.dtype)
        gphi, gg = (np.zeros((runs, *x.shape), gy.dtype) for x in (self.phi, self.g))

        def run(task):
            number, blocks = task
            for b, i in blocks:
                e, total = self.saved_or_recomputed(b, i), self.log_sum[b, i, 1:]
                gy_i = gy[b, i] / total  # so that no array of pairs has to be divided
                gs = np.matmul(gy_i, self.g[b].swapaxes(1, 2), out=empty(e.shape, e.dtype))
                gs -= np.vecdot(gy_i, self.y[b, i])[..., None]
                gs -= np.vecdot(gs, e)[..., None] / total
                gs *= e
                gs_theta = np.matmul(gs, self.phi[b], out=gtheta[b, i])
                gs_theta *= self.scale
                gphi[number, b] += gs.swapaxes(1, 2) @ self.theta[b, i]
                gg[number, b] += e.swapaxes(1, 2) @ gy_i

        threads.run(run, tasks)
        gphi, gg = (x[0] if runs == 1 else x.sum(axis=0) for x in (gphi, gg))
        gphi *= self.scale
        return self.unfold_gradients(gtheta, gphi, gg)

    def tasks(self):
        """(number of the run of queries, blocks) for each task; a block is a (batch slice, query slice)."""
        (batch, queries, inner), (_, keys, depth) = self.theta.shape, self.g.shape
        count = threads.tasks_for(2 * batch * queries * keys * (inner + depth))
        runs = threads.split(queries, -(-min(count, RUNS) // max(1, batch)))
        most = max(FEWEST_QUERIES, BLOCK_ELEMENTS // keys)

        def blocks(elements, run):
            return itertools.product(
                threads.chunks_of(elements, most // (run.stop - run.start)), threads.chunks_of(run, most)
            )

        elements = threads.split(batch, count)
        return [(number, list(blocks(b, i))) for b in elements for number, i in enumerate(runs)]

    def logits(self, b, i, out=None):
        theta = self.theta[b, i] * self.scale
        out = empty((*theta.shape[:2], self.phi.shape[1]), theta.dtype) if out is None else out
        return np.matmul(theta, self.phi[b].swapaxes(1, 2), out=out)

    def saved_or_recomputed(self, b, i):
        """The exponentials of a block. Forward's product had the same shape, so recomputed they have the same bits."""
        if self.exponentials is not None:
            return self.exponentials[b, i]
        e = self.logits(b, i)
        e -= self.log_sum[b, i, :1]
        return np.exp(e, out=e)
