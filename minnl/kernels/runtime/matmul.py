"""Matrix products in tiles that OpenBLAS multiplies in place, without packing: docs/kernels/runtime.md.

For products of up to about a million multiply-adds OpenBLAS has routines of their own on processors with AVX-512. They
reach a core's limit where the general one, which first copies both factors into an order of its own, stays 10 to 30 %
below. Elsewhere the pieces are no worse than the whole. Large second factors are cut in `panels`.
"""

from __future__ import annotations

import functools

import numpy as np

from minnl.kernels.runtime import memory

SMALL = 1_000_000  # multiply-adds of one piece
SIDE = 64  # a piece is about that wide, or half of it if its sums are long
NEAR = 10 * 1024  # elements of the second factor: a larger one leaves a core's first cache between two pieces,
FEW = 128  # which matters less with so few rows and columns: there are but two or three
FAR = 4096  # bytes from one row of the second factor to the next: a column would compete for one place in the cache
DEEPEST = 900  # with longer sums a piece would be too thin: the general routine is better


def multiply(a, b, out):
    """out = a @ b for (..., M, D) and (D, N) or (..., D, N), in pieces of M and N. Returns out."""
    compute(pieces(a, b, out))
    return out


def compute(products):
    """Take products (a, b, out), one after the other, with np.matmul."""
    for a, b, out in products:
        np.matmul(a, b, out=out)


def add_product(a, b, out, fresh, multiply=multiply):
    """out += a @ b; or out = a @ b, where nothing is there yet. `multiply`: this file's, or that of panels."""
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
        for down in whole_and_rest(rows, tall)
        for along in whole_and_rest(columns, wide)
    ]


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


def whole_and_rest(n, size):
    """range(n) as the part that `size` divides, and the rest."""
    whole = n // size * size
    return [part for part in (slice(0, whole), slice(whole, n)) if part.stop > part.start]


def _cut(a, b, out, tall, wide):
    """All pieces of equal size for one call, row of pieces after row, so that a factor is still in the cache."""
    rows, depth, columns = *a.shape[-2:], b.shape[-1]
    tall, wide = min(tall, rows), min(wide, columns)
    across = (columns // wide, wide)
    a = a.reshape(*a.shape[:-2], rows // tall, 1, tall, depth)
    b = b.reshape(*b.shape[:-2], 1, depth, *across).swapaxes(-3, -2)
    out = memory.view(out, *out.shape[:-2], rows // tall, tall, *across).swapaxes(-3, -2)
    return a, b, out
