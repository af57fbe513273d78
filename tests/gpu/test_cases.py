"""Every op of the table on a real CuPy: each output and gradient beside NumPy's, in both float types.

In "textbook" CuPy runs the bodies of minnl/ops, in "fast" our kernels where there is one. Runs wherever
``minnl.device("gpu")`` works. What the table proves without a GPU is in test_cupy_rules.py.
"""

import functools

import numpy as np
import pytest

from minnl import backend, dispatch
from tests.cases import CASES, NOT_FINITE
from tests.gpu.device import TOLERANCE, close, outcome
from tests.gpu.large_cases import LARGE

TABLE = CASES | NOT_FINITE | LARGE


@functools.cache
def right(name, dtype):
    """What NumPy's textbook says."""
    case = TABLE[name]
    return outcome(case.fn, case.inputs(np.random.default_rng(0)), dtype, backend.CPU, "textbook")[0]


def compare(name, dtype, mode):
    case = TABLE[name]
    got, _ = outcome(case.fn, case.inputs(np.random.default_rng(0)), dtype, mode=mode)
    close(got, right(name, dtype), TOLERANCE[dtype])


@pytest.mark.parametrize("mode", dispatch.MODES)
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", TABLE)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's remarks on NaN and infinity
def test_case_on_a_gpu(name, dtype, mode):
    compare(name, dtype, mode)
