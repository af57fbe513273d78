"""Batch norm's CUDA kernels: over shapes and options at random, beside the textbook body in NumPy and float64."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minnl import Tensor, backend
from minnl import functional as F
from minnl.kernels.batch_norm.cuda import CudaBatchNorm, CudaFrozenBatchNorm
from tests.batch_norm import normalise, spread
from tests.gpu.device import GPU, QUICK, TOLERANCE, agree, arrays, only_wanted, outcome, same_bits

KERNEL = {True: CudaBatchNorm, False: CudaFrozenBatchNorm}  # by training


@QUICK
@given(
    shape=st.lists(st.integers(1, 7), min_size=1, max_size=4),
    channels=st.sampled_from([1, 2, 3, 16, 31, 33, 64, 200]),
    training=st.booleans(),
    relu=st.booleans(),
    residual=st.booleans(),
    dtype=st.sampled_from(list(TOLERANCE)),
)
def test_batch_norm(shape, channels, training, relu, residual, dtype):
    shape = (*shape[:-1], shape[-1] + 1, channels)  # two values a channel or more
    x, *others = arrays(shape, channels, channels, *([shape] if residual else []))
    agree(normalise(training, relu), [spread(x), *others], KERNEL[training], dtype)


@pytest.mark.parametrize("training", KERNEL)
@pytest.mark.parametrize("shape", [(2, 2000), (5, 901), (7001, 1), (70001, 3), (2, 3, 37, 11, 48)])
def test_sizes_that_no_block_divides(shape, training):
    x, *others = arrays(shape, shape[-1], shape[-1])
    agree(normalise(training, relu=True), [spread(x), *others], KERNEL[training], tolerance=5e-5)


@pytest.mark.parametrize("relu", [False, True])
def test_a_mean_far_from_zero(relu):
    """Mean 10,000 and deviation 1: mean of squares less square of mean would leave nothing of the variance."""
    x, weight, bias = arrays((4, 2, 30, 30, 16), 16, 16)
    x = (1e4 + x).astype(np.float32)
    # Numbers near 10,000 lie 1e-3 apart in float32: what the mean loses by that must not be lost.
    agree(normalise(relu=relu), [x, weight, bias], CudaBatchNorm)
    agree(normalise(relu=relu), [x, weight, bias], CudaBatchNorm, "float64", tolerance=1e-10)
    mean, var = (backend.to_device(a, GPU) for a in (np.zeros(16, np.float32), np.ones(16, np.float32)))
    F.batch_norm(Tensor(x, device=GPU), mean, var, training=True, momentum=1.0)
    np.testing.assert_allclose(mean.get(), x.mean((0, 1, 2, 3), dtype=float), rtol=2e-7)
    np.testing.assert_allclose(var.get(), x.var((0, 1, 2, 3), ddof=1, dtype=float), rtol=1e-5)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_running_statistics_are_the_textbooks(dtype):
    x = arrays((3, 4, 50, 5, 7))[0].astype(dtype)
    seen = {}
    for device in (backend.CPU, GPU):
        running = [backend.to_device(np.linspace(0.5, 2, 7).astype(dtype), device) for _ in range(2)]
        F.batch_norm(Tensor(x, device=device), *running, training=True, momentum=0.3)
        seen[device] = [backend.to_host(a) for a in running]
    for ours, textbook in zip(seen[GPU], seen[backend.CPU], strict=True):
        np.testing.assert_allclose(ours, textbook, rtol=TOLERANCE[dtype])


def test_with_a_momentum_of_1_running_statistics_are_the_batchs():
    """r + (b - r) is not b: a variance of 1e-4 after 1 was off by 2 %."""
    x = (100 + 0.01 * arrays((50, 40, 7))[0]).astype(np.float32)
    mean, var = (backend.to_device(np.ones(7, np.float32), GPU) for _ in range(2))
    op = F.batch_norm(Tensor(x, requires_grad=True, device=GPU), mean, var, training=True, momentum=1.0).op
    assert type(op) is CudaBatchNorm
    np.testing.assert_array_equal(mean.get(), op.mean.get())
    np.testing.assert_allclose(var.get(), x.astype(float).var((0, 1), ddof=1), rtol=1e-5)


def test_running_statistics_that_are_not_contiguous_move_too():
    statistics, x = np.ones((4, 2), np.float32), arrays((9, 4))[0].astype(np.float32)
    both = backend.to_device(statistics, GPU)
    y = F.batch_norm(Tensor(x, requires_grad=True, device=GPU), both[:, 0], both[:, 1], training=True)
    assert type(y.op) is CudaBatchNorm
    F.batch_norm(Tensor(x), statistics[:, 0], statistics[:, 1], training=True)
    assert (statistics != 1).all()
    np.testing.assert_allclose(both.get(), statistics, rtol=1e-5)


def test_constant_channels():
    """Deviation 0: the result is beta, and nothing passes where ReLU has a kink."""
    x, weight, bias = arrays((900, 6), 6, 6)
    x[..., :4] = [0, 0.7, -1000, 3]
    bias[:2] = 0
    for relu in (False, True):
        agree(normalise(relu=relu), [x, weight, bias], CudaBatchNorm)


def test_nan_stays():
    x, weight, bias = arrays((5, 3), 3, 3)
    x[1, 2] = np.nan
    for training in KERNEL:
        (got, *_), _ = outcome(normalise(training, relu=True), [x, weight, bias])
        expected = np.zeros((5, 3), bool)
        expected[:, 2] = training
        expected[1, 2] = True
        np.testing.assert_array_equal(np.isnan(got), expected)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("training", KERNEL)
def test_same_bits(training, dtype):
    same_bits(normalise(training, relu=True), arrays((2, 3, 37, 11, 48), 48, 48, (2, 3, 37, 11, 48)), dtype)


@pytest.mark.parametrize("training", KERNEL)
def test_arrays_that_are_not_contiguous(training):
    def fn(x, weight, bias, residual):
        x, residual = (a.transpose(0, 2, 1, 3) for a in (x, residual))
        return normalise(training)(x, weight, bias, residual).transpose(0, 2, 1, 3)

    agree(fn, arrays((3, 6, 5, 4), 4, 4, (3, 6, 5, 4)), KERNEL[training])


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("training", KERNEL)
@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (3,), (0, 3), (1, 2), (0, 1, 2, 3)])
def test_gradients_that_are_wanted_are_those_of_all(wanted, training, relu):
    inputs = arrays((6, 30, 8), 8, 8, (6, 30, 8))
    everything, _ = outcome(normalise(training, relu), inputs)
    some, _ = outcome(normalise(training, relu), inputs, wanted=wanted)
    only_wanted(some, everything, wanted)


@pytest.mark.parametrize("learns", [False, True])
def test_without_gamma_to_learn_given_statistics_keep_no_input(learns):
    ones, zeros = (backend.to_device(np.full(4, v, np.float32), GPU) for v in (1, 0))
    x = Tensor(np.ones((50, 4), np.float32), requires_grad=True, device=GPU)
    op = F.frozen_batch_norm(x, zeros, ones, Tensor(ones, requires_grad=learns), relu=True).op
    assert type(op) is CudaFrozenBatchNorm
    assert (op.x is not None) == learns
    assert op.y is not None
