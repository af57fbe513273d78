"""The non-local operation's CUDA kernels, softmax and dot product, beside the textbook body in NumPy and float64."""

import math
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minnl import Tensor, backend, no_grad
from minnl import functional as F
from minnl.kernels.non_local import cuda as non_local
from minnl.kernels.non_local.cuda import Blocks, CudaNonLocalSoftmax
from minnl.kernels.non_local.cuda_dot import CudaNonLocalDot, GpuDotOfPairs
from minnl.kernels.runtime import cublas as gemm
from minnl.ops.non_local import NonLocalSoftmax
from tests.gpu.device import GPU, QUICK, TOLERANCE, Peak, agree, arrays, close, only_wanted, outcome, same_bits

MANY_KEYS = mock.patch.object(NonLocalSoftmax, "few_keys", lambda op: False)  # backward computes the weights again


def operation(mode="embedded", axes="spacetime"):
    """With logits of a size that leaves no key alone in charge."""
    scale = {} if mode == "dot" else {"scale": 0.4}
    return lambda theta, phi, g: F.non_local(theta, phi, g, mode=mode, axes=axes, **scale)


def small_blocks(queries, keys, dtype="float32"):
    """Blocks of so many queries."""
    return mock.patch.object(non_local, "BLOCK_BYTES", queries * keys * np.dtype(dtype).itemsize)


def inputs(queries, keys, inner=5, depth=6, batch=1, seed=0):
    return arrays((batch, *queries, inner), (batch, *keys, inner), (batch, *keys, depth), seed=seed)


@QUICK
@given(
    batch=st.integers(1, 3),
    t=st.integers(1, 3),
    sizes=st.tuples(*[st.integers(1, 6)] * 2),
    key_t=st.integers(1, 3),
    key_sizes=st.tuples(*[st.integers(1, 6)] * 2),
    inner=st.sampled_from([1, 3, 8]),
    depth=st.sampled_from([1, 4, 33]),
    axes=st.sampled_from(["spacetime", "space", "time"]),
    kept=st.booleans(),
    rows=st.sampled_from([1, 2, 7, 50, 10_000]),
    dtype=st.sampled_from(list(TOLERANCE)),
)
def test_softmax(batch, t, sizes, key_t, key_sizes, inner, depth, axes, kept, rows, dtype):
    """Any shape, in blocks of so many queries, with weights that are kept or computed again."""
    keys = t if axes == "space" else key_t, *(sizes if axes == "time" else key_sizes)
    given_arrays = inputs((t, *sizes), keys, inner, depth, batch)
    a_line = {"spacetime": math.prod(keys), "space": math.prod(keys[1:]), "time": keys[0]}[axes]
    with mock.patch.object(NonLocalSoftmax, "few_keys", lambda op: kept), small_blocks(rows, a_line, dtype):
        agree(operation(axes=axes), given_arrays, CudaNonLocalSoftmax, dtype)


@QUICK
@given(
    batch=st.integers(1, 3),
    queries=st.tuples(*[st.integers(1, 4)] * 3),
    keys=st.tuples(*[st.integers(1, 4)] * 3),
    inner=st.sampled_from([1, 3, 40]),
    depth=st.sampled_from([1, 4, 40]),
    dtype=st.sampled_from(list(TOLERANCE)),
)
def test_dot(batch, queries, keys, inner, depth, dtype):
    given_arrays = inputs(queries, keys, inner, depth, batch)
    positions = math.prod(queries), math.prod(keys)
    few = math.prod(positions) * (inner + depth) < sum(positions) * inner * depth
    agree(operation("dot"), given_arrays, GpuDotOfPairs if few else CudaNonLocalDot, dtype)


@pytest.mark.parametrize("axes", ["space", "time"])
@pytest.mark.parametrize(("channels", "kernel"), [(2, CudaNonLocalDot), (30, GpuDotOfPairs)])
def test_dot_in_both_orders_along_some_axes(axes, channels, kernel):
    agree(operation("dot", axes), inputs((4, 3, 3), (4, 3, 3), channels, channels, batch=2), kernel)


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("keys", [1, 31, 33, 255, 1024, 1025, 2500])
def test_rows_of_all_lengths(keys, kept):
    """Of a part of a warp, of a warp, of a block, and of several rounds of each."""
    with mock.patch.object(NonLocalSoftmax, "few_keys", lambda op: kept):
        agree(operation(), inputs((1, 3, 7), (1, 1, keys)), CudaNonLocalSoftmax)


@pytest.mark.parametrize(
    ("shape", "rows"), [((5, 70, 9), 70 * 2), ((5, 70, 9), 16), ((1, 1000, 3), 999), ((4, 1, 8), 1)]
)
def test_blocks_cover_all_queries_once_and_hold_no_more_than_they_should(shape, rows):
    with small_blocks(rows, shape[2]):
        blocks = Blocks(shape, np.dtype("float32"))
    seen = np.zeros(shape[:2], int)
    for at in blocks.slices:
        seen[at] += 1
        assert seen[at].size <= rows
    assert (seen == 1).all()
    assert len(blocks.slices) > 1


def test_blocks_of_a_long_clip():
    """25,088 queries, 6,272 keys: the size of a block on the page."""
    slices = Blocks((1, 25_088, 6_272), np.dtype("float32")).slices
    assert len(slices) == 10
    assert max(i.stop - i.start for _, i in slices) * 6_272 * 4 <= 64 * 2**20


def test_a_row_larger_than_a_block_is_a_block():
    with small_blocks(0, 1):
        assert Blocks((2, 3, 5), np.dtype("float32")).slices == [
            (slice(b, b + 1), slice(i, i + 1)) for b in range(2) for i in range(3)
        ]
        with MANY_KEYS:
            agree(operation(), inputs((1, 1, 3), (1, 1, 5), batch=2), CudaNonLocalSoftmax)


@pytest.mark.parametrize("mode", ["embedded", "dot"])
def test_memory_is_linear_in_positions(mode):
    """1,500 x 1,500 weights are 9 MB; a block here has 100 queries."""
    n, channels = 1500, 4
    leaves = [
        Tensor(a.astype(np.float32), requires_grad=True, device=GPU)
        for a in inputs((1, 1, n), (1, 1, n), channels, channels)
    ]
    gy = backend.to_device(np.ones((1, 1, 1, n, channels), np.float32), GPU)
    with small_blocks(100, n), MANY_KEYS:
        with Peak() as forward:
            y = operation(mode)(*leaves)
        with Peak() as backward:
            y.backward(gy)
    a_list, block = n * channels * 4, 100 * n * 4 if mode == "embedded" else 0
    # Forward: y and two numbers a query. Backward: three gradients, and copies of them, for leaves keep no views.
    assert block < forward.bytes <= block + 1.5 * a_list + 5_000
    assert 2 * block < backward.bytes <= 2 * block + 6 * a_list + 5_000


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("kept", [True, False])
def test_large_logits(kept, dtype):
    """Near 10,000, where float32 numbers lie 1e-3 apart: the exponentials overflow, and their sum's logarithm, added
    to the largest logit, would be off by up to 5e-4, and with it every weight in backward."""
    rng = np.random.default_rng(3)
    theta, phi, g = inputs((1, 5, 6), (1, 4, 5), 2, 3)
    theta[..., 0], theta[..., 1] = 100, rng.integers(-2, 3, size=theta.shape[:-1])
    phi[..., 0], phi[..., 1] = 100, rng.integers(-8, 9, size=phi.shape[:-1]) / 8  # logits that float32 holds exactly
    for sign in (1, -1):
        with mock.patch.object(NonLocalSoftmax, "few_keys", lambda op: kept):
            # theta's gradient has 100 times the sum of the logits' gradients in it, which is 0 but for rounding
            agree(F.non_local, [sign * theta, phi, g], CudaNonLocalSoftmax, dtype, tolerance=20 * TOLERANCE[dtype])


@pytest.mark.parametrize("kept", [True, False])
def test_rows_that_are_nearly_one_hot(kept):
    """The gradient at the large weight is 1e-4 of the terms whose difference it is."""
    x, g = inputs((1, 16, 16), (1, 16, 16), 64, 64)[1:]
    x, g = x.astype(np.float32) * np.sqrt(np.float32(3)), g.astype(np.float32)

    def fn(x, g):
        return F.non_local(x, x, g, scale=1 / 8)

    with mock.patch.object(NonLocalSoftmax, "few_keys", lambda op: kept):
        (_, gx, _), _ = outcome(fn, [x, g])
    (_, judge, _), _ = outcome(fn, [x, g], "float64", backend.CPU, "textbook")
    assert np.abs(gx - judge).max() <= 1e-5 * np.abs(judge).max()


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_logits_that_are_not_finite(kept):
    """A key at -infinity has no weight; where all are, one is +infinity or NaN, there is no softmax: NaN."""
    theta, phi, g = (np.abs(a) for a in inputs((1, 1, 6), (1, 1, 7), 2, 3))
    phi[..., 1] = 0
    phi[0, 0, 0, 3, 1] = 1
    theta[0, 0, 0, 0, 1] = -np.inf  # 0 * infinity: NaN
    theta[0, 0, 0, 1, 0] = -np.inf  # all keys at -infinity
    theta[0, 0, 0, 2, 0] = np.inf
    theta[0, 0, 0, 3, 0] = np.nan
    with mock.patch.object(NonLocalSoftmax, "few_keys", lambda op: kept):
        agree(F.non_local, [theta, phi, g], CudaNonLocalSoftmax)
    theta, phi, g = (np.abs(a) for a in inputs((1, 1, 6), (1, 1, 7), 2, 3))
    phi[0, 0, 0, 3, 0] = -np.inf  # one key at -infinity, for all
    with mock.patch.object(NonLocalSoftmax, "few_keys", lambda op: kept):
        agree(F.non_local, [theta, phi, g], CudaNonLocalSoftmax)
        (y, *_), _ = outcome(F.non_local, [theta, phi, g])
    assert np.isfinite(y).all()


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("mode", ["embedded", "dot"])
def test_same_bits(mode, dtype):
    with small_blocks(30, 77, dtype), MANY_KEYS:
        same_bits(operation(mode), inputs((2, 10, 10), (1, 7, 11), 8, 8, batch=2), dtype)


@pytest.mark.parametrize("mode", ["embedded", "recomputed", "dot of sums", "dot of pairs"])
@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (0, 2), (1, 2), (0, 1)])
def test_gradients_that_are_wanted_are_those_of_all(wanted, mode):
    channels = 40 if mode == "dot of pairs" else 3
    given_arrays = inputs((2, 4, 4), (2, 2, 2), channels, channels, batch=2)
    kind = "dot" if mode.startswith("dot") else "embedded"
    with mock.patch.object(NonLocalSoftmax, "few_keys", lambda op: mode == "embedded"), small_blocks(5, 8):
        everything, _ = outcome(operation(kind), given_arrays)
        some, _ = outcome(operation(kind), given_arrays, wanted=wanted)
    only_wanted(some, everything, wanted)


def test_few_weights_are_kept_and_only_for_a_backward():
    leaves = [Tensor(a.astype(np.float32), requires_grad=True, device=GPU) for a in inputs((1, 2, 3), (1, 1, 4))]
    op = operation()(*leaves).op
    np.testing.assert_allclose(op.exponentials.sum(axis=-1).get(), 1, rtol=1e-6)
    assert op.log_sum is None
    seen = []
    with (
        no_grad(),
        mock.patch.object(CudaNonLocalSoftmax, "forward", lambda op, *a: seen.append(op) or forward(op, *a)),
    ):
        operation()(*leaves)
    assert seen[0].exponentials is None


forward = CudaNonLocalSoftmax.forward


class TestProducts:
    @QUICK
    @given(
        sizes=st.tuples(*[st.integers(1, 9)] * 4),
        by_columns=st.tuples(st.booleans(), st.booleans()),
        part=st.booleans(),
        add=st.booleans(),
        dtype=st.sampled_from(list(TOLERANCE)),
    )
    def test_operands_as_they_lie(self, sizes, by_columns, part, add, dtype):
        """By rows or by columns, whole or parts of larger matrices."""
        batch, m, k, n = sizes
        more = 3 if part else 0
        operands, ours = [], []
        for (rows, columns), turned in zip(((m, k), (k, n)), by_columns, strict=True):
            lies = (batch, columns + more, rows + more) if turned else (batch, rows + more, columns + more)
            (whole,) = arrays(lies, seed=len(ours))
            whole = whole.astype(dtype)
            cut = (slice(None), slice(more, None), slice(more, None))
            for x, into in ((whole, operands), (backend.to_device(whole, GPU), ours)):
                x = x[cut]
                into.append(x.swapaxes(1, 2) if turned else x)
        before = np.full((batch, m, n + more), 7, dtype)
        out = backend.to_device(before, GPU)
        gemm.multiply(*ours, out[..., more:], factor=0.5, add=add)
        expected = 0.5 * (operands[0].astype(float) @ operands[1])
        before[..., more:] = expected + (7 if add else 0)
        close([out.get()], [before], TOLERANCE[dtype])

    def test_what_lies_neither_way_is_refused(self):
        x = backend.to_device(np.ones((2, 6, 6), np.float32), GPU)
        with pytest.raises(ValueError, match="neither by rows nor by columns"):
            gemm.multiply(x[:, ::2, ::2], x[:, :3], x[:, :3].copy())
        with pytest.raises(ValueError, match="must lie by rows"):
            gemm.multiply(x, x, x.copy().swapaxes(1, 2))

    def test_tf32_is_used_where_cupy_uses_it(self, monkeypatch):
        """CuPy reads CUPY_TF32 once; a change after that is one for neither."""
        cublas, core = backend.load_cupy().cuda.cublas, backend.load_cupy()._core
        kinds, before = core._routines_linalg, core.get_compute_type(np.dtype("float32"))
        for kind, late, float32 in (
            (kinds.COMPUTE_TYPE_TF32, "0", cublas.CUBLAS_COMPUTE_32F_FAST_TF32),
            (kinds.COMPUTE_TYPE_DEFAULT, "1", cublas.CUBLAS_COMPUTE_32F),
        ):
            core.set_compute_type(np.dtype("float32"), kind)
            monkeypatch.setenv("CUPY_TF32", late)
            assert gemm._types(cublas, np.dtype("float32"))[1] == float32
            assert gemm._types(cublas, np.dtype("float64"))[1] == cublas.CUBLAS_COMPUTE_64F
        core.set_compute_type(np.dtype("float32"), before)
