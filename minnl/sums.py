"""Sums and means that keep their digits, of arrays of either backend.

A running sum in float32 is rounded, at every step, to the spacing of numbers of its own size: over a million positions
up to 3 % of it are lost. So sums over any number of elements are added up in float64, and rounded to float32 once: the
error is at most 1e-6 of the sum of the magnitudes (docs/ops/reduce.md).
"""

from __future__ import annotations

import numpy as np


def total(x, axis=None, keepdims=False):
    """Sum over some axes (all if None), of x's dtype; a scalar where no axis is left."""
    return x.sum(axis=axis, keepdims=keepdims, dtype=np.float64).astype(x.dtype)


def mean(x, axis=None, keepdims=False):
    """Mean over some axes (all if None), of x's dtype; a scalar where no axis is left."""
    return x.mean(axis=axis, keepdims=keepdims, dtype=np.float64).astype(x.dtype)
