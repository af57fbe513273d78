"""The datasets that the configuration of a run names."""

from __future__ import annotations

from minnl import data

TEST_CLIPS = 600  # of the built-in task: 200 a class, the same for everyone


def datasets(config, train=True, test_clips=TEST_CLIPS):
    """(training set or None, test set) that a configuration names."""
    if config["data"] is None:
        options = {"frames": config["frames"], "size": config["size"][0], "seed": config["seed"]}
        test = data.RelationClips("test", clips=test_clips, **options)
        return (data.RelationClips("train", clips=config["clips"], **options) if train else None), test
    options = video_options(config)
    training = data.open_dataset(config["data"], train=True, **options) if train else None
    return training, data.open_dataset(config["data"], train=False, **options)


def video_options(config):
    """How clips are taken from videos."""
    options = {key: config[key] for key in ("short_side", "mean", "deviation") if config.get(key) is not None}
    return options | {
        "frames": config["frames"], "stride": config["stride"], "size": tuple(config["size"] * 2)[:2],
        "resize": config["resize"], "differences": not config["rgb"],
    }  # fmt: skip
