"""Softmax and its logarithm, along one axis."""

import math

import numpy as np


def along(axis, x):
    """Every line of x along an axis, as a list of indices."""
    rest = x.shape[: axis % x.ndim] + (1,) + x.shape[axis % x.ndim + 1 :]
    for i in np.ndindex(rest):
        yield [(*i[: axis % x.ndim], a, *i[axis % x.ndim + 1 :]) for a in range(x.shape[axis])]


def probabilities(logits):
    """exp(x[i]) / sum of exp(x[j]). Taking the largest off all logits changes nothing, but nothing overflows."""
    top = max(logits)
    powers = [math.exp(v - top) for v in logits]
    return [power / sum(powers) for power in powers]


def softmax(x, axis=-1):
    y = np.zeros(x.shape)
    for line in along(axis, x):
        for i, p in zip(line, probabilities([x[i] for i in line]), strict=True):
            y[i] = p
    return y


def softmax_backward(gy, x, axis=-1):
    """gx[i] = the sum over j of gy[j] * dp[j]/dx[i], and dp[j]/dx[i] = p[j] * ([i = j] - p[i])."""
    gx = np.zeros(x.shape)
    for line in along(axis, x):
        p = probabilities([x[i] for i in line])
        for a, i in enumerate(line):
            for b, j in enumerate(line):
                gx[i] += gy[j] * p[b] * ((a == b) - p[a])
    return (gx,)


def log_probabilities(logits):
    top = max(logits)
    log_sum = top + math.log(sum(math.exp(v - top) for v in logits))
    return [v - log_sum for v in logits]


def log_softmax(x, axis=-1):
    y = np.zeros(x.shape)
    for line in along(axis, x):
        for i, log_p in zip(line, log_probabilities([x[i] for i in line]), strict=True):
            y[i] = log_p
    return y


def log_softmax_backward(gy, x, axis=-1):
    """gx[i] = the sum over j of gy[j] * ([i = j] - p[i])."""
    gx = np.zeros(x.shape)
    for line in along(axis, x):
        p = probabilities([x[i] for i in line])
        for a, i in enumerate(line):
            for b, j in enumerate(line):
                gx[i] += gy[j] * ((a == b) - p[a])
    return (gx,)
