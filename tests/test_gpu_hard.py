"""Hard inputs on a GPU: the subjects of tests/test_hard_sums.py; without PyTorch the peer is NumPy's float32."""

import pytest

import minnl
from tests.gpu import GPU
from tests.hard_inputs import check
from tests.test_hard_sums import SUBJECTS


@pytest.mark.parametrize("mode", minnl.dispatch.MODES)
@pytest.mark.parametrize("subject", SUBJECTS, ids=lambda subject: subject.name)
def test_errors(subject, mode):
    check(subject, mode, 60, device=GPU)
