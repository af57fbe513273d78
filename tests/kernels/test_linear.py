"""Fast linear and matmul: against the textbook in float64, and without leaving BLAS threads behind."""

import numpy as np
import pytest
import threadpoolctl
from hypothesis import given, settings
from hypothesis import strategies as st

import minnl
from minnl import Tensor
from minnl import functional as F
from minnl.kernels.linear import cpu as products
from minnl.ops.linear import Linear, MatMul
from tests.fast import agree, arrays, as_before, same_bits  # noqa: F401 (as_before is a fixture)

QUICK = settings(max_examples=40, deadline=None, derandomize=True, database=None)


@QUICK
@given(st.lists(st.integers(0, 5), max_size=3), st.integers(1, 40), st.integers(1, 40), st.booleans())
def test_linear(rows, inputs, outputs, bias):
    agree(F.linear, arrays((*rows, inputs), (inputs, outputs), *([(outputs,)] if bias else [])))


@QUICK
@given(st.integers(1, 3), st.integers(1, 9), st.integers(1, 9), st.integers(1, 9))
def test_matmul(batch, m, k, n):
    agree(F.matmul, arrays((batch, m, k), (k, n)))


def test_linear_has_the_same_bits_on_any_number_of_threads():
    inputs = arrays((700, 120), (120, 130), (130,))  # large enough for several threads of BLAS
    agree(F.linear, inputs)
    same_bits(F.linear, inputs)


@pytest.mark.parametrize("fn, op", [(F.linear, Linear), (F.matmul, MatMul)])
def test_products_run_on_one_blas_thread(fn, op, monkeypatch):
    counts = []

    def watched(body):
        def forward_or_backward(*arguments):
            counts.append(
                {pool["num_threads"] for pool in threadpoolctl.threadpool_info() if pool["user_api"] == "blas"}
            )
            return body(*arguments)

        return forward_or_backward

    for name in ("forward", "backward"):
        monkeypatch.setattr(op, name, watched(getattr(op, name)))
    with threadpoolctl.threadpool_limits(2, "blas"), minnl.use_kernels("fast"):
        fn(*(Tensor(a, requires_grad=True) for a in arrays_of_float32((6, 5), (5, 4)))).sum().backward()
    assert counts == [{1}, {1}]


def test_a_large_matmul_has_all_blas_threads(monkeypatch):
    monkeypatch.setattr(products, "LARGE", 6 * 5 * 4)
    for rows, kernel in ((5, products.CpuMatMul), (6, MatMul)):
        assert (
            type(F.matmul(*(Tensor(a, requires_grad=True) for a in arrays_of_float32((rows, 5), (5, 4)))).op) is kernel
        )


def arrays_of_float32(*shapes):
    return [a.astype(np.float32) for a in arrays(*shapes)]
