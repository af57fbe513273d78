"""The softmax non-local operation on a GPU, streamed over blocks of queries: docs/kernels/cuda_non_local.md."""

from __future__ import annotations

from minnl import backend
from minnl.kernels.non_local.cuda_positions import fold, fold_gradient, unfold_gradients
from minnl.kernels.non_local.exponentials import SavesExponentials
from minnl.kernels.runtime.cublas import multiply
from minnl.kernels.runtime.cuda import MOST_BLOCKS, Source, ceil_div
from minnl.kernels.runtime.cuda_kernel import CudaKernel

NON_LOCAL = Source("non_local/non_local.cu", "softmax<T>", "gradient<T>")
BLOCK_BYTES = 64 * 2**20  # of logits at once, in backward twice; a block has one query at least
THREADS = 256
LONG_ROW = 1024  # keys: longer rows get a block each, shorter ones a warp or a part of one


class CudaNonLocalSoftmax(CudaKernel, SavesExponentials):
    def forward(self, theta, phi, g):
        y = self.y = fold(self, theta, phi, g)
        xp, shape = backend.load_cupy(), (*y.shape[:2], self.phi.shape[1])
        kept = self.saves_exponentials()
        self.exponentials = xp.empty(shape, y.dtype) if kept else None
        self.log_sum = None if kept else xp.empty((*y.shape[:2], 2), y.dtype)  # in two parts, which keeps its digits
        blocks = Blocks(shape, y.dtype)
        spare = None if kept else blocks.spare()
        for at in blocks.slices:
            p = self.exponentials[at] if kept else blocks.cut(spare, at)
            multiply(self.theta[at], self.phi[at[0]].swapaxes(1, 2), p, self.scale)
            rows_of(p, "softmax<T>", p, *sizes(p), part(self.log_sum, at))
            multiply(p, self.g[at[0]], y[at])
        return self.unfold(y, theta.shape)

    def backward(self, gy):
        gy, xp, kept = fold_gradient(self, gy), backend.load_cupy(), self.exponentials is not None
        gtheta, gphi, gg = (
            xp.empty_like(x) if needed else None
            for x, needed in zip((self.theta, self.phi, self.g), self.needs, strict=True)
        )
        of_logits = any(self.needs[:2])
        blocks = Blocks((*gy.shape[:2], self.phi.shape[1]), gy.dtype)
        spare, other = None if kept else blocks.spare(), blocks.spare() if of_logits else None
        for at in blocks.slices:
            b, later = at[0], at[1].start > 0  # in the sums over queries
            p = self.exponentials[at] if kept else blocks.cut(spare, at)
            gs = blocks.cut(other, at) if of_logits else None
            if not kept:
                multiply(self.theta[at], self.phi[b].swapaxes(1, 2), p, self.scale)
            if of_logits:
                multiply(gy[at], self.g[b].swapaxes(1, 2), gs)
            if of_logits or not kept:
                rows_of(p, "gradient<T>", p, part(self.log_sum, at), gy[at], self.y[at], *sizes(p), gy.shape[-1], gs)
            if self.needs[0]:
                multiply(gs, self.phi[b], gtheta[at], self.scale)
            if self.needs[1]:
                multiply(gs.swapaxes(1, 2), self.theta[at], gphi[b], self.scale, add=later)
            if self.needs[2]:
                multiply(p.swapaxes(1, 2), gy[at], gg[b], add=later)
        return unfold_gradients(self, gtheta, gphi, gg)

    def workspace(self):
        """Blocks of logits: see :meth:`CudaKernel.workspace`."""
        n, t, h, w, _ = self.theta_shape
        batch = {"spacetime": n, "space": n * t, "time": n * h * w}[self.axes]
        length = n * t * h * w // batch
        blocks = Blocks((batch, length, self.pairs() // (n * t * h * w)), self.theta.dtype)
        spare = blocks.keys * blocks.rows() * self.theta.itemsize
        again = [] if self.saves_exponentials() else [spare]
        return [again], [], [[*again, *[spare] * any(self.needs[:2])]]


class Blocks:
    """A matrix (batch, queries, keys) in blocks of whole rows: of some elements of the batch, or of some queries."""

    def __init__(self, shape, dtype):
        batch, length, keys = shape
        self.keys, self.dtype = keys, dtype
        rows = max(1, BLOCK_BYTES // (keys * dtype.itemsize))
        self.slices = [(b, i) for b in pieces(batch, max(1, rows // length)) for i in pieces(length, rows)]

    def spare(self):
        """Memory for the largest block."""
        return backend.load_cupy().empty((self.rows(), self.keys), self.dtype)

    def rows(self):
        """Of the largest block."""
        return max((b.stop - b.start) * (i.stop - i.start) for b, i in self.slices)

    def cut(self, spare, at):
        """As much of it as a block needs."""
        batch, rows = (s.stop - s.start for s in at)
        return spare[: batch * rows].reshape(batch, rows, self.keys)


def pieces(n, most):
    """Slices that cover range(n), as few as can be and of about one size."""
    size = ceil_div(n, ceil_div(n, most))
    return [slice(i, min(i + size, n)) for i in range(0, n, size)]


def part(x, at):
    return None if x is None else x[at]


def sizes(p):
    """Rows and keys of a block."""
    return p.shape[0] * p.shape[1], p.shape[2]


def rows_of(p, kernel, *arguments):
    """Launch a kernel over the rows of a block."""
    rows, keys = sizes(p)
    width = THREADS if keys > LONG_ROW else min(32, 1 << (keys - 1).bit_length())
    height = THREADS // width
    NON_LOCAL.launch(kernel, p.dtype, (1, min(ceil_div(rows, height), MOST_BLOCKS)), (width, height), *arguments)
