"""Sliding windows, and convolution on them."""

import itertools

import numpy as np


def triple(value):
    return tuple(value) if isinstance(value, (tuple, list)) else (value,) * 3


def paddings(padding, kernel, dilation):
    """Zeros (before, after) along each axis."""
    if padding == "valid":
        return [(0, 0)] * 3
    if padding == "same":
        totals = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
        return [(total // 2, total - total // 2) for total in totals]
    return [(p, p) for p in triple(padding)]


def starts(n, k, s, d, before, after, ceil_mode=False):
    """Where the windows start along an axis of n positions: every s-th place from which the window still fits."""
    found = [start for start in range(-before, n + after, s) if start + d * (k - 1) < n + after]
    overlooked = found[-1] + d * (k - 1) < n + after - 1  # something behind the last window that no window reaches
    if ceil_mode and overlooked and found[-1] + s < n:
        found.append(found[-1] + s)
    return found


def windows(sizes, kernel, stride, padding, dilation=1, ceil_mode=False):
    """Each output position p with its window: a list of (tap, q), the taps that lie on the input, and where."""
    kernel, stride, dilation = triple(kernel), triple(stride), triple(dilation)
    pads = paddings(padding, kernel, dilation)
    axes = [
        list(enumerate(starts(n, k, s, d, *pad, ceil_mode)))
        for n, k, s, d, pad in zip(sizes, kernel, stride, dilation, pads, strict=True)
    ]
    for places in itertools.product(*axes):
        p, start = zip(*places, strict=True)
        window = []
        for tap in np.ndindex(kernel):
            q = tuple(a + d * j for a, d, j in zip(start, dilation, tap, strict=True))
            if all(0 <= a < n for a, n in zip(q, sizes, strict=True)):
                window.append((tap, q))
        yield p, window


def out_sizes(sizes, kernel, stride, padding, dilation=1, ceil_mode=False):
    *_, (last, _) = windows(sizes, kernel, stride, padding, dilation, ceil_mode)
    return tuple(i + 1 for i in last)


def channel_pairs(weight, groups):
    """Every (c, k, row): input channel c feeds output channel k through row `row` of the weight's matrices."""
    rows, columns = weight.shape[3], weight.shape[4] // groups
    for group, row, column in np.ndindex(groups, rows, columns):
        yield group * rows + row, group * columns + column, row


def conv3d(x, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    """y[p, k] = bias[k] + the sum of x[q, c] * weight[tap, c, k] over the window of p and the channels."""
    sizes = out_sizes(x.shape[1:4], weight.shape[:3], stride, padding, dilation)
    y = np.zeros((len(x), *sizes, weight.shape[4]))
    for p, window in windows(x.shape[1:4], weight.shape[:3], stride, padding, dilation):
        for n in range(len(x)):
            for tap, q in window:
                for c, k, row in channel_pairs(weight, groups):
                    y[n][p][k] += x[n][q][c] * weight[tap][row, k]
            for k in range(weight.shape[4]):
                y[n][p][k] += 0 if bias is None else bias[k]
    return y


def conv3d_backward(gy, x, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    """Every product x * weight that forward added to a y hands gy * weight to its x, and gy * x to its weight."""
    gx, gw, gb = np.zeros(x.shape), np.zeros(weight.shape), np.zeros(weight.shape[4])
    for p, window in windows(x.shape[1:4], weight.shape[:3], stride, padding, dilation):
        for n in range(len(x)):
            for tap, q in window:
                for c, k, row in channel_pairs(weight, groups):
                    gx[n][q][c] += gy[n][p][k] * weight[tap][row, k]
                    gw[tap][row, k] += gy[n][p][k] * x[n][q][c]
            for k in range(weight.shape[4]):
                gb[k] += gy[n][p][k]
    return (gx, gw) if bias is None else (gx, gw, gb)
