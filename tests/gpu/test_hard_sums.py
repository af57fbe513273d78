"""Hard inputs on a GPU: the subjects of kernels/test_hard_sums.py; without PyTorch the peer is NumPy's float32."""

import pytest

import minnl
from tests.gpu.device import GPU
from tests.hard_inputs import check
from tests.kernels.test_hard_sums import SUBJECTS


@pytest.mark.parametrize("mode", minnl.dispatch.MODES)
@pytest.mark.parametrize("subject", SUBJECTS, ids=lambda subject: subject.name)
def test_errors(subject, mode):
    check(subject, mode, 60, device=GPU)
