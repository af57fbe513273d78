"""Memory that was not written is NaN while the tests run (tests/conftest.py), so no result can come from it unseen.

A read of such memory shows, since NaN spreads. A write to a copy instead of the result is an error.
"""

import os
from unittest import mock

import numpy as np
import pytest

import minnl
from minnl import Tensor, optim
from minnl import functional as F
from minnl.kernels.runtime import memory
from models import small
from tests.cases import CASES
from tests.fast import as_before, outcome  # noqa: F401 (as_before is a fixture)


def test_the_tests_run_under_poison():
    assert memory.POISON or os.environ["MINNL_POISON"] == "0"


@pytest.mark.parametrize("size", [10, 1_000_000])
def test_memory_is_poisoned(monkeypatch, size):
    monkeypatch.setattr(memory, "POISON", True)
    for dtype in (np.float32, np.float64):
        array = memory.empty((size,), dtype)
        assert np.isnan(array).all()
        array[...] = 1
        del array
        assert np.isnan(memory.empty((size,), dtype)).all()  # used memory, as a rule


def test_a_view_or_an_error():
    array = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    memory.view(array, 6, 4)[5, 3] = -1
    memory.view(array[:, :2], 2, -1)[0, 0] = -2
    assert array[1, 2, 3] == -1 and array[0, 0, 0] == -2
    with pytest.raises(ValueError, match=r"view: an array of shape \(2, 2, 4\) and strides .* has no view of shape"):
        memory.view(array[:, :2], 4, 4)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_no_case_reads_what_nobody_wrote(case, monkeypatch):
    inputs, results = case.inputs(np.random.default_rng(0)), []
    for poison in (False, True):
        monkeypatch.setattr(memory, "POISON", poison)
        minnl.manual_seed(0)
        results.append([a.tobytes() for a in outcome(case.fn, inputs, "fast")[0] if a is not None])
    assert results[0] == results[1]


def steps(count):
    """The weights of a small network with a block after so many steps on clips at random."""
    minnl.manual_seed(0)
    model, rng = small.Small(non_local="embedded"), np.random.default_rng(0)
    optimizer = optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(count):
        clips = rng.normal(size=(5, 8, 24, 24, 1)).astype(np.float32)
        optimizer.zero_grad()
        F.cross_entropy(model(Tensor(clips)), rng.integers(0, 3, 5)).backward()
        optimizer.step()
    return [a.tobytes() for a in model.state_dict().values()]


def test_twenty_training_steps():
    results = []
    for poison in (False, True):
        with mock.patch.object(memory, "POISON", poison):
            results.append(steps(20))
    assert results[0] == results[1]
