"""Moving elements. Each result element is a copy of one input element (or of a constant)."""

import itertools

import numpy as np


def reshape(x, shape):
    """The i-th element in row-major order stays the i-th."""
    known = [n for n in np.atleast_1d(shape).tolist() if n != -1]
    y = np.zeros([x.size // max(int(np.prod(known)), 1) if n == -1 else n for n in np.atleast_1d(shape).tolist()])
    for i, j in zip(np.ndindex(x.shape), np.ndindex(y.shape), strict=True):
        y[j] = x[i]
    return y


def transpose(x, axes=None):
    """y[i[axes[0]], i[axes[1]], ...] = x[i]."""
    axes = range(x.ndim)[::-1] if axes is None else [a % x.ndim for a in axes]
    y = np.zeros([x.shape[a] for a in axes])
    for i in np.ndindex(x.shape):
        y[tuple(i[a] for a in axes)] = x[i]
    return y


def broadcast_to(x, new_shape):
    """An axis of size 1, or a new one in front, repeats."""
    y = np.zeros(new_shape)
    for i in np.ndindex(y.shape):
        last = i[y.ndim - x.ndim :]
        y[i] = x[tuple(0 if n == 1 else a for a, n in zip(last, x.shape, strict=True))]
    return y


def concatenate(xs, axis=0):
    """One after the other along an axis."""
    shape, axis = list(xs[0].shape), axis % xs[0].ndim
    shape[axis] = sum(x.shape[axis] for x in xs)
    y, start = np.zeros(shape), 0
    for x in xs:
        for i in np.ndindex(x.shape):
            y[(*i[:axis], start + i[axis], *i[axis + 1 :])] = x[i]
        start += x.shape[axis]
    return y


def stack(xs, axis=0):
    """The number of the input becomes an index."""
    axis = axis % (xs[0].ndim + 1)
    y = np.zeros((*xs[0].shape[:axis], len(xs), *xs[0].shape[axis:]))
    for a, x in enumerate(xs):
        for i in np.ndindex(x.shape):
            y[(*i[:axis], a, *i[axis:])] = x[i]
    return y


def split(x, parts, axis=0):
    """Slices of given sizes, or `parts` equal ones."""
    sizes = [x.shape[axis] // parts] * parts if isinstance(parts, int) else parts
    ends = list(itertools.accumulate(sizes))
    return [np.moveaxis(np.moveaxis(x, axis, 0)[end - n : end], 0, axis) for n, end in zip(sizes, ends, strict=True)]


def pad(x, widths, value=0.0):
    """x somewhere inside a larger array of a constant."""
    y = np.full([before + n + after for (before, after), n in zip(widths, x.shape, strict=True)], float(value))
    for i in np.ndindex(x.shape):
        y[tuple(before + a for (before, _), a in zip(widths, i, strict=True))] = x[i]
    return y


def flip(x, axis=None):
    """Index a becomes n - 1 - a along each axis named."""
    axes = range(x.ndim) if axis is None else [a % x.ndim for a in np.atleast_1d(axis)]
    y = np.zeros(x.shape)
    for i in np.ndindex(x.shape):
        y[tuple(x.shape[d] - 1 - a if d in axes else a for d, a in enumerate(i))] = x[i]
    return y


def index(x, key):
    return np.asarray(x[key])


def moved_backward(gy, function, xs):
    """Backward of all of the above. Send numbered labels through `function` to learn where each result element came
    from; its gradient goes back there, and one that was used many times collects them all."""
    first = 10**6  # no constant of `pad` is as large
    ends = list(itertools.accumulate((x.size for x in xs), initial=first))
    labels = [np.arange(a, a + x.size).reshape(x.shape) for a, x in zip(ends, xs, strict=False)]
    arrived = np.zeros(ends[-1] - first)
    for label, g in zip(function(*labels).ravel(), gy.ravel(), strict=True):
        if label >= first:
            arrived[int(label) - first] += g
    return tuple(arrived[label - first] for label in labels)
