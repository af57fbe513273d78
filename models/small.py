"""The default network: a small residual video network, with and without a non-local block.

A stem, stages of residual blocks, global average pooling and one linear layer: a small C2D or I3D. Only a non-local
block relates distant positions: a convolution covers its neighbourhood, and the head is linear in the features, so
without a block the network can count features but not relate them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from minnl import nn
from minnl.backend import Array
from minnl.checks import choice, count, pair
from minnl.engine import Tensor
from minnl.ops.attention import Axes, Mode
from models.blocks import ConvNorm, basic, stage

CHANNELS = {"res2": 32, "res3": 64}


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

    Only the stem has taps along time.

    Parameters
    ----------
    classes, in_channels : int
    non_local : None, "gaussian", "embedded", "dot" or "concat"
        The instantiation of the non-local blocks; None for the twin without.
    blocks : "res2", "res3", or dict of stage to indices of residual blocks
        The non-local blocks. "res2": one, behind the last residual block of res2. "res3": one, right before the last
        residual block of res3, since behind that nothing but the mean is left, which a gathered sum passes through
        unchanged. {"res2": (0,), "res3": (0,)}: one behind each of these residual blocks.
    subsample, scale, axes
        Of nn.NonLocalBlock.
    dropout : float
        Before the classifier.
    residuals : (int, int)
        Residual blocks of res2 and of res3.
    inflate : bool
        As I3D: three taps along time in the first convolution of every residual block of res2 and of every other one
        of res3.
    """

    def __init__(
        self, classes: int = 3, in_channels: int = 1, non_local: Mode | None = None,
        blocks: str | dict[str, Sequence[int]] = "res2", subsample: Literal["before", "after"] | None = "before",
        scale: bool = True, axes: Axes = "spacetime", dropout: float = 0.0, residuals: int | Sequence[int] = (1, 2),
        inflate: bool = False,
    ):  # fmt: skip
        super().__init__()
        classes, in_channels = count("Small", "classes", classes), count("Small", "in_channels", in_channels)
        lengths = dict(zip(CHANNELS, pair("Small", "residuals", residuals), strict=True))
        choice("Small", "inflate", inflate, (True, False))
        channels, stages = 16, {}
        for name, length in lengths.items():
            stages[name] = []
            for i in range(length):
                stride = (1, 2, 2) if name == "res3" and i == 0 else (1, 1, 1)
                frames = 3 if inflate and (name == "res2" or i % 2 == 0) else 1
                stages[name].append(basic(channels, CHANNELS[name], stride, frames, gamma=1.0))
                channels = CHANNELS[name]
        inserted = {name: {} for name in stages}
        for name, indices in _checked(blocks, lengths).items():
            if non_local is not None:
                options = (None, non_local, subsample, scale, axes)
                inserted[name] = {i: nn.NonLocalBlock(CHANNELS[name], *options, std=None) for i in indices}

        self.stem = ConvNorm(in_channels, 16, (5, 7, 7), (2, 2, 2))
        self.pool = nn.MaxPool3d((1, 2, 2))
        self.res2 = stage(stages["res2"], inserted["res2"])
        self.res3 = stage(stages["res3"], inserted["res3"])
        self.head = nn.Sequential(
            pool=nn.GlobalAvgPool3d(), dropout=nn.Dropout(dropout), classify=nn.Linear(64, classes)
        )

    def forward(self, x: Tensor | Array) -> Tensor:
        return self.head(self.res3(self.res2(self.pool(self.stem(x)))))


def _checked(blocks, lengths):
    """Stage -> indices of the residual blocks that a non-local block follows; `lengths` are those of the stages."""
    if not isinstance(blocks, dict):
        name = choice("Small", "blocks", blocks, tuple(lengths))
        blocks = {name: (lengths[name] - (2 if name == "res3" else 1),)}
    for name, indices in blocks.items():
        choice("Small", "stage of blocks", name, tuple(lengths))
        if len(set(indices)) != len(indices) or not set(indices) <= set(range(lengths[name])):
            raise ValueError(
                f"Small: blocks[{name!r}] must be different indices from 0 to {lengths[name] - 1}, got {indices!r}"
            )
    return blocks
