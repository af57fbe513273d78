"""Memory that is used again: never while anyone looks into it, and little more of it than was in use at once."""

import gc
import itertools
import threading

import numpy as np
import pytest

import minnl
from minnl import Tensor
from minnl import functional as F
from minnl.kernels import memory

MB = 1024 * 1024
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


@pytest.fixture
def small_chunks(pool, monkeypatch):
    """Chunks of 4 MB, and as much slack: a test need not touch much memory."""
    monkeypatch.setattr(memory, "CHUNK", 4 * MB)
    monkeypatch.setattr(memory, "SLACK", 4 * MB)
    return pool


def numbers(size):
    return memory.empty((size,), np.uint8)


def check(pool):
    """Spans lie apart, in order, within chunks, and with what is in use they are all there is."""
    pool.settle()
    ends = [start + size for start, size in pool.spans]
    assert all(size > 0 for _, size in pool.spans)
    assert all(end < start for end, (start, _) in zip(ends, pool.spans[1:], strict=False))
    for start, end in zip((start for start, _ in pool.spans), ends, strict=True):
        assert any(first <= start and end <= first + n for first, (n, _) in pool.chunks.items())
    for start, (n, buffer) in pool.chunks.items():
        assert buffer.ctypes.data <= start and start + n < buffer.ctypes.data + buffer.size
    assert pool.total == sum(n for n, _ in pool.chunks.values()) == pool.used + sum(size for _, size in pool.spans)


@pytest.mark.parametrize("order", list(itertools.permutations(range(4))))
def test_what_was_cut_is_joined_in_whatever_order_it_comes_back(small_chunks, order):
    whole = address(numbers(4 * MB))
    quarters = [numbers(MB) for _ in range(4)]
    assert [address(a) for a in quarters] == [whole + i * MB for i in range(4)]
    for i in order:
        quarters[i] = None
        check(small_chunks)
    assert address(numbers(4 * MB)) == whole and len(small_chunks.chunks) == 1


def test_the_smallest_gap_that_is_large_enough(small_chunks):
    """Arrays that a user keeps go into gaps, and when those are full into one place of a large array, not into each."""
    kept, large = [numbers(3 * MB)], set()
    for _ in range(8):
        a = numbers(8 * MB)
        large.add(address(a))
        del a
        kept.append(numbers(MB // 2))
    assert len(large) == 2 and small_chunks.total == 4 * MB + 2 * 8 * MB
    check(small_chunks)


def test_sizes_that_grow_are_no_leak(small_chunks):
    for size in range(1, 40):
        numbers(size * MB)[-1] = 1
        check(small_chunks)
        assert small_chunks.total <= small_chunks.peak + memory.SLACK
    assert small_chunks.peak == 39 * MB


def test_chunks_stay_within_their_bound_and_no_byte_is_lost(small_chunks):
    """Arrays of all sizes, kept for some time: what they hold stays theirs. At the end all of it is free again."""
    rng, kept = np.random.default_rng(0), []
    for i, size in enumerate(rng.integers(memory.SMALLEST, 3 * MB, 300)):
        a = numbers(int(size))
        a[::1000] = i % 256
        kept.append((i % 256, a))
        if i % 3 == 2:
            first = int(rng.integers(len(kept)))
            del kept[first : first + 2]
        if i == 200:
            kept.clear()
        assert all((a[::1000] == value).all() for value, a in kept)
        check(small_chunks)
    a = None
    kept.clear()
    check(small_chunks)
    assert small_chunks.used == 0 and sorted(small_chunks.chunks) == [start for start, _ in small_chunks.spans]
    numbers(int(small_chunks.peak))
    assert small_chunks.total <= small_chunks.peak + memory.SLACK


def test_clear_gives_back_what_is_wholly_free(small_chunks):
    kept, free = numbers(MB), numbers(8 * MB)
    kept[...] = 3
    del free
    small_chunks.clear()
    assert small_chunks.total == memory.CHUNK and (kept == 3).all()
    check(small_chunks)


def test_an_array_made_in_the_middle_of_making_one(small_chunks, monkeypatch):
    """As by a signal's handler: it gets memory of its own, and the pool is whole."""
    inner, settle = [], small_chunks.settle

    def interrupted(wanted=None):
        inner.append(numbers(MB))
        return settle(wanted)

    monkeypatch.setattr(small_chunks, "settle", interrupted)
    outer = numbers(MB)
    outer[...], inner[0][...] = 1, 2
    assert (outer == 1).all() and small_chunks.used == MB
    monkeypatch.undo()
    check(small_chunks)


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
    pool.settle()
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
