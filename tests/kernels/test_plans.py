"""What threads keep between calls of a convolution: plans, and the room in which they lie."""

import threading

import numpy as np
import pytest

from minnl import Tensor
from minnl import functional as F
from minnl.kernels.runtime import workspace as module
from minnl.kernels.runtime.workspace import Plans
from tests.fast import arrays


class Buffers:
    def __init__(self, empty, *sizes):
        self.arrays = [empty((size,), np.float32) for size in sizes]


def in_thread(work):
    found = []
    thread = threading.Thread(target=lambda: found.append(work()))
    thread.start()
    thread.join()
    return found[0]


def test_a_plan_is_made_once():
    plans = Plans()
    assert plans.of(Buffers, 10, 20) is plans.of(Buffers, 10, 20)
    assert plans.of(Buffers, 10, 20) is not plans.of(Buffers, 10, 21)


def test_arrays_of_a_plan_lie_apart_and_those_of_two_plans_in_the_same_place():
    plans = Plans()
    plans.of(Buffers, 1000)
    one, two = plans.of(Buffers, 10, 3, 7).arrays, plans.of(Buffers, 20).arrays
    assert [a.shape for a in one] == [(10,), (3,), (7,)]
    assert all(a.ctypes.data % 64 == one[0].ctypes.data % 64 for a in one)
    assert not any(np.shares_memory(a, b) for i, a in enumerate(one) for b in one[:i])
    assert np.shares_memory(one[0], two[0])


def test_a_larger_plan_gets_a_larger_room_and_the_others_follow():
    plans = Plans()
    small = plans.of(Buffers, 10)
    large = plans.of(Buffers, 10_000)
    again = plans.of(Buffers, 10)
    assert again is not small and np.shares_memory(again.arrays[0], large.arrays[0])
    assert plans.room.size == 40_000


def test_a_plan_that_fails_leaves_the_others():
    plans = Plans()

    def fails(empty):
        empty((100,), np.float32)
        raise MemoryError("no room")

    kept = plans.of(Buffers, 10)
    with pytest.raises(MemoryError):
        plans.of(fails)
    assert plans.of(Buffers, 10) is kept


def test_threads_have_plans_of_their_own():
    plans = Plans()
    mine, other = plans.of(Buffers, 10), in_thread(lambda: plans.of(Buffers, 10))
    assert mine is not other and not np.shares_memory(mine.arrays[0], other.arrays[0])


def test_there_are_never_more_than_so_many(monkeypatch):
    monkeypatch.setattr(module, "MOST", 3)
    plans = Plans()
    for size in range(10):
        plans.of(Buffers, size)
        assert len(plans.made) <= 3
    assert plans.of(Buffers, 9) is plans.of(Buffers, 9)


@pytest.mark.slow
def test_convolutions_of_several_user_threads_do_not_meet():
    """Large and small ones in turn, so that rooms grow while others compute: each thread gets its own numbers."""
    shapes = [
        ((4, 2, 9, 9, 8), (1, 3, 3, 8, 8)),
        ((2, 3, 21, 20, 16), (3, 3, 3, 16, 24)),
        ((3, 4, 15, 9, 3), (3, 7, 5, 3, 8)),
    ]
    given = [[Tensor(a, requires_grad=True) for a in arrays(*pair)] for pair in shapes]

    def passes(order):
        out = {}
        for i in order:
            x, weight = (Tensor(t.data, requires_grad=True) for t in given[i])
            y = F.conv3d(x, weight, padding=1)
            y.backward(np.ones_like(y.data))
            out[i] = y.data, x.grad, weight.grad
        return out

    expected, found = passes(range(3)), []
    orders = [(0, 1, 2), (2, 1, 0), (1, 0, 2), (1, 2, 0)] * 2
    workers = [threading.Thread(target=lambda order=order: found.append(passes(order))) for order in orders]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(found) == len(orders)
    for out in found:
        for i in range(3):
            for ours, theirs in zip(out[i], expected[i], strict=True):
                np.testing.assert_array_equal(ours, theirs)
