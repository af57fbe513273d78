"""Pooling: over sliding windows, and to a given size."""

import math

import numpy as np

from tests.reference.convolution import out_sizes, paddings, triple, windows


def largest(values):
    """Which of several values is the maximum: the first of equal ones; a NaN beats everything before it."""
    best = 0
    for i, value in enumerate(values):
        if value > values[best] or math.isnan(value):
            best = i
    return best


def max_pool3d(x, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False):
    """y[p] = the largest x[q] in the window of p."""
    stride = kernel_size if stride is None else stride
    y = np.zeros((len(x), *out_sizes(x.shape[1:4], kernel_size, stride, padding, dilation, ceil_mode), x.shape[4]))
    for p, window in windows(x.shape[1:4], kernel_size, stride, padding, dilation, ceil_mode):
        for n, c in np.ndindex(len(x), x.shape[4]):
            values = [x[n][q][c] for _, q in window]
            y[n][p][c] = values[largest(values)]
    return y


def max_pool3d_backward(gy, x, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False):
    """gx[q] = the sum of gy[p] over the windows p that q won."""
    stride = kernel_size if stride is None else stride
    gx = np.zeros(x.shape)
    for p, window in windows(x.shape[1:4], kernel_size, stride, padding, dilation, ceil_mode):
        for n, c in np.ndindex(len(x), x.shape[4]):
            _, winner = window[largest([x[n][q][c] for _, q in window])]
            gx[n][winner][c] += gy[n][p][c]
    return (gx,)


def divisors(sizes, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override):
    """What the sum over each window is divided by: {p: number of taps that count}."""
    kernel, stride, counts = triple(kernel_size), triple(stride), {}
    pads = paddings(padding, kernel, (1, 1, 1)) if count_include_pad else [(0, 0)] * 3
    for p, _ in windows(sizes, kernel, stride, padding, 1, ceil_mode):
        count = 1
        for i, n, k, s, pad, (before, after) in zip(p, sizes, kernel, stride, triple(padding), pads, strict=True):
            start = s * i - pad
            count *= sum(-before <= q < n + after for q in range(start, start + k))
        counts[p] = count if divisor_override is None else divisor_override
    return counts


def avg_pool3d(
    x, kernel_size, stride=None, padding=0, ceil_mode=False, count_include_pad=True, divisor_override=None
):  # fmt: skip
    """y[p] = the sum of x[q] over the window of p, divided by its number of taps."""
    sizes, stride = x.shape[1:4], kernel_size if stride is None else stride
    count = divisors(sizes, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override)
    y = np.zeros((len(x), *out_sizes(sizes, kernel_size, stride, padding, 1, ceil_mode), x.shape[4]))
    for p, window in windows(sizes, kernel_size, stride, padding, 1, ceil_mode):
        for _, q in window:
            for n, c in np.ndindex(len(x), x.shape[4]):
                y[n][p][c] += x[n][q][c] / count[p]
    return y


def avg_pool3d_backward(
    gy, x, kernel_size, stride=None, padding=0, ceil_mode=False, count_include_pad=True, divisor_override=None
):  # fmt: skip
    """gx[q] = the sum of gy[p] / count[p] over the windows p that q lies in."""
    sizes, stride = x.shape[1:4], kernel_size if stride is None else stride
    count = divisors(sizes, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override)
    gx = np.zeros(x.shape)
    for p, window in windows(sizes, kernel_size, stride, padding, 1, ceil_mode):
        for _, q in window:
            for n, c in np.ndindex(len(x), x.shape[4]):
                gx[n][q][c] += gy[n][p][c] / count[p]
    return (gx,)


def cells(sizes, output_size):
    """Each output position with the input positions of its cell: floor(i*n/m) up to ceil((i+1)*n/m)."""
    output_size = triple(output_size)
    for p in np.ndindex(output_size):
        low = [math.floor(i * n / m) for i, n, m in zip(p, sizes, output_size, strict=True)]
        high = [math.ceil((i + 1) * n / m) for i, n, m in zip(p, sizes, output_size, strict=True)]
        inside = np.ndindex(*(b - a for a, b in zip(low, high, strict=True)))
        yield p, [tuple(a + i for a, i in zip(low, offset, strict=True)) for offset in inside]


def adaptive_avg_pool3d(x, output_size):
    """y[p] = the mean of the cell of p."""
    y = np.zeros((len(x), *triple(output_size), x.shape[4]))
    for p, cell in cells(x.shape[1:4], output_size):
        for n, c in np.ndindex(len(x), x.shape[4]):
            y[n][p][c] = sum(x[n][q][c] for q in cell) / len(cell)
    return y


def adaptive_avg_pool3d_backward(gy, x, output_size):
    """gx[q] = the sum of gy[p] / size of the cell, over the cells that q lies in."""
    gx = np.zeros(x.shape)
    for p, cell in cells(x.shape[1:4], output_size):
        for n, c in np.ndindex(len(x), x.shape[4]):
            for q in cell:
                gx[n][q][c] += gy[n][p][c] / len(cell)
    return (gx,)


def adaptive_max_pool3d(x, output_size):
    """y[p] = the largest of the cell of p."""
    y = np.zeros((len(x), *triple(output_size), x.shape[4]))
    for p, cell in cells(x.shape[1:4], output_size):
        for n, c in np.ndindex(len(x), x.shape[4]):
            y[n][p][c] = x[n][cell[largest([x[n][q][c] for q in cell])]][c]
    return y


def adaptive_max_pool3d_backward(gy, x, output_size):
    """gx[q] = the sum of gy[p] over the cells p that q won."""
    gx = np.zeros(x.shape)
    for p, cell in cells(x.shape[1:4], output_size):
        for n, c in np.ndindex(len(x), x.shape[4]):
            gx[n][cell[largest([x[n][q][c] for q in cell])]][c] += gy[n][p][c]
    return (gx,)
