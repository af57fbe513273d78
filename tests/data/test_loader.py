"""The loader: order, bits, epochs, resuming, bad samples, and threads that end."""

import os
import signal
import subprocess
import sys
import threading
import time
import traceback
import warnings

import numpy as np
import pytest

from minnl.data import Loader, VideoError


class Clips:
    """Clips whose values tell the index and what was drawn; some fail, some take their time."""

    classes = ("a", "b", "c")
    shape = (2, 3, 4, 1)

    def __init__(self, count=10, bad=(), slow=False):
        self.count, self.bad, self.slow = count, bad, slow
        self.asked = []

    def __len__(self):
        return self.count

    def name(self, index):
        return f"clip{index}"

    def clip(self, index, rng):
        self.asked.append(index)
        if self.slow:
            time.sleep(0.002 * (index % 3))
        if index in self.bad:
            raise VideoError(f"/data/clip{index}", "is broken")
        clip = rng.random(self.shape, dtype=np.float32)
        clip[0, 0, 0, 0] = index
        return clip, index % 3


def indices(batches):
    return [x[:, 0, 0, 0, 0].astype(int).tolist() for x, _ in batches]


def bits(batches):
    return [(x.tobytes(), labels.tobytes()) for x, labels in batches]


def loader_threads():
    return [t for t in threading.enumerate() if t.name.startswith("minnl-loader")]


@pytest.fixture(autouse=True)
def no_thread_stays():
    yield
    assert loader_threads() == []


@pytest.mark.parametrize("workers", [0, 2])
def test_batches(workers):
    batches = list(Loader(Clips(), 4, workers=workers))
    assert indices(batches) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    x, labels = batches[0]
    assert (x.shape, x.dtype, x.flags.c_contiguous) == ((4, 2, 3, 4, 1), np.float32, True)
    assert (labels.dtype, labels.tolist()) == (np.int64, [0, 1, 2, 0])


def test_the_last_batch_can_be_left_out():
    assert indices(Loader(Clips(), 4, drop_last=True)) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert (len(Loader(Clips(), 4)), len(Loader(Clips(), 4, drop_last=True)), len(Loader(Clips(), 5))) == (3, 2, 2)


@pytest.mark.parametrize("prefetch", [1, 3])
@pytest.mark.parametrize("bad", [(), (3, 7)])
def test_bits_do_not_depend_on_workers(prefetch, bad):
    runs = []
    for workers in (0, 1, 4):
        loader = Loader(Clips(20, bad, slow=True), 3, shuffle=True, seed=5, workers=workers, prefetch=prefetch)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            runs.append((bits(loader), bits(loader), loader.skipped))
    assert runs[0] == runs[1] == runs[2]


def test_shuffling_differs_by_epoch_and_seed_and_reaches_everything():
    loader, other = Loader(Clips(), 10, shuffle=True), Loader(Clips(), 10, shuffle=True, seed=1)
    orders = [indices(loader)[0], indices(loader)[0], indices(other)[0]]
    assert [sorted(order) for order in orders] == [list(range(10))] * 3
    assert len(set(map(tuple, orders))) == 3
    assert loader.epoch == 2


def test_what_is_drawn_differs_by_sample_and_epoch():
    loader = Loader(Clips(), 10)
    first = next(iter(loader))[0]
    loader.set_epoch(1)
    second = next(iter(loader))[0]
    drawn = np.concatenate([first, second])[:, 1]
    assert len(np.unique(drawn)) == drawn.size


def test_without_shuffling_every_pass_is_the_same():
    loader = Loader(Clips(), 4)
    assert bits(loader) == bits(loader)
    assert loader.epoch == 0


def test_an_epoch_can_be_set():
    loader, again = Loader(Clips(), 4, shuffle=True), Loader(Clips(), 4, shuffle=True)
    passes = [bits(loader) for _ in range(3)]
    again.set_epoch(2)
    assert bits(again) == passes[2]
    again.set_epoch(0)
    assert bits(again) == passes[0]


def test_a_pass_that_was_left_starts_anew():
    loader = Loader(Clips(), 4, shuffle=True)
    whole = bits(Loader(Clips(), 4, shuffle=True))
    next(iter(loader))
    assert bits(loader) == whole


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("stop", [1, 2, 3])
def test_an_interrupted_epoch_goes_on_at_the_same_batch(workers, stop):
    whole = Loader(Clips(11), 3, shuffle=True, seed=3)
    wanted = bits(whole) + bits(whole)
    loader, got = Loader(Clips(11), 3, shuffle=True, seed=3, workers=workers), []
    for batch in loader:
        got += bits([batch])
        if len(got) == stop:
            state = loader.state_dict()
            break
    assert (state["epoch"], state["batch"]) == (0, stop)
    resumed = Loader(Clips(11), 3, shuffle=True, seed=3, workers=2 - workers)
    resumed.load_state_dict(state)
    resumed.set_epoch(state["epoch"])
    assert resumed.state_dict() == state
    assert got + bits(resumed) + bits(resumed) == wanted


def test_a_state_from_the_end_of_an_epoch():
    loader = Loader(Clips(), 5, shuffle=True)
    states = [loader.state_dict() for _ in loader]
    assert (loader.state_dict()["epoch"], loader.state_dict()["batch"]) == (1, 0)
    loader.load_state_dict(states[-1])
    assert list(loader) == []
    assert loader.epoch == 1


def test_a_state_of_another_loader_is_refused_in_the_middle_of_an_epoch():
    loader = Loader(Clips(), 4, shuffle=True)
    start = loader.state_dict()
    next(iter(loader))
    middle = loader.state_dict()
    other = Loader(Clips(), 2, shuffle=True, seed=1)
    other.load_state_dict(start)
    with pytest.raises(ValueError, match="batch_size was 4, is 2, seed was 0, is 1"):
        other.load_state_dict(middle)
    with pytest.raises(ValueError, match="lacks 'batch'"):
        other.load_state_dict({"epoch": 1})


@pytest.mark.parametrize("workers", [0, 3])
def test_bad_samples_are_left_out_and_reported_once(workers):
    loader = Loader(Clips(8, bad=(1, 4, 5)), 2, workers=workers)
    with pytest.warns(RuntimeWarning, match=r"Loader: left out clip[145]: is broken") as caught:
        assert indices(loader) == [[0], [2, 3], [6, 7]]
    assert len(caught) == 3
    assert loader.skipped == [(f"clip{k}", "is broken") for k in (1, 4, 5)]
    assert indices(loader) == [[0], [2, 3], [6, 7]]
    assert len(loader.skipped) == 3
    assert loader.state_dict()["batch"] == 0


@pytest.mark.parametrize("workers", [0, 3])
def test_bad_samples_can_be_errors(workers):
    loader, seen = Loader(Clips(8, bad=(5,)), 2, workers=workers, on_error="error"), []
    with pytest.raises(VideoError, match="clip5: is broken"):
        for batch in loader:
            seen.append(batch)
    assert indices(seen) == [[0, 1], [2, 3]]


@pytest.mark.parametrize("workers", [0, 3])
def test_an_epoch_without_a_sample_is_an_error(workers):
    loader = Loader(Clips(4, bad=range(4)), 2, workers=workers)
    with (
        pytest.warns(RuntimeWarning, match="left out"),
        pytest.raises(ValueError, match="none of 4 samples could be used; first clip0: is broken"),
    ):
        list(loader)


class Buggy(Clips):
    def clip(self, index, rng):
        if index == 5:
            return self.deep()
        return super().clip(index, rng)

    def deep(self):
        return {}["missing"]


@pytest.mark.parametrize("workers", [0, 3])
def test_an_unexpected_error_arrives_with_its_traceback(workers):
    with pytest.raises(KeyError, match="missing") as caught:
        list(Loader(Buggy(), 2, workers=workers))
    assert "in deep" in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize("clip", [np.zeros((1, 3, 4, 1), np.float32), np.zeros(Clips.shape)])
def test_a_clip_of_another_shape_or_type_is_no_bad_sample_but_a_bug(clip):
    data = Clips()
    data.clip = lambda index, rng: (clip, 0)
    with pytest.raises(TypeError, match="must be float32 of shape"):
        list(Loader(data, 2))


def test_no_more_is_made_ahead_than_asked_for():
    data = Clips(100)
    batches = iter(Loader(data, 5, workers=4, prefetch=2))
    for done in range(1, 4):
        next(batches)
        deadline = time.monotonic() + 10
        while len(data.asked) < 5 * (done + 2) and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.02)
        assert len(data.asked) == 5 * (done + 2)
    batches.close()


def test_without_workers_nothing_is_made_ahead():
    data = Clips(100)
    next(iter(Loader(data, 5)))
    assert data.asked == [0, 1, 2, 3, 4]


def test_threads_end_after_break_and_errors():
    loader = Loader(Clips(100, slow=True), 2, workers=3)
    for _ in loader:
        assert loader_threads()
        break
    assert loader_threads() == []

    def consume():
        for _ in loader:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        consume()
    assert loader_threads() == []
    assert len(list(loader)) == 50


def test_two_passes_at_once():
    loader = Loader(Clips(9), 3, workers=2)
    pairs = [bits([a]) == bits([b]) for a, b in zip(loader, loader, strict=True)]
    assert pairs == [True] * 3


INTERRUPTED = """
import signal, sys, threading, time
import numpy as np
from minnl.data import Loader

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores it for what it starts in the background

class Clips:
    classes, shape = ("a",), (1, 1, 1, 1)
    def __len__(self): return 10_000
    def name(self, index): return str(index)
    def clip(self, index, rng):
        time.sleep(0.01)
        return np.zeros(self.shape, np.float32), 0

try:
    for k, _ in enumerate(Loader(Clips(), 4, workers=int(sys.argv[1]))):
        if k == 1:
            print("ready", flush=True)
        if sys.argv[2] == "busy":
            time.sleep(0.01)
except KeyboardInterrupt:
    print("threads", threading.active_count(), flush=True)
    raise
"""


@pytest.mark.skipif(os.name == "nt", reason="no SIGINT to a process of its own")
@pytest.mark.parametrize(("workers", "consumer"), [("0", "waiting"), ("3", "waiting"), ("3", "busy")])
def test_ctrl_c_ends_the_run_and_its_threads(workers, consumer):
    command = [sys.executable, "-c", INTERRUPTED, workers, consumer]
    run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert run.stdout.readline() == "ready\n"
        run.send_signal(signal.SIGINT)
        out, err = run.communicate(timeout=20)
    finally:
        run.kill()
    assert out == "threads 1\n"
    assert err.rstrip().endswith("KeyboardInterrupt")
    assert run.returncode != 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size must be 1 or more, got 0"),
        ({"batch_size": 2.0}, "batch_size must be an int"),
        ({"workers": -1}, "workers must be 0 or more"),
        ({"prefetch": 0}, "prefetch must be 1 or more"),
        ({"seed": -1}, "seed must be 0 or more"),
        ({"on_error": "ignore"}, "on_error must be one of 'skip', 'error', got 'ignore'"),
        ({"batch_size": 11, "drop_last": True}, "10 samples make no batch of batch_size=11 with drop_last=True"),
        ({"dataset": Clips(0)}, "0 samples make no batch"),
    ],
)
def test_wrong_arguments_are_refused(options, message):
    with pytest.raises((ValueError, TypeError), match=f"Loader: {message}"):
        Loader(**{"dataset": Clips(), "batch_size": 4, **options})


def test_epochs_are_checked():
    with pytest.raises(ValueError, match="set_epoch: epoch must be 0 or more"):
        Loader(Clips(), 4).set_epoch(-1)
