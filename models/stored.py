"""The configuration in a checkpoint, checked before anything is built from it.

Older checkpoints have other names for where non-local blocks are: :func:`current` translates them.

Forged numbers cannot make the reader take much time or memory: each is within a range, and those that decide how large
the network is must be those of the arrays, which are in the file.
"""

from minnl import nn
from minnl.training import checkpoint, recipes
from minnl.training.schema import check, choice, either, listed, maybe, real, record, table, text, whole
from models.config import RESIDUAL_BLOCKS, STAGES, Config
from models.presets import PRESETS
from models.shapes import shown_fields

SMALL, LONG = whole(1, 1000), whole(1, 100_000)
FLAG = choice(True, False)
INDICES = table(listed(whole(0, 22), most=23), STAGES)
COLOURS = listed(real(), 1, 4096)

SIZE = either(LONG, listed(LONG, 1, 2))
WHERE = either(either(whole(1, 10), text()), INDICES)  # of non-local blocks
FIELDS = {  # of models.Config
    "depth": choice(*RESIDUAL_BLOCKS), "width": whole(1, 4096), "classes": whole(1, 1_000_000),
    "in_channels": whole(1, 4096), "dropout": real(0, 1), "norm": choice("batch", "affine"), "frames": LONG,
    "size": SIZE, "conv1_frames": SMALL, "conv1_stride": SMALL, "pool1_frames": SMALL, "pool1_stride": SMALL,
    "pool1_padding": choice(0, 1), "pool2_frames": SMALL, "inflate": choice(None, "3x1x1", "3x3x3"),
    "inflated": maybe(INDICES), "non_local": choice(None, *nn.MODES), "blocks": WHERE,
    "subsample": choice("before", "after", None), "scale": FLAG, "axes": choice(*nn.AXES),
    "chunks": table(LONG, STAGES),
}  # fmt: skip
NETWORK = record(FIELDS, optional=FIELDS, closed=True)
OPTIONS = FIELDS | {  # of models.Small too
    "residuals": listed(whole(1, 10), 2, 2), "inflate": choice(None, "3x1x1", "3x3x3", True, False),
}  # fmt: skip
OLDER = {"place": either(text(), INDICES), "residuals": OPTIONS["residuals"]}  # where older ones have blocks
NEEDED = {
    "model": text(), "classes": listed(text(), 1), "channels": whole(1, 4096), "data": maybe(text()), "frames": LONG,
    "stride": either(LONG, choice("whole")), "size": listed(LONG, 1, 2), "resize": choice("squash", "crop"),
    "rgb": FLAG, "seed": whole(0, 2**64 - 1),
}  # fmt: skip
OTHERS = {
    "network": NETWORK, "options": record(OPTIONS, optional=OPTIONS, closed=True), "non_local": FIELDS["non_local"],
    "blocks": WHERE, "subsample": FIELDS["subsample"], "axes": FIELDS["axes"],
    "dropout": FIELDS["dropout"], "short_side": maybe(listed(LONG, 2, 2)), "mean": maybe(COLOURS),
    "deviation": maybe(listed(real(1e-9), 1, 4096)), "clips": whole(1, 10**9), "on_error": choice("skip", "error"),
    "recipe": choice(*recipes.RECIPES), "epochs": whole(1), "batch_size": whole(1), "accumulate": whole(1),
    "lr": maybe(real(0)), "weight_decay": real(0), "warm_up": real(0, 1), "clip_norm": maybe(real(0)),
    "precise": whole(), "label_smoothing": real(0, 1), "drop_last": FLAG, "save_every": real(0),
}  # fmt: skip
CONFIG = record(NEEDED | OTHERS, optional=OTHERS)
SHARED = {key: (NEEDED | OTHERS)[key] for key in ("mean", "deviation", "stride", "rgb")}
INPUT = record(SHARED, optional=SHARED)  # of imported weights
SHOWN = ("depth", "width", "in_channels", "classes", "norm", "conv1_frames")  # the FIELDS that arrays show


def configuration(path, arrays, meta):
    """The complete configuration of a run or of imported weights; options that came later have their old meaning.

    Raises ValueError that names the file, the place in it, what came and what would do.
    """
    config = meta.get("config")
    if not isinstance(config, dict) or "classes" not in config:
        raise ValueError(f"{path}: a checkpoint, but not one of train.py: it does not say which network it holds")
    before = recipes.RECIPES["adamw"] | {"recipe": "adamw", "drop_last": False}  # where these options are missing
    config = current(path, before | config)
    check(f"{path}: config", config, CONFIG)
    if "network" in config:
        weights = checkpoint.under(arrays, "model/")
        network(path, config["network"], {name: array.shape for name, array in weights.items()})
    elif config["model"] in PRESETS:
        raise ValueError(f"{path}: config lacks 'network', which says what {config['model']} was built with")
    elif "options" not in config:
        asked = {key: OTHERS[key] for key in ("non_local", "blocks", "subsample", "axes")}
        check(f"{path}: config", config, record(asked))
    if "network" in config and "short_side" not in config:  # imported
        config["short_side"] = list(recipes.jitter(config["size"]))
    return config


def current(path, config):
    """A configuration that says by "blocks" alone where non-local blocks are, as models.Config and models.Small do.

    Older ones have "places" in a network, "place" and "number" in options of the small network, and "place" and
    "blocks" beside its other options: the number of blocks at the end of that stage.
    """
    network, options = config.get("network"), config.get("options")
    if type(network) is dict:
        config = config | {"network": renamed(network)}
    if type(options) is dict and {"place", "number"} & options.keys():
        config = config | {"options": _with_blocks(f"{path}: config['options']", options, "number")}
    return _with_blocks(f"{path}: config", config, "blocks") if "place" in config else config


def renamed(network):
    """Fields of models.Config, the older name "places" as "blocks"."""
    return network if "blocks" in network else {"blocks" if k == "places" else k: v for k, v in network.items()}


def _with_blocks(place, older, number):
    """Values with "blocks" instead of "place" and the `number` of blocks at the end of that stage."""
    check(place, older, record(OLDER | {number: whole(1, 10)}, optional=(*OLDER, number)))
    blocks, n = older.get("place", "res2"), older.get(number, 1)
    first, second = older.get("residuals", (1, 2))
    end = {"res2": first, "res3": second - 1}.get(blocks) if n > 1 and type(blocks) is str else None
    if end is not None:
        blocks = {blocks: list(range(end - n, end))}
    return {key: older[key] for key in older if key not in ("place", number)} | {"blocks": blocks}


def network(path, found, shapes):
    """The Config that `found`, a dict of its fields, describes, if arrays of such shapes can belong to it."""
    found = check(f"{path}: the network", renamed(found), NETWORK)
    try:
        made = Config(**found)
    except ValueError as error:
        raise ValueError(f"{path}: its network cannot be built: {error}") from None
    shown = shown_fields(path, shapes)
    for name in SHOWN:
        if getattr(made, name) != shown[name]:
            raise ValueError(
                f"{path}: the network has {name}={getattr(made, name)!r}, the arrays are of one with {shown[name]!r}: "
                "the file was altered"
            )
    return made
