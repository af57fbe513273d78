"""Networks by name: ``models.build("nl_small", classes=3)``, ``models.build("nl_i3d_r50_5", classes=400)``."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from models import presets
from models.config import Config
from models.presets import PRESETS, preset
from models.small import Small
from models.video_resnet import VideoResNet

__all__ = ["BUILDERS", "PRESETS", "Config", "Small", "VideoResNet", "build", "preset"]

BUILDERS: dict[str, Callable[..., Small | VideoResNet]] = {
    "small": Small,
    "nl_small": functools.partial(Small, non_local="embedded"),
    **{name: functools.partial(presets.build, name) for name in PRESETS},
}


def build(name: str, **options: Any) -> Small | VideoResNet:
    """The network of that name, freshly initialised from minnl's generator.

    Options are those of models.Small, and for the published networks the fields of models.Config.

    Raises ValueError for a name that does not exist, naming those that do.
    """
    if name not in BUILDERS:
        raise ValueError(f"build: no model {name!r}; there are {', '.join(BUILDERS)}")
    return BUILDERS[name](**options)
