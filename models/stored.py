"""What a checkpoint says of its network and of its run, checked before anything is built from it.

Forged numbers cannot make the reader take much time or memory: each is within a range, and those that decide how large
the network is must be those of the arrays, which are in the file.
"""

from __future__ import annotations

from minnl import nn
from minnl.training import checkpoint, recipes
from minnl.training.schema import check, choice, either, listed, maybe, real, record, table, text, whole
from models.config import BLOCKS, STAGES, Config
from models.presets import PRESETS
from models.shapes import seen

SMALL, LONG = whole(1, 1000), whole(1, 100_000)
FLAG = choice(True, False)
INDICES = table(listed(whole(0, 22), most=23), STAGES)
COLOURS = listed(real(), 1, 4096)


SIZE = either(LONG, listed(LONG, 1, 2))
FIELDS = {  # of models.Config
    "depth": choice(*BLOCKS), "width": whole(1, 4096), "classes": whole(1, 1_000_000), "in_channels": whole(1, 4096),
    "dropout": real(0, 1), "norm": choice("batch", "affine"), "frames": LONG, "size": SIZE, "conv1_frames": SMALL,
    "conv1_stride": SMALL, "pool1_frames": SMALL, "pool1_stride": SMALL, "pool1_padding": choice(0, 1),
    "pool2_frames": SMALL, "inflate": choice(None, "3x1x1", "3x3x3"), "inflated": maybe(INDICES),
    "non_local": choice(None, *nn.MODES), "places": either(whole(1, 10), INDICES),
    "subsample": choice("before", "after", None), "scale": FLAG, "axes": choice(*nn.AXES),
    "chunks": table(LONG, STAGES),
}  # fmt: skip
NETWORK = record(FIELDS, optional=FIELDS, closed=True)
OPTIONS = FIELDS | {  # of models.Small too
    "place": either(text(), INDICES), "number": whole(1, 10), "residuals": listed(whole(1, 10), 2, 2),
    "inflate": choice(None, "3x1x1", "3x3x3", True, False),
}  # fmt: skip
NEEDED = {
    "model": text(), "classes": listed(text(), 1), "channels": whole(1, 4096), "data": maybe(text()), "frames": LONG,
    "stride": either(LONG, choice("whole")), "size": listed(LONG, 1, 2), "resize": choice("squash", "crop"),
    "rgb": FLAG, "seed": whole(0, 2**64 - 1),
}  # fmt: skip
OTHERS = {
    "network": NETWORK, "options": record(OPTIONS, optional=OPTIONS, closed=True), "non_local": FIELDS["non_local"],
    "place": text(), "blocks": whole(1, 10), "subsample": FIELDS["subsample"], "axes": FIELDS["axes"],
    "dropout": FIELDS["dropout"], "short_side": maybe(listed(LONG, 2, 2)), "mean": maybe(COLOURS),
    "deviation": maybe(listed(real(1e-9), 1, 4096)), "clips": whole(1, 10**9), "on_error": choice("skip", "error"),
    "recipe": choice(*recipes.RECIPES), "epochs": whole(1), "batch_size": whole(1), "accumulate": whole(1),
    "lr": maybe(real(0)), "weight_decay": real(0), "warm_up": real(0, 1), "clip_norm": maybe(real(0)),
    "precise": whole(), "label_smoothing": real(0, 1), "drop_last": FLAG, "save_every": real(0),
}  # fmt: skip
CONFIG = record(NEEDED | OTHERS, optional=OTHERS)
SHARED = {key: (NEEDED | OTHERS)[key] for key in ("mean", "deviation", "stride", "rgb")}
INPUT = record(SHARED, optional=SHARED)  # of weights that may be no run's
SHOWN = ("depth", "width", "in_channels", "classes", "norm", "conv1_frames")  # of FIELDS, what arrays show


def configuration(path, arrays, meta):
    """The configuration of a run or of imported weights, complete: what recipes came to say later is filled in.

    Raises ValueError, naming the file, the place in it, what came and what would do.
    """
    config = meta.get("config")
    if not isinstance(config, dict) or "classes" not in config:
        raise ValueError(f"{path}: a checkpoint, but not one of train.py: it does not say which network it holds")
    before = recipes.RECIPES["adamw"] | {"recipe": "adamw", "drop_last": False}  # there were such options
    config = before | config
    check(f"{path}: config", config, CONFIG)
    if "network" in config:
        network(
            path, config["network"], {name: array.shape for name, array in checkpoint.under(arrays, "model/").items()}
        )
    elif config["model"] in PRESETS:
        raise ValueError(f"{path}: config lacks 'network', which says what {config['model']} was built with")
    elif "options" not in config:
        asked = {key: OTHERS[key] for key in ("non_local", "place", "blocks", "subsample", "axes")}
        check(f"{path}: config", config, record(asked))
    if "network" in config and "short_side" not in config:  # imported
        config["short_side"] = list(recipes.jitter(config["size"]))
    return config


def network(path, found, shapes):
    """The Config that `found`, a dict of its fields, describes, if arrays of such shapes can belong to it."""
    check(f"{path}: the network", found, NETWORK)
    try:
        made = Config(**found)
    except ValueError as error:
        raise ValueError(f"{path}: its network cannot be built: {error}") from None
    shown = seen(path, shapes)
    for name in SHOWN:
        if getattr(made, name) != shown[name]:
            raise ValueError(
                f"{path}: the network has {name}={getattr(made, name)!r}, the arrays are of one with {shown[name]!r}: "
                "the file was altered"
            )
    return made
