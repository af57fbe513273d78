"""Timing contenders against each other on a machine that others use too.

A noisy machine slows everything down for a while, so times taken one after the other compare two moments, not two
programs. Here the contenders take turns: every round times each of them once, a ratio is taken within a round, and
what is reported is the median of the ratios with their quartiles.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass, field

from benchmarks import places

SHORTEST = 0.02  # a call shorter than this many seconds is repeated within one timing
PATIENCE = 20  # a case whose rounds would take longer than this many seconds gets fewer rounds
FEWEST = 5  # the smallest number of rounds


@dataclass
class Result:
    """Times in seconds of one call, by contender and round; "minnl" is always a contender.

    `bytes` is the peak memory of each contender, if it was measured.
    """

    name: str
    group: str
    work: str
    seconds: dict[str, list[float]]
    bytes: dict[str, int] = field(default_factory=dict)

    def median(self, contender):
        return statistics.median(self.seconds[contender])

    @property
    def minnl(self):
        return self.median("minnl")

    @property
    def rival(self):
        """PyTorch's fastest way by its median, or None if there is none."""
        others = [name for name in self.seconds if name != "minnl"]
        return min(others, key=self.median, default=None)

    @property
    def ratios(self):
        """(lower quartile, median, upper quartile) of minnl's speed over the rival's; above 1 minnl is faster."""
        paired = zip(self.seconds[self.rival], self.seconds["minnl"], strict=True)
        ratios = [theirs / ours for theirs, ours in paired]
        if len(ratios) == 1:
            return ratios * 3
        return statistics.quantiles(ratios, n=4, method="inclusive")


def measure(calls, repeats, place=places.CPU):
    """Seconds of each round of functions without arguments, given by name, which run in turns.

    A turn begins with a call that does not count, because the other library's threads have just been busy, this
    library's threads are asleep, and its arrays are no longer in the cache. A training run starts like that only once.
    """
    once = {name: max(place.timed(call, place.warm_up), 1e-9) for name, call in calls.items()}
    times = {name: max(1, round(SHORTEST / seconds)) for name, seconds in once.items()}
    a_round = sum((1 + times[name]) * once[name] for name in calls)
    repeats = min(repeats, max(FEWEST, int(PATIENCE / a_round)))
    seconds = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            time.sleep(place.pause)
            place.timed(call, 1)
            seconds[name].append(place.timed(call, times[name]))
    return seconds
