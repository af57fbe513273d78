"""What the arrays of a file cannot tell of the networks of its source: pooling, strides, subsampling, scale, input.

All of it comes from the sources' own code and settings; docs/published.md has it as a table.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from minnl.checks import quoted
from minnl.training import schema
from models.config import STAGES, Config
from models.published import keys, settings_text

PAPER = {"conv1_stride": 2, "pool1_frames": 2, "pool1_stride": 2, "pool2_frames": 2}
FAST = {"conv1_stride": 1, "pool1_frames": 1, "pool1_stride": 1}

HALF = {"mean": [114.75], "deviation": [57.375]}  # On the scale of 0 to 255; 0.45 and 0.225 on that of 0 to 1.
IMAGENET = {"mean": [123.675, 116.28, 103.53], "deviation": [58.395, 57.12, 57.375]}
FLOW = {"mean": [128.0], "deviation": [128.0]}  # Of optical flow in two channels, stored as 0 to 255.
INPUT = {"video-nonlocal-net": HALF, "slowfast": HALF, "pytorchvideo": HALF, "mmaction2": IMAGENET}

# SlowFast's MODEL.ARCH -> (taps of conv1, frames of pool2).
ARCHITECTURES = {
    "2d": (1, 1), "c2d": (1, 2), "c2d_nopool": (1, 1), "i3d": (5, 2), "i3d_nopool": (5, 1), "slow": (1, 1),
    "slowonly": (1, 1),
}  # fmt: skip
# The type of mmaction2's backbone -> the fields of Config that its code fixes.
BACKBONES = {
    "ResNet3d": {"pool1_frames": 1, "pool1_padding": 1},
    "ResNet3dSlowOnly": {"pool1_frames": 1, "pool1_padding": 1, "pool2_frames": 1},
    "C2D": FAST | {"pool2_frames": 2, "pool1_padding": 0},
    "C2D_R50": FAST | {"pool2_frames": 2, "pool1_padding": 0},
    "ResNet": FAST | {"pool2_frames": 1, "pool1_padding": 1},
}
MODES = {"gaussian": "gaussian", "embedded_gaussian": "embedded", "dot_product": "dot", "concatenation": "concat"}
SMALL, THREE = schema.whole(1, 10_000), schema.listed(schema.whole(1, 100), 3, 3)
COLOURS, DEVIATIONS = (schema.listed(schema.real(low, 1e6), 1, 100) for low in (-1e6, 1e-6))


@dataclass
class Facts:
    """What is known of a network besides its arrays."""

    fixed: dict  # Fields of Config that the networks of this source have in common.
    usual: dict = field(default_factory=dict)  # Fields that its published files have, but perhaps not all its networks.
    layouts: dict = field(default_factory=dict)  # Name -> fields, of its networks that have the same arrays.
    read: dict = field(default_factory=dict)  # Fields from the settings in the file.
    input: dict = field(default_factory=dict)  # Mean, deviation, and the step between frames if the file tells it.


def facts(where, source, shown, theirs, settings):
    """The Facts of a file, from what its arrays show (shapes.shown_fields), their names there, and its settings."""
    try:
        made = SOURCES[source](shown, theirs, settings)
    except ValueError as error:
        raise ValueError(f"{where}: the settings beside its weights: {error}") from None
    made.input = INPUT[source] | made.input
    for name in ("mean", "deviation"):
        if len(made.input[name]) not in (1, shown["in_channels"]):
            raise ValueError(
                f"{where}: it takes {shown['in_channels']} channels; the {name} of its settings, or else of other"
                f" networks of the source, is for {len(made.input[name])}: {quoted(made.input[name])}"
            )
    return made


def asked(settings, key, rule):
    """The value of a key, None if it is not there; raises ValueError if it is not as the rule says."""
    return None if settings.get(key) is None else schema.check(key, settings[key], rule, because="")


def colours(settings, mean, deviation, scale=1):
    """{"mean", "deviation"} of the keys of these names, on the scale of 0 to 255."""
    found = {"mean": asked(settings, mean, COLOURS), "deviation": asked(settings, deviation, DEVIATIONS)}
    return {name: [round(scale * float(v), 6) for v in values] for name, values in found.items() if values is not None}


def authors(shown, theirs, settings):
    """The authors' release: two layouts along time have the same arrays."""
    long = shown["norm"] == "affine"
    chunks = {"chunks": {"res3": 4} if shown["blocks"].get("res3") else {}} if long else {}
    return Facts(
        {"subsample": "before", "scale": True, "pool1_padding": 0, "pool2_frames": 2} | chunks,
        {"non_local": "embedded"},
        {
            f"the paper's, {'128x1' if long else '32x2'}": PAPER | {"frames": 128 if long else 32},
            f"the faster one, {'32x4' if long else '8x8'}": FAST | {"pool2_frames": 2, "frames": 32 if long else 8},
        },
    )


def slowfast(shown, theirs, settings):
    """SlowFast's C2D, I3D and Slow."""
    fixed = {"subsample": "before", "scale": True, **FAST, "pool1_padding": 1}
    if shown["conv1_frames"] > 1:
        layouts = {"I3D": {"pool2_frames": 2}}
    elif shown["inflate"] is not None:
        layouts = {"Slow": {"pool2_frames": 1}}
    else:
        layouts = {"C2D": {"pool2_frames": 2}, "C2D_NOPOOL": {"pool2_frames": 1}}
    made = Facts(fixed, {"non_local": "embedded", "frames": 8}, layouts)
    found = keys.checked(settings_text.yaml(settings), keys.SLOWFAST, keys.SLOWFAST_MODEL)
    architecture = asked(found, "MODEL.ARCH", schema.choice(*ARCHITECTURES))
    if architecture is not None:
        (taps, made.read["pool2_frames"]), made.layouts = ARCHITECTURES[architecture], {}
        if taps != shown["conv1_frames"]:
            raise ValueError(f"MODEL.ARCH is {architecture}, with {taps} taps in conv1; it has {shown['conv1_frames']}")
    for key, known, name, rule in (
        ("DATA.NUM_FRAMES", made.read, "frames", SMALL), ("DATA.TRAIN_CROP_SIZE", made.read, "size", SMALL),
        ("MODEL.DROPOUT_RATE", made.read, "dropout", schema.real(0, 1)),
        ("DATA.SAMPLING_RATE", made.input, "stride", SMALL),
    ):  # fmt: skip
        if key in found:
            known[name] = asked(found, key, rule)
    if made.read.get("size", 32) % 32:
        raise ValueError(
            f"DATA.TRAIN_CROP_SIZE is {made.read['size']}, of which SlowFast's last pooling takes "
            f"{made.read['size'] // 32} positions a side; networks here take the whole map, as for multiples of 32"
        )
    made.input |= colours(found, "DATA.MEAN", "DATA.STD", 255)  # SlowFast scales frames to 0 to 1 first.
    if shown["non_local"] is not None:
        made.read |= slowfast_blocks(shown, found, made.read)
    return made


def slowfast_blocks(shown, found, read):
    """Fields of the non-local blocks. SlowFast says all but the instantiation for each stage."""
    made = {}
    if "NONLOCAL.INSTANTIATION" in found:
        modes = {"softmax": "embedded", "dot_product": "dot"}
        made["non_local"] = modes[asked(found, "NONLOCAL.INSTANTIATION", schema.choice(*modes))]
    stages = {stage: STAGES.index(stage) for stage in shown["blocks"]}
    pools = asked(found, "NONLOCAL.POOL", schema.listed(schema.listed(THREE, 1), 4, 4))
    if pools is not None:
        pools = {stage: pools[i][0] for stage, i in stages.items()}
        ways = {tuple(pool) for pool in pools.values()}
        if ways not in ({(1, 1, 1)}, {(1, 2, 2)}):
            raise ValueError(
                f"NONLOCAL.POOL is {quoted(pools)}; networks here have [1, 2, 2] (subsample='before') or [1, 1, 1] "
                "(None), the same in all stages with blocks"
            )
        made["subsample"] = "before" if ways == {(1, 2, 2)} else None
    groups = asked(found, "NONLOCAL.GROUP", schema.listed(schema.listed(SMALL, 1), 4, 4))
    groups = {} if groups is None else {stage: groups[i][0] for stage, i in stages.items() if groups[i][0] > 1}
    for stage, number in groups.items():
        frames = read.get("frames", 0) // (1 if stage == "res2" else read.get("pool2_frames", 0) or 1)
        if frames < 1 or "pool2_frames" not in read or frames % number:
            raise ValueError(
                f"NONLOCAL.GROUP is {number} in {stage}, which must divide the frames there; DATA.NUM_FRAMES and "
                f"MODEL.ARCH make them {frames}"
            )
        made.setdefault("chunks", {})[stage] = frames // number
    return made


def pytorchvideo(shown, theirs, settings):
    """pytorchvideo's C2D, I3D and Slow: pool2 shows in the numbers of its blocks."""
    pooled = "blocks.6.proj.weight" in theirs
    return Facts({**FAST, "pool1_padding": 1, "pool2_frames": 2 if pooled else 1}, {"frames": 8})


def mmaction2(shown, theirs, settings):
    """mmaction2's C2D (2D weights), I3D (stride along time in conv1 and pool1) and SlowOnly."""
    subsampled = any(".g.0." in name for name in theirs)
    i3d, flat = shown["conv1_frames"] > 1, len(theirs["backbone.conv1.conv.weight"].shape) == 4
    made = Facts({"subsample": "after" if subsampled else None}, {"non_local": "embedded", "scale": not i3d})
    made.usual["frames"] = 32 if i3d else 8
    if shown["in_channels"] == 2:
        made.input |= FLOW
    if flat:
        made.layouts = {"C2D": BACKBONES["C2D"], "C2D without temporal pooling": BACKBONES["ResNet"]}
    elif i3d:
        made.fixed |= BACKBONES["ResNet3d"]
        made.layouts = {"I3D": {"conv1_stride": 2, "pool1_stride": 2, "pool2_frames": 2}}
        usual = Config(depth=shown["depth"], inflate="3x3x3")
        if shown["inflated"] != {stage: usual.inflated_blocks(stage) for stage in STAGES}:
            # i3d-heavy has all blocks inflated, and no array shows its strides.
            made.layouts["I3D heavy"] = {"conv1_stride": 1, "pool1_stride": 1, "pool2_frames": 2}
    else:
        made.fixed |= BACKBONES["ResNet3dSlowOnly"]
        made.layouts = {"SlowOnly": {"conv1_stride": 1, "pool1_stride": 1}}
    found = keys.checked(settings_text.python(settings), keys.MMACTION2, keys.MMACTION2_MODEL)
    backbone = found.get("model.backbone.type")
    if backbone is not None:
        if (not backbone.startswith("ResNet3d")) != flat:
            raise ValueError(
                f"model.backbone.type is {backbone}, whose kernels have {5 if flat else 4} axes, not as here"
            )
        made.layouts, made.read = {}, made.read | BACKBONES[backbone] | mmaction2_strides(found, backbone)
        made.fixed = {"subsample": made.fixed["subsample"]}
        if shown["non_local"] is not None:
            mode = asked(found, "model.backbone.non_local_cfg.mode", schema.choice(*MODES))
            scaled = asked(found, "model.backbone.non_local_cfg.use_scale", schema.choice(True, False))
            made.read |= {"non_local": MODES[mode or "embedded_gaussian"], "scale": scaled is not False}
    dropout = asked(found, "model.cls_head.dropout_ratio", schema.real(0, 1))
    made.read |= {} if dropout is None else {"dropout": dropout}
    for section in ("img_norm_cfg", "model.data_preprocessor"):
        made.input |= colours(found, f"{section}.mean", f"{section}.std")
    sampled = sampling(found.get("train_pipeline"))
    if "clip_len" in sampled:
        # To Recognizer2D each clip of a video is a frame of this network.
        segments = sampled.get("num_clips", 1) if found.get("model.type") == "Recognizer2D" else 1
        made.read["frames"] = sampled["clip_len"] * segments
        if segments == 1 and "frame_interval" in sampled:
            made.input["stride"] = sampled["frame_interval"]
    return made


def mmaction2_strides(found, backbone):
    """Strides along time and pool2 of a 3D backbone; its defaults are 2, 2 and pool2, SlowOnly's 1, 1 and none."""
    if not backbone.startswith("ResNet3d"):
        return {}
    default = 2 if backbone == "ResNet3d" else 1
    made = {
        name: asked(found, f"model.backbone.{name}_t", SMALL) or default for name in ("conv1_stride", "pool1_stride")
    }
    if backbone == "ResNet3d":
        pooled = asked(found, "model.backbone.with_pool2", schema.choice(True, False))
        made["pool2_frames"] = 1 if pooled is False else 2
    return made


def sampling(pipeline):
    """The numbers of the SampleFrames, or the like, in a pipeline."""
    for step in pipeline if isinstance(pipeline, list) else ():
        if isinstance(step, dict) and isinstance(step.get("type"), str) and step["type"].endswith("SampleFrames"):
            names = ("clip_len", "frame_interval", "num_clips")
            return {name: asked(step, name, SMALL) for name in names if step.get(name) is not None}
    return {}


SOURCES = {"video-nonlocal-net": authors, "slowfast": slowfast, "pytorchvideo": pytorchvideo, "mmaction2": mmaction2}
