"""The fast bodies against the textbook ones, in float32 with the textbook in float64 as the judge; and their threads.

An error is measured beside the largest value of what is compared, or the largest input if that is larger: a gradient
may be nearly 0 because terms of the inputs' size cancel, and their rounding stays.
"""

import contextlib
import gc
import os
import subprocess
import sys
import threading
import weakref
from unittest import mock

import numpy as np
import pytest
import threadpoolctl

import minnl
from minnl import Tensor, dispatch
from minnl import functional as F
from minnl.kernels.conv3d import cpu as conv
from minnl.kernels.pointwise import cpu as pointwise
from minnl.kernels.runtime import threads
from tests.fast import TOLERANCE, agree, arrays, as_before, outcome, same_bits  # noqa: F401 (as_before is a fixture)


@pytest.mark.parametrize(
    "name, fn, shapes",
    [
        ("conv3d", lambda x, w: F.conv3d(x, w, padding=1), ((1, 3, 4, 4, 2), (3, 3, 3, 2, 2))),
        ("non_local", F.non_local, ((1, 2, 3, 3, 2),) * 3),
    ],
)
def test_float64_is_left_to_the_textbook(name, fn, shapes):
    fast, ran = outcome(fn, arrays(*shapes), "fast", np.float64)
    textbook, _ = outcome(fn, arrays(*shapes), "textbook", np.float64)
    assert not ran
    for a, b in zip(fast, textbook, strict=True):
        np.testing.assert_array_equal(a, b)


def test_textbook_mode_runs_no_kernel():
    inputs = arrays((1, 3, 4, 4, 4), (3, 3, 3, 4, 4))
    assert not outcome(F.conv3d, inputs, "textbook")[1]


def test_modes():
    minnl.use_kernels("fast")
    with minnl.use_kernels("textbook"):
        assert dispatch.mode() == "textbook"
        with pytest.raises(ZeroDivisionError), minnl.use_kernels("fast"):
            raise ZeroDivisionError
        assert dispatch.mode() == "textbook"
    assert dispatch.mode() == "fast"
    minnl.use_kernels("textbook")
    assert dispatch.mode() == "textbook"
    with pytest.raises(ValueError, match='use_kernels: mode must be "textbook" or "fast", got \'quick\''):
        minnl.use_kernels("quick")


@pytest.mark.parametrize("shape", [(pointwise.BLOCK + 1,), (3, 7, 100_000), (1000, 1200)])
def test_large_gradients_are_added_by_the_kernel_out_of_place(shape):
    rng = np.random.default_rng(0)
    a, b = (rng.random(shape, np.float32) for _ in range(2))
    b = b.T.copy().T if b.ndim == 2 else b  # of any order in memory
    expected, before = a + b, (a.copy(), b.copy())
    with mock.patch.object(threads, "run", wraps=threads.run) as added:
        x = Tensor(np.zeros_like(a), requires_grad=True)
        for gradient in (a, b):
            x.backward(gradient)
    assert added.called
    np.testing.assert_array_equal(x.grad, expected)
    for array, was in zip((a, b), before, strict=True):
        np.testing.assert_array_equal(array, was)


def test_a_gradient_of_another_kind_is_refused_and_none_is_lost():
    gradient = np.ones((pointwise.BLOCK, 1), np.float32)
    x = Tensor(np.zeros_like(gradient), requires_grad=True)
    x.grad = before = gradient.copy()
    for other in (gradient.astype(np.float64), gradient[:1]):
        with pytest.raises(ValueError, match=r"grad: shape .* given; the tensor has \(524288, 1\), float32 on cpu"):
            x.grad = other
    assert x.grad is before
    x.backward(gradient)
    np.testing.assert_array_equal(x.grad, 2)


def test_backward_stays_with_the_body_of_its_forward():
    inputs = [a.astype(np.float32) for a in arrays((1, 3, 4, 4, 2), (3, 3, 3, 2, 2))]
    leaves = [Tensor(a, requires_grad=True) for a in inputs]
    with minnl.use_kernels("fast"):
        y = F.conv3d(*leaves)
    with minnl.use_kernels("textbook"), mock.patch.object(conv, "weight_gradient", wraps=conv.weight_gradient) as used:
        y.backward(np.ones_like(y.data))
    assert used.call_count == 1


@pytest.mark.parametrize("value, expected", [("textbook", "textbook"), ("fast", "fast"), (None, "fast"), ("x", None)])
def test_environment_variable(value, expected):
    env = {k: v for k, v in os.environ.items() if k != "MINNL_KERNELS"} | ({"MINNL_KERNELS": value} if value else {})
    env["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    code = "from minnl import dispatch; print(dispatch.mode())"
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60)
    if expected:
        assert done.stdout.strip() == expected, done.stderr
    else:
        assert 'MINNL_KERNELS is \'x\', expected "textbook" or "fast"' in done.stderr


def test_tasks_run_in_order_and_side_by_side():
    minnl.set_threads(2)
    both = threading.Barrier(2, timeout=20)  # breaks unless two tasks are under way at once

    def task(i):
        both.wait()
        return i * i, threading.current_thread().name

    results = threads.run(task, range(4))
    assert [square for square, _ in results] == [0, 1, 4, 9]
    assert {name.split("_")[0] for _, name in results} == {"MainThread", "minnl-kernel"}, "who calls works too"
    minnl.set_threads(1)
    assert threads.run(lambda i: threading.current_thread(), range(2)) == [threading.current_thread()] * 2
    assert threads.run(task, []) == []


def test_tasks_may_run_tasks():
    minnl.set_threads(2)

    def outer(i):
        return threads.run(lambda j: (i * j, threading.current_thread()), range(3)), threading.current_thread()

    for i, (inner, thread) in enumerate(threads.run(outer, range(8))):
        assert inner == [(i * j, thread) for j in range(3)]


def test_errors_in_tasks_reach_the_caller():
    minnl.set_threads(2)
    done = []

    def task(i):
        if i == 1:
            raise KeyError("task 1")
        done.append(i)

    with pytest.raises(KeyError, match="task 1"):
        threads.run(task, range(4))
    assert threads.run(lambda i: i, range(3)) == [0, 1, 2], "the pool still works"


@pytest.mark.parametrize("failing", [None, "caller", "thread of the pool", "both"])
def test_no_array_of_a_task_is_kept(failing):
    """Neither by an error, whose traceback refers to the arrays, nor by a thread that has no time for the call."""
    minnl.set_threads(2)
    caller, both_work, arrays_of_tasks = threading.get_ident(), threading.Barrier(2), []

    def call():
        array = np.zeros(1000)
        arrays_of_tasks.append(weakref.ref(array))

        def task(i):
            both_work.wait(10)
            if failing in ("both", "caller" if threading.get_ident() == caller else "thread of the pool"):
                raise MemoryError(f"{array.shape}")

        with contextlib.suppress(MemoryError):
            threads.run(task, range(2))

    gc.disable()
    try:
        call()
        assert arrays_of_tasks[0]() is None
    finally:
        gc.enable()


def test_threads_that_are_busy_keep_no_array_of_a_call():
    minnl.set_threads(2)
    done, array = threading.Event(), np.zeros(1000)
    kept = weakref.ref(array)
    others = [threads._executor().submit(done.wait, 60) for _ in range(threads.MOST)]
    try:
        assert threads.run(lambda i, array=array: i + array.size, range(4)) == [1000, 1001, 1002, 1003]
        del array
        assert kept() is None
    finally:
        done.set()
    assert all(other.result() for other in others)


def test_tasks_see_what_the_caller_set_with_errstate():
    minnl.set_threads(2)
    with np.errstate(over="raise"), pytest.raises(FloatingPointError):
        threads.run(lambda _: np.float32(3e38) * np.float32(10), range(4))
    with np.errstate(all="ignore"):
        threads.run(lambda _: np.float32(3e38) * np.float32(10), range(4))


@pytest.mark.parametrize("multiple", [1, 4])
@pytest.mark.parametrize("n", [0, 1, 5, 8, 100])
def test_shares_cover_everything_once(n, multiple):
    parts = threads.split(n, 8, multiple)
    assert [i for part in parts for i in range(n)[part]] == list(range(n))
    sizes = [part.stop - part.start for part in parts]
    assert len(parts) <= 8 and max(sizes) - min(sizes) <= 1 + 2 * (multiple - 1)
    assert all(part.start % multiple == 0 for part in parts)


@pytest.mark.parametrize("n, error", [(0, ValueError), (-1, ValueError), (1.0, TypeError), (True, TypeError)])
def test_wrong_number_of_threads(n, error):
    with pytest.raises(error, match="set_threads: n must be"):
        minnl.set_threads(n)


def blas_threads():
    return {p["num_threads"] for p in threadpoolctl.threadpool_info() if p["user_api"] == "blas"}


def test_blas_has_one_thread_in_a_task_whoever_else_has_set_it():
    """threadpoolctl by itself listens to no other thread while the one that asked first is alive."""
    with threadpoolctl.threadpool_limits(2, "blas"):
        seen = []
        thread = threading.Thread(target=lambda: seen.append(threads.run(lambda _: blas_threads(), [0])))
        thread.start()
        thread.join()
        assert seen == [[{1}]] and blas_threads() == {2}
    with threadpoolctl.threadpool_limits(3, "blas"):  # and whoever asks after that is heard
        assert blas_threads() == {3}


def test_blas_gets_its_threads_back_when_calls_overlap():
    """Two user threads inside `run` at once, leaving in the order in which they came."""
    before = blas_threads()
    first_in, second_in = threading.Event(), threading.Event()

    def first(_):
        first_in.set()
        second_in.wait(10)

    def second(_):
        second_in.set()
        one.join(10)

    one = threading.Thread(target=threads.run, args=(first, [0]))
    two = threading.Thread(target=threads.run, args=(second, [0]))
    one.start()
    first_in.wait(10)
    two.start()
    two.join(20)
    assert not one.is_alive() and not two.is_alive()
    assert blas_threads() == before
