"""Functions of one element, and of two with broadcasting."""

import math

import numpy as np


def source(i, shape):
    """Broadcasting: which element of an array of that shape stands at index i of the result."""
    i = tuple(i)[len(i) - len(shape) :]
    return tuple(0 if n == 1 else a for a, n in zip(i, shape, strict=True))


def each(function, *arrays):
    """y[i] = function(a[i], b[i], ...), the arrays broadcast."""
    arrays = [np.asarray(a) for a in arrays]
    y = np.zeros(np.broadcast_shapes(*(a.shape for a in arrays)))
    for i in np.ndindex(y.shape):
        y[i] = function(*(a[source(i, a.shape)].item() for a in arrays))
    return y


def collected(gy, shape):
    """The gradient of an input that broadcasting stretched: the sum over all places where it was used."""
    gx = np.zeros(shape)
    for i in np.ndindex(gy.shape):
        gx[source(i, shape)] += gy[i]
    return gx


def two(slope_a, slope_b, gy, a, b):
    """Gradients of both inputs, from the two partial derivatives as functions of (a, b)."""
    a, b = np.asarray(a), np.asarray(b)
    ga = each(lambda g, u, v: g * slope_a(u, v), gy, a, b)
    gb = each(lambda g, u, v: g * slope_b(u, v), gy, a, b)
    return collected(ga, a.shape), collected(gb, b.shape)


def add(a, b):
    return each(lambda u, v: u + v, a, b)


def add_backward(gy, a, b):
    return two(lambda u, v: 1, lambda u, v: 1, gy, a, b)


def sub(a, b):
    return each(lambda u, v: u - v, a, b)


def sub_backward(gy, a, b):
    return two(lambda u, v: 1, lambda u, v: -1, gy, a, b)


def mul(a, b):
    return each(lambda u, v: u * v, a, b)


def mul_backward(gy, a, b):
    return two(lambda u, v: v, lambda u, v: u, gy, a, b)


def div(a, b):
    return each(lambda u, v: u / v, a, b)


def div_backward(gy, a, b):
    return two(lambda u, v: 1 / v, lambda u, v: -u / v**2, gy, a, b)


def pow(a, b):
    return each(math.pow, a, b)


def pow_backward(gy, a, b):
    def to_base(u, v):
        if u == 0 and 0 < v < 1:
            return math.inf
        return 0 if v == 0 else v * math.pow(u, v - 1)

    def to_exponent(u, v):
        if u < 0:
            return math.nan  # a real power of a negative number exists for whole exponents only: there is no slope
        return 0 if u == 0 and v >= 0 else math.pow(u, v) * math.log(u)

    return two(to_base, to_exponent, gy, a, b)


def maximum(a, b):
    return each(lambda u, v: u if u > v or math.isnan(u) else v, a, b)


def maximum_backward(gy, a, b):
    return two(lambda u, v: wins(u, v, u > v), lambda u, v: wins(v, u, v > u), gy, a, b)


def minimum(a, b):
    return each(lambda u, v: u if u < v or math.isnan(u) else v, a, b)


def minimum_backward(gy, a, b):
    return two(lambda u, v: wins(u, v, u < v), lambda u, v: wins(v, u, v < u), gy, a, b)


def wins(mine, other, ahead):
    """Share of the gradient: all for the one ahead and for a NaN, half each for equals."""
    return 0.5 if mine == other else float(ahead or math.isnan(mine))


def where(condition, a, b):
    return each(lambda c, u, v: u if c else v, condition, a, b)


def where_backward(gy, condition, a, b):
    ga, gb = each(lambda c, g: g if c else 0, condition, gy), each(lambda c, g: 0 if c else g, condition, gy)
    return collected(ga, np.shape(a)), collected(gb, np.shape(b))


def neg(x):
    return each(lambda v: -v, x)


def neg_backward(gy, x):
    return (each(lambda g, v: -g, gy, x),)


def exp(x):
    return each(math.exp, x)


def exp_backward(gy, x):
    return (each(lambda g, v: g * math.exp(v), gy, x),)


def log(x):
    return each(math.log, x)


def log_backward(gy, x):
    return (each(lambda g, v: g / v, gy, x),)


def sqrt(x):
    return each(math.sqrt, x)


def sqrt_backward(gy, x):
    return (each(lambda g, v: g / (2 * math.sqrt(v)), gy, x),)


def tanh(x):
    return each(math.tanh, x)


def tanh_backward(gy, x):
    return (each(lambda g, v: g / math.cosh(v) ** 2, gy, x),)


def logistic(v):
    return 1 / (1 + math.exp(-v)) if v >= 0 else math.exp(v) / (1 + math.exp(v))


def sigmoid(x):
    return each(logistic, x)


def sigmoid_backward(gy, x):
    return (each(lambda g, v: g * logistic(v) * logistic(-v), gy, x),)


def relu(x):
    return each(lambda v: v if v > 0 or math.isnan(v) else 0, x)


def relu_backward(gy, x):
    return (each(lambda g, v: g if v > 0 or math.isnan(v) else 0, gy, x),)


def abs(x):
    return each(math.fabs, x)


def abs_backward(gy, x):
    return (each(lambda g, v: g * ((v > 0) - (v < 0)), gy, x),)


def clip(x, low=None, high=None):
    low, high = -math.inf if low is None else low, math.inf if high is None else high
    return each(lambda v: low if v < low else high if v > high else v, x)


def clip_backward(gy, x, low=None, high=None):
    low, high = -math.inf if low is None else low, math.inf if high is None else high
    return (each(lambda g, v: g if low <= v <= high else 0, gy, x),)
