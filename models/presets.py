"""The published networks by name, and the list that ``python -m minnl models`` prints."""

from __future__ import annotations

import dataclasses
from typing import Any

from minnl import nn
from models.config import Config
from models.video_resnet import VideoResNet

C2D: dict[str, Any] = {}
I3D: dict[str, Any] = {"conv1_frames": 5, "inflate": "3x1x1"}
I3D333: dict[str, Any] = {"conv1_frames": 5, "inflate": "3x3x3"}
NETWORKS: dict[str, dict[str, Any]] = {
    "c2d_r18": C2D | {"depth": 18},
    "c2d_r34": C2D | {"depth": 34},
    "c2d_r50": C2D,
    "c2d_r101": C2D | {"depth": 101},
    "i3d_r18": I3D333 | {"depth": 18},  # without 1 x 1 convolutions there is no 3 x 1 x 1
    "i3d_r34": I3D333 | {"depth": 34},
    "i3d_r50": I3D,
    "i3d_r101": I3D | {"depth": 101},
    "i3d333_r50": I3D333,
    "i3d333_r101": I3D333 | {"depth": 101},
}
NUMBERS = {"r18": (1,), "r34": (5,), "r50": (1, 5, 10), "r101": (1, 5, 10)}
FAST = {"conv1_stride": 1, "pool1_frames": 1, "pool1_stride": 1}  # the layout of the released 8-frame networks
LONG = {"norm": "affine", "chunks": {"res3": 4}}  # makes clips of 128 frames fit into memory
LAYOUTS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "8x8": (FAST | {"frames": 8}, ("c2d_r50", "nl_c2d_r50_5", "i3d_r50", "nl_i3d_r50_5")),
    "128x1": (LONG | {"frames": 128}, ("c2d_r50", "i3d_r50", "nl_i3d_r50_5", "i3d_r101", "nl_i3d_r101_5")),
    "32x4": (FAST | LONG | {"frames": 32}, ("i3d_r50", "nl_i3d_r50_5")),
}


def presets() -> dict[str, Config]:
    """Name -> Config, composed from the words of a name, such as nl_i3d_r50_5_8x8.

    ====================  ======================================================================================
    word                  meaning
    ====================  ======================================================================================
    nl … 1, 5 or 10       with so many non-local blocks, embedded Gaussian
    c2d, i3d, i3d333      no taps along time in residual blocks; 3 x 1 x 1; 3 x 3 x 3
    r18, r34, r50, r101   depth
    8x8, 128x1, 32x4      frames, and the step between them (a matter of the data); 32x2 if nothing is said. 32x2 and
                          128x1 have the layout of the paper, 8x8 and 32x4 the faster one of the authors' code
    ====================  ======================================================================================
    """
    found = dict(NETWORKS)
    for depth, numbers in NUMBERS.items():
        for base in ("c2d", "i3d"):
            for n in numbers:
                found[f"nl_{base}_{depth}_{n}"] = found[f"{base}_{depth}"] | {"non_local": "embedded", "blocks": n}
    for layout, (options, names) in LAYOUTS.items():
        for name in names:
            found[f"{name}_{layout}"] = found[name] | options
    return {name: Config(**options) for name, options in found.items()}


PRESETS = presets()


def preset(name: str, **changes: Any) -> Config:
    """The Config of a preset with some fields changed.

    Raises ValueError for a name or a field that does not exist, naming those that do.
    """
    if name not in PRESETS:
        raise ValueError(f"preset: no network {name!r}; there are {', '.join(PRESETS)}")
    fields = [field.name for field in dataclasses.fields(Config)]
    for field in changes:
        if field not in fields:
            raise ValueError(f"preset: {name} has no option {field!r}; there are {', '.join(fields)}")
    return dataclasses.replace(PRESETS[name], **changes)


def step(made):
    """The step between the frames of a clip that goes with their number: 32x2, 8x8, 16x4, 4x16; 128x1, 32x4."""
    return max(1, (64 if made.norm == "batch" else 128) // made.frames)


def build(name: str, **changes: Any) -> VideoResNet:
    """The network of a preset with some fields of its Config changed, freshly initialised."""
    return VideoResNet(preset(name, **changes))


def cost_summary_of(made):
    """The cost summary of a Config for one clip, and the number of parameters, affine layers included."""
    from minnl.study import cost_summary

    with nn.init.skipped():
        model = VideoResNet(made)
    return cost_summary.summarize(model, (1, *made.clip)), sum(p.size for p in model.parameters())


def table():
    """Lines that list the presets with clip, parameters and multiply-adds."""
    lines = [f"{'name':<20} {'clip':<11} {'parameters':>11} {'multiply-adds':>14}"]
    for name, made in PRESETS.items():
        plan, parameters = cost_summary_of(made)
        clip = "x".join(map(str, made.clip[:3]))
        lines.append(f"{name:<20} {clip:<11} {parameters:>11,} {plan.multiply_adds / 1e9:>12.3f} G")
    return "\n".join(lines)


def layers(name):
    """Lines that show a preset layer by layer."""
    from minnl.study import cost_summary

    return cost_summary.table(cost_summary_of(preset(name))[0])
