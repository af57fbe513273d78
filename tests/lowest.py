"""``python -m tests.lowest``: constraints that make pip install the lowest versions that minnl says it works with."""

import importlib.metadata
import re

# Not named by minnl: a Matplotlib of that time calls names that newer ones of this package warn about.
OTHERS = ("pyparsing<3.3",)


def constraints(requirements):
    """Each requirement with a lower bound as ``name==bound``; the others stay as they are."""
    found = []
    for requirement in requirements:
        name, bound = re.match(r"([\w.-]+)(?:\[[^]]*\])?(?:.*>=([\w.]+))?", requirement).groups()
        if bound and not name.startswith("cupy"):
            found.append(f"{name}=={bound}")
    return sorted(set(found)) + list(OTHERS)


if __name__ == "__main__":
    print(*constraints(importlib.metadata.requires("minnl")), sep="\n")
