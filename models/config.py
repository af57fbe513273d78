"""Every option of a video ResNet, checked here and built by models/video_resnet.py."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from minnl import nn
from minnl.checks import choice, count, number, pair, quoted

STAGES = ("res2", "res3", "res4", "res5")
RESIDUAL_BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}  # of each stage
BASIC = (18, 34)  # depths with two 3 x 3 convolutions a block, instead of a bottleneck

# 1, 5 or 10 non-local blocks: stage to indices of the residual blocks that one follows. 1: right before the last
# residual block of res4. 5 and 10: as in the released networks; 10 with depth 101 as in GluonCV, the authors released
# none.
FIRST_TEN = {"res3": (0, 1, 2, 3), "res4": (0, 1, 2, 3, 4, 5)}
EVERY_OTHER = {"res3": (1, 3), "res4": (1, 3, 5)}
PUBLISHED_BLOCKS: dict[int, dict[Any, dict[str, tuple[int, ...]]]] = {
    18: {1: {"res4": (0,)}},
    34: {1: {"res4": (4,)}, 5: EVERY_OTHER, 10: FIRST_TEN},
    50: {1: {"res4": (4,)}, 5: EVERY_OTHER, 10: FIRST_TEN},
    101: {
        1: {"res4": (21,)},
        5: {"res3": (1, 3), "res4": (6, 13, 20)},
        10: {"res3": (0, 1, 2, 3), "res4": (2, 6, 10, 14, 18, 22)},
    },
}


@dataclass(frozen=True)
class Config:
    """A video ResNet. The defaults are C2D ResNet-50 for 32 frames, table 1 of the paper.

    Parameters
    ----------
    depth : 18, 34, 50 or 101
        Layers with weights of the 2D network. 18 and 34 have basic blocks, 50 and 101 bottlenecks.
    width : int
        Channels of conv1, 64 as published; all others follow.
    classes, in_channels : int
    dropout : float
        Before the classifier.
    norm : "batch" or "affine"
        "affine" for long clips: scale and shift that do not learn (trained batch norms are folded into them), and
        non-local blocks without norm.
    frames : int
    size : int or (height, width)
        The clip that the network is made for. Other clips are accepted if they fit: see :meth:`sizes`.
    conv1_frames, conv1_stride : int
        Taps and stride along time of conv1, which is 7 x 7 with stride 2 in space: 1 tap in C2D, 5 in I3D.
    pool1_frames, pool1_stride, pool1_padding : int
        Window and stride along time of pool1, the maximum over 3 x 3 with stride 2 in space; its padding in space, 0 as
        released by the authors, 1 in SlowFast and most others.
    pool2_frames : int
        Frames that pool2, behind res2, takes the maximum of; 1 for no pool2.
    inflate : None, "3x1x1" or "3x3x3"
        None for C2D. For I3D the convolution of a block that gets three taps along time: "3x1x1" the first of a
        bottleneck, "3x3x3" the 3 x 3 one (the first of the two in a basic block).
    inflated : dict of stage to indices of residual blocks, or None
        The inflated residual blocks. None: as released, all of res2, then every other block.
    non_local : None, "gaussian", "embedded", "dot" or "concat"
    blocks : 1, 5, 10, a stage, or dict of stage to indices of residual blocks
        The non-local blocks. 1, 5 or 10: so many, where the paper has them. "res3": one, right before the last residual
        block of that stage (table 2b). {"res3": (1, 3)}: one behind each of these residual blocks.
    subsample, scale, axes
        Of nn.NonLocalBlock.
    chunks : dict of stage to a number of frames
        In these stages the non-local blocks work within chunks of so many frames: {"res3": 4} for long clips.

    Raises
    ------
    ValueError, TypeError
        The message names the field, what came and what would do.
    """

    depth: int = 50
    width: int = 64
    classes: int = 400
    in_channels: int = 3
    dropout: float = 0.5
    norm: Literal["batch", "affine"] = "batch"
    frames: int = 32
    size: Any = 224  # an int or two; in a Config always two
    conv1_frames: int = 1
    conv1_stride: int = 2
    pool1_frames: int = 2
    pool1_stride: int = 2
    pool1_padding: int = 0
    pool2_frames: int = 2
    inflate: str | None = None
    inflated: dict[str, Sequence[int]] | None = None
    non_local: str | None = None
    blocks: int | str | dict[str, Sequence[int]] = 5
    subsample: str | None = "before"
    scale: bool = True
    axes: str = "spacetime"
    chunks: dict[str, int] = field(default_factory=dict)

    def __post_init__(self):
        def put(name, value):
            object.__setattr__(self, name, value)

        where = type(self).__name__
        choice(where, "depth", self.depth, tuple(RESIDUAL_BLOCKS))
        for name in (
            "width", "classes", "in_channels", "frames", "conv1_frames", "conv1_stride", "pool1_frames", "pool1_stride",
            "pool2_frames",
        ):  # fmt: skip
            put(name, count(where, name, getattr(self, name)))
        if self.conv1_frames % 2 == 0:
            raise ValueError(
                f"{where}: conv1_frames must be odd, as many before as behind, got {quoted(self.conv1_frames)}"
            )
        put("pool1_padding", choice(where, "pool1_padding", self.pool1_padding, (0, 1)))
        put("dropout", number(where, "dropout", self.dropout, 0, 1))
        put("size", pair(where, "size", self.size))
        choice(where, "norm", self.norm, ("batch", "affine"))
        choice(where, "inflate", self.inflate, (None, "3x1x1", "3x3x3"))
        if self.inflate == "3x1x1" and self.depth in BASIC:
            raise ValueError(
                f"{where}: inflate='3x1x1' needs the 1 x 1 convolutions of depth 50 or 101; "
                f"depth={self.depth} has none, '3x3x3' would do"
            )
        if self.inflated is not None:
            if self.inflate is None:
                raise ValueError(
                    f"{where}: inflated={quoted(self.inflated)} says where, inflate must say how, got None"
                )
            put("inflated", self._indices("inflated", self.inflated))
        choice(where, "non_local", self.non_local, (None, *nn.MODES))
        choice(where, "subsample", self.subsample, ("before", "after", None))
        choice(where, "axes", self.axes, nn.AXES)
        put("scale", choice(where, "scale", self.scale, (True, False)))
        if isinstance(self.blocks, str):
            stage = choice(where, "blocks", self.blocks, STAGES)
            put("blocks", {stage: (self._residual_blocks(stage) - 2,)})
        elif isinstance(self.blocks, dict):
            put("blocks", self._indices("blocks", self.blocks))
        elif self.non_local is not None and self.blocks not in tuple(PUBLISHED_BLOCKS[self.depth]):
            numbers = " or ".join(map(str, PUBLISHED_BLOCKS[self.depth]))
            raise ValueError(
                f"{where}: blocks must be {numbers} for depth {self.depth}, a stage, or a dict such as "
                f"{{'res4': (0,)}}, got {quoted(self.blocks)}"
            )
        if not isinstance(self.chunks, dict):
            raise TypeError(f"{where}: chunks must be a dict of stage to a number of frames, got {quoted(self.chunks)}")
        for stage in self.chunks:
            choice(where, "stage of chunks", stage, STAGES)
        put("chunks", {stage: count(where, f"chunks[{stage!r}]", n) for stage, n in self.chunks.items()})
        self.sizes()

    def _indices(self, name, given):
        """A dict of stage to indices of its residual blocks, checked, with tuples in it."""
        where = type(self).__name__
        if not isinstance(given, dict):
            raise TypeError(
                f"{where}: {name} must be a dict of stage to indices of residual blocks, got {quoted(given)}"
            )
        found = {}
        for stage, indices in given.items():
            choice(where, f"stage of {name}", stage, STAGES)
            if not isinstance(indices, (tuple, list, range)):
                raise TypeError(f"{where}: {name}[{stage!r}] must be a tuple of indices, got {quoted(indices)}")
            there = self._residual_blocks(stage)
            first = indices[: there + 1]  # one too many is as wrong as a billion
            found[stage] = tuple(count(where, f"{name}[{stage!r}]", i, 0) for i in first)
            if len(set(found[stage])) != len(first) or max(found[stage], default=0) >= there:
                raise ValueError(
                    f"{where}: {name}[{stage!r}] must be different indices from 0 to {there - 1}, for depth "
                    f"{self.depth} has {there} blocks there; got {quoted(found[stage])}"
                )
        return found

    def _residual_blocks(self, stage):
        """How many a stage has."""
        return RESIDUAL_BLOCKS[self.depth][STAGES.index(stage)]

    @property
    def expansion(self) -> int:
        """Channels that leave a residual block, as a multiple of those within."""
        return 1 if self.depth in BASIC else 4

    @property
    def clip(self) -> tuple[int, int, int, int]:
        """(T, H, W, C) of the clips that the network is made for."""
        return (self.frames, *self.size, self.in_channels)

    def inflated_blocks(self, stage: str) -> tuple[int, ...]:
        """Indices of the inflated residual blocks of a stage."""
        if self.inflate is None:
            return ()
        if self.inflated is not None:
            return tuple(self.inflated.get(stage, ()))
        first, step = {"res2": (0, 1), "res3": (0, 2), "res4": (0, 2), "res5": (1, 2)}[stage]
        return tuple(range(first, self._residual_blocks(stage), step))

    def non_local_blocks(self, stage: str) -> tuple[int, ...]:
        """Indices of the residual blocks of a stage that a non-local block follows."""
        if self.non_local is None:
            return ()
        if isinstance(self.blocks, dict):
            return tuple(self.blocks.get(stage, ()))
        return PUBLISHED_BLOCKS[self.depth][self.blocks].get(stage, ())  # type: ignore[index]

    def sizes(
        self, frames: int | None = None, height: int | None = None, width: int | None = None
    ) -> dict[str, tuple[int, int, int]]:
        """(T, H, W) behind each layer, for the clip that the network is made for, or for another one.

        Raises ValueError if the clip does not fit; the message names the layer that it is too small for, and what would
        do.
        """
        where, own = type(self).__name__, (self.frames, *self.size)
        given = [mine if n is None else n for mine, n in zip(own, (frames, height, width), strict=True)]
        clip = dict(zip(("frames", "height", "width"), given, strict=True))
        found = {axis: self._along(axis, n) for axis, n in clip.items()}
        for axis, lengths in found.items():
            short = next((layer for layer, n in lengths.items() if n < 1), None)
            if short:
                raise ValueError(
                    f"{where}: a clip with {axis}={quoted(clip[axis])} is too small for {short}, "
                    f"{quoted(self._least(axis))} would do"
                )
        for stage, chunk in self.chunks.items():
            if self.non_local_blocks(stage) and found["frames"][stage] % chunk:
                raise ValueError(
                    f"{where}: chunks[{stage!r}]={quoted(chunk)} must divide the frames that arrive there, "
                    f"{quoted(found['frames'][stage])} of frames={quoted(clip['frames'])}"
                )
        return {layer: tuple(lengths[layer] for lengths in found.values()) for layer in found["frames"]}

    def _along(self, axis, n):
        """Length along an axis behind each layer, and of the keys of non-local blocks; below 1 for a clip too short."""
        time, lengths = axis == "frames", {}
        for layer, taps, stride, padding in self._windows(time):
            n = (n + 2 * padding - taps) // stride + 1 if n > 0 else 0
            lengths[layer] = n
            if not time and self.subsample and self.non_local_blocks(layer):
                lengths[f"the subsampling of non-local blocks in {layer}"] = n // 2
        return lengths

    def _least(self, axis):
        """The shortest clip along an axis whose length stays 1 or more; computed from the last layer to the first."""
        time, n = axis == "frames", 1
        for layer, taps, stride, padding in reversed([*self._windows(time)]):
            if not time and self.subsample and self.non_local_blocks(layer):
                n = max(n, 2)
            n = max(1, (n - 1) * stride + taps - 2 * padding)
        return n

    def _windows(self, time):
        """(layer, taps, stride, padding) of the layers that change the length of time, or of space."""
        if time:
            taps = self.conv1_frames
            yield "conv1", taps, self.conv1_stride, taps // 2
            yield "pool1", self.pool1_frames, self.pool1_stride, 0
            yield "res2", 1, 1, 0
            yield "pool2", self.pool2_frames, self.pool2_frames, 0
        else:
            yield "conv1", 7, 2, 3
            yield "pool1", 3, 2, self.pool1_padding
            yield "res2", 1, 1, 0
            yield "pool2", 1, 1, 0
        for stage in STAGES[1:]:
            yield (stage, 1, 1, 0) if time else (stage, 3, 2, 1)
