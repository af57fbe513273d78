"""Concatenation's CUDA kernel, along a line: beside the textbook body in NumPy and float64, which takes all pairs."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minnl import Tensor, backend
from minnl.kernels.cuda import non_local_concat
from minnl.kernels.cuda.non_local_concat import ConcatByLine, Line
from minnl.study.cases.non_local import concat
from tests.gpu.device import GPU, QUICK, TOLERANCE, Peak, agree, arrays, only_wanted, outcome, same_bits


def inputs(queries, keys, inner=5, depth=6, batch=1, seed=0):
    return arrays((batch, *queries, inner), (batch, *keys, inner), (batch, *keys, depth), (2 * inner,), seed=seed)


def whole(theta, phi, g, weight):
    """Whole numbers, so that many queries and keys stand at the same place."""
    return np.round(theta), np.round(phi), g, np.round(2 * weight)


@QUICK
@given(
    batch=st.integers(1, 3),
    t=st.integers(1, 3),
    sizes=st.tuples(*[st.integers(1, 6)] * 2),
    key_sizes=st.tuples(*[st.integers(1, 6)] * 2),
    inner=st.sampled_from([1, 3, 8]),
    depth=st.sampled_from([1, 4, 32, 33]),
    axes=st.sampled_from(["spacetime", "space", "time"]),
    ties=st.booleans(),
    dtype=st.sampled_from(list(TOLERANCE)),
)
def test_concat(batch, t, sizes, key_sizes, inner, depth, axes, ties, dtype):
    given_arrays = inputs((t, *sizes), (t, *(sizes if axes == "time" else key_sizes)), inner, depth, batch)
    agree(lambda *x: concat(*x, axes=axes), whole(*given_arrays) if ties else given_arrays, ConcatByLine, dtype)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("make", [lambda *x: x, whole])
@pytest.mark.parametrize(("queries", "keys"), [(700, 300), (300, 700), (1, 1000), (1000, 1), (256, 256)])
def test_several_tiles_slices_and_channels(queries, keys, make, dtype):
    agree(concat, make(*inputs((1, 1, queries), (1, 1, keys), 3, 40, batch=2)), ConcatByLine, dtype)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("n", [2, 255, 256, 257, 512, 513, 1000, 1300])
def test_the_order_of_the_line(n, dtype):
    """Ascending, and of equals keys first, each kind by its number."""
    rng, queries = np.random.default_rng(n), n // 3 or 1
    a, b = (rng.integers(-4, 5, size=(2, k, 1)).astype(dtype) for k in (queries, n - queries))
    op = SimpleNamespace(**{
        name: backend.to_device(x, GPU) for name, x in (("theta", a), ("phi", b), ("weight", np.ones(2, dtype)))
    })  # fmt: skip
    places = np.concatenate([b, -a], axis=1)[..., 0]
    line = Line(op)
    np.testing.assert_array_equal(line.order.get(), np.argsort(places, axis=1, kind="stable"))
    np.testing.assert_array_equal((line.a[:, :, None] + line.b[:, None]).get(), a + b.swapaxes(1, 2))


@pytest.mark.parametrize("sign", [1, -1])
def test_all_keys_seen_or_none(sign):
    theta, phi, g, weight = (np.abs(a) for a in inputs((2, 3, 4), (2, 3, 3)))
    agree(concat, [sign * theta, sign * phi, g, weight], ConcatByLine)
    if sign == -1:
        got, _ = outcome(concat, [-theta, -phi, g, weight])
        assert not any(a.any() for a in got)


def test_large_parts_that_cancel():
    """a near 10,000 and b near -10,000, and one key far away that nobody sees: around 0 sums of b g would lose all."""
    theta, phi, g, weight = inputs((1, 10, 10), (1, 10, 10), 2)
    weight[:] = [1, 1, 1, -1]
    theta[..., 0], theta[..., 1] = 1e4, np.round(8 * theta[..., 1]) / 8
    phi[..., 0], phi[..., 1] = np.round(8 * phi[..., 0]) / 8, 1e4
    phi[0, 0, 0, 0] = 0, 1e6
    # The weight's gradient has 10,000 times another sum in it.
    agree(concat, [theta, phi, g, weight], ConcatByLine)


def test_running_sums_keep_their_digits():
    """30,000 numbers, one after the other in float32, would be off by nearly 1e-4: each addition rounds one way."""
    n = 30_000
    theta, phi = np.full((1, 1, 1, 1, 1), 1.0), np.linspace(1, 2, n).reshape(1, 1, 1, n, 1)
    g = np.full((1, 1, 1, n, 2), 0.7)
    agree(concat, [theta, phi, g, np.array([1.0, 1.0])], ConcatByLine, tolerance=2e-6)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_nan_spreads():
    """A query's to its own result, a key's to all; and to the gradients of all keys."""
    theta, phi, g, weight = inputs((1, 2, 3), (1, 1, 5))
    theta[0, 0, 1, 1] = np.nan
    y, gtheta, gphi, gg, gweight = outcome(concat, [theta, phi, g, weight])[0]
    np.testing.assert_array_equal(np.isnan(y[0, 0, ..., 0]), np.isnan(theta[0, 0, ..., 0]))
    assert np.isnan(gg).all()
    phi[0, 0, 0, 2] = np.nan
    assert np.isnan(outcome(concat, [theta, phi, g, weight])[0][0]).all()


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_same_bits(dtype):
    same_bits(concat, inputs((2, 20, 20), (1, 17, 23), 8, 40, batch=2), dtype)


@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (3,), (0, 2), (1, 2), (2, 3), (0, 1)])
def test_gradients_that_are_wanted_are_those_of_all(wanted):
    given_arrays = inputs((2, 4, 4), (2, 2, 2), batch=2)
    everything, _ = outcome(concat, given_arrays)
    some, _ = outcome(concat, given_arrays, wanted=wanted)
    only_wanted(some, everything, wanted)


def test_a_weight_that_is_not_contiguous():
    def fn(theta, phi, g, weight):
        return concat(theta, phi, g, weight.transpose(1, 0)[0])

    theta, phi, g, _ = inputs((1, 2, 3), (1, 1, 5))
    agree(fn, [theta, phi, g, *arrays((10, 2), seed=1)], ConcatByLine)


def test_memory_is_linear_in_positions():
    """1,500 x 1,500 affinities would be 9 MB."""
    n, channels = 1500, 32
    theta, phi, g, weight = inputs((1, 1, n), (1, 1, n), channels, channels)
    leaves = [Tensor(a.astype(np.float32), requires_grad=True, device=GPU) for a in (theta, phi, g, weight)]
    gy = backend.to_device(np.ones((1, 1, 1, n, channels), np.float32), GPU)
    with Peak() as forward:
        y = concat(*leaves)
    with Peak() as backward:
        y.backward(gy)
    a_list, order = 4 * n * channels, 2 * 2 * n * (8 + 4)
    length = max(non_local_concat.SHORTEST_SLICE, -(-2 * n // non_local_concat.MOST_SLICES))
    sums, places = 2 * 4 * channels * -(-2 * n // length), 4 * 4 * n
    assert forward.bytes <= a_list + order + sums + places + 5_000
    assert backward.bytes <= 6 * a_list + order + sums + 2 * places + 5_000
