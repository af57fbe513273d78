"""Fast convolution: every method by itself, over shapes at random, against the textbook body in float64."""

import contextlib
from unittest import mock

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import minnl
from minnl import Tensor
from minnl import functional as F
from minnl.kernels.conv3d import cpu as conv
from minnl.kernels.conv3d import im2col, taps, tiles, winograd
from minnl.kernels.runtime import matmul as gemm
from minnl.kernels.runtime import threads
from tests.fast import agree, arrays, as_before, outcome, same_bits  # noqa: F401 (as_before is a fixture)

QUICK = settings(max_examples=60, deadline=None, derandomize=True, database=None)
METHODS = {"taps": taps, "im2col": im2col, "im2col, wide": im2col, "winograd": winograd}
WINDOWS = [method for method in METHODS if method != "winograd"]
WINOGRAD = 1e-4  # of the largest value; what the other methods have to keep is agree's default
ONE = (1, 1, 1)


@contextlib.contextmanager
def cut(block, wide):
    """The im2col matrix in blocks of that size, single frames from that width of lines on."""
    planned = (im2col.blocks, tiles.blocks)  # once for its shapes
    with mock.patch.multiple(im2col, BLOCK_ELEMENTS=block, WIDE=wide):
        for of_shapes in planned:
            of_shapes.cache_clear()
        yield
    for of_shapes in planned:
        of_shapes.cache_clear()


@st.composite
def convolutions(draw, window=None, steps=True, groups=True):
    """(shape of x, shape of weight, arguments) of a convolution whose windows fit."""
    axes = []
    for axis in range(3):
        kernel = window[axis] if window and window[axis] else draw(st.integers(1, 3))
        stride, dilation = draw(st.sampled_from([(1, 1), (1, 2), (2, 1), (3, 1)] if steps else [(1, 1)]))
        axes.append((kernel, stride, dilation, draw(st.integers(0, 4))))
    kernel, stride, dilation, padding = zip(*axes, strict=True)
    if max(stride) > 1:
        dilation = (1, 1, 1)
    least = [max(1, d * (k - 1) + 1 - 2 * p) for k, _, d, p in zip(kernel, stride, dilation, padding, strict=True)]
    sizes = [draw(st.integers(n, n + 9)) for n in least]
    group = draw(st.sampled_from([1, 1, 2])) if groups else 1
    n, c, k = draw(st.integers(1, 6)), draw(st.integers(1, 5)), draw(st.integers(1, 5))
    arguments = {"stride": stride, "padding": padding, "dilation": dilation, "groups": group}
    return (n, *sizes, c * group), (*kernel, c, k * group), arguments


@contextlib.contextmanager
def by(method, block=im2col.BLOCK_ELEMENTS):
    """Every convolution by that method, whatever would be quickest; taps where im2col cannot, with a dilation."""

    def choose(x, weight, y, stride, pads, dilation):
        return taps if METHODS[method] is im2col and dilation != ONE else METHODS[method]

    with mock.patch.object(conv, "choose", choose), cut(block, 1 if "wide" in method else im2col.WIDE):
        yield


@QUICK
@given(case=convolutions(), bias=st.booleans())
def test_chosen(case, bias):
    x, weight, arguments = case
    agree(lambda *t: F.conv3d(*t, **arguments), arrays(x, weight, *([weight[-1:]] if bias else [])), WINOGRAD)


@pytest.mark.parametrize(
    "x, weight, arguments",
    [
        ((1, 2, 56, 56, 32), (2, 1, 1, 32, 32), {"stride": (2, 1, 1)}),
        ((1, 1, 56, 56, 32), (1, 3, 1, 32, 32), {"dilation": (1, 2, 1)}),
        ((1, 1, 60, 64, 32), (1, 2, 1, 32, 48), {"stride": (1, 2, 1)}),
        ((1, 1, 64, 64, 32), (1, 4, 1, 32, 32), {"stride": (1, 4, 1)}),
        ((1, 3, 58, 56, 32), (3, 3, 1, 32, 32), {"stride": (1, 2, 1)}),
        ((1, 3, 58, 56, 32), (3, 3, 1, 32, 32), {"stride": (1, 3, 1)}),
        ((1, 1, 60, 56, 48), (1, 5, 1, 48, 32), {"dilation": (1, 3, 1), "padding": (0, 6, 0)}),
    ],
)
def test_windows_one_place_wide(x, weight, arguments):
    """Sums of ones are whole numbers, which both bodies get exactly."""
    inputs = [np.ones(shape, np.float32) for shape in (x, weight)]
    results = []
    for mode in minnl.dispatch.MODES:
        with minnl.use_kernels(mode):
            leaves = [Tensor(a, requires_grad=True) for a in inputs]
            y = F.conv3d(*leaves, **arguments)
            y.backward(np.ones_like(y.data))
            results.append([y.data, *(leaf.grad for leaf in leaves)])
    for textbook, fast in zip(*results, strict=True):
        np.testing.assert_array_equal(fast, textbook)


def test_the_example_of_the_issue():
    y = F.conv3d(Tensor(np.ones((1, 2, 56, 56, 32), "f4")), Tensor(np.ones((2, 1, 1, 32, 32), "f4")), stride=(2, 1, 1))
    assert (y.data == 64).all()


@pytest.mark.slow
@pytest.mark.parametrize("block", [1, 50, 1000])
@pytest.mark.parametrize("method", WINDOWS)
@QUICK
@given(case=convolutions())
def test_method(method, block, case):
    x, weight, arguments = case
    small = {"BLOCK_ELEMENTS": block, "LONG_ELEMENTS": block, "ROWS": block, "SUM_ROWS": block, "SUM_PRODUCTS": 1}
    with (
        by(method, block),
        mock.patch.multiple(taps, **small, SUM_ELEMENTS=0 if block == 50 else taps.SUM_ELEMENTS),
        mock.patch.multiple(im2col, HEIGHTS_ELEMENTS=block, ROWS=block),
    ):
        agree(lambda *t: F.conv3d(*t, **arguments), arrays(x, weight))


@pytest.mark.slow
@pytest.mark.parametrize("few", [0, 10**6])  # tasks have some positions each; or some channels each
@pytest.mark.parametrize("block", [1, 50, 10**6])
@QUICK
@given(case=convolutions((1, 1, 1)))
def test_points(block, few, case):
    x, weight, arguments = case
    arguments["padding"] = 0
    with (
        mock.patch.object(threads, "tasks_for", lambda flops: 4),
        mock.patch.multiple(taps, LONG_ELEMENTS=block, ROWS=1, PACKED=1, VECTOR=1, FEW=few, GOOD=0),
    ):
        agree(lambda *t: F.conv3d(*t, **arguments), arrays(x, weight))
        same_bits(lambda *t: F.conv3d(*t, **arguments), arrays(x, weight))


@pytest.mark.slow
@pytest.mark.parametrize("block", [1, 300, 10**6])
@QUICK
@given(case=convolutions((None, 1, None)))
def test_im2col_along_time_alone(block, case):
    x, weight, arguments = case
    arguments["dilation"] = ONE
    with by("im2col", block), mock.patch.multiple(im2col, ROWS=4, HEIGHTS_ELEMENTS=block):
        agree(lambda *t: F.conv3d(*t, **arguments), arrays(x, weight))
        same_bits(lambda *t: F.conv3d(*t, **arguments), arrays(x, weight))


@pytest.mark.slow
@pytest.mark.parametrize("block", [1, 100, 8192])
@QUICK
@given(case=convolutions((None, 3, 3), steps=False, groups=False))
def test_winograd(block, case):
    x, weight, arguments = case
    assume(arguments["padding"][0] < weight[0])
    small = dict.fromkeys(("BLOCK_ELEMENTS", "WEIGHT_BLOCK"), block)
    for tiles_of_sum in (1, 128):
        with by("winograd"), mock.patch.multiple(winograd, SUM_TILES=tiles_of_sum, LEAST_ELEMENTS=1, **small):
            agree(lambda *t: F.conv3d(*t, **arguments), arrays(x, weight), WINOGRAD)


def test_winograd_cuts_a_large_weight_by_its_output_channels():
    with by("winograd"), mock.patch.object(winograd, "WEIGHT_ELEMENTS", tiles.SIDE**2 * 3 * 5 * 2):
        agree(lambda *t: F.conv3d(*t, padding=1), arrays((2, 3, 7, 6, 5), (3, 3, 3, 5, 7)), WINOGRAD)


def test_winograd_matrices_compute_a_correlation():
    """A^T [(G w G^T) * (B^T d B)] A is the correlation of d with w."""
    rng = np.random.default_rng(0)
    at, g, bt = (matrix.astype(float) for matrix in (tiles.AT, tiles.G, tiles.BT))
    d, w = rng.normal(size=(tiles.SIDE, tiles.SIDE)), rng.normal(size=(3, 3))
    y = at @ ((g @ w @ g.T) * (bt @ d @ bt.T)) @ at.T
    expected = [[(d[i : i + 3, j : j + 3] * w).sum() for j in range(tiles.TILE)] for i in range(tiles.TILE)]
    np.testing.assert_allclose(y, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("padding", "stride"), [("same", 1), *((p, s) for p in ("valid", (3, 5, 4)) for s in (1, 2, (1, 3, 2)))]
)
@pytest.mark.parametrize("method", WINDOWS)
def test_padding_wider_than_the_window(method, stride, padding):
    for shape in ((1, 5, 7, 6, 3), (5, 5, 7, 6, 3)):
        with by(method):
            agree(lambda x, w: F.conv3d(x, w, stride=stride, padding=padding), arrays(shape, (2, 3, 2, 3, 4)))


def test_arrays_that_are_not_contiguous():
    for method in METHODS:
        with by(method):
            agree(
                lambda x, w: F.conv3d(x.transpose(0, 1, 3, 2, 4), w, padding=1),
                arrays((2, 4, 5, 6, 3), (3, 3, 3, 3, 4)),
                WINOGRAD,
            )
            x, w = (np.asarray(a, np.float32, order="F") for a in arrays((2, 4, 5, 6, 3), (3, 3, 3, 3, 4)))
            expected = F.conv3d(Tensor(np.ascontiguousarray(x)), Tensor(np.ascontiguousarray(w))).data
            np.testing.assert_array_equal(F.conv3d(Tensor(x), Tensor(w)).data, expected)


@pytest.mark.slow
@pytest.mark.parametrize("frames", [1, 3])
@pytest.mark.parametrize("method", METHODS)
def test_same_bits_on_any_number_of_threads(method, frames):
    inputs = arrays((3, 4, 17, 15, 24), (frames, 3, 3, 24, 40), (40,))
    with (
        by(method, 5000),
        mock.patch.multiple(winograd, BLOCK_ELEMENTS=400, SUM_TILES=4),
        mock.patch.multiple(taps, BLOCK_ELEMENTS=1000, LARGE=900, ROWS=16),
    ):
        agree(lambda *t: F.conv3d(*t, padding=(frames // 2, 1, 1)), inputs, WINOGRAD)
        same_bits(lambda *t: F.conv3d(*t, padding=(frames // 2, 1, 1)), inputs)


@pytest.mark.parametrize(
    ("x", "weight", "stride", "expected"),
    [
        ((4, 8, 28, 28, 64), (1, 3, 3, 64, 64), (1, 1, 1), winograd),
        ((4, 4, 14, 14, 128), (3, 3, 3, 128, 128), (1, 1, 1), winograd),
        ((4, 8, 28, 28, 64), (1, 1, 1, 64, 256), (1, 1, 1), taps),
        ((4, 4, 28, 28, 256), (1, 1, 1, 256, 512), (1, 2, 2), taps),
        ((4, 8, 28, 28, 256), (3, 1, 1, 256, 64), (1, 1, 1), im2col),
        ((4, 4, 7, 7, 1024), (3, 1, 1, 1024, 256), (1, 1, 1), taps),
        ((4, 4, 4, 4, 512), (1, 3, 3, 512, 512), (1, 1, 1), taps),
        ((4, 8, 112, 112, 3), (1, 7, 7, 3, 64), (1, 2, 2), im2col),
        ((4, 4, 14, 14, 256), (1, 3, 3, 256, 256), (1, 2, 2), taps),
        ((32, 8, 3, 3, 64), (1, 3, 3, 64, 64), (1, 1, 1), im2col),  # of small maps tiles of 4 waste much
        ((32, 16, 32, 32, 1), (5, 7, 7, 1, 16), (2, 2, 2), im2col),
    ],
)
def test_choice(x, weight, stride, expected):
    pads = [(k // 2, k // 2) for k in weight[:3]]
    y = (x[0], *((n + 2 * p - k) // s + 1 for n, (p, _), k, s in zip(x[1:4], pads, weight, stride, strict=False)))
    assert conv.choose(x, weight, (*y, weight[4]), stride, tuple(pads), ONE) is expected


def test_inputs_that_no_window_sees():
    """In the input's gradient a phase of a stride that does not divide has more positions than there are outputs."""
    agree(lambda x, w: F.conv3d(x, w, stride=(2, 3, 3)), arrays((1, 6, 6, 5, 2), (3, 2, 3, 2, 2)))


def test_im2col_is_not_for_dilations():
    shapes = (4, 8, 40, 40, 3), (1, 7, 7, 3, 64), (4, 8, 28, 28, 64), ONE, ((0, 0),) * 3
    assert conv.choose(*shapes, (1, 2, 2)) is taps


@pytest.mark.parametrize(
    ("method", "block", "expected"),
    [
        ("im2col", 2 * 100 * 9 * 4 * 12, [2 * 100 * 9 * 4 * 10]),  # two samples
        ("im2col, wide", 10 * 9 * 4 * 7, [10 * 9 * 4 * 6]),  # five lines of windows
    ],
)
def test_the_im2col_matrix_is_never_more_than_a_block(method, block, expected, monkeypatch):
    sizes, gather = set(), im2col.Cols.gather

    def watched(self, *given):
        sizes.add(self.cols.size * self.run)
        return gather(self, *given)

    monkeypatch.setattr(im2col.Cols, "gather", watched)
    with by(method, block), mock.patch.object(im2col, "ROWS", 1):
        outcome(lambda x, w: F.conv3d(x, w, padding=1), arrays((4, 10, 10, 10, 4), (3, 3, 3, 4, 4)), "fast")
    assert sizes == set(expected)


@QUICK
@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 300), st.booleans(), st.integers(0, 2))
def test_products_in_pieces(rows, depth, columns, small, batch):
    rng = np.random.default_rng(0)
    a = rng.normal(size=(*(2, 3)[:batch], rows, depth)).astype(np.float32)
    b = rng.normal(size=(depth, columns)).astype(np.float32)
    out = np.empty((*a.shape[:-1], columns), np.float32)
    gemm._tile.cache_clear()
    with mock.patch.object(gemm, "SMALL", 5000 if small else gemm.SMALL):
        assert gemm.multiply(a, b, out) is out
    gemm._tile.cache_clear()
    np.testing.assert_allclose(out, a.astype(float) @ b.astype(float), atol=1e-4 * depth)


@pytest.mark.parametrize("needed", [0, 1])
def test_only_the_gradients_that_are_needed(needed):
    inputs = [a.astype(np.float32) for a in arrays((2, 3, 5, 6, 3), (2, 3, 3, 3, 4))]
    leaves = [Tensor(a, requires_grad=i == needed) for i, a in enumerate(inputs)]
    both = [Tensor(a, requires_grad=True) for a in inputs]
    for pair in (leaves, both):
        F.sum(F.conv3d(*pair, padding=1)).backward()
    assert leaves[1 - needed].grad is None
    np.testing.assert_array_equal(leaves[needed].grad, both[needed].grad)
