"""Sums and means over many positions, in float32 and on a GPU: the cases of tests/engine/test_sums.py."""

import pytest

import minnl
from minnl.kernels.runtime import row_tiles
from tests.gpu.device import GPU
from tests.many_positions import BOUND, cases, worst

MANY = cases(300_000)


@pytest.mark.parametrize("mode", minnl.dispatch.MODES)
@pytest.mark.parametrize("name", MANY)
def test_sums_over_many_positions(name, mode, monkeypatch):
    """With few threads, so that each of them adds up thousands of numbers, as with many more positions."""
    monkeypatch.setattr(row_tiles, "MAX_SLICES", 1)
    with minnl.use_kernels(mode):
        assert worst(*MANY[name], GPU) < BOUND
