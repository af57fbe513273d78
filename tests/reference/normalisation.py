"""Batch normalisation, with the statistics of the batch or with given ones, and the affine map of channels."""

import math

import numpy as np


def statistics(column):
    """Mean and variance (divided by n) of a list of numbers."""
    mean = sum(column) / len(column)
    return mean, sum((value - mean) ** 2 for value in column) / len(column)


def batch_norm(
    x, running_mean, running_var, weight=None, bias=None, training=False, momentum=0.1, eps=1e-5, relu=False,
    residual=None,
):  # fmt: skip
    """y = weight * (x - mean) / sqrt(var + eps) + bias, channel by channel; training moves the running statistics."""
    y = np.zeros(x.shape)
    positions = list(np.ndindex(x.shape[:-1]))
    n = len(positions)
    for c in range(x.shape[-1]):
        if training:
            mean, var = statistics([x[i][c] for i in positions])
            if running_mean is not None:
                running_mean[c] = (1 - momentum) * running_mean[c] + momentum * mean
                running_var[c] = (1 - momentum) * running_var[c] + momentum * var * n / (n - 1)
        else:
            mean, var = running_mean[c], running_var[c]
        for i in positions:
            normed = (x[i][c] - mean) / math.sqrt(var + eps)
            z = (1 if weight is None else weight[c]) * normed + (0 if bias is None else bias[c])
            z += 0 if residual is None else residual[i][c]
            y[i][c] = max(z, 0) if relu else z
    return y


def batch_norm_backward(
    gy, x, running_mean, running_var, weight=None, bias=None, training=False, momentum=0.1, eps=1e-5, relu=False,
    residual=None,
):  # fmt: skip
    """gx[i] = the sum over all outputs j of gz[j] * dz[j]/dx[i], with the whole matrix of derivatives."""
    gx, gz, gweight, gbias = np.zeros(x.shape), gy.copy(), np.zeros(x.shape[-1]), np.zeros(x.shape[-1])
    positions = list(np.ndindex(x.shape[:-1]))
    n = len(positions)
    for c in range(x.shape[-1]):
        mean, var = statistics([x[i][c] for i in positions]) if training else (running_mean[c], running_var[c])
        r = 1 / math.sqrt(var + eps)
        normed = {i: (x[i][c] - mean) * r for i in positions}
        gamma, beta = (1 if weight is None else weight[c]), (0 if bias is None else bias[c])
        for i in positions:
            if relu and gamma * normed[i] + beta + (0 if residual is None else residual[i][c]) <= 0:
                gz[i][c] = 0
        for i in positions:
            for j in positions:
                slope = r * (i == j)
                if training:  # x[i] moves the mean and the variance that every j is measured with
                    slope -= r * (1 + normed[i] * normed[j]) / n
                gx[i][c] += gz[j][c] * gamma * slope
            gweight[c] += gz[i][c] * normed[i]
            gbias[c] += gz[i][c]
    optional = ((weight, gweight), (bias, gbias), (residual, gz))
    return (gx, *(g for value, g in optional if value is not None))


def frozen_batch_norm(x, running_mean, running_var, weight=None, bias=None, eps=1e-5, relu=False, residual=None):
    return batch_norm(x, running_mean, running_var, weight, bias, False, 0, eps, relu, residual)


def frozen_batch_norm_backward(
    gy, x, running_mean, running_var, weight=None, bias=None, eps=1e-5, relu=False, residual=None
):
    return batch_norm_backward(gy, x, running_mean, running_var, weight, bias, False, 0, eps, relu, residual)


def affine(x, scale, shift):
    y = np.zeros(x.shape)
    for *i, c in np.ndindex(x.shape):
        y[(*i, c)] = scale[c] * x[(*i, c)] + shift[c]
    return y


def affine_backward(gy, x, scale, shift):
    gx, gscale, gshift = np.zeros(x.shape), np.zeros(scale.shape), np.zeros(shift.shape)
    for *i, c in np.ndindex(x.shape):
        gx[(*i, c)] = gy[(*i, c)] * scale[c]
        gscale[c] += gy[(*i, c)] * x[(*i, c)]
        gshift[c] += gy[(*i, c)]
    return gx, gscale, gshift
