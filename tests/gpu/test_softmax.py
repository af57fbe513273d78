"""The CUDA kernels of softmax and cross-entropy: over shapes and options at random, beside NumPy in float64."""

from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minnl import Tensor, no_grad
from minnl import functional as F
from minnl.kernels.runtime import cuda as source
from minnl.kernels.softmax import cuda as softmax
from minnl.kernels.softmax.cuda import CudaCrossEntropy, CudaLogSoftmax, CudaSoftmax
from tests.gpu.device import GPU, QUICK, TOLERANCE, agree, arrays, outcome, same_bits

SOFTMAXES = {F.softmax: CudaSoftmax, F.log_softmax: CudaLogSoftmax}
BOTH = pytest.mark.parametrize("fn", SOFTMAXES)
DTYPES = st.sampled_from(list(TOLERANCE))


@BOTH
@QUICK
@given(
    shape=st.lists(st.integers(1, 40), min_size=1, max_size=3),
    axis=st.integers(0, 2),
    blocks=st.sampled_from([1, 2, source.MAX_BLOCKS]),
    spread=st.sampled_from([0.1, 1, 30]),
    dtype=DTYPES,
)
def test_softmax(fn, shape, axis, blocks, spread, dtype):
    (x,) = arrays(shape)
    with mock.patch.object(source, "MAX_BLOCKS", blocks):
        agree(lambda x: fn(x, axis % x.ndim), [x * spread + 50], SOFTMAXES[fn], dtype)


@BOTH
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("n", [31, 32, 33, 640, 641, 1024, 1025, 5120, 5121, 12289, 50001])
def test_long_lines(fn, n, dtype):
    """That a warp goes through, or a block, or that are too long to be kept in shared memory."""
    agree(fn, arrays((3, n)), SOFTMAXES[fn], dtype)


@BOTH
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", [(2, 159, 3), (2, 161, 33), (2, 321, 5), (1, 9, 4000), (5, 7, 2)])
def test_long_lines_of_an_axis_within(fn, shape, dtype):
    agree(lambda x: fn(x, 1), arrays(shape), SOFTMAXES[fn], dtype)


@BOTH
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_infinities_and_nan(fn, axis):
    (x,) = arrays((60, 70))
    x[3, ::3] = -np.inf
    x[5] = x[:, 60] = -np.inf
    x[7, 40] = np.inf
    x[9, 50] = np.nan
    agree(lambda x: fn(x, axis), [x], SOFTMAXES[fn])


@BOTH
def test_logits_that_no_exponential_could_hold(fn):
    (x,) = arrays((9, 50))
    agree(fn, [x * 300 + 5000], SOFTMAXES[fn])


def entropy(labels, weight, **arguments):
    def fn(x):
        given = None if weight is None else Tensor(weight.astype(x.dtype), device=x.device)
        return F.cross_entropy(x, labels, given, **arguments)

    return fn


@QUICK
@given(
    shape=st.lists(st.integers(1, 9), max_size=2),
    classes=st.sampled_from([1, 2, 10, 33, 400]),
    ignored=st.sampled_from([0.0, 0.3, 1.0]),
    weighted=st.booleans(),
    smoothing=st.sampled_from([0.0, 0.1, 1.0]),
    reduction=st.sampled_from(["mean", "sum", "none"]),
    blocks=st.sampled_from([1, source.MAX_BLOCKS]),
    dtype=DTYPES,
)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # 0 / 0, if every row is ignored
def test_cross_entropy(shape, classes, ignored, weighted, smoothing, reduction, blocks, dtype):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, classes, shape)
    labels = np.where(rng.random(shape) < ignored, -7, labels)
    weight = rng.uniform(0, 2, classes).round(1) if weighted else None
    fn = entropy(labels, weight, ignore_index=-7, label_smoothing=smoothing, reduction=reduction)
    with mock.patch.object(source, "MAX_BLOCKS", blocks):
        agree(fn, arrays((*shape, classes)), CudaCrossEntropy, dtype)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_where_every_label_is_ignored_the_gradient_is_0():
    for weight in (None, np.linspace(0.5, 2, 6)):
        (loss, gradient), _ = outcome(entropy(np.full(4, -100), weight, label_smoothing=0.1), arrays((4, 6)))
        assert np.isnan(loss)
        np.testing.assert_array_equal(gradient, np.zeros((4, 6)))


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("rows", "classes"), [(5, 1024), (5, 1025), (3, 12000), (1, 50001), (3000, 5)])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_cross_entropy_of_many_classes_and_rows(rows, classes, smoothing, dtype):
    rng = np.random.default_rng(0)
    fn = entropy(rng.integers(0, classes, rows), rng.uniform(0, 2, classes), label_smoothing=smoothing)
    agree(fn, arrays((rows, classes)), CudaCrossEntropy, dtype)


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_cross_entropy_with_infinities_and_nan(reduction):
    """A class outside the target adds nothing though its logit is -infinity; an ignored row none though it is NaN."""
    (x,) = arrays((8, 60))
    x[0, 10] = x[1, ::7] = -np.inf
    x[2, 3] = x[3, 4] = np.nan
    x[4] = -np.inf
    x[5, 2] = np.inf
    labels = np.array([10, 1, -100, 5, -100, -100, 6, 7])
    for rows in (slice(0, 3), slice(0, 1), slice(1, 3), slice(0, 8)):
        agree(entropy(labels[rows], None, reduction=reduction), [x[rows]], CudaCrossEntropy)


def test_labels_and_weights_that_are_not_contiguous():
    labels = np.random.default_rng(0).integers(0, 7, (6, 5)).T
    weight = np.linspace(0.5, 2, 14)[::2]
    agree(entropy(labels, weight), arrays((5, 6, 7)), CudaCrossEntropy)
    agree(lambda x: entropy(labels, weight)(x.transpose(1, 2, 0)), arrays((7, 5, 6)), CudaCrossEntropy)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_same_bits(dtype):
    labels = np.random.default_rng(0).integers(0, 1500, 40)
    weight = np.linspace(0, 1, 1500)
    for fn in (F.softmax, lambda x: F.log_softmax(x, 0), entropy(labels, weight, label_smoothing=0.1)):
        same_bits(fn, arrays((40, 1500)), dtype)


def test_exponentials_are_kept_for_a_gradient_only():
    x = Tensor(arrays((4, 3))[0], device=GPU)
    kept = F.cross_entropy(Tensor(x.data, requires_grad=True), [0, 1, 2, 0]).op
    assert kept.e.shape == (4, 3)
    with no_grad(), mock.patch.object(softmax.SOFTMAX, "launch", wraps=softmax.SOFTMAX.launch) as launch:
        F.cross_entropy(x, [0, 1, 2, 0])
    arguments = launch.call_args_list[0].args
    assert [a is None for a in arguments[-4:]] == [True, True, False, False]


def test_a_batch_of_a_video_network_takes_two_launches_and_one():
    (x,) = arrays((8, 400))
    with mock.patch.object(softmax.SOFTMAX, "launch", wraps=softmax.SOFTMAX.launch) as launch:
        outcome(entropy(np.arange(8), None), [x])
    assert [call.args[0] for call in launch.call_args_list] == [
        "cross_entropy<T>",
        "sum_rows<T>",
        "cross_entropy_gradient<T>",
    ]
