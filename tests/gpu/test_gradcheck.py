"""The error curve of every case of the table on a GPU, in float64, with our kernels and with the textbook's bodies."""

import pytest

import minnl
from minnl.dispatch import MODES
from minnl.study import check
from minnl.study.cases import CASES
from tests.gpu.device import GPU


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("op", sorted({case.op for case in CASES.values()}))
def test_error_curves(op, mode):
    with minnl.use_kernels(mode):
        results = {case.name: check.check(case, GPU) for case in check.chosen([op])}
    wrong = [found.explain() for result in results.values() for found in result.inputs if found.verdict != "pass"]
    assert results and not wrong, wrong
