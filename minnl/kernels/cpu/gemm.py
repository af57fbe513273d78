"""Matrix products in pieces that OpenBLAS multiplies where they lie, without packing them first: docs/kernels/gemm.md.

For products of up to about a million multiply-adds OpenBLAS has routines of their own on processors with AVX-512. They
reach a core's limit where the general one, which first copies both factors into an order of its own, stays 10 to 30 %
below. Elsewhere the pieces are no worse than the whole. A large second factor that many rows meet is copied once, into
panels of few columns.
"""

from __future__ import annotations

import functools

import numpy as np

from minnl.kernels import memory, threads

SMALL = 1_000_000  # multiply-adds of one piece
SIDE = 64  # a piece is about that wide, or half of it if its sums are long
NEAR = 10 * 1024  # elements of the second factor: a larger one leaves a core's first cache between two pieces,
FEW = 128  # which matters less with so few rows and columns: there are but two or three
FAR = 4096  # bytes from one row of the second factor to the next: a column would compete for one place in the cache
DEEPEST = 900  # with longer sums a piece would be too thin: the general routine is better,
DEEPEST_PANEL = 1600  # though not so soon if the second factor has been cut in panels.
ROWS = 256  # that are worth a copy in panels; of a transposed factor four times as many. And
WORTH = 32_000_000  # multiply-adds are; not if the copy had more than
MOST = 4 * 1024 * 1024  # elements, 16 MB
HAVE_SMALL = ("SkylakeX", "Cooperlake", "SapphireRapids")  # OpenBLAS's routines that include some for small products


def multiply(a, b, out):
    """out = a @ b for (..., M, D) and (D, N) or (..., D, N), in pieces of M and N. Returns out."""
    compute(pieces(a, b, out))
    return out


def compute(products):
    """Take products (a, b, out), one after the other, with np.matmul."""
    for a, b, out in products:
        np.matmul(a, b, out=out)


def add_product(a, b, out, fresh):
    """out += a @ b; or out = a @ b, where nothing is there yet."""
    if fresh:
        multiply(a, b, out)
    else:
        out += multiply(a, b, memory.empty(out.shape, out.dtype))


def added(sums):
    """What tasks have summed up, each in an array of its own, in the order of the tasks; in the first one's memory."""
    total, *others = sums
    for other in others:
        total += other
    return total


def pieces(a, b, out):
    """The products that make up out = a @ b: (a, b, out) for each call of matmul, views of what is given.

    For who multiplies in the same places again and again: taking views apart takes longer than a small product.
    """
    rows, depth, columns = *a.shape[-2:], b.shape[-1]
    tall, wide = _piece(rows, depth, columns)
    if (tall, wide) == (rows, columns) or max(b.strides[-2:]) >= FAR:
        return [(a, b, out)]
    if b.ndim == 2:
        b = b[None]
    return [
        _cut(a[..., down, :], b[..., along], out[..., down, along], tall, wide)
        for down in _even(rows, tall)
        for along in _even(columns, wide)
    ]


def factor(b, rows):
    """(how, b): what makes the products of so many rows with b (D, N), `pieces` or `pieces_by_panels`, and b for it."""
    apart = panels(b, rows)
    return (pieces, b) if apart is None else (pieces_by_panels, apart)


def panels(b, rows):
    """b (D, N) in panels for a product with so many rows, or None where that is no use.

    A panel is a matrix of few columns, in one piece: (N / width, D, width). It is read from end to end, and most are so
    small that they stay in the first cache meanwhile.
    """
    depth, columns = b.shape
    turned = b.strides[0] < b.strides[1]
    few = rows < (4 * ROWS if turned else ROWS) or rows * depth * columns < WORTH
    width = next((w for w in (SIDE, SIDE // 2) if depth * w <= NEAR), SIDE // (4 if turned else 2))
    if few or not NEAR < depth * columns <= MOST or depth > DEEPEST_PANEL or columns % width or not has_small():
        return None
    apart = memory.empty((columns // width, depth, width), b.dtype)
    apart[...] = b.reshape(depth, -1, width).swapaxes(0, 1)
    return apart


@functools.cache
def has_small():
    """Whether BLAS has routines for small products; without them panels lose."""
    return any(getattr(library, "architecture", None) in HAVE_SMALL for library in threads.blas_libraries())


def pieces_by_panels(a, b, out):
    """As `pieces`, of a (..., M, D) and out (..., M, N), but with b in panels (N / width, D, width)."""
    rows, depth, (count, _, width) = *a.shape[-2:], b.shape
    tall, made = divisor(rows, min(rows, max(1, SMALL // max(1, depth * width)))), []
    for down in _even(rows, tall):
        each = min(tall, down.stop - down.start)
        cut = *a.shape[:-2], (down.stop - down.start) // each, each
        to = out[..., down, :].reshape(*cut, count, width).swapaxes(-3, -2)
        made.append((a[..., down, :].reshape(*cut, depth)[..., None, :, :], b, to))
    return made


@functools.lru_cache(1024)
def _piece(rows, depth, columns):
    """How tall and wide a piece is."""
    far = depth * columns > NEAR and max(rows, columns) > FEW
    if rows * depth * columns <= SMALL or depth > DEEPEST or far:
        return rows, columns
    side = SIDE if SIDE * SIDE * depth <= SMALL else SIDE // 2
    wide = min(columns, max(side, SMALL // (min(rows, side) * depth) // 16 * 16))
    tall = rows if rows <= side else min(rows, max(8, SMALL // (wide * depth) // 8 * 8))
    return divisor(rows, tall), divisor(columns, wide)


def divisor(n, most):
    """The largest divisor of n up to `most`, for pieces without a rest; `most` if none is above its half."""
    return next((d for d in range(most, most // 2, -1) if n % d == 0), most)


def _even(n, size):
    """range(n) as the part that `size` divides, and the rest."""
    whole = n // size * size
    return [part for part in (slice(0, whole), slice(whole, n)) if part.stop > part.start]


def _cut(a, b, out, tall, wide):
    """All pieces of equal size for one call, row of pieces after row, so that a factor is still in the cache."""
    rows, depth, columns = *a.shape[-2:], b.shape[-1]
    tall, wide = min(tall, rows), min(wide, columns)
    across = (columns // wide, wide)
    a = a.reshape(*a.shape[:-2], rows // tall, 1, tall, depth)  # cutting an axis in two never copies
    b = b.reshape(*b.shape[:-2], 1, depth, *across).swapaxes(-3, -2)
    out = out.reshape(*out.shape[:-2], rows // tall, tall, *across).swapaxes(-3, -2)
    return a, b, out
