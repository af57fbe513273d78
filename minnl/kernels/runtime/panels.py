"""A large second factor of matrix products, cut in panels of few columns: docs/kernels/gemm.md, "Panels".

OpenBLAS packs such a factor anew for every product. Copied once into matrices of few columns, each in one piece, it is
multiplied where it lies, by the routines for small products.
"""

from __future__ import annotations

import functools

from minnl.kernels.runtime import matmul as gemm
from minnl.kernels.runtime import memory, threads

WIDTHS = (64, 32, 112, 96, 128, 80, 48, 16)  # of panels, the best first;
GOOD = 2  # of them, of which the first that stays in the first cache is better still
DEEPEST = 1600  # with longer sums the general routine is better
ROWS = 256  # that are worth a copy in panels; of a transposed factor four times as many. And
WORTH = 32_000_000  # multiply-adds are; not if the copy had more than
MOST = 4 * 1024 * 1024  # elements, 16 MB
STEP = 12  # rows: the routines for small products like multiples of it, and a piece of fewer would be too thin
HAVE_SMALL = ("SkylakeX", "Cooperlake", "SapphireRapids")  # OpenBLAS's routines that include some for small products


@functools.cache
def has_small():
    """Whether BLAS has routines for small products; without them panels lose."""
    return any(getattr(library, "architecture", None) in HAVE_SMALL for library in threads.blas_libraries())


def factor(b, rows):
    """(how, b): what makes the products of so many rows with b (D, N), `pieces` or `by_panels`, and b for it."""
    apart = worth_panels(b, rows)
    return (gemm.pieces, b) if apart is None else (by_panels, apart)


def worth_panels(b, rows):
    """b (D, N) in panels for a product with so many rows from memory, or None where that is no use."""
    (depth, columns), turned = b.shape, b.strides[0] < b.strides[1]
    few = rows < (4 * ROWS if turned else ROWS) or rows * depth * columns < WORTH
    wide = width(depth, columns)
    if few or not gemm.NEAR < depth * columns <= MOST or depth > DEEPEST or wide == columns:
        return None
    return in_panels(b, wide)


def in_panels(b, width):
    """b (..., D, N) as (..., N / width, D, width), each panel in one piece; a view if there is but one."""
    cut = b.reshape(*b.shape[:-1], -1, width).swapaxes(-3, -2)
    if cut.shape[-3] == 1:
        return cut
    apart = memory.empty(cut.shape, b.dtype)
    apart[...] = cut
    return apart


def width(depth, columns, turned=False):
    """How wide panels of a second factor are that many rows meet; all columns where that is best.

    `turned`: the first factor is a transposed view.
    """
    if not has_small():
        return columns
    fit = [w for w in WIDTHS[turned:] if columns % w == 0 and depth * w * STEP <= gemm.SMALL]
    near = [w for w in fit if w in WIDTHS[:GOOD] and depth * w <= gemm.NEAR]
    return (near or fit or [columns])[0]


def by_panels(a, b, out):
    """As `gemm.pieces`, of a (..., M, D) and out (..., M, N), but with b in panels (..., N / width, D, width)."""
    rows, depth, (count, _, width) = *a.shape[-2:], b.shape[-3:]
    most, made = gemm.SMALL // max(1, depth * width), []
    if count == 1 and (rows <= most or most < STEP or not has_small()):
        return gemm.pieces(a, b[..., 0, :, :], out)
    tall = rows if rows <= most else max(1, most // (2 * STEP) * (2 * STEP) or most // STEP * STEP or most)
    b = b[..., None, :, :, :]
    for down in gemm.whole_and_rest(rows, tall):
        each = min(tall, down.stop - down.start)
        cut = *a.shape[:-2], (down.stop - down.start) // each, each
        to = memory.view(out[..., down, :], *cut, count, width).swapaxes(-3, -2)
        made.append((a[..., down, :].reshape(*cut, depth)[..., None, :, :], b, to))
    return made


def multiply(a, b, out):
    """out = a @ b with b in panels. Returns out."""
    gemm.compute(by_panels(a, b, out))
    return out


def add_product(a, b, out, fresh):
    """out += a @ b with b in panels; or out = a @ b, where nothing is there yet."""
    gemm.add_product(a, b, out, fresh, multiply)
