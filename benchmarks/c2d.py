"""C2D ResNet-50 with five non-local blocks, from the blocks of models/: a network of the paper, to be timed."""

from __future__ import annotations

import minnl
from minnl import nn
from models import blocks


def build(classes=400):
    """Clips (N, 8, H, W, 3) -> logits (N, classes)."""
    minnl.manual_seed(0)
    return nn.Sequential(
        conv1=blocks.ConvNorm(3, 64, (1, 7, 7), (1, 2, 2)),
        pool1=nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1)),
        res2=stage(3, 64, 64, (1, 1, 1)),
        pool2=nn.MaxPool3d((2, 1, 1)),
        res3=stage(4, 256, 128, (1, 2, 2), (1, 3)),
        res4=stage(6, 512, 256, (1, 2, 2), (1, 3, 5)),
        res5=stage(3, 1024, 512, (1, 2, 2)),
        head=nn.Sequential(pool=nn.GlobalAvgPool3d(), classify=nn.Linear(2048, classes)),
    )


def stage(count, channels, width, stride, places=()):
    """Residual blocks whose branches have `width` channels, and non-local blocks behind those named by `places`."""
    out = 4 * width
    first = blocks.bottleneck(channels, out, width, stride, gamma=1.0)
    others = [blocks.bottleneck(out, out, width, gamma=1.0) for _ in range(count - 1)]
    return blocks.stage([first, *others], {i: awake(out) for i in places})


def awake(channels):
    """A non-local block as training makes it: a fresh one has gamma = 0 and multiplies all that it gathered by zero."""
    block = nn.NonLocalBlock(channels)
    block.norm.weight.data[...] = 1
    return block
