"""The default network: a small residual video network, with and without a non-local block.

A stem, stages of residual blocks, global average pooling and one linear layer: C2D and I3D in little. Nothing but a
non-local block brings together what lies far apart: convolutions see their neighbourhood, and the head is linear in
what they saw, so without one the network can count features but not relate them.
"""

from __future__ import annotations

from minnl import nn
from minnl.checks import choice, count
from models import blocks


class Small(nn.Module):
    """x (N, T, H, W, C) of any size -> logits (N, classes).

    ======  ===============================================  ============================
    layer   what                                             output for 16 x 24 x 24
    ======  ===============================================  ============================
    stem    5 x 7 x 7 convolution, stride 2, 16 channels     8 x 12 x 12 x 16
    pool    maximum over 1 x 2 x 2                           8 x 6 x 6 x 16
    res2    one residual block, 32 channels                  8 x 6 x 6 x 32
    res3    two residual blocks, 64 channels, stride 1,2,2   8 x 3 x 3 x 64
    head    mean over all positions, linear                  classes
    ======  ===============================================  ============================

    Only the stem looks along time.

    Parameters
    ----------
    classes, in_channels : int
    non_local : None, "gaussian", "embedded", "dot" or "concat"
        The instantiation of the non-local blocks; None for the twin without.
    place : "res2" or "res3"
        The stage that they go into.
    number : int
        How many: behind the last residual block of res2; before the last one of res3, since behind it nothing but the
        mean is left, which a gathered sum passes through unchanged.
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
        stages = {
            "res2": [blocks.basic(16, 32, gamma=1.0)],
            "res3": [blocks.basic(32, 64, (1, 2, 2), gamma=1.0), blocks.basic(64, 64, gamma=1.0)],
        }
        room = {"res2": 1, "res3": 1}[choice("Small", "place", place, tuple(stages))]
        number = count("Small", "number", number)
        if number > room:
            raise ValueError(f"Small: {place} has room for {room} non-local block, asked for {number}")
        inserted = {name: {} for name in stages}
        if non_local is not None:
            channels = {"res2": 32, "res3": 64}[place]
            inserted[place] = {0: nn.NonLocalBlock(channels, None, non_local, subsample, scale, axes, std=None)}

        self.stem = blocks.ConvNorm(in_channels, 16, (5, 7, 7), (2, 2, 2))
        self.pool = nn.MaxPool3d((1, 2, 2))
        self.res2 = blocks.stage(stages["res2"], inserted["res2"])
        self.res3 = blocks.stage(stages["res3"], inserted["res3"])
        self.head = nn.Sequential(
            pool=nn.GlobalAvgPool3d(), dropout=nn.Dropout(dropout), classify=nn.Linear(64, classes)
        )

    def forward(self, x):
        return self.head(self.res3(self.res2(self.pool(self.stem(x)))))
