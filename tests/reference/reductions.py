"""Reductions over any axes. (The names hide Python's own sum, max and min in this file, as in minnl.functional.)"""

import builtins
import math

import numpy as np


def lines(shape, axis):
    """Each index of the result (kept axes of size 1) with the indices of x that are reduced to it."""
    axes = range(len(shape)) if axis is None else [a % len(shape) for a in np.atleast_1d(axis)]
    found = {}
    for i in np.ndindex(shape):
        found.setdefault(tuple(0 if a in axes else n for a, n in enumerate(i)), []).append(i)
    return found, [a for a in range(len(shape)) if a in axes]


def reduced(function, x, axis, keepdims):
    """y[o] = function(list of the elements of line o)."""
    members, axes = lines(x.shape, axis)
    y = np.zeros([1 if a in axes else n for a, n in enumerate(x.shape)])
    for o, indices in members.items():
        y[o] = function([x[i].item() for i in indices])
    return y if keepdims else y.reshape([n for a, n in enumerate(x.shape) if a not in axes])


def reduced_backward(slopes, gy, x, axis):
    """gx[i] = gy[o] * slopes(line o)[place of i in it]."""
    members, axes = lines(x.shape, axis)
    gy, gx = gy.reshape([1 if a in axes else n for a, n in enumerate(x.shape)]), np.zeros(x.shape)
    for o, indices in members.items():
        for i, slope in zip(indices, slopes([x[i].item() for i in indices]), strict=True):
            gx[i] = gy[o] * slope
    return (gx,)


def sum(x, axis=None, keepdims=False):
    return reduced(builtins.sum, x, axis, keepdims)


def sum_backward(gy, x, axis=None, keepdims=False):
    return reduced_backward(lambda line: [1] * len(line), gy, x, axis)


def average(line):
    return builtins.sum(line) / len(line)


def mean(x, axis=None, keepdims=False):
    return reduced(average, x, axis, keepdims)


def mean_backward(gy, x, axis=None, keepdims=False):
    return reduced_backward(lambda line: [1 / len(line)] * len(line), gy, x, axis)


def var(x, axis=None, correction=1, keepdims=False):
    def of(line):
        return builtins.sum((v - average(line)) ** 2 for v in line) / (len(line) - correction)

    return reduced(of, x, axis, keepdims)


def var_backward(gy, x, axis=None, correction=1, keepdims=False):
    """d/dx[i] of sum over j of (x[j] - mean)^2 / (n - c), with d mean / dx[i] = 1/n written out."""

    def slopes(line):
        n, m = len(line), average(line)
        return [
            builtins.sum(2 * (line[j] - m) * ((i == j) - 1 / n) for j in range(n)) / (n - correction)
            for i in range(n)
        ]  # fmt: skip

    return reduced_backward(slopes, gy, x, axis)


def winner(line, better):
    """Place of the first element that no other is better than; the first NaN if there is one."""
    best = 0
    for i, value in enumerate(line):
        if not math.isnan(line[best]) and (math.isnan(value) or better(value, line[best])):
            best = i
    return best


def largest(line):
    return winner(line, lambda a, b: a > b)


def smallest(line):
    return winner(line, lambda a, b: a < b)


def max(x, axis=None, keepdims=False):
    return reduced(lambda line: line[largest(line)], x, axis, keepdims)


def max_backward(gy, x, axis=None, keepdims=False):
    return reduced_backward(lambda line: [i == largest(line) for i in range(len(line))], gy, x, axis)


def min(x, axis=None, keepdims=False):
    return reduced(lambda line: line[smallest(line)], x, axis, keepdims)


def min_backward(gy, x, axis=None, keepdims=False):
    return reduced_backward(lambda line: [i == smallest(line) for i in range(len(line))], gy, x, axis)
