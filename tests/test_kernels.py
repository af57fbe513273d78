"""The fast bodies against the textbook ones, in float32 with the textbook in float64 as the judge; and their threads.

An error is measured beside the largest value of what is compared, or the largest input if that is larger: a gradient
may be nearly 0 because terms of the inputs' size cancel, and their rounding stays.
"""

import os
import subprocess
import sys
import threading
from unittest import mock

import numpy as np
import pytest
import threadpoolctl
from hypothesis import given, settings
from hypothesis import strategies as st

import minnl
from minnl import Tensor, kernels
from minnl import functional as F
from minnl.kernels import threads
from minnl.kernels.cpu import conv, non_local, norm
from tests.fast import TOLERANCE, agree, arrays, as_before, outcome, same_bits  # noqa: F401 (as_before is a fixture)

QUICK = settings(max_examples=40, deadline=None, derandomize=True, database=None)


@st.composite
def attentions(draw):
    """Shapes of theta, phi and g, and the axes."""
    axes = draw(st.sampled_from(["spacetime", "space", "time"]))
    n, t, h, w = (draw(st.integers(1, k)) for k in (5, 4, 6, 6))
    keys = [draw(st.integers(1, k)) for k in (4, 6, 6)]
    keys = [t, *keys[1:]] if axes == "space" else [keys[0], h, w] if axes == "time" else keys
    inner, depth = draw(st.integers(1, 6)), draw(st.integers(1, 6))
    return [(n, t, h, w, inner), (n, *keys, inner), (n, *keys, depth)], axes


@QUICK
@given(case=attentions(), scale=st.sampled_from([None, 0.3]), block=st.sampled_from([1, 500, non_local.BLOCK_ELEMENTS]))
def test_non_local(case, scale, block):
    shapes, axes = case
    with mock.patch.object(non_local, "BLOCK_ELEMENTS", block):
        agree(lambda *tensors: F.non_local(*tensors, scale=scale, axes=axes), arrays(*shapes))


def test_non_local_with_large_logits():
    theta, phi, g = arrays((2, 2, 4, 4, 8), (2, 2, 2, 2, 8), (2, 2, 2, 2, 8))
    # Logits of some hundreds: without the largest subtracted their exponentials overflow. Their own float32 rounding
    # (1e-5) is an error of the weights that no body can help.
    agree(lambda *t: F.non_local(*t), [30 * theta, 4 * phi, g], tolerance=3e-4)


@pytest.mark.parametrize("axes", ["spacetime", "space", "time"])
@pytest.mark.parametrize("batch", [1, 3, 9])
def test_non_local_has_the_same_bits_on_any_number_of_threads(batch, axes):
    inputs = arrays(*[(batch, 3, 6, 5, 4)] * 3)
    with mock.patch.object(non_local, "BLOCK_ELEMENTS", 300):
        agree(lambda *t: F.non_local(*t, axes=axes), inputs)
        same_bits(lambda *t: F.non_local(*t, axes=axes), inputs)


def normalise(x, weight, bias):
    return F.batch_norm(x, None, None, weight, bias, training=True)


@QUICK
@given(
    shape=st.lists(st.integers(1, 7), min_size=1, max_size=4),
    channels=st.sampled_from([1, 3, 8, 64, 200, 700]),
    block=st.sampled_from([1, 2000, norm.BLOCK_ELEMENTS]),
)
def test_batch_norm(shape, channels, block):
    shape = (*shape[:-1], shape[-1] + 1, channels)  # two values a channel or more
    x, weight, bias = arrays(shape, channels, channels)
    # Two values a channel may lie so near to each other that their difference has lost its digits in float32.
    x.reshape(-1, channels)[0] = 3
    x.reshape(-1, channels)[1] = -3
    with mock.patch.object(norm, "BLOCK_ELEMENTS", block):
        agree(normalise, [x, weight, bias])


def test_batch_norm_with_a_mean_far_from_zero():
    """Mean 10,000 and deviation 1: mean of squares less square of mean would leave nothing of the variance."""
    x, weight, bias = arrays((4, 2, 30, 30, 16), 16, 16)
    x = (1e4 + x).astype(np.float32).astype(np.float64)  # what float32 can hold of it is the input of both
    mean, var = np.zeros(16, np.float32), np.ones(16, np.float32)
    judge, _ = outcome(normalise, [x, weight, bias], "textbook", np.float64)
    for a, b in zip(outcome(normalise, [x, weight, bias], "fast")[0], judge, strict=True):
        # Numbers near 10,000 lie 1e-3 apart in float32: the mean that is kept is off by up to half of that.
        assert np.abs(a - b).max() < 1e-3 * np.abs(b).max()
    with minnl.use_kernels("fast"):
        F.batch_norm(Tensor(x.astype(np.float32)), mean, var, training=True, momentum=1.0)
    np.testing.assert_allclose(mean, x.mean((0, 1, 2, 3)), rtol=1e-7)
    np.testing.assert_allclose(var, x.var((0, 1, 2, 3), ddof=1), rtol=1e-5)


def test_batch_norm_whose_first_block_is_unlike_the_rest():
    x, weight, bias = arrays((8, 4, 30, 30, 16), 16, 16)
    x[0, 0] = -50
    agree(normalise, [x, weight, bias])


def test_batch_norm_tracks_what_the_textbook_tracks():
    x = arrays((3, 4, 5, 5, 7))[0].astype(np.float32)
    seen = {}
    for mode in kernels.MODES:
        seen[mode] = np.ones(7, np.float32), np.ones(7, np.float32)
        with minnl.use_kernels(mode):
            F.batch_norm(Tensor(x), *seen[mode], training=True, momentum=0.3)
    for fast, textbook in zip(seen["fast"], seen["textbook"], strict=True):
        np.testing.assert_allclose(fast, textbook, rtol=1e-5)
        assert fast.dtype == np.float32


def test_batch_norm_has_the_same_bits_on_any_number_of_threads():
    same_bits(normalise, arrays((9, 4, 12, 12, 24), 24, 24))


@pytest.mark.parametrize(
    "name, fn, shapes",
    [
        ("conv3d", lambda x, w: F.conv3d(x, w, padding=1), ((1, 3, 4, 4, 2), (3, 3, 3, 2, 2))),
        ("non_local", F.non_local, ((1, 2, 3, 3, 2),) * 3),
        ("batch_norm", normalise, ((4, 3, 2), 2, 2)),
    ],
)
def test_float64_is_left_to_the_textbook(name, fn, shapes):
    fast, ran = outcome(fn, arrays(*shapes), "fast", np.float64)
    textbook, _ = outcome(fn, arrays(*shapes), "textbook", np.float64)
    assert not ran
    for a, b in zip(fast, textbook, strict=True):
        np.testing.assert_array_equal(a, b)


def test_groups_are_left_to_the_textbook():
    inputs = arrays((1, 3, 4, 4, 4), (3, 3, 3, 2, 4))
    assert not outcome(lambda x, w: F.conv3d(x, w, groups=2), inputs, "fast")[1]


def test_textbook_mode_runs_no_kernel():
    inputs = arrays((1, 3, 4, 4, 4), (3, 3, 3, 4, 4))
    assert not outcome(F.conv3d, inputs, "textbook")[1]


def test_modes():
    minnl.use_kernels("fast")
    with minnl.use_kernels("textbook"):
        assert kernels.mode() == "textbook"
        with pytest.raises(ZeroDivisionError), minnl.use_kernels("fast"):
            raise ZeroDivisionError
        assert kernels.mode() == "textbook"
    assert kernels.mode() == "fast"
    minnl.use_kernels("textbook")
    assert kernels.mode() == "textbook"
    with pytest.raises(ValueError, match='use_kernels: mode must be "textbook" or "fast", got \'quick\''):
        minnl.use_kernels("quick")


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
    code = "from minnl import kernels; print(kernels.mode())"
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
    assert all(name.startswith("minnl-kernel") for _, name in results)
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


def test_tasks_see_what_the_caller_set_with_errstate():
    minnl.set_threads(2)
    with np.errstate(over="raise"), pytest.raises(FloatingPointError):
        threads.run(lambda _: np.float32(3e38) * np.float32(10), range(4))
    with np.errstate(all="ignore"):
        threads.run(lambda _: np.float32(3e38) * np.float32(10), range(4))


@pytest.mark.parametrize("n", [0, 1, 5, 8, 100])
def test_shares_cover_everything_once(n):
    parts = threads.shares(n, most=8)
    assert [i for part in parts for i in range(n)[part]] == list(range(n))
    sizes = [part.stop - part.start for part in parts]
    assert len(parts) <= 8 and max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("n, error", [(0, ValueError), (-1, ValueError), (1.0, TypeError), (True, TypeError)])
def test_wrong_number_of_threads(n, error):
    with pytest.raises(error, match="set_threads: n must be"):
        minnl.set_threads(n)


def test_blas_gets_its_threads_back_when_calls_overlap():
    """Two user threads inside `run` at once, leaving in the order in which they came."""

    def blas_threads():
        return {p["num_threads"] for p in threadpoolctl.threadpool_info() if p["user_api"] == "blas"}

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
