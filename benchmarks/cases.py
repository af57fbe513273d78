"""Every case, by group: the layers of the small network and of ResNet-50 for video, the operations around, networks.

The sizes are those of C2D and I3D ResNet-50 for 8 frames (the paper's table 1 in its released variant for short clips).
The stem halves height and width, pooling halves them again and, after res2, the number of frames; res3, res4 and res5
halve height and width. At 112 x 112 a batch has four clips, at 224 x 224 one: as many positions, in larger maps.
"""

from __future__ import annotations

import functools

import numpy as np

import minnl
import models
from benchmarks import networks, ops, published

THREE = "convolutions 3x3, 64 channels or more"
ONE = "convolutions 1x1x1 and 3x1x1"
OTHER = "other convolutions: stems, few channels"
NORM = "batch norm + ReLU"
POOL = "pooling"
NON_LOCAL = "non-local"
LOSS = "softmax + cross-entropy"
STEP = "training steps"
INFERENCE = "inference"

# minnl's goals as ratios of speed, (geometric mean, smallest); None means that there is no goal.
AIMS = {
    THREE: (1.4, 0.8),
    ONE: (0.9, 0.8),
    OTHER: (None, 0.8),
    NORM: (0.8, None),
    POOL: (0.8, None),
    NON_LOCAL: (1.2, None),
    STEP: (1.2, None),
}

# res2 to res5 at 112 x 112 and at 224 x 224: (clips, frames, height, width), channels of the branches.
STAGES_112 = (((4, 8, 28, 28), 64), ((4, 4, 14, 14), 128), ((4, 4, 7, 7), 256), ((4, 4, 4, 4), 512))
STAGES_224 = (((1, 8, 56, 56), 64), ((1, 4, 28, 28), 128), ((1, 4, 14, 14), 256), ((1, 4, 7, 7), 512))


def every():
    """All contests, in the order of the output."""
    found = [*convolutions(), *around(), *non_local()]
    for model, attentions in (("small", ()), ("nl_small", networks.ATTENTIONS)):
        build = functools.partial(small, model)
        found.append(networks.training(model, STEP, build, (32, 16, 24, 24, 1), 3, 1e-3, attentions))
    name, clips = "C2D ResNet-50 + 5 blocks", (4, 8, 112, 112, 3)
    found.append(networks.training(name, STEP, published.build, clips, 400, 1e-5, networks.ATTENTIONS))
    found.append(networks.inference(name, INFERENCE, published.build, clips, networks.ATTENTIONS))
    i3d = functools.partial(published.build, "nl_i3d_r50_5_8x8")
    found.append(
        networks.inference("I3D ResNet-50 + 5 blocks", INFERENCE, i3d, (1, 8, 224, 224, 3), networks.ATTENTIONS)
    )
    order = [THREE, ONE, OTHER, NORM, POOL, NON_LOCAL, LOSS, STEP, INFERENCE]
    return sorted(found, key=lambda contest: order.index(contest.group))


def small(name):
    minnl.manual_seed(0)
    return models.build(name, classes=3, in_channels=1)


def convolutions():
    stem = {"first": True}
    layers = [
        ((32, 16, 24, 24, 1), (5, 7, 7), 16, (2, 2, 2), stem),  # the small network
        ((32, 8, 6, 6, 16), (1, 3, 3), 32, 1, {}),
        ((32, 8, 6, 6, 16), (1, 1, 1), 32, 1, {}),
        ((32, 8, 6, 6, 32), (1, 3, 3), 64, (1, 2, 2), {}),
        ((32, 8, 3, 3, 64), (1, 3, 3), 64, 1, {}),
        ((4, 8, 112, 112, 3), (1, 7, 7), 64, (1, 2, 2), stem),  # ResNet-50
        ((4, 8, 112, 112, 3), (5, 7, 7), 64, (2, 2, 2), stem),
        ((1, 8, 224, 224, 3), (1, 7, 7), 64, (1, 2, 2), stem),
        ((1, 8, 224, 224, 3), (5, 7, 7), 64, (2, 2, 2), stem),
        ((4, 8, 28, 28, 64), (1, 1, 1), 64, 1, {}),
        ((4, 4, 28, 28, 256), (1, 1, 1), 512, (1, 2, 2), {}),
        ((4, 4, 28, 28, 128), (1, 3, 3), 128, (1, 2, 2), {}),
        ((4, 4, 14, 14, 512), (1, 1, 1), 1024, (1, 2, 2), {}),
        ((4, 4, 14, 14, 256), (1, 3, 3), 256, (1, 2, 2), {}),
        ((1, 4, 56, 56, 128), (1, 3, 3), 128, (1, 2, 2), {}),
    ]
    for positions, width in (*STAGES_112, *STAGES_224):
        layers += [
            ((*positions, width), (1, 1, 1), 4 * width, 1, {}),
            ((*positions, width), (1, 3, 3), width, 1, {}),
            ((*positions, width), (3, 3, 3), width, 1, {}),
        ]
    for positions, width in STAGES_112:
        layers += [((*positions, 4 * width), kernel, width, 1, {}) for kernel in ((1, 1, 1), (3, 1, 1))]
    for x, kernel, channels, stride, more in layers:
        size = "x".join(map(str, kernel))
        strided = "" if stride == 1 else f" /{''.join(map(str, stride))}"
        weight = (*kernel, x[-1], channels)
        yield from ops.conv(x, weight, stride, **more).contests(
            f"conv3d {size}, {x[-1]} to {channels}{strided}, {sizes(x)}", group_of(weight)
        )


def group_of(weight):
    if weight[1:3] == (1, 1):
        return ONE
    return THREE if weight[1:3] == (3, 3) and min(weight[3:]) >= 64 else OTHER


def around():
    """Batch norm, pooling and the loss."""
    for x, residual in (
        ((32, 8, 12, 12, 16), False),
        ((4, 8, 56, 56, 64), False),
        ((4, 8, 28, 28, 64), False),
        ((4, 8, 28, 28, 256), True),
        ((4, 4, 14, 14, 512), True),
        ((4, 4, 7, 7, 1024), True),
        ((1, 4, 28, 28, 128), False),
    ):
        added = " + residual" if residual else ""
        yield from ops.norm(x, residual).contests(f"batch_norm{added} + relu, {sizes(x)}", NORM)
    for kind, x, kernel, stride, padding in (
        ("max", (32, 8, 12, 12, 16), (1, 2, 2), (1, 2, 2), 0),
        ("max", (4, 8, 56, 56, 64), (1, 3, 3), (1, 2, 2), (0, 1, 1)),
        ("max", (4, 8, 28, 28, 256), (2, 1, 1), (2, 1, 1), 0),
        ("max", (4, 4, 14, 14, 512), (1, 2, 2), (1, 2, 2), 0),
        ("max", (4, 8, 28, 28, 64), (3, 3, 3), (2, 2, 2), 1),
        ("avg", (4, 8, 28, 28, 64), (1, 2, 2), (1, 2, 2), 0),
    ):
        name = f"{kind}_pool3d {'x'.join(map(str, kernel))} /{''.join(map(str, stride))}, {sizes(x)}"
        yield from ops.pool(kind, x, kernel, stride, padding).contests(name, POOL)
    yield from ops.mean((4, 4, 4, 4, 2048)).contests(f"global average, {sizes((4, 4, 4, 4, 2048))}", POOL)
    for clips, classes in ((32, 3), (1024, 400)):
        yield from ops.loss(clips, classes).contests(f"cross_entropy, {clips} clips, {classes} classes", LOSS)


def non_local():
    """The operation, then the block with its convolutions, pooling and batch norm; all embedded Gaussian."""
    for n, queries, keys, channels in (
        (32, (8, 6, 6), (8, 3, 3), 16),  # the small network
        (4, (4, 14, 14), (4, 7, 7), 256),  # res3 at 112 x 112
        (4, (4, 7, 7), (4, 3, 3), 512),  # res4
        (1, (4, 28, 28), (4, 14, 14), 256),  # res3 at 224 x 224: 3,136 positions
        (4, (4, 28, 28), (4, 14, 14), 256),
        (1, (4, 28, 28), (4, 28, 28), 256),  # without subsampling
        (1, (4, 56, 56), (4, 28, 28), 128),  # 12,544 positions
    ):
        length, keys_length = np.prod(queries), np.prod(keys)
        yield from ops.non_local(n, queries, keys, channels).contests(
            f"non_local, N={n} L={length} P={keys_length} I={channels}", NON_LOCAL
        )
    for x in ((4, 4, 14, 14, 512), (4, 4, 7, 7, 1024), (1, 4, 28, 28, 512), (1, 4, 56, 56, 256)):
        yield from networks.block(f"NonLocalBlock, {sizes(x)}", NON_LOCAL, x)


def sizes(shape):
    return "x".join(map(str, shape))
