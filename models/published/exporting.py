"""From a checkpoint of minnl to the names and the layout of another project.

The file is safetensors, which PyTorch reads. For video-nonlocal-net, which is written in Caffe2 and Python 2, it is a
pickle.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import safetensors.numpy

from minnl.checks import clean
from minnl.nn import init
from minnl.training import checkpoint
from models import stored
from models.published import files, layout, pickle_writer, settings_there
from models.published.names import FORMATS, Names
from models.video_resnet import VideoResNet

# Fields of Config with fewer values in the networks of a source than here: field -> its values there.
FAST = {"conv1_stride": (1,), "pool1_frames": (1,), "pool1_stride": (1,), "pool2_frames": (1, 2)}
BOTTLENECKS = {"depth": (50, 101), "norm": ("batch",), "axes": ("spacetime",)}
LR = 0.01  # The learning rate in a file for video-nonlocal-net, which loads no file without one.
LIMITS = {
    "video-nonlocal-net": {
        **BOTTLENECKS, "norm": ("batch", "affine"), "width": (64,), "in_channels": (3,), "pool1_padding": (0,),
        "inflate": (None, "3x1x1"), "pool2_frames": (2,), "non_local": (None, "embedded", "dot"),
        "subsample": ("before", None),
    },
    "slowfast": {
        **BOTTLENECKS, **FAST, "pool1_padding": (1,), "inflate": (None, "3x1x1"),
        "non_local": (None, "embedded", "dot"), "subsample": ("before", None), "scale": (True,),
    },
    "pytorchvideo": {
        **BOTTLENECKS, **FAST, "pool1_padding": (1,), "inflate": (None, "3x1x1"), "non_local": (None,),
    },
    "mmaction2": {
        **BOTTLENECKS, "chunks": ({},), "pool1_frames": (1,), "pool1_padding": (1,), "pool2_frames": (1, 2),
        "subsample": ("after", None),
    },
}  # fmt: skip
NON_LOCAL = ("subsample", "scale", "axes", "chunks")  # Fields without a meaning where there are no non-local blocks.


def export_file(path: str | Path, to: str | Path, format: str) -> list[str]:
    """Write the network of a checkpoint with the names and the layout of another project.

    Parameters
    ----------
    path : str or Path
        A checkpoint of minnl that holds a models.VideoResNet.
    to : str or Path
        A safetensors file, whose arrays load with ``model.load_state_dict(safetensors.torch.load_file(to))``; for
        video-nonlocal-net a ``.pkl``, which TRAIN.PARAMS_FILE or TEST.PARAMS_FILE names there.
    format : one of names.FORMATS

    Returns
    -------
    list of str
        What must be set there so that the network is the same.

    Raises
    ------
    ValueError
        If the checkpoint holds no models.VideoResNet, or one that does not exist there. The message names what differs.
        Nothing is written then.
    """
    if format not in FORMATS:
        raise ValueError(f"export: no format {format!r}; there are {', '.join(FORMATS)}")
    files.distinct("export", path, to)
    arrays, meta = checkpoint.load(path)
    state = checkpoint.under(arrays, "model/")
    made = network_of(path, meta, state)
    settings = settings_of(path, made, meta["config"], format)
    subsampled = made.non_local is not None and made.subsample is not None
    names = Names(format, pooled=made.pool2_frames > 1, subsampled=subsampled)
    if format == "mmaction2":  # It has no bias of W_z: (y + b - m) of the batch norm behind is y - (m - b).
        for name in [name for name in state if name.endswith("W_z.bias")]:
            mean = name.removesuffix("W_z.bias") + "norm.running_mean"
            state[mean] = state[mean] - state.pop(name)
    written = {names.theirs(name): layout.there(name, array) for name, array in state.items()}
    network = {files.OURS: json.dumps(dataclasses.asdict(made))}
    if format == "video-nonlocal-net":
        chunks = pickle_writer.blobs(written, {"lr": LR}, network)
    else:
        chunks = (safetensors.numpy.save(written, {"format": "pt"} | network),)
    checkpoint.write(to, chunks)
    return settings


def network_of(path, meta, state):
    """The Config of the network whose state a checkpoint holds.

    Raises ValueError if it holds another network, or not exactly the arrays of this one.
    """
    config = meta.get("config")
    network = config.get("network") if isinstance(config, dict) else None
    if not isinstance(network, dict):
        name = config.get("model") if isinstance(config, dict) else None
        held = clean(name) if isinstance(name, str) else "no network"
        raise ValueError(f"{path}: holds {held}, not a C2D or I3D ResNet of models.VideoResNet")
    stored.check(f"{path}: config", config, stored.INPUT)
    made = stored.network(path, network, {name: array.shape for name, array in state.items()})
    with init.skipped():
        VideoResNet(made).load_state_dict(state)
    return made


def settings_of(path, made, config, format):
    """What must be set there to have the same network; raises ValueError if there is no such network."""
    wrong = []
    for field, allowed in LIMITS[format].items():
        value = getattr(made, field)
        idle = made.non_local is None or (field == "scale" and made.non_local != "embedded")
        if value not in allowed and not (idle and field in NON_LOCAL):
            wrong.append(f"{field} is {value!r}, {' or '.join(map(repr, allowed))} there")
    if not config.get("rgb", True):
        wrong.append("its input is differences of frames, the frames themselves there")
    lines, problems = settings_there.SETTINGS[format](made, config) if not wrong else ([], wrong)
    if problems:
        raise ValueError(
            f"{path}: not written, for {format} has no such network: {'; '.join(problems)}. Train one that it "
            f"has, or write another format: {', '.join(f for f in FORMATS if f != format)}"
        )
    return lines
