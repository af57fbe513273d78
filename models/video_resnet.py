"""C2D and I3D: a ResNet over video, of several depths, with non-local blocks anywhere. See docs/models.md."""

from __future__ import annotations

from minnl import functional as F
from minnl import nn
from minnl.backend import Array
from minnl.engine import Tensor
from models import blocks
from models.config import BASIC, RESIDUAL_BLOCKS, STAGES, Config


class VideoResNet(nn.Module):
    """x (N, T, H, W, C) -> logits (N, classes).

    C2D ResNet-50 for 32 frames, as released; I3D has 5 taps along time in conv1 and 3 in some residual blocks:

    ======  ===========================================  ======================  ======================
    layer   what                                         T x H x W of 32 x 224²  channels
    ======  ===========================================  ======================  ======================
    conv1   1 x 7 x 7 convolution, stride 2, 2, 2        16 x 112 x 112          64
    pool1   maximum over 2 x 3 x 3, stride 2, 2, 2       8 x 55 x 55             64
    res2    3 bottlenecks                                8 x 55 x 55             64 within, 256
    pool2   maximum over 2 x 1 x 1, stride 2, 1, 1       4 x 55 x 55             256
    res3    4 bottlenecks, stride 1, 2, 2                4 x 28 x 28             128 within, 512
    res4    6 (23) bottlenecks, stride 1, 2, 2           4 x 14 x 14             256 within, 1024
    res5    3 bottlenecks, stride 1, 2, 2                4 x 7 x 7               512 within, 2048
    head    mean over all positions, dropout, linear     1 x 1 x 1               2048, classes
    ======  ===========================================  ======================  ======================

    A non-local block has the number of the residual block that it follows: res4.nonlocal4 follows res4.res4.

    Parameters
    ----------
    config : models.Config
    """

    def __init__(self, config: Config):
        super().__init__()
        self.config = c = config
        self.conv1 = blocks.ConvNorm(
            c.in_channels, c.width, (c.conv1_frames, 7, 7), (c.conv1_stride, 2, 2), norm=c.norm
        )
        self.pool1 = nn.MaxPool3d((c.pool1_frames, 3, 3), (c.pool1_stride, 2, 2), (0, c.pool1_padding, c.pool1_padding))
        channels = c.width
        for i, name in enumerate(STAGES):
            width = c.width * 2**i
            setattr(self, name, stage(c, name, channels, width))
            channels = width * c.expansion
            if name == "res2":
                self.pool2 = nn.MaxPool3d((c.pool2_frames, 1, 1)) if c.pool2_frames > 1 else None
        self.head = nn.Sequential(
            pool=nn.GlobalAvgPool3d(), dropout=nn.Dropout(c.dropout), classify=nn.Linear(channels, c.classes)
        )

    def forward(self, x: Tensor | Array) -> Tensor:
        return self.head(self.features(x))

    def features(self, x: Tensor | Array) -> Tensor:
        """The output of res5: (N, T', H', W', channels)."""
        if x.ndim == 5:  # anything else is refused by conv1, which names it
            self.config.sizes(*x.shape[1:4])
        x = self.res2(self.pool1(self.conv1(x)))
        x = x if self.pool2 is None else self.pool2(x)
        return self.res5(self.res4(self.res3(x)))

    def positions(self, x: Tensor | Array) -> Tensor:
        """Logits at every position of the last map, for frames larger than those of training: (N, H', W', classes).

        The mean is taken over all frames and over a window as large as the map of a training clip (7 x 7), which slides
        in steps of 1: 2 x 2 positions for 256 x 256. If the map is smaller, so is the window.
        """
        y = self.features(x)
        _, height, width = self.config.sizes()["res5"]
        y = F.avg_pool3d(y, (y.shape[1], min(height, y.shape[2]), min(width, y.shape[3])), stride=1)
        return self.head.classify(self.head.dropout(y.reshape(y.shape[0], *y.shape[2:])))

    def probabilities(self, x: Tensor | Array) -> Tensor:
        """The mean of the softmax at every position: (N, classes). The published networks are tested this way."""
        return F.softmax(self.positions(x)).mean(axis=(1, 2))

    def describe(self) -> str:
        c = self.config
        return f"depth={c.depth}, inflate={c.inflate}, non_local={c.non_local}, frames={c.frames}, size={c.size}"


def stage(config, name, channels, width):
    """A stage: its residual blocks, the first with the stride, and the non-local blocks behind them."""
    out, inflated = width * config.expansion, config.inflated_blocks(name)
    stride = (1, 1, 1) if name == "res2" else (1, 2, 2)
    made = []
    for i in range(RESIDUAL_BLOCKS[config.depth][STAGES.index(name)]):
        made.append(residual(config, channels, out, width, (1, 1, 1) if i else stride, i in inflated))
        channels = out
    return blocks.stage(made, {i: non_local(config, name, out) for i in config.non_local_blocks(name)})


def residual(config, channels, out, width, stride, inflated):
    """A residual block; the norm that ends its branch starts with gamma = 0, as released."""
    frames = 3 if inflated else 1
    if config.depth in BASIC:
        return blocks.basic(channels, out, stride, frames, norm=config.norm)
    taps = (frames, 1) if config.inflate == "3x1x1" else (1, frames)
    return blocks.bottleneck(channels, out, width, stride, *taps, norm=config.norm)


def non_local(config, name, channels):
    options = {
        "mode": config.non_local, "subsample": config.subsample, "scale": config.scale, "axes": config.axes,
        "norm": "batch" if config.norm == "batch" else None,
    }  # fmt: skip
    if name in config.chunks:
        return blocks.ChunkedNonLocalBlock(config.chunks[name], channels, **options)
    return nn.NonLocalBlock(channels, **options)
