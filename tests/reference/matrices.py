"""Matrix products."""

import numpy as np

from tests.reference.elementwise import source


def linear(x, weight, bias=None):
    """y[i, o] = bias[o] + the sum over c of x[i, c] * weight[c, o]."""
    y = np.zeros((*x.shape[:-1], weight.shape[1]))
    for i in np.ndindex(x.shape[:-1]):
        for c, o in np.ndindex(weight.shape):
            y[i][o] += x[i][c] * weight[c, o]
        for o in range(weight.shape[1]):
            y[i][o] += 0 if bias is None else bias[o]
    return y


def linear_backward(gy, x, weight, bias=None):
    """Each product x * weight hands gy * weight to its x and gy * x to its weight."""
    gx, gweight, gbias = np.zeros(x.shape), np.zeros(weight.shape), np.zeros(weight.shape[1])
    for i in np.ndindex(x.shape[:-1]):
        for c, o in np.ndindex(weight.shape):
            gx[i][c] += gy[i][o] * weight[c, o]
            gweight[c, o] += gy[i][o] * x[i][c]
        for o in range(weight.shape[1]):
            gbias[o] += gy[i][o]
    return (gx, gweight) if bias is None else (gx, gweight, gbias)


def matmul(a, b):
    """y[n, i, j] = the sum over k of a[n, i, k] * b[n, k, j]; n is a position of the batches, broadcast."""
    batch = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    y = np.zeros((*batch, a.shape[-2], b.shape[-1]))
    for *n, i, j in np.ndindex(y.shape):
        left, right = a[source(n, a.shape[:-2])], b[source(n, b.shape[:-2])]
        y[(*n, i, j)] = sum(left[i, k] * right[k, j] for k in range(a.shape[-1]))
    return y


def matmul_backward(gy, a, b):
    """A matrix that broadcasting used for several n collects the gradients of all of them."""
    ga, gb = np.zeros(a.shape), np.zeros(b.shape)
    for *n, i, j in np.ndindex(gy.shape):
        left, right = source(n, a.shape[:-2]), source(n, b.shape[:-2])
        for k in range(a.shape[-1]):
            ga[left][i, k] += gy[(*n, i, j)] * b[right][k, j]
            gb[right][k, j] += gy[(*n, i, j)] * a[left][i, k]
    return ga, gb
