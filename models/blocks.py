"""Building blocks of video networks: convolution + norm, residual blocks, stages with non-local blocks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal, TypeAlias

import numpy as np

from minnl import nn
from minnl.backend import Array
from minnl.checks import count
from minnl.engine import Tensor

Norm: TypeAlias = Literal["batch", "affine"]


class ConvNorm(nn.Module):
    """Convolution without bias, norm, and ReLU if asked; padding keeps the size at stride 1.

    With a residual, relu(norm(conv(x)) + residual). norm="affine" is a scale and a shift that do not learn; they come
    from a trained batch norm (transfer.fold), and gamma, what a batch norm starts to learn from, does not reach them.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: Sequence[int], stride: int | Sequence[int] = 1,
        relu: bool = True, gamma: float = 1.0, norm: Norm = "batch",
    ):  # fmt: skip
        super().__init__()
        padding = tuple(k // 2 for k in kernel_size)
        self.conv = nn.Conv3d(in_channels, out_channels, kernel_size, stride, padding, bias=False)
        self.norm = nn.BatchNorm3d(out_channels, gamma=gamma) if norm == "batch" else nn.Affine(out_channels)
        self.relu = relu

    def forward(self, x: Tensor | Array, residual: Tensor | Array | None = None) -> Tensor:
        return self.norm(self.conv(x), relu=self.relu or residual is not None, residual=residual)


class Residual(nn.Module):
    """relu(branch(x) + shortcut(x)); the shortcut is a 1x1x1 convolution where shapes differ, else x itself.

    The branch ends in a ConvNorm, whose norm adds the shortcut and takes the ReLU: one pass over memory, not three.
    With gamma = 0 in it a fresh block passes its shortcut through: the released networks, which go on from trained
    ones. With gamma = 1 a shallow network learns sooner from scratch.
    """

    def __init__(
        self, branch: nn.Sequential, in_channels: int, out_channels: int, stride: Sequence[int], norm: Norm = "batch"
    ):
        super().__init__()
        self.branch = branch
        same = in_channels == out_channels and tuple(stride) == (1, 1, 1)
        self.shortcut = None if same else ConvNorm(in_channels, out_channels, (1, 1, 1), stride, False, norm=norm)

    def forward(self, x: Tensor | Array) -> Tensor:
        return self.branch(x, x if self.shortcut is None else self.shortcut(x))


def bottleneck(
    in_channels: int, out_channels: int, width: int, stride: Sequence[int] = (1, 1, 1), frames: int = 1,
    middle_frames: int = 1, gamma: float = 0.0, norm: Norm = "batch",
) -> Residual:  # fmt: skip
    """kT x 1 x 1 to `width` channels, kT x 3 x 3 (with the stride), 1 x 1 x 1 to `out_channels`.

    `frames` and `middle_frames` are the two kT: 1 and 1 in C2D, 3 and 1 in I3D (3x1x1), 1 and 3 in I3D (3x3x3).
    """
    branch = nn.Sequential(
        a=ConvNorm(in_channels, width, (frames, 1, 1), norm=norm),
        b=ConvNorm(width, width, (middle_frames, 3, 3), stride, norm=norm),
        c=ConvNorm(width, out_channels, (1, 1, 1), relu=False, gamma=gamma, norm=norm),
    )
    return Residual(branch, in_channels, out_channels, stride, norm)


def basic(
    in_channels: int, out_channels: int, stride: Sequence[int] = (1, 1, 1), frames: int = 1, gamma: float = 0.0,
    norm: Norm = "batch",
) -> Residual:  # fmt: skip
    """Two convolutions of 3 x 3 in space, the first over `frames` frames and with the stride."""
    branch = nn.Sequential(
        a=ConvNorm(in_channels, out_channels, (frames, 3, 3), stride, norm=norm),
        b=ConvNorm(out_channels, out_channels, (1, 3, 3), relu=False, gamma=gamma, norm=norm),
    )
    return Residual(branch, in_channels, out_channels, stride, norm)


class ChunkedNonLocalBlock(nn.NonLocalBlock):
    """A non-local block that takes a clip in chunks of `chunk` frames: a position sees only frames of its own chunk.

    Pairs of positions, and with them time, fall by the number of chunks. Parameters and their names are those of
    nn.NonLocalBlock.
    """

    def __init__(self, chunk: int, *arguments: Any, **options: Any):
        super().__init__(*arguments, **options)
        self.chunk = count("ChunkedNonLocalBlock", "chunk", chunk)

    def forward(self, x: Tensor | Array) -> Tensor:
        n, t, *rest = x.shape
        if t % self.chunk:
            raise ValueError(f"ChunkedNonLocalBlock: chunk={self.chunk} must divide the frames of x, {t}")
        return super().forward(x.reshape(n * t // self.chunk, self.chunk, *rest)).reshape(x.shape)

    def attention(self, x: Tensor | Array, positions: Sequence[Sequence[int]]) -> Array:
        """As nn.NonLocalBlock.attention; keys of other chunks weigh 0."""
        rows, frames = [], x.shape[1]
        for t, h, w in positions:
            if not 0 <= t < frames:
                raise ValueError(f"attention: position {(t, h, w)} lies outside of the {frames} frames of x")
            start = t // self.chunk * self.chunk
            own = super().attention(x[:, start : start + self.chunk], [(t - start, h, w)])
            rows.append(np.pad(own, ((0, 0), (0, 0), (start, frames - start - self.chunk), (0, 0), (0, 0))))
        return np.concatenate(rows, axis=1)

    def describe(self) -> str:
        return f"{super().describe()}, chunk={self.chunk}"


def stage(blocks: Iterable[nn.Module], non_local: dict[int, nn.Module] | None = None) -> nn.Sequential:
    """Residual blocks in a row, named res0, res1, …; `non_local[i]` follows block i, named nonlocal{i}."""
    non_local = non_local or {}
    named = {}
    for i, block in enumerate(blocks):
        named[f"res{i}"] = block
        if i in non_local:
            named[f"nonlocal{i}"] = non_local[i]
    return nn.Sequential(**named)
