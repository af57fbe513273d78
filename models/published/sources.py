"""What each source's networks are, where the arrays of a file cannot tell: pooling, strides, subsampling, scale, input.

All of it is read from the sources' own code and settings; docs/published.md has it as a table.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

PAPER = {"conv1_stride": 2, "pool1_frames": 2, "pool1_stride": 2, "pool2_frames": 2}
FAST = {"conv1_stride": 1, "pool1_frames": 1, "pool1_stride": 1}
MMACTION_I3D = {"conv1_stride": 2, "pool1_frames": 1, "pool1_stride": 2, "pool2_frames": 2}

HALF = {"mean": [114.75], "deviation": [57.375]}  # of 0 to 255: 0.45 and 0.225
IMAGENET = {"mean": [123.675, 116.28, 103.53], "deviation": [58.395, 57.12, 57.375]}
MOST = 100_000  # letters of settings, of which those of published files have some thousand
INPUT = {"video-nonlocal-net": HALF, "slowfast": HALF, "pytorchvideo": HALF, "mmaction2": IMAGENET}  # RGB, all of them


@dataclass
class Facts:
    """What is known of a network besides its arrays.

    Attributes
    ----------
    fixed : dict
        Fields of Config that this source's networks have in common.
    usual : dict
        Fields that its published files have, though others of its networks may not.
    layouts : dict of str to dict
        Networks of this source that differ in what no array shows: how to ask for one -> its fields.
    read : dict
        Fields that the file itself tells, in settings beside its weights.
    input : dict
        mean, deviation, and the step between frames if the file tells it.
    """

    fixed: dict
    usual: dict = field(default_factory=dict)
    layouts: dict = field(default_factory=dict)
    read: dict = field(default_factory=dict)
    input: dict = field(default_factory=dict)


def facts(where, source, seen, theirs, settings):
    """The Facts of a file.

    Parameters
    ----------
    source : one of names.FORMATS
    seen : dict
        What the arrays show: see shapes.seen.
    theirs : dict of name -> array, as the file has them
    settings : str
        The text that the file has beside its weights, or "".
    """
    read = {
        "video-nonlocal-net": authors, "slowfast": slowfast, "pytorchvideo": pytorchvideo, "mmaction2": mmaction2
    }[source]  # fmt: skip
    try:
        made = read(seen, theirs, settings[:MOST])
    except (ValueError, TypeError, OverflowError) as error:
        raise ValueError(f"{where}: the settings beside its weights cannot be read: {error}") from None
    made.input = INPUT[source] | made.input
    return made


def authors(seen, theirs, settings):
    """The authors' release. Two layouts along time have the same arrays."""
    fixed = {"subsample": "before", "scale": True, "pool1_padding": 0, "pool2_frames": 2}
    long = seen["norm"] == "affine"
    if long:
        fixed["chunks"] = {"res3": 4} if seen["places"].get("res3") else {}
    return Facts(
        fixed,
        {"non_local": "embedded"},
        {
            f"the paper's, {'128x1' if long else '32x2'}": PAPER | {"frames": 128 if long else 32},
            f"the faster one, {'32x4' if long else '8x8'}": FAST | {"pool2_frames": 2, "frames": 32 if long else 8},
        },
    )


def slowfast(seen, theirs, settings):
    """SlowFast's C2D, I3D and Slow."""
    made = Facts(
        {"subsample": "before", "scale": True, **FAST, "pool1_padding": 1}, {"non_local": "embedded", "frames": 8}
    )
    made.layouts = slow_or_pooled(seen)
    found = yaml_values(settings)
    if "MODEL.ARCH" in found:
        made.read["pool2_frames"] = 2 if found["MODEL.ARCH"] in ("c2d", "i3d") else 1
    if seen["non_local"] is not None and "NONLOCAL.INSTANTIATION" in found:
        made.read["non_local"] = {"softmax": "embedded", "dot_product": "dot"}.get(found["NONLOCAL.INSTANTIATION"])
    if "DATA.NUM_FRAMES" in found:
        made.read["frames"] = int(found["DATA.NUM_FRAMES"])
    if "DATA.SAMPLING_RATE" in found:
        made.input["stride"] = int(found["DATA.SAMPLING_RATE"])
    for key, name in (("DATA.MEAN", "mean"), ("DATA.STD", "deviation")):
        if key in found:  # SlowFast scales frames to 0 to 1 first
            made.input[name] = [round(255 * float(v), 6) for v in found[key]]
    return made


def slow_or_pooled(seen):
    """Slow has no pool2. C2D may have none, and has the same arrays then."""
    if seen["inflate"] is None and seen["conv1_frames"] == 1:
        return {"C2D": {"pool2_frames": 2}, "C2D_NOPOOL": {"pool2_frames": 1}}
    return {"I3D": {"pool2_frames": 2}} if seen["conv1_frames"] > 1 else {"Slow": {"pool2_frames": 1}}


def pytorchvideo(seen, theirs, settings):
    """pytorchvideo's C2D, I3D and Slow: pool2 shows in the numbers of its blocks."""
    pooled = "blocks.6.proj.weight" in theirs
    return Facts({**FAST, "pool1_padding": 1, "pool2_frames": 2 if pooled else 1}, {"frames": 8})


def mmaction2(seen, theirs, settings):
    """mmaction2's C2D (2D weights), I3D (stride along time in conv1 and pool1) and SlowOnly."""
    subsampled = any(".g.0." in name for name in theirs)
    i3d = seen["conv1_frames"] > 1
    made = Facts({"subsample": "after" if subsampled else None}, {"non_local": "embedded", "scale": not i3d})
    if i3d:
        made.fixed |= MMACTION_I3D | {"pool1_padding": 1}
        made.usual["frames"] = 32
    elif len(theirs["backbone.conv1.conv.weight"].shape) == 4:
        made.usual["frames"] = 8
        made.layouts = {
            "C2D": FAST | {"pool2_frames": 2, "pool1_padding": 0},
            "C2D without temporal pooling": FAST | {"pool2_frames": 1, "pool1_padding": 1},
        }
    else:
        made.fixed |= FAST | {"pool2_frames": 1, "pool1_padding": 1}
        made.usual["frames"] = 8

    def found(pattern):
        match = re.search(pattern, settings)
        return match[1] if match else None

    _, _, block = settings.partition("non_local_cfg")
    block = block[:500]
    mode = re.search(r"mode\s*=\s*['\"](\w+)['\"]", block)
    if mode and seen["non_local"] is not None:
        modes = {
            "gaussian": "gaussian",
            "embedded_gaussian": "embedded",
            "dot_product": "dot",
            "concatenation": "concat",
        }
        made.read["non_local"] = modes.get(mode[1])
    if scale := re.search(r"use_scale\s*=\s*(True|False)", block):
        made.read["scale"] = scale[1] == "True"
    if frames := found(r"clip_len\s*=\s*(\d+)"):
        made.read["frames"] = int(frames)
    if stride := found(r"frame_interval\s*=\s*(\d+)"):
        made.input["stride"] = int(stride)
    return made


def yaml_values(text):
    """'SECTION.KEY' -> str or list of str, of settings in SlowFast's two levels of YAML."""
    found, section, key = {}, "", ""
    for line in text.splitlines():
        if match := re.fullmatch(r"(\w+):\s*", line):
            section = match[1]
        elif match := re.fullmatch(r"  (\w+):\s*(.*)", line):
            key = f"{section}.{match[1]}"
            value = match[2].strip()
            listed = re.fullmatch(r"\[([^\[\]]*)\]", value)
            found[key] = [v.strip() for v in listed[1].split(",")] if listed else value or []
        elif (match := re.fullmatch(r"  - (\S+)", line)) and isinstance(found.get(key), list):
            found[key].append(match[1])
    return found
