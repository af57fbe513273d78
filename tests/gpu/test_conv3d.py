"""Convolution's CUDA kernels: every method by itself, over shapes at random, beside the textbook body in float64."""

from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minnl import Tensor, backend
from minnl import functional as F
from minnl.kernels.conv3d import cuda_direct, cuda_im2col
from minnl.kernels.conv3d.cuda import CudaConv3d, Windows
from minnl.kernels.runtime.cuda import Source, contiguous
from minnl.kernels.runtime.row_tiles import column_sums
from minnl.ops.conv import Conv3d
from tests.gpu.device import GPU, QUICK, TOLERANCE, agree, arrays, only_wanted, outcome, same_bits

MANY = settings(QUICK, max_examples=80)
METHODS = {"im2col": cuda_im2col, "direct": cuda_direct}


@pytest.fixture
def xp():
    with backend.on(GPU):
        yield backend.load_cupy()


def by(method):
    """Every convolution by that method, whatever would be chosen."""
    return mock.patch.object(CudaConv3d, "method", lambda op: METHODS[method])


def in_slices(numbers):
    """Slices of the im2col matrix of at most so many numbers, or of a row if that is more."""
    return mock.patch.multiple(cuda_im2col, SLICE=numbers, MAX_ROWS=numbers)


@st.composite
def convolutions(draw):
    """(shape of x, shape of weight, arguments) of a convolution whose windows fit, larger than x or not."""
    axis = st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 3), st.integers(0, 4))
    kernel, stride, dilation, padding = zip(*(draw(axis) for _ in range(3)), strict=True)
    least = [max(1, d * (k - 1) + 1 - 2 * p) for k, d, p in zip(kernel, dilation, padding, strict=True)]
    sizes = [draw(st.integers(n, n + 5)) for n in least]
    groups, n = draw(st.sampled_from([1, 1, 2, 3])), draw(st.integers(1, 2))
    channels, outputs = draw(st.sampled_from([1, 2, 3, 4, 8])), draw(st.sampled_from([1, 2, 4, 5]))
    arguments = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    return (n, *sizes, channels * groups), (*kernel, channels, outputs * groups), arguments


def convolve(**arguments):
    return lambda *inputs: F.conv3d(*inputs, **arguments)


@MANY
@given(case=convolutions(), bias=st.booleans(), dtype=st.sampled_from(list(TOLERANCE)))
def test_chosen(case, bias, dtype):
    x, weight, arguments = case
    agree(convolve(**arguments), arrays(x, weight, *([weight[-1:]] if bias else [])), CudaConv3d, dtype)


@pytest.mark.parametrize("method", METHODS)
@MANY
@given(case=convolutions(), dtype=st.sampled_from(list(TOLERANCE)), numbers=st.sampled_from([1, 500, 2**26]))
def test_method(method, case, dtype, numbers):
    x, weight, arguments = case
    with by(method), in_slices(numbers), mock.patch.multiple(cuda_direct, LINES=1, MAX_SLICES=3):
        agree(convolve(**arguments), arrays(x, weight, weight[-1:]), CudaConv3d, dtype)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("x", "weight", "arguments"),
    [
        ((1, 1, 1, 1, 2), (3, 5, 4, 2, 3), {"padding": (1, 2, 2)}),  # larger than x
        ((2, 3, 4, 5, 2), (2, 4, 2, 2, 3), {"padding": "same"}),  # more padding after than before
        ((1, 3, 7, 8, 1), (3, 5, 5, 1, 8), {"stride": (1, 2, 2), "padding": (1, 2, 2)}),  # a stem of one channel
        ((1, 2, 9, 9, 3), (1, 3, 3, 3, 2), {"stride": 3, "padding": (0, 4, 3)}),  # nothing but padding at the edges
        ((2, 4, 5, 6, 4), (1, 1, 1, 4, 6), {"stride": (2, 2, 3)}),  # inputs that no window meets
        ((1, 9, 9, 10, 2), (3, 3, 2, 2, 2), {"stride": (4, 2, 3), "dilation": (2, 4, 3), "padding": 4}),
        ((2, 2, 3, 3, 4), (1, 1, 1, 4, 3), {"padding": 1}),  # one tap that meets padding
        ((2, 2, 3, 3, 6), (1, 1, 1, 2, 9), {"groups": 3}),
        ((1, 2, 3, 9, 4), (1, 3, 9, 2, 2), {"padding": (0, 1, 4), "groups": 2}),  # more taps than a thread sums
        ((1, 1, 2, 2, 70), (1, 2, 2, 1, 140), {"padding": 1, "groups": 70}),  # two outputs of each, several warps
    ],
)
def test_shapes(method, x, weight, arguments):
    with by(method):
        agree(convolve(**arguments), arrays(x, weight, weight[-1:]), CudaConv3d)


@pytest.mark.parametrize("groups", [1, 2, 8])
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("method", METHODS)
def test_same_bits(method, dtype, groups):
    inputs = arrays((2, 3, 7, 9, 8), (3, 3, 3, 8 // groups, 8), (8,))
    with by(method), in_slices(20_000):
        same_bits(convolve(stride=(1, 2, 2), padding=1, groups=groups), inputs, dtype)


@pytest.mark.parametrize("method", METHODS)
def test_arrays_that_are_not_contiguous(method):
    def fn(x, weight, bias):
        return F.conv3d(x.transpose(0, 1, 3, 2, 4), F.flip(weight, 1), bias, padding=1).transpose(0, 3, 2, 1, 4)

    with by(method):
        agree(fn, arrays((2, 3, 5, 4, 3), (3, 3, 2, 3, 4), (4,)), CudaConv3d)


@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (0, 2), (1, 2)])
@pytest.mark.parametrize("method", METHODS)
def test_gradients_that_are_wanted_are_those_of_all(method, wanted):
    fn, inputs = convolve(stride=2, padding=1), arrays((2, 3, 5, 6, 4), (3, 3, 3, 4, 5), (5,))
    with by(method):
        everything, _ = outcome(fn, inputs)
        some, _ = outcome(fn, inputs, wanted=wanted)
    only_wanted(some, everything, wanted)


@pytest.mark.parametrize(
    ("weight", "groups", "expected"),
    [
        ((3, 3, 3, 1, 64), 64, cuda_direct),
        ((1, 3, 3, 1, 128), 64, cuda_direct),
        ((1, 3, 3, 16, 64), 4, cuda_direct),
        ((1, 3, 3, 32, 64), 2, cuda_im2col),
        ((5, 7, 7, 3, 64), 1, cuda_im2col),
        ((3, 3, 3, 1, 8), 1, cuda_im2col),
    ],
)
def test_method_by_shape(weight, groups, expected):
    op = Conv3d((1, 1, 1), ((0, 0),) * 3, (1, 1, 1), groups)
    op.weight = np.empty(weight, np.float32)
    assert CudaConv3d.method(op) is expected


def test_one_tap_and_stride_1_gather_nothing():
    inputs = arrays((2, 3, 4, 5, 6), (1, 1, 1, 6, 4), (4,))
    with mock.patch.object(cuda_im2col, "gather", side_effect=AssertionError("gathered")):
        agree(convolve(), inputs, CudaConv3d)
        with pytest.raises(AssertionError, match="gathered"):
            outcome(convolve(stride=2), inputs)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("groups", [1, 2])
def test_slices_keep_to_their_bound(xp, groups, dtype):
    """The most memory in use at once: a slice of 1,000 numbers, where the im2col matrix has 7,776."""

    class Peak(xp.cuda.MemoryHook):
        name, held, most = "Peak", 0, 0

        def malloc_postprocess(self, mem_size, **others):
            self.held += mem_size
            self.most = max(self.most, self.held)

        def free_postprocess(self, mem_size, **others):
            self.held -= mem_size

    def peak(function, *arguments, numbers=1000):
        with in_slices(numbers), xp.cuda.using_allocator(xp.cuda.MemoryPool().malloc), Peak() as hook:
            function(*arguments)
        return hook.most

    x, weight, y = arrays((1, 2, 6, 6, 4), (3, 3, 3, 4 // groups, 2), (1, 2, 6, 6, 2))
    x, weight, y = (xp.asarray(a.astype(dtype)) for a in (x, weight, y))
    windows, gw = Windows((3, 3, 3), (1, 1, 1), (1, 1, 1), (1, 1, 1)), xp.empty_like(weight)
    bound = 1000 * x.itemsize + 4 * 512  # the pool rounds up to 512 bytes
    by_groups = weight.nbytes if groups > 1 else 0
    assert 900 * x.itemsize < peak(cuda_im2col.correlate, x, weight, groups, windows, y) <= bound + by_groups
    assert peak(cuda_im2col.weight_gradient, x, y, groups, windows, gw) <= bound + gw.nbytes + by_groups
    assert peak(cuda_im2col.correlate, x, weight, groups, windows, y, numbers=2**26) >= 7776 * x.itemsize


def test_addresses_that_packs_may_not_have(xp):
    """Four numbers are moved at once only from addresses that are multiples of 16 bytes."""
    values, weight = (a.astype(np.float32) for a in arrays((1 + 2 * 3 * 4 * 4,), (1, 2, 2, 4, 3)))
    x = xp.asarray(values)[1:].reshape(1, 2, 3, 4, 4)
    assert x.data.ptr % 16
    packed, single = (F.conv3d(Tensor(a), Tensor(xp.asarray(weight))).data.get() for a in (x.copy(), x))
    np.testing.assert_array_equal(packed, single)


def test_coordinates_beyond_32_bits_are_left_to_the_textbook(xp):
    x, weight = xp.ones((1, 1, 1, 1, 1)), xp.ones((1, 1, 1, 1, 1))
    for pads, stride, suits in ((2**30, 1, True), (2**31, 1, False), (0, 2**31, False)):
        op = Conv3d((1, 1, stride), ((0, 0), (0, 0), (pads, 0)), (1, 1, 1), 1)
        assert CudaConv3d.suits(op, [x, weight]) == suits


UNRAVEL = """
template <typename T>
__global__ void coordinates(const index_t* indices, index_t count, T* found) {
    for (index_t i = first(); i < count; i += stride()) {
        index_t rest = indices[i];
        found[3 * i + 2] = unravel(rest, 7);
        found[3 * i + 1] = unravel(rest, 2000000000);
        found[3 * i] = rest;
    }
}
"""


def test_indices_beyond_32_bits_are_unravelled(xp, tmp_path):
    (tmp_path / "unravel.cu").write_text(UNRAVEL)
    indices = np.array([0, 6, 2**31 - 1, 2**31, 2**32 + 5, 2**45 + 3])
    found = xp.empty((len(indices), 3))
    source = Source(tmp_path / "unravel.cu", "coordinates<T>")
    source.launch("coordinates<T>", found.dtype, 1, 32, *contiguous(xp.asarray(indices)), len(indices), found)
    shape = (2**45 // 14_000_000_000 + 1, 2_000_000_000, 7)
    np.testing.assert_array_equal(found.get().T, np.unravel_index(indices, shape))


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", [(1, 1), (3, 200), (700, 1), (70_001, 3), (300, 33), (40_000, 64)])
def test_column_sums(xp, shape, dtype):
    matrix = arrays(shape)[0].astype(dtype)
    got, rounding = column_sums(xp.asarray(matrix)).get(), TOLERANCE[dtype] * abs(matrix).sum(0).max()
    np.testing.assert_allclose(got, matrix.sum(0, dtype=float), rtol=0, atol=rounding)
