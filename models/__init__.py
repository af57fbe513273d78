"""Networks by name: ``models.build("nl_small", classes=3)``."""

from __future__ import annotations

import functools

from models.small import Small

BUILDERS = {
    "small": Small,
    "nl_small": functools.partial(Small, non_local="embedded"),
}


def build(name, **options):
    """The network of that name, freshly initialised from minnl's generator.

    Raises ValueError for a name that does not exist, naming those that do.
    """
    if name not in BUILDERS:
        raise ValueError(f"build: no model {name!r}; there are {', '.join(BUILDERS)}")
    return BUILDERS[name](**options)
