"""Fast linear and matmul: against the textbook in float64, and without leaving BLAS threads behind."""

import threadpoolctl
from hypothesis import given, settings
from hypothesis import strategies as st

from minnl import functional as F
from minnl.kernels.linear import cpu as products
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
    inputs = arrays((700, 120), (120, 130), (130,))  # large enough for several tasks
    agree(F.linear, inputs)
    same_bits(F.linear, inputs)


def test_products_run_on_one_blas_thread(monkeypatch):
    seen, multiply = [], products.multiply

    def watched(*arguments):
        seen.extend(pool["num_threads"] for pool in threadpoolctl.threadpool_info() if pool["user_api"] == "blas")
        return multiply(*arguments)

    monkeypatch.setattr(products, "multiply", watched)
    agree(F.linear, arrays((6, 5), (5, 4), (4,)))
    assert seen and set(seen) == {1}
