"""From a checkpoint of minnl to the names and the layout of others: safetensors, which PyTorch reads."""

from __future__ import annotations

import dataclasses
import json

import safetensors.numpy

from minnl import checkpoint
from minnl.checks import clean
from minnl.nn import init
from minnl.training import part
from models import stored
from models.config import BLOCKS, STAGES
from models.published import files, layout
from models.published.names import FORMATS, Names
from models.video_resnet import VideoResNet

# What the networks of each source can be, where ours can be more: field -> what it has there.
FAST = {"conv1_stride": (1,), "pool1_frames": (1,), "pool1_stride": (1,), "pool2_frames": (1, 2)}
BOTTLENECKS = {"depth": (50, 101), "norm": ("batch",), "axes": ("spacetime",), "chunks": ({},)}
LIMITS = {
    "video-nonlocal-net": {
        **BOTTLENECKS, "norm": ("batch", "affine"), "chunks": ({}, {"res3": 4}), "pool1_padding": (0,),
        "inflate": (None, "3x1x1"), "inflated": (None,), "pool2_frames": (2,), "non_local": (None, "embedded", "dot"),
        "subsample": ("before",),
    },
    "slowfast": {
        **BOTTLENECKS, **FAST, "pool1_padding": (1,), "inflate": (None, "3x1x1"),
        "non_local": (None, "embedded", "dot"), "subsample": ("before", None), "scale": (True,),
    },
    "pytorchvideo": {
        **BOTTLENECKS, **FAST, "pool1_padding": (1,), "inflate": (None, "3x1x1"), "non_local": (None,),
    },
    "mmaction2": {
        **BOTTLENECKS, "pool1_frames": (1,), "pool1_padding": (1,), "pool2_frames": (1, 2),
        "subsample": ("after", None),
    },
}  # fmt: skip
NON_LOCAL = ("subsample", "scale", "axes", "chunks")  # mean nothing without non-local blocks


def export_file(path, to, format):
    """Write the network of a checkpoint with the names and the layout of others.

    Parameters
    ----------
    path : str or Path
        A checkpoint of minnl that holds a models.VideoResNet.
    to : str or Path
        A safetensors file; its arrays load with ``model.load_state_dict(safetensors.torch.load_file(to))``.
    format : one of names.FORMATS

    Returns
    -------
    list of str
        What must be set there so that the network is the same.

    Raises
    ------
    ValueError
        If the checkpoint holds another kind of network, or one that does not exist there, naming what differs.
        Nothing is written then.
    """
    if format not in FORMATS:
        raise ValueError(f"export: no format {format!r}; there are {', '.join(FORMATS)}")
    files.apart("export", path, to)
    arrays, meta = checkpoint.load(path)
    state = part(arrays, "model/")
    made = network_of(path, meta, state)
    refuse(path, made, format)
    subsampled = made.non_local is not None and made.subsample is not None
    names = Names(format, pooled=made.pool2_frames > 1, subsampled=subsampled)
    if format == "mmaction2":
        state = without_bias(state)
    written = {names.theirs(name): layout.there(name, array) for name, array in state.items()}
    network = json.dumps(dataclasses.asdict(made))
    raw = safetensors.numpy.save(written, {"format": "pt", "minnl_network": network})
    checkpoint.write(to, (raw,))
    return settings(made, format)


def network_of(path, meta, state):
    """The Config of the network whose state a checkpoint holds.

    Raises ValueError if it holds another kind of network, or not exactly the arrays of that one.
    """
    config = meta.get("config")
    network = config.get("network") if isinstance(config, dict) else None
    if not isinstance(network, dict):
        name = config.get("model") if isinstance(config, dict) else None
        held = clean(name) if isinstance(name, str) else "no network"
        raise ValueError(f"{path}: holds {held}, not a C2D or I3D ResNet of models.VideoResNet")
    made = stored.network(path, network, {name: array.shape for name, array in state.items()})
    with init.skipped():
        VideoResNet(made).load_state_dict(state)
    return made


def without_bias(state):
    """A state without the biases of W_z: (y + b - m) of the batch norm behind it is y - (m - b)."""
    kept = {name: array for name, array in state.items() if not name.endswith("W_z.bias")}
    for name in state.keys() - kept.keys():
        mean = name.removesuffix("W_z.bias") + "norm.running_mean"
        kept[mean] = kept[mean] - state[name]
    return kept


def refuse(path, made, format):
    """Raises ValueError unless the same network exists there."""
    wrong = []
    for field, allowed in LIMITS[format].items():
        value = getattr(made, field)
        if value not in allowed and not (made.non_local is None and field in NON_LOCAL):
            wrong.append(f"{field} is {value!r}, {' or '.join(map(repr, allowed))} there")
    if format in ("slowfast", "pytorchvideo") and architecture(made) is None:
        wrong.append("its blocks are inflated as in none of C2D, I3D and Slow")
    if wrong:
        raise ValueError(
            f"{path}: not written, for {format} has no such network: {'; '.join(wrong)}. Train one that it "
            f"has, or write another format: {', '.join(f for f in FORMATS if f != format)}"
        )


def architecture(made):
    """SlowFast's name of the network's temporal kernels, or None."""
    suffix = "" if made.pool2_frames > 1 else "_nopool"
    if made.conv1_frames == 1 and made.inflate is None:
        return f"c2d{suffix}"
    blocks = [tuple(made.inflated_blocks(stage)) for stage in STAGES]
    counts = BLOCKS[made.depth]
    if made.conv1_frames == 5 and blocks == [
        tuple(range(counts[0])), tuple(range(0, counts[1], 2)), tuple(range(0, counts[2], 2)), (1,)
    ]:  # fmt: skip
        return f"i3d{suffix}"
    slow = made.conv1_frames == 1 and blocks == [(), (), tuple(range(counts[2])), tuple(range(counts[3]))]
    return "slow" if slow and made.pool2_frames == 1 else None


def settings(made, format):
    """What to set there, in their own words where one setting says it."""
    lines = []
    if format == "slowfast":
        lines += [
            f"MODEL.ARCH {architecture(made)}", f"MODEL.NUM_CLASSES {made.classes}", f"RESNET.DEPTH {made.depth}",
            f"RESNET.WIDTH_PER_GROUP {made.width}", f"DATA.NUM_FRAMES {made.frames}",
        ]  # fmt: skip
        if made.non_local is not None:
            places = [[list(made.non_local_blocks(stage))] for stage in STAGES]
            pool = [1, 2, 2] if made.subsample else [1, 1, 1]
            kind = "softmax" if made.non_local == "embedded" else "dot_product"
            lines += [
                f"NONLOCAL.LOCATION {places}", f"NONLOCAL.POOL {[[pool]] * 4}", f"NONLOCAL.INSTANTIATION {kind}"
            ]  # fmt: skip
        return lines
    changes = {f.name: getattr(made, f.name) for f in dataclasses.fields(made) if getattr(made, f.name) != f.default}
    return [f"{name} = {value!r}" for name, value in changes.items()]
