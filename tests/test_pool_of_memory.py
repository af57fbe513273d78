"""Memory that is used again: never while anyone looks into it, and little more of it than was in use at once."""

import gc
import threading

import numpy as np
import pytest

import minnl
from minnl import Tensor
from minnl import functional as F
from minnl.kernels import memory

LARGE = (3, memory.SMALLEST // 4)  # float32: three times the smallest size that is pooled


@pytest.fixture
def pool(monkeypatch):
    fresh = memory.Pool()
    monkeypatch.setattr(memory, "pool", fresh)
    return fresh


def address(array):
    return array.__array_interface__["data"][0]


@pytest.mark.parametrize("shape", [(), (0, 3), (7,), LARGE, (1, *LARGE, 1)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.uint8])
def test_an_array_like_any_other(pool, shape, dtype):
    a = memory.empty(shape, dtype)
    assert a.shape == shape and a.dtype == dtype and a.flags.c_contiguous and a.flags.writeable
    a[...] = 3
    assert (a == 3).all()


def test_used_again_when_the_last_view_is_gone(pool):
    a = memory.empty(LARGE, np.float32)
    where, view = address(a), a[1:, ::7].T
    view[...] = 5
    del a
    b = memory.empty(LARGE, np.float32)
    b[...] = 7
    assert address(b) != where and (view == 5).all()
    del view
    assert address(memory.empty(LARGE, np.float32)) == where


def test_nearly_equal_sizes_share_blocks(pool):
    a = memory.empty((1_000_000,), np.float32)
    where = address(a)
    del a
    assert address(memory.empty((1_000, 999), np.float32)) == where


@pytest.mark.parametrize("slack", [0, 4 * memory.SMALLEST])
def test_free_and_used_blocks_stay_within_their_bound(pool, monkeypatch, slack):
    monkeypatch.setattr(memory, "SLACK", slack)
    most = 0
    sizes = np.random.default_rng(0).integers(memory.SMALLEST, 4 * memory.SMALLEST, 200)
    kept = []
    for i, size in enumerate(sizes):
        kept.append(memory.empty((int(size),), np.uint8))
        if i % 3 == 2:
            del kept[:2]
        if i == 150:
            kept.clear()
        blocks = sum(buffer.size - 64 for blocks in pool.free.values() for _, buffer, _ in blocks)
        assert blocks == pool.held and pool.held + pool.used <= pool.peak + slack
        most = max(most, pool.held + pool.used - pool.peak)
    kept.clear()
    assert pool.used == 0 and (most > 0) == (slack > 0)


def test_out_of_memory_leaves_the_pool_as_it_was(pool):
    before = pool.used, pool.peak
    with pytest.raises((MemoryError, ValueError)):
        memory.empty((2**62,), np.uint8)
    gc.collect()
    assert (pool.used, pool.peak) == before


def test_many_threads(pool):
    wrong = []

    def work(number):
        rng = np.random.default_rng(number)
        mine = []
        for _ in range(200):
            a = memory.empty((memory.SMALLEST + int(rng.integers(3)) * 4096,), np.uint8)
            a[::4096] = number
            mine.append(a)
            if len(mine) > 5:
                mine.pop(int(rng.integers(5)))
            wrong.extend(a for a in mine if (a[::4096] != number).any())

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and pool.used == 0


def test_what_a_user_holds_stays_while_training_goes_on(pool):
    """Outputs, a slice of one, and gradients of one step are untouched by the steps after it."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4, 4, 24, 24, 32)).astype(np.float32)
    w = Tensor(rng.normal(size=(1, 3, 3, 32, 32)).astype(np.float32) / 17, requires_grad=True)
    held = []
    for step in range(4):
        leaf = Tensor(x + step, requires_grad=True)
        y = F.relu(F.conv3d(leaf, w, padding=(0, 1, 1)))
        F.mean(y * y).backward()
        held += [y.data, y.data[0, 1, ::3], leaf.grad, w.grad]
        w.grad = None
    copies = [a.copy() for a in held]
    for _ in range(3):
        leaf = Tensor(x, requires_grad=True)
        F.mean(F.conv3d(leaf, w, padding=(0, 1, 1))).backward()
    for a, b in zip(held, copies, strict=True):
        np.testing.assert_array_equal(a, b)
    assert len({address(a) for a in held[::4]}) == 4


def test_gradients_of_pooled_memory_are_not_copied_again():
    with minnl.use_kernels("fast"):
        x = Tensor(np.ones((2, 4, 24, 24, 64), np.float32), requires_grad=True)
        y = F.conv3d(x, Tensor(np.ones((1, 1, 1, 64, 4), np.float32)))
        y.backward(np.ones_like(y.data))
        assert isinstance(x.grad.base, memory._Lease)
