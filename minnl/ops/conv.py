"""3D convolution, once, as the formula reads. Derivation: docs/ops/conv3d.md."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from minnl import checks, windows
from minnl.backend import Array
from minnl.engine import Op, Tensor, meta_array
from minnl.ops.arguments import layout, tensor
from minnl.sums import total


class Conv3d(Op):
    r"""Weighted sum over the taps of a window that slides over space and time.

    .. math::
        y_p = b + \sum_k x_{sp + dk}\, W_k, \qquad
        \bar x_q = \sum_{(p,k):\, sp+dk=q} \bar y_p\, W_k^\top, \qquad
        \bar W_k = \sum_p x_{sp+dk}^\top\, \bar y_p, \qquad
        \bar b = \sum_p \bar y_p

    p runs over output positions, k over taps, q over positions of the padded input; :math:`x_q` is a row of C
    channels and :math:`W_k` a matrix C x K, so each tap is one matrix product. With groups the channels are cut into
    equal parts and each part has matrices of its own.

    Shapes: x (N, T, H, W, C), weight (kT, kH, kW, C // groups, K), bias (K,) -> y (N, T', H', W', K),
    T' = (T + 2p - d(k - 1) - 1) // s + 1. Keeps x and weight.
    """

    public_name = "conv3d"
    saved_for_backward = ("x", "weight")

    def __init__(self, stride, pads, dilation, groups):
        self.stride, self.pads, self.dilation, self.groups = stride, pads, dilation, groups

    def forward(self, x, weight, bias=None):
        self.x, self.weight = x, weight
        y = self.xp.zeros(self.out_shape(x, weight), dtype=x.dtype)
        xp = windows.padded(self.xp, x, self.pads)
        for tap in windows.taps(weight.shape[:3]):
            window = self.tap_view(xp, tap, y)
            for c, k in self.group_slices(x, weight):
                y[..., k] += (rows(window[..., c]) @ weight[tap][:, k]).reshape(y[..., k].shape)
        return y if bias is None else y + bias

    def backward(self, gy):
        gx = self.input_gradient(gy) if self.needs[0] else None
        gw = self.weight_gradient(gy) if self.needs[1] else None
        gb = (total(rows(gy), 0),) if len(self.needs) == 3 else ()
        return gx, gw, *gb

    def input_gradient(self, gy):
        x, weight = self.x, self.weight
        gxp = windows.padded(self.xp, self.xp.zeros_like(x), self.pads)
        for tap in windows.taps(weight.shape[:3]):
            window = self.tap_view(gxp, tap, gy)
            for c, k in self.group_slices(x, weight):
                window[..., c] += (rows(gy[..., k]) @ weight[tap][:, k].T).reshape(window[..., c].shape)
        return self.xp.ascontiguousarray(windows.inner(gxp, self.pads, x.shape))

    def weight_gradient(self, gy):
        x, gw = self.x, self.xp.empty_like(self.weight)
        xp = windows.padded(self.xp, x, self.pads)
        for tap in windows.taps(gw.shape[:3]):
            window = self.tap_view(xp, tap, gy)
            for c, k in self.group_slices(x, gw):
                gw[tap][:, k] = rows(window[..., c]).T @ rows(gy[..., k])
        return gw

    def tap_view(self, padded, tap, y):
        """What a tap sees of the padded input, for all windows at once: (N, T', H', W', C)."""
        return windows.view(padded, tap, self.stride, self.dilation, y.shape[1:4])

    def group_slices(self, x, weight):
        """For each group its input channels and its output channels, as slices."""
        c, k = weight.shape[3], weight.shape[4] // self.groups
        return [(slice(g * c, (g + 1) * c), slice(g * k, (g + 1) * k)) for g in range(self.groups)]

    def out_shape(self, x, weight):
        sizes = windows.out_sizes(self.name, x.shape[1:4], weight.shape[:3], self.stride, self.dilation, self.pads)
        return (x.shape[0], *sizes, weight.shape[4])

    def infer(self, x, weight, bias=None):
        self.x, self.weight = x, weight
        y = meta_array(self.out_shape(x, weight), x.dtype)
        self.multiply_adds = y.size * math.prod(weight.shape[:4])
        return y


def rows(x):
    """Positions as rows, channels as columns: (N, T, H, W, C) -> (N*T*H*W, C)."""
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1])


def conv3d(
    x: Tensor | Array, weight: Tensor | Array, bias: Tensor | Array | None = None, stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | Literal["same", "valid"] = 0, dilation: int | Sequence[int] = 1, groups: int = 1,
) -> Tensor:  # fmt: skip
    """3D convolution (cross-correlation, as everywhere in this field).

    Parameters
    ----------
    x : Tensor of shape (N, T, H, W, C)
    weight : Tensor of shape (kT, kH, kW, C // groups, K)
    bias : Tensor of shape (K,) or None
    stride, dilation : int or three (T, H, W), 1 or more
    padding : int or three (T, H, W), zeros on both sides; or "same" (stride 1 only), or "valid" (none)
    groups : int that divides C and K

    Returns
    -------
    Tensor of shape (N, T', H', W', K), T' = (T + 2*padding - dilation*(kT - 1) - 1) // stride + 1

    Raises
    ------
    ValueError
        Wrong number of axes; channels or groups that do not agree; a window larger than the padded input; a stride,
        dilation or padding out of range.
    TypeError
        Mixed dtypes or devices; arguments of another type.

    Notes
    -----
    Formula and derivation: :class:`Conv3d` and docs/ops/conv3d.md.
    """
    x = tensor("conv3d", "x", x, 5, "(N, T, H, W, C)")
    weight = tensor("conv3d", "weight", weight, 5, "(kT, kH, kW, C // groups, K)")
    groups = checks.count("conv3d", "groups", groups)
    channels, (*kernel, per_group, out) = x.shape[4], weight.shape
    if channels % groups or out % groups:
        raise ValueError(
            f"conv3d: groups={groups} must divide the {channels} channels of x and the {out} of weight"
            + layout(x, per_group * groups)
        )
    if per_group * groups != channels:
        raise ValueError(
            f"conv3d: weight has {per_group} input channels (times groups={groups} makes {per_group * groups}), "
            f"x has {channels}" + layout(x, per_group * groups)
        )
    if min(weight.shape) < 1:
        raise ValueError(f"conv3d: weight has an empty axis: shape {weight.shape}")
    stride = windows.triple("conv3d", "stride", stride)
    dilation = windows.triple("conv3d", "dilation", dilation)
    pads = windows.paddings("conv3d", padding, kernel, stride, dilation)
    windows.out_sizes("conv3d", x.shape[1:4], kernel, stride, dilation, pads)
    op = Conv3d(stride, pads, dilation, groups)
    if bias is None:
        return op(x, weight)
    bias = tensor("conv3d", "bias", bias, 1, "(K,)")
    if bias.shape[0] != out:
        raise ValueError(f"conv3d: bias has {bias.shape[0]} channels, weight gives {out}")
    return op(x, weight, bias)
