"""The single source of random numbers: a generator on the host, seeded once, whose state a checkpoint can hold.

Initialisers and dropout draw from :func:`generator`. Nothing is drawn on the GPU: CuPy's generators cannot be
saved, so masks are computed there from integers drawn here (see ops/dropout.py), and a run gives the same bits on
both backends.
"""

import contextlib
import threading

import numpy as np

from minnl import checks

_generator = None  # made when first asked for: numpy.random takes a while to load
_replaying = threading.local()


def manual_seed(seed: int) -> None:
    """Start the generator anew from an int (0 or more); the same seed gives the same run."""
    global _generator
    _generator = np.random.default_rng(checks.count("manual_seed", "seed", seed, 0))


def generator():
    """The generator that everything draws from; seeded with 0 unless `manual_seed` came before."""
    replayed = getattr(_replaying, "generator", None)
    if replayed is not None:
        return replayed
    if _generator is None:
        manual_seed(0)
    return _generator


@contextlib.contextmanager
def replay(state):
    """Context in which this thread draws once more what was drawn from `state` on; the generator itself stays put."""
    before, again = getattr(_replaying, "generator", None), np.random.default_rng(0)
    again.bit_generator.state = state
    _replaying.generator = again
    try:
        yield
    finally:
        _replaying.generator = before


def get_state():
    """The generator's state as plain ints and strings (fit for JSON)."""
    return generator().bit_generator.state


def set_state(state):
    """Put back what :func:`get_state` gave."""
    generator().bit_generator.state = state
