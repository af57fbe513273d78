"""Sums and means that keep their digits, and what backward shares: arithmetic on arrays of either backend.

A running sum in float32 is rounded, at every step, to the spacing of numbers of its own size: over a million positions
up to 3 % of it are lost. So sums over any number of elements are added up in float64, and rounded to float32 once: the
error is at most 1e-6 of the sum of the magnitudes (docs/ops/reduce.md).
"""

import numpy as np

RUN = 4096  # rows whose products are added up within one matrix product


def total(x, axis=None, keepdims=False):
    """Sum over some axes (all if None), of x's dtype; a scalar where no axis is left."""
    return x.sum(axis=axis, keepdims=keepdims, dtype=np.float64).astype(x.dtype)


def mean(x, axis=None, keepdims=False):
    """Mean over some axes (all if None), of x's dtype; a scalar where no axis is left."""
    return x.mean(axis=axis, keepdims=keepdims, dtype=np.float64).astype(x.dtype)


def product(a, b):
    """a.T @ b, of (n, I) and (n, O): a sum over n rows, in runs of them that are added up in float64."""
    whole = len(a) // RUN * RUN if len(a) > RUN else 0
    rest = a[whole:].T @ b[whole:]
    if not whole:
        return rest
    a, b = (x[:whole].reshape(-1, RUN, x.shape[1]) for x in (a, b))
    return total(a.swapaxes(1, 2) @ b, 0) + rest


def sum_to(array, shape):
    """Undo broadcasting: sum an array over the axes along which `shape` was stretched to it.

    .. math:: y_{ij} = x_j \\;\\Rightarrow\\; \\bar x_j = \\sum_i \\bar y_{ij}
    """
    if array.shape == shape:
        return array
    extra = array.ndim - len(shape)
    stretched = tuple(i for i, n in enumerate(shape, extra) if n == 1 and array.shape[i] != 1)
    return total(array, tuple(range(extra)) + stretched, keepdims=True).reshape(shape)


def chosen(values, mask):
    r"""The values where the mask holds, else 0, even where a value is NaN or infinite: :math:`y_i = x_i\,[m_i]`.

    What a choice left out has no part in the result, so its gradient is 0 whatever arrives. A product of floats with
    the mask would be NaN there. So the bits are multiplied: a product with 0 clears them all, a product with 1 keeps
    them. `np.where` gives the same values and takes more than 20 times as long.
    """
    bits = {4: np.int32, 8: np.int64}[values.dtype.itemsize]
    return (values.view(bits) * mask).view(values.dtype)
