"""What video networks are built from: convolution + norm, residual blocks, stages with non-local blocks in them."""

from __future__ import annotations

from minnl import nn


class ConvNorm(nn.Module):
    """Convolution without bias, batch norm, and ReLU if asked; padding keeps the size at stride 1.

    With a residual, relu(norm(conv(x)) + residual).
    """

    def __init__(self, in_channels, out_channels, kernel_size, stride=1, relu=True, gamma=1.0):
        super().__init__()
        padding = tuple(k // 2 for k in kernel_size)
        self.conv = nn.Conv3d(in_channels, out_channels, kernel_size, stride, padding, bias=False)
        self.norm = nn.BatchNorm3d(out_channels, gamma=gamma)
        self.relu = relu

    def forward(self, x, residual=None):
        return self.norm(self.conv(x), relu=self.relu or residual is not None, residual=residual)


class Residual(nn.Module):
    """relu(branch(x) + shortcut(x)); the shortcut is a 1x1x1 convolution where shapes differ, else x itself.

    The branch ends in a ConvNorm, whose norm adds the shortcut and takes the ReLU: one pass over memory, not three.
    With gamma = 0 in it a fresh block passes its shortcut through: the released networks, which go on from trained
    ones. With gamma = 1 a shallow network learns sooner from scratch.
    """

    def __init__(self, branch, in_channels, out_channels, stride):
        super().__init__()
        self.branch = branch
        same = in_channels == out_channels and tuple(stride) == (1, 1, 1)
        self.shortcut = None if same else ConvNorm(in_channels, out_channels, (1, 1, 1), stride, relu=False)

    def forward(self, x):
        return self.branch(x, x if self.shortcut is None else self.shortcut(x))


def bottleneck(in_channels, out_channels, width, stride=(1, 1, 1), frames=1, gamma=0.0):
    """kT x 1 x 1 to `width` channels, 1 x 3 x 3 (with the stride), 1 x 1 x 1 to `out_channels`; `frames` is kT.

    frames=1 is the block of C2D, frames=3 the inflated one of I3D (3x1x1).
    """
    branch = nn.Sequential(
        a=ConvNorm(in_channels, width, (frames, 1, 1)),
        b=ConvNorm(width, width, (1, 3, 3), stride),
        c=ConvNorm(width, out_channels, (1, 1, 1), relu=False, gamma=gamma),
    )
    return Residual(branch, in_channels, out_channels, stride)


def basic(in_channels, out_channels, stride=(1, 1, 1), frames=1, gamma=0.0):
    """Two convolutions of 3 x 3 in space, the first over `frames` frames and with the stride."""
    branch = nn.Sequential(
        a=ConvNorm(in_channels, out_channels, (frames, 3, 3), stride),
        b=ConvNorm(out_channels, out_channels, (1, 3, 3), relu=False, gamma=gamma),
    )
    return Residual(branch, in_channels, out_channels, stride)


def stage(blocks, non_local=None):
    """Residual blocks in a row, named res0, res1, …; `non_local[i]` follows block i, named nonlocal{i}."""
    non_local = non_local or {}
    named = {}
    for i, block in enumerate(blocks):
        named[f"res{i}"] = block
        if i in non_local:
            named[f"nonlocal{i}"] = non_local[i]
    return nn.Sequential(**named)
