"""Convolution as GEMM over blocks of columns: docs/kernels/conv_columns.md.

A row of the column matrix is one window, unrolled: taps * C numbers. As a whole the matrix would be `taps` times the
input (27 times for 3x3x3); here a block of it, small enough for the cache, is gathered, multiplied and forgotten.
Work is cut into slabs, runs of samples or of frames, each of which a thread pads for itself.
"""

from __future__ import annotations

import math

import numpy as np

from minnl.kernels import threads
from minnl.kernels.cpu.kernel import Float32Kernel

BLOCK_ELEMENTS = 192 * 1024  # of the column matrix at once: 768 KB, so that it stays in a 1 MB cache with its product


class ColumnConv3d(Float32Kernel):
    """The kernel for float32 on NumPy without groups; the textbook body does the rest."""

    @staticmethod
    def suits(op, arrays):
        return Float32Kernel.suits(op, arrays) and op.groups == 1 and arrays[0].size > 0

    @staticmethod
    def forward(op, x, weight, bias=None):
        op.x, op.weight = x, weight
        y = np.empty(op.out_shape(x, weight), x.dtype)
        correlate(x, weight, y, op.stride, op.pads, op.dilation, bias)
        return y

    @staticmethod
    def backward(op, gy):
        gy = np.ascontiguousarray(gy)
        gx = input_gradient(op, gy) if op.needs[0] else None
        gw = weight_gradient(op, gy) if op.needs[1] else None
        gb = (np.ones(gy.size // gy.shape[-1], gy.dtype) @ gy.reshape(-1, gy.shape[-1]),) if len(op.needs) == 3 else ()
        return gx, gw, *gb


def correlate(x, weight, y, stride, pads, dilation, bias=None):
    """y = windows of x times weight (+ bias), into y (N, T', H', W', K)."""
    kernel, w = weight.shape[:3], weight.reshape(-1, weight.shape[4])

    def one(slab):
        samples, frames = slab
        view = window_view(
            padded_slab(x, kernel, stride, pads, dilation, slab), kernel, stride, dilation, y[slab].shape
        )
        out = y[samples, frames]
        for block in blocks(view.shape):
            rows = out[block].reshape(-1, out.shape[-1])  # a view: blocks are runs of whole rows of a slab
            np.matmul(columns(view[block]), w, out=rows)
            if bias is not None:
                rows += bias

    threads.run(one, slabs(y.shape))


def weight_gradient(op, gy):
    """Sum over blocks of columns^T times gy; each slab sums for itself, and the sums are added in the slabs' order."""
    x, weight = op.x, op.weight
    kernel = weight.shape[:3]

    def one(slab):
        total = np.zeros((math.prod(weight.shape[:4]), weight.shape[4]), gy.dtype)
        part = gy[slab]
        view = window_view(
            padded_slab(x, kernel, op.stride, op.pads, op.dilation, slab), kernel, op.stride, op.dilation, part.shape
        )
        for block in blocks(view.shape):
            total += columns(view[block]).T @ part[block].reshape(-1, gy.shape[-1])
        return total

    return sum(threads.run(one, slabs(gy.shape))).reshape(weight.shape)


def input_gradient(op, gy):
    """Stride 1: gy correlated with the mirrored, transposed weight. Else columns of gradients, added tap by tap."""
    reach = [d * (k - 1) for d, k in zip(op.dilation, op.weight.shape[:3], strict=True)]
    if op.stride == (1, 1, 1) and all(p <= r for r, pair in zip(reach, op.pads, strict=True) for p in pair):
        mirrored = np.ascontiguousarray(op.weight[::-1, ::-1, ::-1].swapaxes(3, 4))
        pads = [(r - before, r - after) for r, (before, after) in zip(reach, op.pads, strict=True)]
        gx = np.empty_like(op.x, order="C")
        correlate(gy, mirrored, gx, op.stride, pads, op.dilation)
        return gx
    return scattered(op, gy)


def scattered(op, gy):
    """Input gradient for any stride: within a slab of samples each tap adds to its own strided view."""
    kernel, channels = op.weight.shape[:3], op.weight.shape[3]
    w = np.ascontiguousarray(op.weight.reshape(-1, op.weight.shape[4]).T)
    gx = np.empty(op.x.shape, gy.dtype)
    sizes = [n + sum(p) for n, p in zip(op.x.shape[1:4], op.pads, strict=True)]
    inside = tuple(slice(p, p + n) for (p, _), n in zip(op.pads, op.x.shape[1:4], strict=True))

    def one(samples):
        big = np.zeros((samples.stop - samples.start, *sizes, channels), gy.dtype)
        part = gy[samples]
        view = window_view(big, kernel, op.stride, op.dilation, part.shape)
        for block in blocks(view.shape):
            gcols = (part[block].reshape(-1, part.shape[-1]) @ w).reshape(view[block].shape)
            for tap in np.ndindex(*kernel):
                view[block][(..., *tap, slice(None))] += gcols[(..., *tap, slice(None))]
        gx[samples] = big[(slice(None), *inside)]

    threads.run(one, threads.shares(gy.shape[0], most=64))
    return gx


def slabs(shape):
    """(samples, frames) slices that cut an output (N, T', H', W', K): by samples, and by frames if those are few."""
    if shape[0] >= 4:
        return [(samples, slice(0, shape[1])) for samples in threads.shares(shape[0], most=16)]
    return [(slice(n, n + 1), frames) for n in range(shape[0]) for frames in threads.shares(shape[1], most=8)]


def padded_slab(x, kernel, stride, pads, dilation, slab):
    """The part of the padded input that the windows of a slab of outputs see: (n, frames, Hp, Wp, C)."""
    samples, frames = slab
    first = frames.start * stride[0] - pads[0][0]
    last = (frames.stop - 1) * stride[0] - pads[0][0] + dilation[0] * (kernel[0] - 1) + 1
    low = max(first, 0)
    high = max(min(last, x.shape[1]), low)  # a slab may lie on padding alone
    if (low, high) == (first, last) and not any(map(any, pads[1:])):
        return x[samples, low:high]
    (top, bottom), (left, right) = pads[1:]
    height, width = x.shape[2:4]
    big = np.zeros(
        (samples.stop - samples.start, last - first, top + height + bottom, left + width + right, x.shape[4]), x.dtype
    )
    big[:, low - first : high - first, top : top + height, left : left + width] = x[samples, low:high]
    return big


def window_view(big, kernel, stride, dilation, out_shape):
    """All windows of a padded slab without copying: (n, T', H', W', kT, kH, kW, C)."""
    st = big.strides
    steps = [s * stride for s, stride in zip(st[1:4], stride, strict=True)]
    inner = [s * d for s, d in zip(st[1:4], dilation, strict=True)]
    shape = (big.shape[0], *out_shape[1:4], *kernel, big.shape[4])
    return np.lib.stride_tricks.as_strided(big, shape, (st[0], *steps, *inner, st[4]))


def blocks(shape):
    """Index tuples that cut windows (n, T', H', W', …) into runs of rows whose columns fit the cache."""
    n, t, h, w = shape[:4]
    rows = max(1, BLOCK_ELEMENTS // math.prod(shape[4:]))
    if rows >= t * h * w:
        step = rows // (t * h * w)
        return [(slice(i, i + step),) for i in range(0, n, step)]
    if rows >= h * w:
        step = rows // (h * w)
        return [(i, slice(j, j + step)) for i in range(n) for j in range(0, t, step)]
    step = max(1, rows // w)
    return [(i, j, slice(k, k + step)) for i in range(n) for j in range(t) for k in range(0, h, step)]


def columns(windows):
    """Windows (…, kT, kH, kW, C) as rows of a matrix: gathered, or a view where nothing needs moving."""
    return windows.reshape(-1, math.prod(windows.shape[-4:]))
