"""Sums over positions that keep their digits: docs/kernels/pooling.md."""

from __future__ import annotations

import numpy as np

from minnl.kernels.runtime import threads

RUN = 32  # positions whose sum is taken in float32; those of all runs are added up in float64


def over_positions(x):
    """(N, P, C) -> (N, C), in float64: runs of positions as products with ones, for which BLAS reads x end to end."""
    whole = x.shape[1] // RUN * RUN
    runs = x[:, :whole].reshape(len(x), -1, RUN, x.shape[2])
    sums = (np.ones(RUN, x.dtype) @ runs).sum(axis=1, dtype=np.float64)
    return sums + x[:, whole:].sum(axis=1, dtype=np.float64)


def products_over_positions(a, b):
    """(P, C) -> (C,), in float64: sums of a * b."""
    whole = len(a) // RUN * RUN
    runs = [x[:whole].reshape(-1, RUN, x.shape[1]) for x in (a, b)]
    sums = np.einsum("ijk,ijk->ik", *runs).sum(axis=0, dtype=np.float64)
    return sums + np.einsum("ij,ij->j", a[whole:], b[whole:])


def column_sums(x):
    """Sum over all but the last axis, rows in tasks."""
    rows = x.reshape(1, -1, x.shape[-1])
    parts = threads.shares(rows.shape[1], 8 if rows.size > 1024 * 1024 else 1, RUN)
    return sum(threads.run(lambda some: over_positions(rows[:, some])[0], parts)).astype(x.dtype)
