"""Sums down the columns of a matrix that keep their digits: docs/kernels/runtime.md."""

import numpy as np

from minnl.kernels.runtime import threads

RUN = 32  # Rows whose sum is taken in float32; the sums of all runs are added in float64.
LARGE = 1024 * 1024  # Elements from which on `column_sums` cuts the rows into tasks.


def sums(a):
    """Sums down the columns of a (P, C), in float64. Runs are products with ones, for which BLAS reads `a` in order."""
    whole = len(a) // RUN * RUN
    runs = a[:whole].reshape(-1, RUN, a.shape[1])
    return (np.ones(RUN, a.dtype) @ runs).sum(axis=0, dtype=np.float64) + np.ones(len(a) - whole, a.dtype) @ a[whole:]


def sums_of_products(a, b):
    """Sums of a * b down the columns, in float64."""
    whole = len(a) // RUN * RUN
    runs = (x[:whole].reshape(-1, RUN, x.shape[1]) for x in (a, b))
    runs = np.einsum("ijk,ijk->ik", *runs).sum(axis=0, dtype=np.float64)
    return runs + np.einsum("ij,ij->j", a[whole:], b[whole:])


def column_sums(x):
    """Sum over all axes but the last, of x's dtype; the rows of a large array in tasks."""
    rows = x.reshape(-1, x.shape[-1])
    tasks = threads.split(len(rows), 8 if rows.size > LARGE else 1, RUN)
    return sum(threads.run(lambda task: sums(rows[task]), tasks)).astype(x.dtype)
