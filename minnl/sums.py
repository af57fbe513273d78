"""Sums and means that keep their digits, of arrays of either backend.

A running sum in float32 is rounded, at every step, to the spacing of numbers of its own size: over a million positions
up to 3 % of it are lost. So sums over any number of elements are added up in float64, and rounded to float32 once: the
error is at most 1e-6 of the sum of the magnitudes (docs/ops/reduce.md).
"""

from __future__ import annotations

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
