"""Sums and means with full precision, and helpers of backward: arithmetic on arrays of either backend.

A running sum in float32 is rounded at every step, to the spacing of float32 numbers of its size: over a million
positions it can lose 3 % of its value. So all sums here accumulate in float64 and are rounded to float32 once. Their
error is at most 1e-6 of the sum of the magnitudes (docs/ops/reduce.md).
"""

import numpy as np

RUN = 4096  # rows that one float32 matrix product sums over; the products of several runs are added in float64


def total(x, axis=None, keepdims=False):
    """Sum over axes (all if None), of x's dtype; a scalar if no axis is left."""
    return x.sum(axis=axis, keepdims=keepdims, dtype=np.float64).astype(x.dtype)


def mean(x, axis=None, keepdims=False):
    """Mean over axes (all if None), of x's dtype; a scalar if no axis is left."""
    return x.mean(axis=axis, keepdims=keepdims, dtype=np.float64).astype(x.dtype)


def product(a, b):
    """a.T @ b for a (n, I) and b (n, O): a sum over n rows. The sums of runs of RUN rows are added in float64."""
    whole = len(a) // RUN * RUN if len(a) > RUN else 0
    rest = a[whole:].T @ b[whole:]
    if not whole:
        return rest
    a, b = (x[:whole].reshape(-1, RUN, x.shape[1]) for x in (a, b))
    return total(a.swapaxes(1, 2) @ b, 0) + rest


def sum_to(array, shape):
    """Undo broadcasting: sum an array over the axes along which broadcasting stretched `shape`.

    .. math:: y_{ij} = x_j \\;\\Rightarrow\\; \\bar x_j = \\sum_i \\bar y_{ij}
    """
    if array.shape == shape:
        return array
    extra = array.ndim - len(shape)
    stretched = tuple(i for i, n in enumerate(shape, extra) if n == 1 and array.shape[i] != 1)
    return total(array, tuple(range(extra)) + stretched, keepdims=True).reshape(shape)


def chosen(values, mask):
    r"""The values where the mask holds, else 0, even if the value there is NaN or infinite: :math:`y_i = x_i\,[m_i]`.

    An element that a maximum did not choose has gradient 0, whatever the incoming gradient is. A float product with the
    mask would be NaN for an infinite gradient. So the function multiplies the bits as integers: a product with 0 clears
    all bits, a product with 1 keeps them. `np.where` gives the same values and takes more than 20 times as long.
    """
    bits = {4: np.int32, 8: np.int64}[values.dtype.itemsize]
    return (values.view(bits) * mask).view(values.dtype)
