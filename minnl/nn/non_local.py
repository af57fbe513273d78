"""The non-local block (equation 6 of the paper): z_i = W_z y_i + x_i. See docs/ops/non_local.md."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from minnl import functional as F
from minnl.backend import Array
from minnl.checks import choice, count, number
from minnl.engine import Tensor
from minnl.nn import init
from minnl.nn.layers import BatchNorm3d, Conv3d
from minnl.nn.module import Module, Parameter
from minnl.ops.arguments import layout, tensor
from minnl.ops.attention import AXES, MODES, Axes, Mode


class NonLocalBlock(Module):
    """The non-local operation of all positions, added to its input: x (N, T, H, W, C) -> the same shape.

    Parameters
    ----------
    channels : int
        C.
    inner_channels : int or None
        I, half of C (at least 1) if None.
    mode : "gaussian", "embedded", "dot" or "concat"
        The four instantiations (equations 2 to 5). "gaussian" compares x itself and has no theta and phi.
    subsample : "before", "after" or None
        Max pooling (1, 2, 2) of the keys. "before" pools x once, before phi and g (the released networks); "after"
        pools phi and g (the paper's text). The two are different functions with the same parameters.
    scale : bool
        Whether to multiply the logits by I ** -0.5 in "embedded" (the released networks). Other modes have no scale.
    axes : "spacetime", "space" or "time"
        The keys of a query (table 2d): all, those of its frame, or those of its pixel. "time" needs subsample=None.
    norm : "batch" or None
    std : float or None
        The std of the initial weights: 0.01 as in the released networks, or None for He et al. as in the paper's text,
        with which a network without pretraining learns much sooner.

    Notes
    -----
    A new block is the identity, bit for bit, so it can be put into a trained network: batch norm starts with gamma = 0,
    or without norm W_z is 0. **This is not a bug**: in the first step the gradients of theta, phi, g and W_z are
    exactly zero, and only gamma and beta (or W_z itself, without norm) move. From the second step on all parameters
    learn. Biases start as 0. No ReLU follows the sum.
    """

    def __init__(
        self, channels: int, inner_channels: int | None = None, mode: Mode = "embedded",
        subsample: Literal["before", "after"] | None = "before", scale: bool = True, axes: Axes = "spacetime",
        norm: Literal["batch"] | None = "batch", std: float | None = 0.01,
    ):  # fmt: skip
        super().__init__()
        name = "NonLocalBlock"
        channels = count(name, "channels", channels)
        inner = max(1, channels // 2) if inner_channels is None else count(name, "inner_channels", inner_channels)
        self.mode, self.axes = choice(name, "mode", mode, MODES), choice(name, "axes", axes, AXES)
        self.subsample = choice(name, "subsample", subsample, ("before", "after", None))
        if axes == "time" and subsample is not None:
            raise ValueError(f'{name}: axes="time" compares pixels with themselves; spatial {subsample=} must be None')
        choice(name, "norm", norm, ("batch", None))
        choice(name, "scale", scale, (True, False))
        self.scale = inner**-0.5 if scale and mode == "embedded" else None
        std = None if std is None else number(name, "std", std, 0)
        if mode != "gaussian":
            self.theta, self.phi = pointwise(channels, inner, std), pointwise(channels, inner, std)
        self.g, self.W_z = pointwise(channels, inner, std), pointwise(inner, channels, std)
        self.w_f = None
        if mode == "concat":
            self.w_f = Parameter(init.normal(2 * inner, (1 / inner) ** 0.5 if std is None else std))
        if norm is None:
            self.W_z.weight.data[...] = 0
        self.norm = BatchNorm3d(channels, gamma=0.0) if norm == "batch" else None

    def forward(self, x: Tensor | Array) -> Tensor:
        theta, phi, g = self.embed(x)
        y = F.non_local(theta, phi, g, self.mode, self.scale, self.axes, weight=self.w_f)
        y = self.W_z(y)
        return x + y if self.norm is None else self.norm(y, residual=x)

    def embed(self, x: Tensor | Array) -> tuple[Tensor, Tensor, Tensor]:
        """theta, phi and g of x, subsampled."""
        x, channels = tensor("NonLocalBlock", "x", x, 5, "(N, T, H, W, C)"), self.g.weight.shape[3]
        if x.shape[4] != channels:
            raise ValueError(f"NonLocalBlock: made for {channels} channels, x has {x.shape[4]}" + layout(x, channels))
        small = self.fewer(x) if self.subsample == "before" else x
        theta, phi = (x, small) if self.mode == "gaussian" else (self.theta(x), self.phi(small))
        g = self.g(small)
        if self.subsample == "after":
            phi, g = self.fewer(phi), self.fewer(g)
        return theta, phi, g

    @staticmethod
    def fewer(x: Tensor | Array) -> Tensor:
        return F.max_pool3d(x, (1, 2, 2))

    def attention(self, x: Tensor | Array, positions: Sequence[Sequence[int]]) -> Array:
        """The attention weights of Q positions (t, h, w) of x: ndarray of shape (N, Q, T', H', W')."""
        theta, phi, _ = self.embed(x)
        return F.attention(theta, phi, positions, self.mode, self.scale, self.axes, weight=self.w_f)

    def describe(self) -> str:
        return f"{self.mode}, inner_channels={self.g.weight.shape[-1]}, subsample={self.subsample}, axes={self.axes}"


def pointwise(in_channels: int, out_channels: int, std: float | None) -> Conv3d:
    """A 1x1x1 convolution with initial weights N(0, std^2), or He's if std is None."""
    conv = Conv3d(in_channels, out_channels, 1)
    if std is not None:
        conv.weight.data = init.normal(conv.weight.shape, std)
    return conv
