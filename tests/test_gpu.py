"""Every op of the table on a real CuPy: each output and gradient beside NumPy's, in both float types.

Runs wherever ``minnl.device("gpu")`` works. What the table proves without a GPU is in test_cupy_rules.py.
"""

import numpy as np
import pytest

import minnl
from minnl import Tensor, backend
from tests.cases import CASES, NOT_FINITE

TABLE = CASES | NOT_FINITE
TOLERANCE = {"float32": 2e-5, "float64": 1e-12}  # of the largest element: sums in another order


try:
    GPU = minnl.device("gpu")
except RuntimeError as reason:
    pytest.skip(f"needs a GPU: {reason}", allow_module_level=True)


def run(case, dtype, device):
    """Output and gradients of a case, back on the host."""
    tensors = [
        Tensor(x.astype(dtype), requires_grad=True, device=device) for x in case.inputs(np.random.default_rng(0))
    ]
    y = case.fn(*tensors)
    gy = np.random.default_rng(1).normal(size=y.shape).astype(y.dtype)
    y.backward(backend.to_device(gy, y.device))
    return [backend.to_host(a) for a in (y.data, *(t.grad for t in tensors))]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", TABLE)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's remarks on NaN and infinity
def test_case_on_a_gpu(name, dtype):
    for got, expected in zip(run(TABLE[name], dtype, GPU), run(TABLE[name], dtype, backend.CPU), strict=True):
        assert (got.shape, got.dtype) == (expected.shape, expected.dtype)
        largest = np.abs(expected, where=np.isfinite(expected), out=np.ones_like(expected)).max(initial=1)
        np.testing.assert_allclose(got, expected, rtol=0, atol=TOLERANCE[dtype] * largest)
