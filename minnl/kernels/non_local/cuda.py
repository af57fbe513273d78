"""The softmax non-local operation on a GPU, streamed over blocks of queries: docs/kernels/non_local.md."""

from __future__ import annotations

from minnl import backend
from minnl.kernels.non_local.cpu import SavesExponentials
from minnl.kernels.runtime.cublas import multiply
from minnl.kernels.runtime.cuda import CudaKernel, Source, ceil_div, contiguous, row_grid

NON_LOCAL = Source("non_local/non_local.cu", "softmax<T>", "gradient<T>")
BLOCK_BYTES = 64 * 2**20  # A block of logits takes at most 64 MB, but has at least one query; backward has two blocks.


class CudaNonLocalSoftmax(CudaKernel, SavesExponentials):
    def forward(self, theta, phi, g):
        xp = backend.load_cupy()
        self.shapes(theta, phi, g)
        self.theta, self.phi, self.g = contiguous(*(self.fold(x) for x in (theta, phi, g)))
        y = self.y = xp.empty((*self.theta.shape[:2], g.shape[-1]), g.dtype)
        shape = (*y.shape[:2], self.phi.shape[1])
        saved = self.saves_exponentials()
        self.exponentials = xp.empty(shape, y.dtype) if saved else None
        self.log_sum = None if saved else xp.empty((*y.shape[:2], 2), y.dtype)  # two numbers: see non_local.cu
        blocks = Blocks(shape, y.dtype)
        workspace = None if saved else blocks.workspace()
        for at in blocks.slices:
            p = self.exponentials[at] if saved else blocks.view(workspace, at)
            multiply(self.theta[at], self.phi[at[0]].swapaxes(1, 2), p, self.scale)
            launch_rows("softmax<T>", p, *sizes(p), None if saved else self.log_sum[at])
            multiply(p, self.g[at[0]], y[at])
        return self.unfold(y, theta.shape)

    def backward(self, gy):
        (gy,), xp, saved = contiguous(self.fold(gy)), backend.load_cupy(), self.exponentials is not None
        gtheta, gphi, gg = (
            xp.empty_like(x) if needed else None
            for x, needed in zip((self.theta, self.phi, self.g), self.needs, strict=True)
        )
        of_logits = any(self.needs[:2])
        blocks = Blocks((*gy.shape[:2], self.phi.shape[1]), gy.dtype)
        of_p, of_s = None if saved else blocks.workspace(), blocks.workspace() if of_logits else None
        for at in blocks.slices:
            b, later = at[0], at[1].start > 0  # later: not the first block of the sums over queries
            p = self.exponentials[at] if saved else blocks.view(of_p, at)
            gs = blocks.view(of_s, at) if of_logits else None
            if not saved:
                multiply(self.theta[at], self.phi[b].swapaxes(1, 2), p, self.scale)
            if of_logits:
                multiply(gy[at], self.g[b].swapaxes(1, 2), gs)
            if of_logits or not saved:
                scales = None if saved else self.log_sum[at]
                launch_rows("gradient<T>", p, scales, gy[at], self.y[at], *sizes(p), gy.shape[-1], gs)
            if self.needs[0]:
                multiply(gs, self.phi[b], gtheta[at], self.scale)
            if self.needs[1]:
                multiply(gs.swapaxes(1, 2), self.theta[at], gphi[b], self.scale, add=later)
            if self.needs[2]:
                multiply(p.swapaxes(1, 2), gy[at], gg[b], add=later)
        return self.unfold_gradients(gtheta, gphi, gg)

    def workspace(self):
        """Blocks of logits: see :meth:`CudaKernel.workspace`."""
        n, t, h, w, _ = self.theta_shape
        batch = {"spacetime": n, "space": n * t, "time": n * h * w}[self.axes]
        length = n * t * h * w // batch
        blocks = Blocks((batch, length, self.pairs() // (n * t * h * w)), self.theta.dtype)
        block = blocks.keys * blocks.rows() * self.theta.itemsize
        of_p = [] if self.saves_exponentials() else [block]
        return [of_p], [], [[*of_p, *[block] * any(self.needs[:2])]]


class Blocks:
    """A matrix (batch, queries, keys) in blocks of whole rows: of elements of the batch, or of queries of one."""

    def __init__(self, shape, dtype):
        batch, length, keys = shape
        self.keys, self.dtype = keys, dtype
        rows = max(1, BLOCK_BYTES // (keys * dtype.itemsize))
        self.slices = [(b, i) for b in even_slices(batch, max(1, rows // length)) for i in even_slices(length, rows)]

    def workspace(self):
        """Memory for the largest block."""
        return backend.load_cupy().empty((self.rows(), self.keys), self.dtype)

    def rows(self):
        """The number of rows of the largest block."""
        return max((b.stop - b.start) * (i.stop - i.start) for b, i in self.slices)

    def view(self, workspace, at):
        """The workspace, or its beginning, as block `at`."""
        batch, rows = (s.stop - s.start for s in at)
        return workspace[: batch * rows].reshape(batch, rows, self.keys)


def even_slices(n, most):
    """Slices of at most `most` that cover range(n): as few as possible, of about the same size."""
    size = ceil_div(n, ceil_div(n, most))
    return [slice(i, min(i + size, n)) for i in range(0, n, size)]


def sizes(p):
    """(rows, keys) of a block."""
    return p.shape[0] * p.shape[1], p.shape[2]


def launch_rows(kernel, p, *arguments):
    """Launch a kernel over the rows of a block; p is the kernel's first argument."""
    NON_LOCAL.launch(kernel, p.dtype, *row_grid(*sizes(p)), p, *arguments)
