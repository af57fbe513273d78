"""A contest: one computation, and the libraries that can run it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks import places

FORWARD, BACKWARD = "forward", "forward + backward"


@dataclass(frozen=True)
class Contender:
    """`call` runs the computation once; `arrays` converts its result to NumPy arrays in minnl's layout."""

    call: Callable[[], Any]
    arrays: Callable[[Any], list[np.ndarray]]


@dataclass(frozen=True)
class Contest:
    """One computation, and the ways to run it.

    Attributes
    ----------
    name, group : str
    work : str
        FORWARD, BACKWARD, "training step" or "inference".
    ways : dict of str -> function of a place (see places.py) that makes a Contender
        All ways to run it: "minnl", and those of PyTorch.
    tolerance : float
        The largest allowed difference of the results, relative to the largest element.
    network : bool
        Whether it is a whole network, whose memory is always measured.
    """

    name: str
    group: str
    work: str
    ways: dict[str, Callable[[places.Cpu], Contender]]
    tolerance: float = 1e-4
    network: bool = False

    @property
    def title(self):
        return f"{self.name}, {self.work}"

    def contenders(self, place=places.CPU):
        """The contenders that can run in a place, after a first run in which their results must agree."""
        made = {way: make(place) for way, make in self.ways.items() if way == "minnl" or place.torch is not None}
        ours = None
        for way, contender in made.items():
            found = contender.arrays(contender.call())
            ours = found if ours is None else ours
            self.agree(way, found, ours, place.slack)
        return made

    def agree(self, way, theirs, ours, slack):
        """Refuse contenders whose results differ, since their times could not be compared.

        Gradients may differ by 1 % of their norm: where an activation is 0 up to rounding, ReLU may pass the gradient
        in one library and not in the other. Gradients that are only rounding, compared with others, may differ freely.
        """
        norms = [np.linalg.norm(array) for array in ours]
        for i, (a, b) in enumerate(zip(theirs, ours, strict=True)):
            difference = a.reshape(b.shape) - b
            if i == 0:
                what, error, size = "results", np.abs(difference).max(), slack * self.tolerance * np.abs(b).max()
            else:
                what, error = f"gradients of input {i - 1}", np.linalg.norm(difference)
                size = 1e-2 * norms[i] + 1e-3 * max(norms[1:])
            if not error <= size:
                raise RuntimeError(
                    f"{self.title}: {what} of minnl and of PyTorch ({way}) differ: {error:.2g} > {size:.2g}"
                )
