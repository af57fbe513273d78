"""Concatenation on a GPU by running sums along a line: docs/kernels/cuda_non_local_concat.md."""

from __future__ import annotations

from minnl import backend
from minnl.kernels.cuda.gemm import multiply
from minnl.kernels.cuda.kernel import GpuKernel
from minnl.kernels.cuda.positions import fold, fold_gradient, unfold_gradients
from minnl.kernels.cuda.source import MOST_BLOCKS, Source, ceil_div, contiguous, grid

CONCAT = Source(
    "non_local_concat.cu", "sort_tiles<T>", "merge_runs<T>", "slice_sums<T>", "sums_before<T>", "walk<T>"
)  # fmt: skip
TILE = 256  # places that one block sorts; so in the .cu file
LANES, SLICES_OF_A_BLOCK = 32, 8
SHORTEST_SLICE, MOST_SLICES = 32, 256  # of the line: places of one, and how many there are


class ConcatByLine(GpuKernel):
    @staticmethod
    def forward(op, theta, phi, g, weight):
        y, (op.weight,) = fold(op, theta, phi, g), contiguous(weight)
        line = Line(op)
        line.from_keys(op.g, out=y)
        return op.unfold(y, theta.shape)

    @staticmethod
    def backward(op, gy):
        gy, line = fold_gradient(op, gy), Line(op)
        needs_a, needs_b = op.needs[0] or op.needs[3], op.needs[1] or op.needs[3]
        gg = backend.load_cupy().empty_like(op.g) if op.needs[2] else None
        ga = line.from_keys(op.g, other=gy) if needs_a else None
        gb = line.from_queries(gy, out=gg, other=op.g if needs_b else None)
        inner = op.theta.shape[-1]
        gtheta = ga[..., None] * op.weight[:inner] if op.needs[0] else None
        gphi = gb[..., None] * op.weight[inner:] if op.needs[1] else None
        gweight = None
        if op.needs[3]:
            gweight = backend.load_cupy().empty_like(op.weight)
            multiply(as_row(ga), as_matrix(op.theta), as_row(gweight[:inner]))
            multiply(as_row(gb), as_matrix(op.phi), as_row(gweight[inner:]))
        return *unfold_gradients(op, gtheta, gphi, gg), gweight


class Line:
    """Keys at b_j and queries at -a_i, one such line for each element of the batch, and in which order they stand."""

    def __init__(self, op):
        (self.batch, self.queries, inner), (_, self.keys, _) = op.theta.shape, op.phi.shape
        self.n = self.keys + self.queries
        self.a, self.b = along(op.theta, op.weight[:inner]), along(op.phi, op.weight[inner:])
        places, self.order = self.sorted()
        # Only a_i + b_j matters. Around the middle of the line sums of b g keep more digits than around 0.
        middle = places[:, self.n // 2, None]
        self.a += middle
        self.b -= middle

    def sorted(self):
        """Places in ascending order, and who stands there."""
        xp, shape = backend.load_cupy(), (self.batch, self.n)
        now, then = ((xp.empty(shape, self.a.dtype), xp.empty(shape, "int64")) for _ in range(2))
        tiles, _ = grid(self.batch * ceil_div(self.n, TILE), 1)
        self.launch("sort_tiles<T>", tiles, TILE, self.a, self.b, self.batch, self.queries, self.keys, *now)
        run = TILE
        while run < self.n:
            self.launch("merge_runs<T>", *grid(self.batch * self.n), *now, self.batch, self.n, run, *then)
            now, then, run = then, now, 2 * run
        return now

    def from_keys(self, x, out=None, other=None):
        """What queries receive if keys give x: see `walk` in the .cu file."""
        return self.walk(True, x, self.b, self.a, out, other)

    def from_queries(self, x, out=None, other=None):
        return self.walk(False, x, self.a, self.b, out, other)

    def walk(self, keys_give, x, factor, own, out, other):
        if out is None and other is None:
            return None
        xp, channels = backend.load_cupy(), x.shape[-1]
        length = max(SHORTEST_SLICE, ceil_div(self.n, MOST_SLICES))
        slices, tiles = ceil_div(self.n, length), ceil_div(channels, LANES)
        sums = xp.empty((self.batch, slices, channels, 2), x.dtype)
        dots = None if other is None else xp.empty((tiles, *own.shape), x.dtype)
        sizes = self.batch, self.queries, self.keys, channels, length
        threads = LANES, SLICES_OF_A_BLOCK
        over_slices, over_batch = (
            (tiles, min(ceil_div(rows, SLICES_OF_A_BLOCK), MOST_BLOCKS)) for rows in (self.batch * slices, self.batch)
        )
        self.launch("slice_sums<T>", over_slices, threads, self.order, x, factor, keys_give, *sizes, sums)
        self.launch("sums_before<T>", over_batch, threads, sums, keys_give, self.batch, slices, channels)
        self.launch(
            "walk<T>", over_slices, threads, self.order, x, factor, sums, own, other, keys_give, *sizes, 1 / self.keys,
            out, dots,
        )  # fmt: skip
        return None if dots is None else dots.sum(axis=0)

    def launch(self, kernel, blocks, threads, *arguments):
        CONCAT.launch(kernel, self.a.dtype, blocks, threads, *arguments)


def along(x, w):
    """The product of each row with w: x (B, L, I), w (I,) -> (B, L)."""
    out = backend.load_cupy().empty(x.shape[:2], x.dtype)
    multiply(as_matrix(x), w.reshape(1, -1, 1), out.reshape(1, -1, 1))
    return out


def as_matrix(x):
    """All rows of the batch, as one matrix of a batch of one."""
    return x.reshape(1, -1, x.shape[-1])


def as_row(x):
    return x.reshape(1, 1, -1)
