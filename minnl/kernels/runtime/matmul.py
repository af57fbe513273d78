"""Matrix products in tiles that OpenBLAS multiplies in place, without packing: docs/kernels/runtime.md.

On processors with AVX-512 OpenBLAS has routines of their own for products of up to about a million multiply-adds. These
routines reach the limit of a core, where the general routine, which first packs both factors, stays 10 to 30 % below.
On other processors tiles are as quick as the whole product.
"""

from __future__ import annotations

import functools

import numpy as np

from minnl.kernels.runtime import memory

SMALL = 1_000_000  # Multiply-adds of a tile at most: OpenBLAS packs the factors of larger products.
SIDE = 64  # Rows and columns of a tile, about: the innermost loop fills its registers. Long sums take half.
NEAR = 10 * 1024  # Elements of a second factor that stays in a core's first cache between tiles.
FEW = 128  # Rows and columns up to which a larger second factor is cut all the same, in two or three tiles.
FAR = 4096  # Bytes between rows of the second factor from which on its columns compete for one place in the cache.
DEEPEST = 900  # Length of a sum from which on a tile would be too thin: the general routine is quicker.


def multiply(a, b, out):
    """out = a @ b for (..., M, D) and (D, N) or (..., D, N), in tiles of M and N. Returns out."""
    compute(tiled(a, b, out))
    return out


def compute(products):
    """Compute products (a, b, out), one after the other, with np.matmul."""
    for a, b, out in products:
        np.matmul(a, b, out=out)


def add_product(a, b, out, fresh):
    """out += a @ b; or out = a @ b where `fresh`, since out holds nothing yet."""
    if fresh:
        multiply(a, b, out)
    else:
        out += multiply(a, b, memory.empty(out.shape, out.dtype))


def added(sums):
    """The sum of the tasks' arrays, in the order of the tasks, in the memory of the first array."""
    total, *others = sums
    for other in others:
        total += other
    return total


def tiled(a, b, out):
    """The products that make up out = a @ b: (a, b, out) for each call of matmul, views of the arguments.

    A caller that multiplies in the same memory again and again cuts the views once: cutting takes longer than a small
    product.
    """
    rows, depth, columns = *a.shape[-2:], b.shape[-1]
    tall, wide = _tile(rows, depth, columns)
    if (tall, wide) == (rows, columns) or max(b.strides[-2:]) >= FAR:
        return [(a, b, out)]
    if b.ndim == 2:
        b = b[None]
    return [
        _cut(a[..., down, :], b[..., along], out[..., down, along], tall, wide)
        for down in _whole_and_rest(rows, tall)
        for along in _whole_and_rest(columns, wide)
    ]


@functools.lru_cache(1024)
def _tile(rows, depth, columns):
    """The height and width of a tile."""
    far = depth * columns > NEAR and max(rows, columns) > FEW
    if rows * depth * columns <= SMALL or depth > DEEPEST or far:
        return rows, columns
    side = SIDE if SIDE * SIDE * depth <= SMALL else SIDE // 2
    wide = min(columns, max(side, SMALL // (min(rows, side) * depth) // 16 * 16))
    tall = rows if rows <= side else min(rows, max(8, SMALL // (wide * depth) // 8 * 8))
    return _divisor(rows, tall), _divisor(columns, wide)


def _divisor(n, most):
    """The largest divisor of n up to `most`, so that no rest is left; `most` if no divisor is above its half."""
    return next((d for d in range(most, most // 2, -1) if n % d == 0), most)


def _whole_and_rest(n, size):
    """range(n) as the part that `size` divides, and the rest: one or two slices."""
    whole = n // size * size
    return [s for s in (slice(0, whole), slice(whole, n)) if s.stop > s.start]


def _cut(a, b, out, tall, wide):
    """All tiles of equal size for one call, row of tiles after row, so that a factor is still in the cache."""
    rows, depth, columns = *a.shape[-2:], b.shape[-1]
    tall, wide = min(tall, rows), min(wide, columns)
    across = (columns // wide, wide)
    a = a.reshape(*a.shape[:-2], rows // tall, 1, tall, depth)
    b = b.reshape(*b.shape[:-2], 1, depth, *across).swapaxes(-3, -2)
    out = memory.view(out, *out.shape[:-2], rows // tall, tall, *across).swapaxes(-3, -2)
    return a, b, out
