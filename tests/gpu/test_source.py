"""Compiling and launching: minnl/kernels/runtime/cuda.py, and what common.cuh holds."""

import threading

import numpy as np
import pytest

from minnl import backend
from minnl.kernels.runtime import cuda as source
from minnl.kernels.runtime.cuda import Source, ceil_div, contiguous, grid
from tests.gpu.device import GPU

CODE = """
template <typename T, int PLUS>
__global__ void passed(const T* x, bool yes, index_t big, double real, const T* nothing, T* y) {
    for (index_t i = first(); i < 5; i += stride()) y[i] = x[i] + PLUS;
    if (first() == 0) y[5] = yes && big == (1LL << 40) && real == 0.1 && !nothing;
}

// Sum and largest of each row, a block a row.
template <typename T>
__global__ void rows(const T* x, index_t n, T* sum, T* largest) {
    T s = 0, m = -infinity<T>();
    for (index_t i = threadIdx.x; i < n; i += blockDim.x) {
        const T v = x[blockIdx.x * n + i];
        s += v;
        m = v > m || v != v ? v : m;
    }
    s = block_sum(s);
    m = block_max(m);
    if (threadIdx.x == blockDim.x - 1) {
        sum[blockIdx.x] = s;
        largest[blockIdx.x] = m;
    }
}

template <typename T>
struct Pair {
    T* to;
    double value;
};

template <typename T>
__global__ void paired(const Pair<T> pair, index_t times) { pair.to[0] = T(pair.value * times); }

__global__ void narrow(int n) {}
"""
FLOATS = (np.float32, np.float64)


@pytest.fixture
def xp():
    with backend.on(GPU):
        yield backend.load_cupy()


@pytest.fixture
def code(tmp_path):
    (tmp_path / "test.cu").write_text(CODE)
    return Source(tmp_path / "test.cu", "passed<T, 3>", "rows<T>", "paired<T>")


@pytest.mark.parametrize("dtype", FLOATS)
def test_arguments_arrive(xp, code, dtype):
    x, y = xp.arange(5, dtype=dtype), xp.zeros(6, dtype=dtype)
    code.launch("passed<T, 3>", x.dtype, *grid(5, 2), x, True, 1 << 40, 0.1, None, y)
    np.testing.assert_array_equal(y.get(), [3, 4, 5, 6, 7, 1])


@pytest.mark.parametrize(
    ("place", "value", "error", "words"),
    [
        (0, np.zeros(5, np.float32), TypeError, "x is ndarray, a CuPy array"),
        (0, "float64", TypeError, "x is float64, float32 expected"),
        (5, "strided", ValueError, "y, of shape .* not contiguous"),
        (6, 1, TypeError, "6 arguments expected, got 7"),
    ],
)
def test_arguments_that_no_kernel_can_read(xp, code, place, value, error, words):
    given = [xp.zeros(6, dtype=np.float32), True, 1, 0.1, None, xp.zeros(6, dtype=np.float32)]
    made = {"float64": xp.zeros(6), "strided": xp.zeros(12, dtype=np.float32)[::2]}
    given[place : place + 1] = [made[value] if isinstance(value, str) else value]
    with pytest.raises(error, match=words):
        code.launch("passed<T, 3>", np.dtype(np.float32), 1, 32, *given)


@pytest.mark.parametrize("dtype", FLOATS)
def test_a_struct_is_passed_by_value(xp, code, dtype):
    y = xp.zeros(1, dtype=dtype)
    pair = np.array((y.data.ptr, 1.5), [("to", np.uintp), ("value", np.float64)])[()]
    code.launch("paired<T>", y.dtype, 1, 32, pair, 3)
    assert y.get() == 4.5
    with pytest.raises(TypeError, match=r"pair is tuple, a NumPy record for Pair<T> expected"):
        code.launch("paired<T>", y.dtype, 1, 32, (y.data.ptr, 1.5), 3)


def test_parameters_are_read():
    text = """
    // __global__ void k(int commented)
    template <typename T, int N>
    __global__ void __launch_bounds__(256) k(const T* __restrict__ x, T *y,  // of x's shape
                                             const unsigned char* const at, Moments<T>* __restrict__ m,
                                             const index_t n, double eps, bool yes) {
    __global__ void other(index_t k) {"""
    assert source.parameters(text, "k<T, 3>") == [
        ("x", "T*"), ("y", "T*"), ("at", "unsigned char*"), ("m", "Moments<T>*"),
        ("n", "index_t"), ("eps", "double"), ("yes", "bool"),
    ]  # fmt: skip
    with pytest.raises(ValueError, match=r"missing<T>: the source declares no __global__ void missing"):
        source.parameters(text, "missing<T>")


def test_a_parameter_of_another_size_than_is_passed_is_refused():
    with pytest.raises(TypeError, match="n is declared as int"):
        source.parameters(CODE, "narrow")


@pytest.mark.parametrize("threads", [32, 96, 1024])
@pytest.mark.parametrize("dtype", FLOATS)
def test_reductions_of_a_block(xp, code, dtype, threads):
    x = np.random.default_rng(0).normal(size=(4, 1500)).astype(dtype)
    x[2, 700] = np.nan
    x[3] -= 100
    sums, largest = xp.zeros(4, dtype=dtype), xp.zeros(4, dtype=dtype)
    code.launch("rows<T>", x.dtype, 4, threads, xp.asarray(x), 1500, sums, largest)
    np.testing.assert_allclose(sums.get(), x.sum(axis=1), rtol=100 * np.finfo(dtype).eps)
    np.testing.assert_array_equal(largest.get(), x.max(axis=1))


def test_threads_that_come_at_once_compile_once(xp, code, monkeypatch):
    made, original = [], xp.RawModule
    monkeypatch.setattr(xp, "RawModule", lambda **how: made.append(how) or original(**how))
    xs = [xp.zeros(6, dtype=np.float32) for _ in range(4)]

    def work(x):
        with backend.on(GPU):
            code.launch("passed<T, 3>", x.dtype, 1, 32, x, True, 1, 0.1, None, x)

    workers = [threading.Thread(target=work, args=(x,)) for x in xs]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(made) == 1
    for x in xs:
        np.testing.assert_array_equal(x.get(), [3, 3, 3, 3, 3, 0])


def test_helpers(xp):
    assert [ceil_div(n, 4) for n in (0, 1, 4, 5)] == [0, 1, 1, 2]
    assert grid(1000) == (4, 256)
    assert grid(10**12) == (source.MAX_BLOCKS, 256)
    whole, turned, nothing = contiguous(x := xp.zeros((2, 3)), x.T, None)
    assert whole is x
    assert turned.flags.c_contiguous
    assert nothing is None
