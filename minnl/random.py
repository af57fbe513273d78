"""The single source of random numbers: a generator on the host, whose rng state a checkpoint can hold.

Initialisers and dropout draw from :func:`generator`. Nothing is drawn on the GPU, since the state of CuPy's generators
cannot be saved. Masks on a GPU are functions of integers that are drawn here (see ops/dropout.py), so a run gives the
same bits on both backends.
"""

import contextlib
import threading

import numpy as np

from minnl import checks

_generator = None  # made at first use, because numpy.random takes a while to load
_replaying = threading.local()


def manual_seed(seed: int) -> None:
    """Restart the generator from an int (0 or more); the same seed gives the same run."""
    global _generator
    _generator = np.random.default_rng(checks.count("manual_seed", "seed", seed, 0))


def generator():
    """The generator of all random numbers; its seed is 0 unless `manual_seed` has been called."""
    replayed = getattr(_replaying, "generator", None)
    if replayed is not None:
        return replayed
    if _generator is None:
        manual_seed(0)
    return _generator


@contextlib.contextmanager
def replay(state):
    """Context in which this thread draws from a second generator, with rng state `state`; the first is not used."""
    before, second = getattr(_replaying, "generator", None), np.random.default_rng(0)
    second.bit_generator.state = state
    _replaying.generator = second
    try:
        yield
    finally:
        _replaying.generator = before


def get_state():
    """The rng state, as plain ints and strings that JSON can hold."""
    return generator().bit_generator.state


def set_state(state):
    """Restore an rng state from :func:`get_state`."""
    generator().bit_generator.state = state
