"""The one source of chance: a host generator, seeded once, whose state a checkpoint can hold.

Initialisers and dropout draw from :func:`generator`. Nothing is drawn on the GPU: CuPy's generators cannot be
saved, so masks are computed there from integers drawn here (see ops/dropout.py), and a run gives the same bits on
both backends.
"""

import numpy as np

from minnl import checks

_generator = np.random.default_rng(0)


def manual_seed(seed):
    """Start the generator anew from an int (0 or more); the same seed gives the same run."""
    global _generator
    _generator = np.random.default_rng(checks.count("manual_seed", "seed", seed, 0))


def generator():
    """The generator that everything draws from."""
    return _generator


def get_state():
    """The generator's state as plain ints and strings (fit for JSON)."""
    return _generator.bit_generator.state


def set_state(state):
    """Put back what :func:`get_state` gave."""
    _generator.bit_generator.state = state
