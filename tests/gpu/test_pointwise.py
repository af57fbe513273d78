"""The CUDA kernels of functions of one tensor and of dropout, beside the textbook body in NumPy."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minnl import Tensor, backend
from minnl import functional as F
from minnl.kernels.pointwise.cuda import CudaAffine, CudaDropout, CudaIndex, CudaReLU, CudaSigmoid, CudaTanh
from minnl.ops.dropout import Dropout
from tests.gpu.device import GPU, QUICK, TOLERANCE, agree, arrays, close, outcome, same_bits

OPS = {F.relu: CudaReLU, F.sigmoid: CudaSigmoid, F.tanh: CudaTanh}
SHAPES = st.lists(st.integers(1, 9), max_size=5).map(tuple)


@QUICK
@given(shape=SHAPES, fn=st.sampled_from(list(OPS)), dtype=st.sampled_from(list(TOLERANCE)))
def test_shapes(shape, fn, dtype):
    agree(fn, arrays(shape), OPS[fn], dtype)


@pytest.mark.parametrize("fn", OPS)
def test_more_than_a_block_and_axes_that_are_swapped(fn):
    agree(lambda x: fn(F.transpose(x, (2, 0, 1))), arrays((11, 23, 37)), OPS[fn])


@pytest.mark.parametrize("fn", OPS)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's remarks
def test_values_that_are_not_finite(fn):
    agree(fn, [np.array([np.nan, np.inf, -np.inf, 1e30, -1e30, 0.0, -0.0])], OPS[fn])


@QUICK
@given(
    shape=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    channels=st.sampled_from([1, 3, 32, 33, 200]),
    wanted=st.sampled_from([(0,), (0, 1, 2)]),
    dtype=st.sampled_from(list(TOLERANCE)),
)
def test_affine(shape, channels, wanted, dtype):
    inputs = [a.astype(dtype).astype(float) for a in arrays((*shape, channels), channels, channels)]
    got, picked = outcome(F.affine, inputs, dtype, wanted=wanted)
    assert picked == [CudaAffine]
    expected, _ = outcome(F.affine, inputs, "float64", backend.CPU, "textbook", wanted)
    assert [a is None for a in got] == [a is None for a in expected]
    arrived = [(a, b.astype(dtype)) for a, b in zip(got, expected, strict=True) if a is not None]
    close(*zip(*arrived, strict=True), TOLERANCE[dtype])


@pytest.mark.parametrize("shape", [(2, 2000), (5, 901), (70001, 3), (2, 3, 37, 11, 48)])
def test_affine_of_sizes_that_no_block_divides(shape):
    agree(F.affine, arrays(shape, shape[-1], shape[-1]), CudaAffine, tolerance=5e-5)  # float32 sums of 70,001 gradients


def drop(p, channels, seed):
    return lambda x: Dropout(p, channels, seed)(x)


@QUICK
@given(
    shape=st.lists(st.integers(1, 9), min_size=2, max_size=5),
    p=st.sampled_from([1e-12, 0.1, 0.5, 0.9, 1 - 1e-12]),
    channels=st.booleans(),
    seed=st.integers(0, 2**63 - 1),
    dtype=st.sampled_from(list(TOLERANCE)),
)
def test_dropout_has_the_bits_of_the_cpu(shape, p, channels, seed, dtype):
    fn, inputs = drop(p, channels, seed), arrays(shape)
    got, picked = outcome(fn, inputs, dtype)
    assert picked == [CudaDropout]
    expected, _ = outcome(fn, inputs, dtype, backend.CPU, "textbook")
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("channels", [False, True])
@pytest.mark.parametrize("shape", [(5, 4001), (3, 2, 37, 11, 48), (2, 3001, 3)])
def test_dropout_of_sizes_that_no_block_divides(shape, channels):
    agree(drop(0.3, channels, 12345678901234567), arrays(shape), CudaDropout)


@pytest.mark.parametrize("channels", [False, True])
def test_dropout_of_swapped_axes_and_twice_the_same(channels):
    def fn(x):
        return drop(0.5, channels, 3)(F.transpose(x, (2, 0, 1)))

    agree(fn, arrays((5, 6, 70)), CudaDropout)
    same_bits(fn, arrays((5, 6, 70)))


def test_dropout_keeps_a_byte_an_element_or_channel():
    x = Tensor(np.ones((2, 3, 4), np.float32), device=GPU, requires_grad=True)
    for channels, shape in ((False, (2, 3, 4)), (True, (2, 1, 4))):
        y = drop(0.5, channels, 1)(x)
        assert (y.op.stays.shape, y.op.stays.dtype) == (shape, bool)


KEYS = {
    "repeated": ((7, 5), (np.array([6, 1, 1, 1, 0]),)),
    "negative": ((7, 5), (np.array([[-1, 6], [6, -7]]), slice(None, None, 2))),
    "pairs": ((7, 5), (np.array([0, 6, 6]), np.array([4, 1, 1]))),
    "apart": ((4, 3, 6), (np.array([1, 1]), slice(None), np.array([5, 5]))),
    "one of all": ((5,), (np.zeros(3000, int),)),
    "many": ((300, 40), (np.random.default_rng(0).integers(300, size=2000),)),
    "none": ((5, 4), (np.zeros(0, int),)),
}


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", KEYS)
def test_indexing_adds_in_numpys_order(name, dtype):
    """The same bits as NumPy's add.at, which adds use after use."""
    shape, key = KEYS[name]
    got, picked = outcome(lambda x: x[key], arrays(shape), dtype)
    assert picked == [CudaIndex]
    expected, _ = outcome(lambda x: x[key], arrays(shape), dtype, backend.CPU, "textbook")
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_slice_needs_no_kernel():
    _, picked = outcome(lambda x: x[1:3, ::2], arrays((5, 4)))
    assert picked == []
