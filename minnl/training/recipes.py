"""Recipes by name: defaults for options of train.py, the optimiser, and its learning rate.

========  ==============================================================================================
name      what
========  ==============================================================================================
adamw     AdamW, a warm-up, then half a cosine: for the built-in task and small sets of videos
paper     as *Non-local Neural Networks* and its released code train on Kinetics
========  ==============================================================================================

docs/training.md has the reasons, option by option.
"""

from __future__ import annotations

import math

from minnl import optim

RECIPES = {
    "adamw": {
        "epochs": 10,
        "batch_size": 32,
        "accumulate": 1,
        "lr": 3e-3,
        "weight_decay": 0.01,
        "warm_up": 0.05,
        "clip_norm": 1.0,
        "dropout": 0.0,
        "precise": 0,
    },
    "paper": {
        "epochs": 109,  # 400,000 steps of 64 clips, over the 234,643 videos of the release
        "batch_size": 8,  # the clips of one GPU, from which batch norm takes its statistics
        "accumulate": 8,
        "lr": None,  # by the linear rule
        "weight_decay": 1e-4,
        "warm_up": 0.0,
        "clip_norm": None,
        "dropout": 0.5,
        "precise": 1600,  # 200 on each of eight GPUs
    },
}
# How clips are taken from videos for the published networks and by the paper's recipe. A network sets frames and size.
CLIPS = {"frames": 32, "stride": 2, "size": [224], "resize": "crop", "rgb": True}
PAPER_RATE, PAPER_CLIPS = 0.01, 64
FALLS = (3 / 8, 6 / 8)  # after 150,000 and 300,000 of 400,000 steps the learning rate is divided by 10


def learning_rate(config):
    """The peak: as given, or by the linear rule 0.01 for steps of 64 clips, in proportion for others.

    The released recipes follow it: 0.005 for 32 clips, 0.0025 for 16.
    """
    if config["lr"] is not None:
        return config["lr"]
    return PAPER_RATE * config["batch_size"] * config["accumulate"] / PAPER_CLIPS


def optimizer(params, config):
    """The recipe's optimiser of these parameters; weight decay leaves batch norm alone in both."""
    options = {"lr": learning_rate(config), "weight_decay": config["weight_decay"]}
    if config["recipe"] == "paper":
        return optim.SGD(params, momentum=0.9, nesterov=True, **options)
    return optim.AdamW(params, **options)


def schedule(config, steps):
    """step -> learning rate, for a run of so many steps."""
    rate = learning_rate(config)
    if config["recipe"] == "paper":
        falling = optim.step_schedule(rate, [math.ceil(share * steps) for share in FALLS])
    else:
        falling = optim.cosine_schedule(rate, steps)
    return optim.warm_up(falling, round(config["warm_up"] * steps))


def jitter(size):
    """(low, high) of the shorter side that frames are scaled to for crops of a size: 256 to 320 for 224."""
    return round(max(size) * 256 / 224), round(max(size) * 320 / 224)
