"""The network that the configuration of a run asks for."""

import dataclasses
import json

import minnl
import models
from minnl.training import recipes
from models.presets import step

# Options of train.py that are those of models.Small. A published network's name says all of them.
SMALL = {"non_local": "embedded", "blocks": "res2", "subsample": "before", "axes": "spacetime"}


def defaults():
    """Name of a network -> options of train.py that follow from it."""
    found = dict.fromkeys(models.BUILDERS, SMALL)
    for name, made in models.PRESETS.items():
        found[name] = recipes.CLIPS | {"frames": made.frames, "stride": step(made), "size": list(made.size)}
    return found


def build(config):
    """The network of a configuration: a published one by its own, which is complete."""
    minnl.manual_seed(config["seed"])
    if "network" in config:
        model = models.VideoResNet(models.Config(**config["network"]))
    else:
        options = config["options"] if "options" in config else {key: config[key] for key in SMALL}
        model = models.build(
            config["model"], classes=len(config["classes"]), in_channels=config["channels"], dropout=config["dropout"],
            **options,
        )  # fmt: skip
    return model.to(config["device"])


def published(config):
    """{"network": all that models.Config says} of a published network, changed as options and data ask for."""
    if config["model"] not in models.PRESETS:
        return {}
    made = models.preset(
        config["model"], classes=len(config["classes"]), in_channels=config["channels"], dropout=config["dropout"],
        frames=config["frames"], size=tuple(config["size"] * 2)[:2], **{k: config[k] for k in SMALL if k in config},
    )  # fmt: skip
    if "blocks" in config and made.non_local is None:
        raise ValueError(f"--blocks: {config['model']} has no non-local blocks; ask for some with --non-local")
    return {"network": json.loads(json.dumps(dataclasses.asdict(made)))}


def instantiation(config):
    """The instantiation of a configuration's non-local blocks, or "none"."""
    return config.get("network", config.get("options", config)).get("non_local") or "none"
