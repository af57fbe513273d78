"""Convolution with windows of one position, 1 x 1 x 1, without padding: docs/kernels/conv_points.md.

Positions are the rows of a matrix: forward is one product, x (P, C) times the weight, and the weight's gradient is one
product, x^T times gy (P, K). BLAS does both best in few large pieces, one or a few for a thread, so all that is left to
decide is along which axis to cut. With a stride the positions that are met are gathered, some at a time.
"""

from __future__ import annotations

import itertools
import math

import numpy as np

from minnl.kernels.runtime import memory, threads
from minnl.kernels.runtime.matmul import NEAR, add_product, added, compute
from minnl.kernels.runtime.panels import factor
from minnl.kernels.runtime.strided import in_runs

ROWS = 784  # positions of a task, or half of them: each packs the whole weight anew
CHANNELS = 512  # channels of a task, or half of them: each packs all positions anew
SUM_ROWS = 1536  # positions that a task sums up for the weight's gradient, or half of them, if there are
FEW = 4  # times as many as channels: or adding up the tasks' sums would take too long
SUM_ELEMENTS = 256 * 1024  # of such a sum, 1 MB
GATHERED = 1024 * 1024  # elements at once, 4 MB


def correlate(x, weight, y, stride, pads, dilation):
    """y (N, T', H', W', K) = positions of x (N, T, H, W, C) times weight (1, 1, 1, C, K)."""
    (c, k), positions = weight.shape[3:], math.prod(y.shape[:4])
    weight = weight[0, 0, 0]
    if c * k <= NEAR:
        weight = np.ascontiguousarray(weight)  # or it could not be multiplied where it lies
    x, y = _as_line(x, y, stride)
    parts = threads.tasks_for(2 * positions * c * k)
    if positions >= k:
        tasks = itertools.product(_shares(y, c, stride, min(parts, max(2, positions // ROWS))), [slice(0, k)])
        whole = factor(weight, positions)
    else:
        tasks = itertools.product(_shares(y, c, stride, 1), threads.shares(k, min(parts, max(2, k // CHANNELS))))
        whole = None

    def one(task):
        share, some = task
        products, w = whole or factor(weight[:, some], positions)
        for block in share:
            compute(products(_rows(x, block, stride), w, memory.view(y[block], -1, k)[:, some]))

    threads.run(one, tasks)


def weight_gradient(x, gy, gw, stride, pads, dilation):
    """gw = positions of x, transposed, times gy."""
    (c, k), positions = gw.shape[3:], math.prod(gy.shape[:4])
    x, gy = _as_line(x, gy, stride)
    parts = threads.tasks_for(2 * positions * c * k)

    def add_up(share, inside, out, total):
        for i, block in enumerate(share):
            columns = _rows(x, block, stride)[:, inside].T
            add_product(columns, gy[block].reshape(-1, k)[:, out], total, fresh=i == 0)
        return total

    if c * k <= SUM_ELEMENTS and positions >= FEW * max(c, k):
        shares = _shares(gy, c, stride, min(parts, max(2, positions // SUM_ROWS)))
        whole = slice(0, c), slice(0, k)
        sums = threads.run(lambda share: add_up(share, *whole, memory.empty((c, k), x.dtype)), shares)
        gw[0, 0, 0] = added(sums)
    else:
        (every,), cuts = _shares(gy, c, stride, 1), threads.shares(max(c, k), min(parts, max(2, max(c, k) // CHANNELS)))
        parts = [(some, slice(0, k)) if c >= k else (slice(0, c), some) for some in cuts]
        threads.run(lambda part: add_up(every, *part, gw[0, 0, 0][part]), parts)


def _as_line(x, y, stride):
    """All positions one after the other along one axis, which can be cut anywhere; not if x has others in between."""
    if max(stride) > 1:
        return x, y
    return (memory.view(a, 1, 1, -1, 1, a.shape[4]) for a in (x, y))


def _shares(y, channels, stride, parts):
    """The positions of y in about `parts` equal shares: lists of blocks, of which there are more if x is gathered."""
    longest = -(-math.prod(y.shape[:4]) // max(1, parts))
    if max(stride) > 1:
        longest = min(longest, GATHERED // channels)
    blocks = threads.blocks(y.shape[:4], longest)
    return [blocks[some] for some in threads.shares(len(blocks), parts)]


def _rows(x, block, stride):
    """The positions of x that a block of y meets, (positions, C)."""
    samples, *rest = block
    seen = x[(samples, *(slice(some.start * s, some.stop * s, s) for some, s in zip(rest, stride, strict=True)))]
    if max(stride) > 1:
        gathered = memory.empty(seen.shape, x.dtype)
        in_runs(gathered)[...] = in_runs(seen)
        seen = gathered
    return seen.reshape(-1, x.shape[4])
