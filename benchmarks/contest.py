"""What is timed: one piece of work, and everyone who can do it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks import places

FORWARD, BACKWARD = "forward", "forward + backward"


@dataclass(frozen=True)
class Contender:
    """`call` does the work once; `arrays` makes of what it returned NumPy arrays in minnl's layout, to compare."""

    call: Callable[[], Any]
    arrays: Callable[[Any], list[np.ndarray]]


@dataclass(frozen=True)
class Contest:
    """One piece of work.

    Attributes
    ----------
    name, group : str
    work : str
        FORWARD, BACKWARD, "training step" or "inference".
    ways : dict of str -> function of a place (see places.py) that makes a Contender
        Every way to do it; "minnl" is one of them, the others are PyTorch's.
    tolerance : float
        By how much the results may differ, as a share of the largest element.
    network : bool
        Whether it is a whole network, whose memory is measured without being asked for.
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
        """All who can compute in that place, ready to run, after a first run that has to give the same for all."""
        made = {way: make(place) for way, make in self.ways.items() if way == "minnl" or place.torch is not None}
        ours = None
        for way, contender in made.items():
            found = contender.arrays(contender.call())
            ours = found if ours is None else ours
            self.agree(way, found, ours, place.slack)
        return made

    def agree(self, way, theirs, ours, slack):
        """Two programs that compute different things are not worth comparing.

        Gradients may differ by 1 % of their norm: where an activation is 0 up to rounding, ReLU lets its gradient pass
        in one program and not in the other. Those that are nothing but rounding, beside others, may differ at will.
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
