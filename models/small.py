"""The default network: a small residual video network, with and without a non-local block.

A stem, stages of residual blocks, global average pooling and one linear layer: C2D and I3D in little. Nothing but a
non-local block brings together what lies far apart: convolutions see their neighbourhood, and the head is linear in
what they saw, so without one the network can count features but not relate them.
"""

from __future__ import annotations

from minnl import nn
from minnl.ops.arguments import choice, count
from models import blocks

STAGES = ("res2", "res3")


class Small(nn.Module):
    """x (N, T, H, W, C) of any size -> logits (N, classes).

    Parameters
    ----------
    classes, in_channels : int
    non_local : None, "gaussian", "embedded", "dot" or "concat"
        The instantiation of the non-local blocks; None for the twin without.
    place : "res2" or "res3"
        The stage that they go into.
    number : int
        How many: before the last residual block of the stage, then before the one before it, and so on.
    subsample, scale, axes
        Of nn.NonLocalBlock.
    dropout : float
        Before the classifier.
    """

    def __init__(
        self, classes=3, in_channels=1, non_local=None, place="res2", number=1, subsample="before", scale=True,
        axes="spacetime", dropout=0.0,
    ):  # fmt: skip
        super().__init__()
        classes, in_channels = count("Small", "classes", classes), count("Small", "in_channels", in_channels)
        choice("Small", "place", place, STAGES)
        number = count("Small", "number", number)

        def stage(name, *residual):
            if non_local is None or name != place:
                return blocks.stage(residual)
            if number >= len(residual):
                raise ValueError(f"Small: {name} has room for {len(residual) - 1} non-local blocks, asked for {number}")
            after = range(len(residual) - 1 - number, len(residual) - 1)
            channels = residual[0].branch[-1].norm.weight.shape[0]
            return blocks.stage(
                residual, {i: nn.NonLocalBlock(channels, None, non_local, subsample, scale, axes) for i in after}
            )

        self.stem = blocks.ConvNorm(in_channels, 32, (3, 5, 5), (2, 2, 2))
        self.pool = nn.MaxPool3d((1, 2, 2))
        self.res2 = stage("res2", blocks.bottleneck(32, 64, 32, frames=3), blocks.bottleneck(64, 64, 32))
        self.head = nn.Sequential(
            pool=nn.GlobalAvgPool3d(), dropout=nn.Dropout(dropout), classify=nn.Linear(64, classes)
        )

    def forward(self, x):
        return self.head(self.res2(self.pool(self.stem(x))))
