"""The fields of Config that the shapes of a network's arrays show: all that decide how large it is."""

import re

from models.config import BASIC, RESIDUAL_BLOCKS, STAGES


def shown_fields(where, shapes):
    """The fields of Config that the shapes of arrays, under our names and in our layout, show.

    ``non_local`` is a tuple of the instantiations that have such arrays, or None without blocks.

    Raises ValueError, naming what is missing, for arrays that are not those of a C2D or I3D ResNet.
    """
    needed = ("conv1.conv.weight", "head.classify.weight", "res2.res0.branch.a.conv.weight")
    missing = [name for name in needed if name not in shapes]
    if missing or len(shapes["conv1.conv.weight"]) != 5 or len(shapes["head.classify.weight"]) != 2:
        wrong = (
            f"it has no {', '.join(missing)} (our names)" if missing else "conv1 or the classifier has a wrong shape"
        )
        raise ValueError(f"{where}: not a whole C2D or I3D ResNet: {wrong}")
    frames, _, _, in_channels, width = shapes["conv1.conv.weight"]
    bottleneck = "res2.res0.branch.c.conv.weight" in shapes
    counts = tuple(1 + max(indices(shapes, stage, "res"), default=-1) for stage in STAGES)
    depth = next((d for d, n in RESIDUAL_BLOCKS.items() if n == counts and (d in BASIC) != bottleneck), None)
    if depth is None:
        known = ", ".join(f"{n} (depth {d})" for d, n in RESIDUAL_BLOCKS.items())
        raise ValueError(f"{where}: its stages have {counts} residual blocks, no network here has; known are {known}")
    inflate, inflated = inflation(where, shapes)
    return {
        "depth": depth,
        "width": width,
        "in_channels": in_channels,
        "classes": shapes["head.classify.weight"][1],
        "norm": "batch" if any(name.endswith("running_mean") for name in shapes) else "affine",
        "conv1_frames": frames,
        "inflate": inflate,
        "inflated": inflated,
        "non_local": instantiations(shapes),
        "blocks": {s: tuple(indices(shapes, s, "nonlocal")) for s in STAGES if indices(shapes, s, "nonlocal")},
    }


def indices(shapes, stage, block):
    """Numbers of the residual ("res") or non-local blocks of a stage."""
    found = (re.match(rf"{stage}\.{block}(\d+)\.", name) for name in shapes)
    return sorted({int(match[1]) for match in found if match})


def inflation(where, shapes):
    """(inflate, inflated) of Config, from the convolutions with three taps along time."""
    ways = {}
    for name, shape in shapes.items():
        match = re.fullmatch(r"(res\d)\.res(\d+)\.branch\.(\w)\.conv\.weight", name)
        if match and len(shape) == 5 and shape[0] > 1:
            way = "3x1x1" if shape[1] == 1 else "3x3x3"
            ways.setdefault(way, {}).setdefault(match[1], []).append(int(match[2]))
    if len(ways) > 1:
        raise ValueError(f"{where}: some of its blocks are inflated 3x1x1 and some 3x3x3, no network here is")
    for way, found in ways.items():
        return way, {stage: tuple(sorted(indices)) for stage, indices in found.items()}
    return None, None


def instantiations(shapes):
    """The instantiations that have such arrays: with the same ones dot product and embedded Gaussian differ."""
    layers = {match[1] for name in shapes if (match := re.search(r"\.nonlocal\d+\.(\w+)", name))}
    if not layers:
        return None
    if "w_f" in layers:
        return ("concat",)
    if "theta" in layers or "phi" in layers:
        return ("embedded", "dot")
    return ("gaussian",)
