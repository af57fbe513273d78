"""Pooling over sliding windows: the largest value, and the average. Derivations: docs/ops/pool.md."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any

from minnl import windows
from minnl.backend import Array
from minnl.engine import Op, Tensor, meta_array
from minnl.ops.arguments import tensor
from minnl.sums import chosen

NO_DILATION = (1, 1, 1)


class _Pool(Op):
    def __init__(self, kernel, stride, padding, dilation, ceil_mode):
        self.kernel, self.stride, self.dilation, self.ceil_mode = kernel, stride, dilation, ceil_mode
        self.pads = tuple((p, p) for p in padding)

    def sizes(self, shape):
        return windows.out_sizes(
            self.name, shape[1:4], self.kernel, self.stride, self.dilation, self.pads, self.ceil_mode
        )

    def window_pads(self, shape):
        """Pads within which every window lies (with ceil_mode the last may hang over the end)."""
        return windows.covering(shape[1:4], self.kernel, self.stride, self.dilation, self.pads, self.sizes(shape))

    def views(self, big, sizes):
        """For each tap of the window, in row-major order, its view of the padded array."""
        return (windows.view(big, tap, self.stride, self.dilation, sizes) for tap in windows.taps(self.kernel))

    def infer_shape(self, x):
        return (x.shape[0], *self.sizes(x.shape), x.shape[4])


class MaxPool3d(_Pool):
    r"""Largest value of each window.

    .. math:: y_p = \max_k x_{sp+dk}, \qquad \bar x_q = \sum_{(p,k):\,sp+dk=q} \bar y_p\,[k = k^*_p]

    :math:`k^*_p` is the first largest tap in row-major order that lies on the input; NaN wins its window.
    Where windows overlap an input can win several times and gets the sum.

    Shapes: x (N, T, H, W, C) -> y (N, T', H', W', C). Keeps the argmax of each window, one byte an output.
    """

    public_name = "max_pool3d"
    saved_for_backward = ("argmax",)

    def forward(self, x):
        xp, sizes = self.xp, self.sizes(x.shape)
        self.shape = x.shape
        big = windows.padded(xp, x, self.window_pads(x.shape), -math.inf)
        y = xp.full((x.shape[0], *sizes, x.shape[4]), -math.inf, dtype=x.dtype)
        self.argmax = xp.empty(y.shape, dtype=xp.uint8)
        self.argmax[...] = self.first_on_input(sizes)
        for tap, window in enumerate(self.views(big, sizes)):
            better = (window > y) | (window != window)
            y = xp.where(better, window, y)
            self.argmax = xp.where(better, xp.uint8(tap), self.argmax)
        return y

    def backward(self, gy):
        window_pads = self.window_pads(self.shape)
        big = windows.padded(self.xp, self.xp.zeros(self.shape, dtype=gy.dtype), window_pads)
        for tap, window in enumerate(self.views(big, gy.shape[1:4])):
            window += chosen(gy, self.argmax == tap)
        return (self.xp.ascontiguousarray(windows.inner(big, window_pads, self.shape)),)

    def first_on_input(self, sizes):
        """The first tap of each window that is not on padding: it wins where all are -infinity. (T', H', W', 1)"""
        firsts = []
        for n, k, s, d, (before, _) in zip(sizes, self.kernel, self.stride, self.dilation, self.pads, strict=True):
            start = self.xp.arange(n) * s - before  # where tap 0 lies
            firsts.append(self.xp.clip(-(start // d), 0, k - 1))
        t, h, w = firsts
        tap = (t[:, None, None] * self.kernel[1] + h[:, None]) * self.kernel[2] + w
        return tap[..., None].astype(self.xp.uint8)

    def infer(self, x):
        self.shape = x.shape
        y = meta_array(self.infer_shape(x), x.dtype)
        self.argmax = meta_array(y.shape, self.xp.uint8)
        return y


class AvgPool3d(_Pool):
    r"""Average of each window.

    .. math:: y_p = \frac1{n_p}\sum_k x_{sp+k}, \qquad \bar x_q = \sum_{(p,k):\,sp+k=q} \bar y_p / n_p

    :math:`n_p` counts the taps of window p on the input, and with `count_include_pad` those on padding too (but none
    beyond it, where ceil_mode lets a window hang over); `divisor_override` replaces it.

    Shapes: x (N, T, H, W, C) -> y (N, T', H', W', C). Keeps nothing.
    """

    public_name = "avg_pool3d"

    def __init__(self, kernel, stride, padding, ceil_mode, count_include_pad, divisor_override):
        super().__init__(kernel, stride, padding, NO_DILATION, ceil_mode)
        self.count_include_pad, self.divisor_override = count_include_pad, divisor_override

    def forward(self, x):
        self.shape = x.shape
        sizes = self.sizes(x.shape)
        big = windows.padded(self.xp, x, self.window_pads(x.shape))
        y = self.xp.zeros((x.shape[0], *sizes, x.shape[4]), dtype="float64")  # a window may have very many taps
        for window in self.views(big, sizes):
            y += window
        y /= self.divisor(sizes, y.dtype)
        return y.astype(x.dtype)

    def backward(self, gy):
        window_pads = self.window_pads(self.shape)
        big = windows.padded(self.xp, self.xp.zeros(self.shape, dtype=gy.dtype), window_pads)
        share = gy / self.divisor(gy.shape[1:4], gy.dtype)
        for window in self.views(big, gy.shape[1:4]):
            window += share
        return (self.xp.ascontiguousarray(windows.inner(big, window_pads, self.shape)),)

    def divisor(self, sizes, dtype):
        """n_p for every window, shape (T', H', W', 1); or the one number that replaces it."""
        if self.divisor_override is not None:
            return self.divisor_override
        counts = []
        axes = zip(sizes, self.shape[1:4], self.kernel, self.stride, self.pads, strict=True)
        for m, n, k, s, (before, after) in axes:
            start = self.xp.arange(m) * s - before
            low, high = (-before, n + after) if self.count_include_pad else (0, n)
            counts.append(self.xp.clip(start + k, low, high) - self.xp.clip(start, low, high))
        t, h, w = counts
        return (t[:, None, None] * h[:, None] * w)[..., None].astype(dtype)

    def infer(self, x):
        self.shape = x.shape
        return meta_array(self.infer_shape(x), x.dtype)


def max_pool3d(
    x: Tensor | Array, kernel_size: int | Sequence[int], stride: int | Sequence[int] | None = None,
    padding: int | Sequence[int] = 0, dilation: int | Sequence[int] = 1, ceil_mode: bool = False,
) -> Tensor:  # fmt: skip
    """Largest value of each window.

    Parameters
    ----------
    x : Tensor of shape (N, T, H, W, C)
    kernel_size : int or three (T, H, W); at most 255 taps in all
    stride : int or three, the kernel_size if None
    padding : int or three, at most half the kernel_size; padding never wins
    dilation : int or three
    ceil_mode : bool
        Whether a last window may hang over the end (it must start on the input or the padding before it).

    Raises
    ------
    ValueError
        A window of more than 255 taps or larger than the padded input; arguments out of range.

    Notes
    -----
    Formula and derivation: :class:`MaxPool3d` and docs/ops/pool.md.
    """
    x, kernel, stride, padding = _checked("max_pool3d", x, kernel_size, stride, padding)
    if math.prod(kernel) > 255:
        raise ValueError(f"max_pool3d: kernel_size {kernel} has {math.prod(kernel)} taps, 255 at most")
    dilation = windows.triple("max_pool3d", "dilation", dilation)
    op = MaxPool3d(kernel, stride, padding, dilation, bool(ceil_mode))
    op.sizes(x.shape)
    return op(x)


def avg_pool3d(
    x: Tensor | Array, kernel_size: int | Sequence[int], stride: int | Sequence[int] | None = None,
    padding: int | Sequence[int] = 0, ceil_mode: bool = False, count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor:  # fmt: skip
    """Average of each window.

    Parameters
    ----------
    x : Tensor of shape (N, T, H, W, C)
    kernel_size, stride, padding, ceil_mode : as in :func:`max_pool3d`
    count_include_pad : bool
        Whether the zeros of the padding count in the average.
    divisor_override : int or None
        Divide every window by this instead of by its count.

    Notes
    -----
    Formula and derivation: :class:`AvgPool3d` and docs/ops/pool.md.
    """
    x, kernel, stride, padding = _checked("avg_pool3d", x, kernel_size, stride, padding)
    if divisor_override is not None:
        try:
            divisor_override = operator.index(divisor_override)
        except TypeError:
            raise TypeError(f"avg_pool3d: divisor_override must be an int, got {divisor_override!r}") from None
        if divisor_override == 0:
            raise ValueError("avg_pool3d: divisor_override must not be 0")
    op = AvgPool3d(kernel, stride, padding, bool(ceil_mode), bool(count_include_pad), divisor_override)
    op.sizes(x.shape)
    return op(x)


def _checked(op: str, x: Any, kernel_size: Any, stride: Any, padding: Any) -> tuple[Tensor, Any, Any, Any]:
    x = tensor(op, "x", x, 5, "(N, T, H, W, C)")
    kernel = windows.triple(op, "kernel_size", kernel_size)
    stride = kernel if stride is None else windows.triple(op, "stride", stride)
    padding = windows.triple(op, "padding", padding, least=0)
    if any(2 * p > k for p, k in zip(padding, kernel, strict=True)):
        raise ValueError(f"{op}: padding must be at most half the kernel_size {kernel}, got {padding}")
    return x, kernel, stride, padding
