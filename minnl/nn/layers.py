"""Layers: ops with the parameters that they learn. New layers are float32 on the CPU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from minnl import functional as F
from minnl import windows
from minnl.backend import Array
from minnl.checks import choice, count, number
from minnl.engine import Tensor
from minnl.nn import init
from minnl.nn.module import Module, Parameter
from minnl.ops.dropout import probability


class Conv3d(Module):
    """3D convolution; weight (kT, kH, kW, C // groups, K), He normal by fan-out, bias 0. See F.conv3d."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int | Sequence[int], stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] | Literal["same", "valid"] = 0, dilation: int | Sequence[int] = 1, groups: int = 1,
        bias: bool = True,
    ):  # fmt: skip
        super().__init__()
        in_channels = count("Conv3d", "in_channels", in_channels)
        out_channels, groups = count("Conv3d", "out_channels", out_channels), count("Conv3d", "groups", groups)
        if in_channels % groups or out_channels % groups:
            raise ValueError(f"Conv3d: groups={groups} must divide in_channels={in_channels} and {out_channels=}")
        kernel = windows.triple("Conv3d", "kernel_size", kernel_size)
        self.stride = windows.triple("Conv3d", "stride", stride)
        self.dilation = windows.triple("Conv3d", "dilation", dilation)
        windows.paddings("Conv3d", padding, kernel, self.stride, self.dilation)
        self.padding, self.groups = padding, groups
        shape = (*kernel, in_channels // groups, out_channels)
        self.weight = Parameter(init.he_normal(shape, init.conv_fans(shape, groups)[1]))
        bias = choice("Conv3d", "bias", bias, (True, False, None))
        self.bias = Parameter(np.zeros(out_channels, np.float32)) if bias else None

    def forward(self, x: Tensor | Array) -> Tensor:
        return F.conv3d(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)

    def describe(self) -> str:
        *kernel, c, k = self.weight.shape
        return f"{c * self.groups}, {k}, kernel_size={tuple(kernel)}, stride={self.stride}, padding={self.padding!r}"


class BatchNorm3d(Module):
    """Batch normalisation of the channels; weight `gamma` (1), bias 0, running statistics as buffers.

    With frozen=True the layer normalises with the running statistics in every mode and learns nothing; `train()` does
    not change that. gamma=0 in the last batch norm of a residual branch makes the branch start as zero.
    """

    running_mean: Array
    running_var: Array

    def __init__(
        self, channels: int, eps: float = 1e-5, momentum: float = 0.1, frozen: bool = False, gamma: float = 1.0
    ):
        super().__init__()
        channels = count("BatchNorm3d", "channels", channels)
        self.eps = number("BatchNorm3d", "eps", eps, 0)
        self.momentum = number("BatchNorm3d", "momentum", momentum, 0, 1)
        self.frozen = bool(choice("BatchNorm3d", "frozen", frozen, (True, False)))
        gamma = number("BatchNorm3d", "gamma", gamma, 0)
        self.weight = Parameter(np.full(channels, gamma, np.float32), requires_grad=not frozen, decay=False)
        self.bias = Parameter(np.zeros(channels, np.float32), requires_grad=not frozen, decay=False)
        self.buffer("running_mean", np.zeros(channels, np.float32))
        self.buffer("running_var", np.ones(channels, np.float32))

    def forward(self, x: Tensor | Array, relu: bool = False, residual: Tensor | Array | None = None) -> Tensor:
        """relu(norm(x) + residual); the ReLU and the residual are optional."""
        inputs, options = (x, self.running_mean, self.running_var, self.weight, self.bias), (relu, residual)
        if self.frozen:
            return F.frozen_batch_norm(*inputs, self.eps, *options)
        return F.batch_norm(*inputs, self.training, self.momentum, self.eps, *options)

    def describe(self) -> str:
        return f"{self.weight.shape[0]}{', frozen=True' if self.frozen else ''}"


class Affine(Module):
    """Scale (1) and shift (0) of each channel, not learned: the folded form of a frozen batch norm."""

    def __init__(self, channels: int):
        super().__init__()
        channels = count("Affine", "channels", channels)
        self.weight = Parameter(np.ones(channels, np.float32), requires_grad=False, decay=False)
        self.bias = Parameter(np.zeros(channels, np.float32), requires_grad=False, decay=False)

    def forward(self, x: Tensor | Array, relu: bool = False, residual: Tensor | Array | None = None) -> Tensor:
        """relu(affine(x) + residual); the ReLU and the residual are optional, as in BatchNorm3d."""
        y = F.affine(x, self.weight, self.bias)
        y = y if residual is None else y + residual
        return F.relu(y) if relu else y


class Linear(Module):
    """Affine map of the last axis; weight (in, out) N(0, std^2), bias 0. The paper's classifier uses std 0.01."""

    def __init__(self, in_features: int, out_features: int, bias: bool = True, std: float = 0.01):
        super().__init__()
        in_features = count("Linear", "in_features", in_features)
        out_features = count("Linear", "out_features", out_features)
        self.weight = Parameter(init.normal((in_features, out_features), number("Linear", "std", std, 0)))
        bias = choice("Linear", "bias", bias, (True, False, None))
        self.bias = Parameter(np.zeros(out_features, np.float32)) if bias else None

    def forward(self, x: Tensor | Array) -> Tensor:
        return F.linear(x, self.weight, self.bias)

    def describe(self) -> str:
        return f"{self.weight.shape[0]}, {self.weight.shape[1]}"


class ReLU(Module):
    """max(x, 0)."""

    def forward(self, x: Tensor | Array) -> Tensor:
        return F.relu(x)


class MaxPool3d(Module):
    """Largest value of each window. See F.max_pool3d."""

    def __init__(
        self, kernel_size: int | Sequence[int], stride: int | Sequence[int] | None = None,
        padding: int | Sequence[int] = 0, dilation: int | Sequence[int] = 1, ceil_mode: bool = False,
    ):  # fmt: skip
        super().__init__()
        self.arguments = kernel_size, stride, padding, dilation, ceil_mode

    def forward(self, x: Tensor | Array) -> Tensor:
        return F.max_pool3d(x, *self.arguments)

    def describe(self) -> str:
        return f"kernel_size={self.arguments[0]}, stride={self.arguments[1]}"


class AvgPool3d(Module):
    """Average of each window. See F.avg_pool3d."""

    def __init__(
        self, kernel_size: int | Sequence[int], stride: int | Sequence[int] | None = None,
        padding: int | Sequence[int] = 0, ceil_mode: bool = False, count_include_pad: bool = True,
    ):  # fmt: skip
        super().__init__()
        self.arguments = kernel_size, stride, padding, ceil_mode, count_include_pad

    def forward(self, x: Tensor | Array) -> Tensor:
        return F.avg_pool3d(x, *self.arguments)

    def describe(self) -> str:
        return f"kernel_size={self.arguments[0]}, stride={self.arguments[1]}"


class AdaptiveAvgPool3d(Module):
    """Average pooling to a size. See F.adaptive_avg_pool3d."""

    def __init__(self, output_size: int | Sequence[int]):
        super().__init__()
        self.output_size = output_size

    def forward(self, x: Tensor | Array) -> Tensor:
        return F.adaptive_avg_pool3d(x, self.output_size)


class AdaptiveMaxPool3d(Module):
    """Max pooling to a size. See F.adaptive_max_pool3d."""

    def __init__(self, output_size: int | Sequence[int]):
        super().__init__()
        self.output_size = output_size

    def forward(self, x: Tensor | Array) -> Tensor:
        return F.adaptive_max_pool3d(x, self.output_size)


class GlobalAvgPool3d(Module):
    """Mean over time and space: (N, T, H, W, C) -> (N, C)."""

    def forward(self, x: Tensor | Array) -> Tensor:
        return F.mean(x, axis=(1, 2, 3))


class Dropout(Module):
    """Dropout while training; channels=True drops whole channels. See F.dropout."""

    def __init__(self, p: float = 0.5, channels: bool = False):
        super().__init__()
        self.p = probability("Dropout", p)
        self.channels = bool(choice("Dropout", "channels", channels, (True, False)))

    def forward(self, x: Tensor | Array) -> Tensor:
        return F.dropout(x, self.p, self.training, self.channels)

    def describe(self) -> str:
        return f"p={self.p}"
