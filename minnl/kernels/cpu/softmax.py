"""Softmax, its logarithm, and cross-entropy along the last axis: docs/kernels/softmax.md."""

from __future__ import annotations

import numpy as np

from minnl.kernels import memory, threads
from minnl.kernels.cpu.kernel import Float32Kernel

BLOCK_ELEMENTS = 512 * 1024  # 2 MB
VANISHED = 1e-20  # exponentials that add up to less have lost digits


class Rows(Float32Kernel):
    @staticmethod
    def suits(op, arrays):
        """Not for rows of one element: there the result is 0 or 1, which the textbook body gives exactly."""
        return Float32Kernel.suits(op, arrays) and arrays[0].size > 0 and arrays[0].shape[-1] > 1


class LastAxis(Rows):
    """What softmax and its logarithm share; ``rows(x, y)`` makes a block, ``gradient(y, gy, gx)`` its gradient."""

    @classmethod
    def suits(cls, op, arrays):
        return super().suits(op, arrays) and op.axis == arrays[0].ndim - 1

    @classmethod
    def forward(cls, op, x):
        op.y = memory.empty(x.shape, x.dtype)
        by_rows(cls.rows, x, op.y)
        return op.y

    @classmethod
    def backward(cls, op, gy):
        gx = memory.empty(gy.shape, gy.dtype)
        by_rows(cls.gradient, op.y, gy, gx)
        return (gx,)


class RowSoftmax(LastAxis):
    @staticmethod
    def rows(x, y):
        total, _ = exponentials(x, y)
        y *= 1 / total

    @staticmethod
    def gradient(y, gy, gx):
        np.subtract(gy, np.einsum("ij,ij->i", gy, y)[:, None], out=gx)
        gx *= y


class RowLogSoftmax(LastAxis):
    @staticmethod
    def rows(x, y):
        total, top = exponentials(x, y)
        np.subtract(x, np.log(total) + top, out=y)

    @staticmethod
    def gradient(y, gy, gx):
        np.exp(y, out=gx)
        gx *= np.einsum("ij->i", gy)[:, None]
        np.subtract(gy, gx, out=gx)


class RowCrossEntropy(Rows):
    @staticmethod
    def forward(op, x):
        op.e, target = memory.empty(x.shape, x.dtype), Target(op, x.shape[-1])

        def task(x, e):
            total, top = exponentials(x, e)
            log_sum = np.log(total) + top
            return (total, log_sum) if target.rest is None else (total, log_sum, np.einsum("ij,j->i", x, target.rest))

        total, log_sum, *mean = (np.concatenate(parts) for parts in zip(*by_rows(task, x, op.e), strict=True))
        op.total, log_sum = total.reshape(*x.shape[:-1], 1), log_sum.reshape(-1)
        loss = target.hit * (log_sum - x.reshape(-1)[target.places])
        if mean:
            loss += target.rest.sum() * log_sum - mean[0]
        if target.ignored is not None:
            loss[target.ignored] = 0
        op.divisor = target.divisor
        if op.reduction == "none":
            return loss.reshape(x.shape[:-1])
        return np.asarray(loss.sum() / op.divisor if op.reduction == "mean" else loss.sum())

    @staticmethod
    def backward(op, gy):
        target, gx = Target(op, op.e.shape[-1]), memory.empty(op.e.shape, op.e.dtype)
        g = gy / op.divisor if op.reduction == "mean" else gy
        g = np.broadcast_to(g.reshape(-1), op.total.size)
        if target.ignored is not None:
            g = np.where(target.ignored, np.float32(0), g)
        hit = g * target.hit
        share = hit if target.rest is None else hit + g * target.rest.sum()
        by_rows(lambda e, share, gx: np.multiply(e, share, out=gx), op.e, (share / op.total.reshape(-1))[:, None], gx)
        gx.reshape(-1)[target.places] -= hit
        if target.rest is not None:
            gx -= (g[:, None] * target.rest).reshape(gx.shape)
        if target.ignored is not None:
            gx[op.ignored] = 0  # a row of NaN too
        return (gx,)


class Target:
    """The op's target without writing it out: for rows i and classes k ``hit[i] * (k == label[i]) + rest[k]``.

    `hit` is one number where all are alike; `rest` is None where it is 0. Rows that are `ignored` (None if none is)
    have a target of 0. `places` says where the labels' elements lie in memory.
    """

    def __init__(self, op, classes):
        labels, self.ignored = op.labels.reshape(-1), op.ignored.reshape(-1) if op.ignored.any() else None
        if self.ignored is not None:
            labels = np.where(self.ignored, 0, labels)
        self.places = np.arange(0, labels.size * classes, classes) + labels
        self.hit = np.float32(1) if op.weight is None else op.weight[labels]
        counts = np.ones(labels.size, np.float32) if self.ignored is None else (~self.ignored).astype(np.float32)
        self.divisor = (counts * self.hit).sum()
        self.rest = None
        if op.smoothing:
            self.hit = self.hit * np.float32(1 - op.smoothing)
            self.rest = np.full(classes, op.smoothing / classes, np.float32)
            if op.weight is not None:
                self.rest *= op.weight


def exponentials(x, out):
    """exp(x - top) into `out`; returns its sums along rows, and top.

    One top for all rows, the largest of all, is found sooner than one for each. It serves unless a row lies so far
    below that hardly anything is left of it.
    """
    top = x.max()
    total = shifted(x, top, out)
    if not total.min() > VANISHED:
        top = x.max(axis=1, keepdims=True)
        total = shifted(x, top, out)
    return total, top


def shifted(x, top, out):
    np.subtract(x, top, out=out)
    np.exp(out, out=out)
    return np.einsum("ij->i", out)[:, None]


def by_rows(task, *arrays):
    """The results of ``task(*rows)`` for blocks of the arrays' rows, made on all threads."""
    arrays = [np.ascontiguousarray(a).reshape(-1, a.shape[-1]) for a in arrays]
    parts = threads.shares(len(arrays[0]), most=-(-arrays[0].size // BLOCK_ELEMENTS))
    if len(parts) == 1:
        return [task(*arrays)]
    return threads.run(lambda part: task(*(a[part] for a in arrays)), parts)
