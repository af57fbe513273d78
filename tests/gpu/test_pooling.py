"""Pooling's CUDA kernels: over windows, shapes and options at random, beside the textbook body in NumPy and float64."""

import contextlib
import functools
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minnl import Tensor, dispatch, no_grad
from minnl import functional as F
from minnl.kernels.pooling import cuda as pool
from minnl.kernels.pooling.cuda import CudaAdaptiveAvgPool3d, CudaAdaptiveMaxPool3d, CudaAvgPool3d, CudaMaxPool3d
from tests import pooling
from tests.gpu.device import GPU, QUICK, TOLERANCE, agree, arrays, outcome, same_bits

DTYPES = st.sampled_from(list(TOLERANCE))
ADAPTIVE = {F.adaptive_max_pool3d: CudaAdaptiveMaxPool3d, F.adaptive_avg_pool3d: CudaAdaptiveAvgPool3d}


@contextlib.contextmanager
def launched(enough=pool.ENOUGH_THREADS, most_blocks=pool.MAX_BLOCKS_Y):
    """While this lasts that many threads are enough, so that none share a window for 1, and blocks along y are few."""
    with mock.patch.object(pool, "ENOUGH_THREADS", enough), mock.patch.object(pool, "MAX_BLOCKS_Y", most_blocks):
        yield


LAUNCHES = st.builds(
    launched,
    enough=st.sampled_from([1, 500, pool.ENOUGH_THREADS]),
    most_blocks=st.sampled_from([1, 5, pool.MAX_BLOCKS_Y]),
)


windows = functools.partial(pooling.windows, 4, st.integers(1, 3), st.sampled_from([1, 2, 3, 8, 33]))


def holding(what, shape):
    """Whole numbers, so with ties; or with many a -infinity, or NaN, among them."""
    rng = np.random.default_rng(0)
    x = rng.integers(-2, 3, shape).astype(float)
    if what == "infinities":
        x[x < 1] = -np.inf
    if what == "nan":
        x[rng.random(shape) < 0.3] = np.nan
    return [x]


HOLDS = st.sampled_from(["ties", "infinities", "nan"])


@QUICK
@given(case=windows(most_dilation=3), holds=HOLDS, launch=LAUNCHES, dtype=DTYPES)
def test_max_pool(case, holds, launch, dtype):
    shape, arguments = case
    with launch:
        agree(lambda x: F.max_pool3d(x, **arguments), holding(holds, shape), CudaMaxPool3d, dtype)


@QUICK
@given(
    case=windows(),
    pads=st.booleans(),
    divisor=st.sampled_from([None, None, 5, -3]),
    launch=LAUNCHES,
    dtype=DTYPES,
)
def test_avg_pool(case, pads, divisor, launch, dtype):
    shape, arguments = case
    arguments |= {"count_include_pad": pads, "divisor_override": divisor}
    with launch:
        agree(lambda x: F.avg_pool3d(x, **arguments), arrays(shape), CudaAvgPool3d, dtype)


@pytest.mark.parametrize("fn", ADAPTIVE)
@QUICK
@given(
    shape=st.tuples(*[st.integers(1, most) for most in (2, 7, 7, 7)], st.sampled_from([1, 3, 40])),
    sizes=st.tuples(*[st.integers(1, 9)] * 3),
    holds=HOLDS,
    launch=LAUNCHES,
    dtype=DTYPES,
)
def test_adaptive_pool(fn, shape, sizes, holds, launch, dtype):
    """Cells may share positions, and there may be more of them than positions."""
    with launch:
        agree(lambda x: fn(x, sizes), holding(holds, shape), ADAPTIVE[fn], dtype)


@pytest.mark.parametrize("fn", ADAPTIVE)
@pytest.mark.parametrize("shape", [(1, 16, 14, 14, 3), (3, 4, 7, 7, 200), (1, 2, 150, 150, 1)])
def test_to_a_single_position(fn, shape):
    agree(lambda x: fn(x, 1), arrays(shape), ADAPTIVE[fn])


def test_kernels_of_published_networks():
    """More outputs than one thread each would be too few for; blocks that no line fills."""
    x = arrays((1, 4, 57, 57, 64))
    assert x[0].size > pool.ENOUGH_THREADS
    agree(lambda x: F.max_pool3d(x, (1, 3, 3), (1, 2, 2), (0, 1, 1)), x, CudaMaxPool3d)
    agree(lambda x: F.max_pool3d(x, (1, 3, 3), 1, (0, 1, 1)), x, CudaMaxPool3d)
    agree(lambda x: F.avg_pool3d(x, (2, 1, 1)), x, CudaAvgPool3d)


def test_windows_of_255_taps():
    agree(lambda x: F.max_pool3d(x, (3, 5, 17), 1, (1, 2, 8)), holding("ties", (1, 4, 6, 19, 2)), CudaMaxPool3d)


@pytest.mark.parametrize("enough", [1, pool.ENOUGH_THREADS])
def test_of_several_nan_the_one_that_the_op_says_gets_the_gradient(enough):
    x = np.zeros((1, 4, 4, 4, 1))
    x[0, [1, 2, 2, 3], [3, 0, 2, 1], [2, 1, 3, 0]] = np.nan
    with launched(enough):
        for fn, kernel, place in (
            (lambda x: F.max_pool3d(x, 4), CudaMaxPool3d, (0, 3, 1, 0, 0)),
            (lambda x: F.adaptive_max_pool3d(x, 1), CudaAdaptiveMaxPool3d, (0, 1, 3, 2, 0)),
        ):
            agree(fn, [x], kernel)
            (_, gx), _ = outcome(fn, [x])
            assert np.argwhere(gx).tolist() == [list(place)]


def test_a_window_that_sees_no_input():
    agree(lambda x: F.max_pool3d(x, 2, 1, 1, dilation=(5, 1, 1)), arrays((1, 4, 3, 3, 2)), CudaMaxPool3d)


def test_numbers_that_no_table_holds():
    x = Tensor(arrays((1, 3, 3, 3, 2))[0], requires_grad=True, device=GPU)
    far = F.avg_pool3d(x, 2, divisor_override=2**31)
    assert not dispatch.is_kernel(type(far.op))
    assert type(F.avg_pool3d(x, 2, divisor_override=1 - 2**31).op) is CudaAvgPool3d
    agree(lambda x: F.max_pool3d(x, 1, 2, dilation=2**40), [x.numpy()], CudaMaxPool3d)


@pytest.mark.parametrize(
    "fn",
    [
        lambda x: F.max_pool3d(x, 3, 1, 1),
        lambda x: F.avg_pool3d(x, 3, 1, 1),
        lambda x: F.adaptive_max_pool3d(x, (2, 3, 5)),
        lambda x: F.adaptive_avg_pool3d(x, (1, 1, 2)),
    ],
)
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_same_bits(fn, dtype):
    same_bits(fn, arrays((2, 5, 9, 11, 48)), dtype)


def test_tables_are_made_once_a_shape():
    x = arrays((1, 3, 11, 13, 2))
    caches = pool.sliding, pool.adaptive
    for again in (False, True):
        before = [cache.cache_info().misses for cache in caches]
        outcome(lambda x: F.avg_pool3d(F.max_pool3d(x, 3, 2, 1), (1, 2, 4)), x)
        outcome(lambda x: F.adaptive_max_pool3d(x, (2, 5, 7)), x)
        if again:
            assert [cache.cache_info().misses for cache in caches] == before


def test_winners_are_kept_for_a_gradient_only():
    x = Tensor(arrays((1, 4, 4, 4, 3))[0], device=GPU)
    for fn, dtype in ((F.max_pool3d, np.uint8), (F.adaptive_max_pool3d, np.int64)):
        assert fn(Tensor(x.data, requires_grad=True), 2).op.argmax.dtype == dtype
        with no_grad(), mock.patch.object(pool, "launch", wraps=pool.launch) as launch:
            fn(x, 2)
        assert launch.call_args.args[-1] is None
