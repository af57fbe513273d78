"""From a published file to a checkpoint of minnl."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from minnl.checks import clean
from minnl.nn import init
from minnl.training import checkpoint
from models import stored
from models.config import Config
from models.presets import step
from models.published import files, layout, networks, sources
from models.published.names import FORMATS, TABLE, Names
from models.published.report import Report
from models.shapes import shown_fields
from models.video_resnet import VideoResNet

SHOWN = 10  # The most names in a message.
BORROWED = (("video-nonlocal-net", "slowfast"),)  # (names, source): SlowFast trained its first networks in Caffe2.


def import_file(
    path: str | Path, to: str | Path | None = None, model: str | None = None,
    source: Literal["slowfast"] | None = None, changes: dict[str, Any] | None = None,
    classes: Sequence[str] | None = None,
) -> tuple[VideoResNet, Report]:  # fmt: skip
    """Read a published file, and write it as a checkpoint.

    Parameters
    ----------
    path : str or Path
        A ``.pkl`` of video-nonlocal-net, a file of ``torch.save`` (SlowFast, pytorchvideo, mmaction2), or a
        ``.safetensors`` with the names of one of them.
    to : str or Path, or None
        The checkpoint; None to write nothing.
    model : str or None
        A preset, where the arrays fit several networks.
    source : "slowfast" or None
        The source of the network, where the names are those of another one: SlowFast published networks under the names
        of video-nonlocal-net.
    changes : dict or None
        Fields of models.Config that the file does not show.
    classes : list of str or None
        Names of the classes, in the order of the classifier.

    Returns
    -------
    model : VideoResNet
        With the weights of the file.
    report : Report

    Raises
    ------
    ValueError
        If the file is anything else, is damaged or does more than hold weights, or if its arrays are not exactly those
        of the network. The message says what was found and what would do. Nothing is written then.
    """
    files.distinct("import", path, to)
    contents, where = files.read(path), str(path)
    names = recognised(where, contents.arrays)
    source = names.format if source is None else source
    if source != names.format and (names.format, source) not in BORROWED:
        raise ValueError(f"{where}: has names of {names.format}, and cannot be a network of {source!r} then")
    theirs = matched(where, names, contents.arrays)
    shapes = {ours: layout.shape_here(ours, contents.arrays[name].shape) for ours, name in theirs.items()}
    shown = shown_fields(where, shapes)
    facts = sources.facts(where, source, shown, contents.arrays, contents.settings)
    if contents.network is not None:
        facts = written_here(where, facts, contents.network)
    made, hidden = networks.settled(where, facts, shown, model, changes)
    with init.skipped():
        network = VideoResNet(made)
    target = network.state_dict()
    filled = {}
    if names.format == "mmaction2" and made.norm == "batch":  # It has no bias in a convolution before a batch norm.
        biases = [name for name in target if name.endswith("W_z.bias") and name not in shapes]
        filled = {name: np.zeros(target[name].shape, np.float32) for name in biases}
    compare(where, names, made, {k: v.shape for k, v in target.items()}, shapes, filled)
    settings = described(made, classes, facts.input)
    arrays = {
        ours: np.ascontiguousarray(layout.here(ours, files.values(where, name, contents.arrays[name])))
        for ours, name in theirs.items()
    }
    network.load_state_dict(filled | arrays)
    preset, differs = networks.nearest(made)
    dtypes = {name: files.dtype(entry) for name, entry in contents.arrays.items()}
    report = Report(
        file=where, container=contents.container, source=source, preset=preset, differs=differs, hidden=hidden,
        clip=made.clip, input={"stride": step(made)} | facts.input,
        parameters=sum(p.size for p in network.parameters()),
        matched=[(name, ours, shapes[ours]) for ours, name in theirs.items()],
        filled=[(name, "zeros: mmaction2 has no bias before a batch norm") for name in filled], left=contents.left,
        converted=[(name, f"{dtype} to float32") for name, dtype in dtypes.items() if dtype != "float32"],
    )  # fmt: skip
    if to is not None:
        state = {f"model/{name}": array for name, array in network.state_dict().items()}
        checkpoint.save(Path(to), state, {"config": settings, "imported": plain(report)})
    return network, report


def recognised(where, arrays):
    """The Names of the format that a file has."""
    stems = {name: column for column, name in zip(TABLE[0], TABLE[1], strict=True) if column in FORMATS}
    found = [source for stem, source in stems.items() if stem in arrays]
    if len(found) != 1:
        names = ", ".join(map(clean, sorted(arrays)[:SHOWN]))
        problem = "names of more than one format" if found else "names of no known format"
        raise ValueError(f"{where}: {problem}: {names}, …; the first convolution should be one of {', '.join(stems)}")
    pooled = "blocks.6.proj.weight" in arrays
    return Names(found[0], pooled, any(".non_local_block.g.0." in name for name in arrays))


def matched(where, names, arrays):
    """Our name -> their name of each array; raises ValueError for one that no network here has."""
    found = {name: names.ours(name) for name in arrays}
    strange = [name for name, ours in found.items() if ours is None]
    if strange:
        raise ValueError(
            f"{where}: {len(strange)} of its {len(found)} arrays belong to no C2D or I3D network of {names.format}: "
            f"{', '.join(map(clean, strange[:SHOWN]))}{', …' if len(strange) > SHOWN else ''}; it is another network"
        )
    theirs = {ours: name for name, ours in found.items()}
    if len(theirs) < len(found):
        raise ValueError(f"{where}: two of its names mean the same array")
    return theirs


def written_here(where, facts, network):
    """The Facts with the whole network, which a file that minnl exported describes."""
    network = stored.renamed(network) if isinstance(network, dict) else {}
    if set(network) != set(networks.FIELDS):
        raise ValueError(f"{where}: its description of the network is damaged, or from another version of minnl")
    stored.check(f"{where}: the network", network, stored.NETWORK)
    hidden = {name: value for name, value in network.items() if name not in networks.SHOWN}
    return dataclasses.replace(facts, read=facts.read | hidden, layouts={})


def compare(where, names, made, target, shapes, filled):
    """Raise ValueError unless the arrays are exactly those of the network."""
    wrong = [f"missing: {names.theirs(k) or k}" for k in target if k not in shapes and k not in filled]
    wrong += [f"not in the network: {names.theirs(k)} {shapes[k]}" for k in shapes if k not in target]
    wrong += [
        f"another shape: {names.theirs(k)} is {shapes[k]} here, {target[k]} in the network"
        for k in target.keys() & shapes.keys()
        if target[k] != shapes[k]
    ]
    if wrong:
        more = f"\n  … and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
        preset, differs = networks.nearest(made)
        raise ValueError(
            f"{where}: not the network that its layers look like ({preset}{', with ' if differs else ''}"
            f"{', '.join(f'{k}={v!r}' for k, v in differs.items())}); it is not whole, or another network:\n  "
            + "\n  ".join(sorted(wrong)[:SHOWN])
            + more
        )


def plain(found):
    """A Config or a Report as dict, list, str, int and float, for a checkpoint."""
    return json.loads(json.dumps(dataclasses.asdict(found)))


def classes_of(made, classes):
    """Names of the classes; numbers if none are given."""
    if classes is None:
        return [str(i) for i in range(made.classes)]
    different = len(set(classes))
    if not len(classes) == different == made.classes:
        raise ValueError(
            f"classes: {made.classes} are in the classifier, {len(classes)} names were given, {different} different"
        )
    return list(classes)


def described(
    made: Config, classes: Sequence[str] | None = None, shown: Any = sources.INPUT["video-nonlocal-net"]
) -> dict[str, Any]:
    """The configuration that train.py needs to run the network of a Config, as plain values.

    `classes` are the names of the classes, or None for numbers. `shown` has mean and deviation of the input, and
    perhaps the step between frames.
    """
    return {
        "model": networks.nearest(made)[0],
        "network": plain(made),
        "classes": classes_of(made, classes),
        "channels": made.in_channels,
        "data": None,
        "frames": made.frames,
        "stride": shown.get("stride", step(made)),
        "size": list(made.size),
        "resize": "crop",
        "rgb": True,
        "mean": shown["mean"],
        "deviation": shown["deviation"],
        "seed": 0,
        "device": "cpu",
    }
