"""Batches that travel ahead: the right bits however slow the copy, the step or the host is, and never a batch early."""

import contextlib
import types

import numpy as np
import pytest

from minnl import backend, data
from minnl.data import ahead

GPU = backend.Device("gpu")


class Slow:
    """A GPU that does nothing until it must, or all of one stream as soon as it can.

    Streams are lists of things to do. Something that waits for an event holds its stream up until the event's record
    has been passed.
    """

    def __init__(self, first):
        self.first = first  # the stream that is eager, "copy" or "compute", or "neither"
        self.streams = {"compute": Stream(self, "compute")}
        self.empty = lambda size, dtype: np.full(size, 0xDB, dtype).view(Array)
        self.cuda = types.SimpleNamespace(
            Stream=lambda non_blocking: self.streams.setdefault(f"copy {len(self.streams)}", Stream(self, "copy")),
            Event=lambda disable_timing: Event(self),
            Device=lambda index: contextlib.nullcontext(),
            get_current_stream=lambda: self.streams["compute"],
            alloc_pinned_memory=bytearray,
        )

    def run(self, until=lambda: False, only=""):
        """Do things, one a stream in turn, until something holds or nothing is left that can be done."""
        moved = True
        while moved and not until():
            moved = False
            for name, stream in self.streams.items():
                if name.startswith(only) and stream.todo and stream.todo[0]() is not False:
                    stream.todo.pop(0)
                    moved = True

    def later(self, stream, thing):
        stream.todo.append(thing)
        if self.first != "neither":
            self.run(only=self.first)


class Stream:
    def __init__(self, gpu, name):
        self.gpu, self.name, self.todo = gpu, name, []

    def wait_event(self, event):
        goal = event.recorded
        self.gpu.later(self, lambda: event.passed >= goal)


class Event:
    def __init__(self, gpu):
        self.gpu, self.recorded, self.passed = gpu, 0, 0

    def record(self, stream):
        self.recorded += 1
        self.gpu.later(stream, lambda number=self.recorded: setattr(self, "passed", number))

    done = property(lambda self: self.passed == self.recorded)

    def synchronize(self):
        self.gpu.run(until=lambda: self.done)


class Array(np.ndarray):
    def set(self, host, stream):
        stream.gpu.later(stream, lambda: np.copyto(self, host))


class Batches:
    """A loader that counts what it has given."""

    def __init__(self, sizes):
        rng = np.random.default_rng(0)
        self.all = [(rng.normal(size=(n, 3)).astype(np.float32), np.arange(n)) for n in sizes]
        self.given = 0

    def __iter__(self):
        for batch in self.all:
            self.given += 1
            yield batch


def read(gpu, sizes=(4, 4, 4, 2, 5, 1, 5, 5)):
    """What steps read when the GPU gets to them."""
    loader, seen, stream = Batches(sizes), [], gpu.streams["compute"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backend, "load_cupy", lambda: gpu)
        for i, (x, labels) in enumerate(ahead.batches(loader, GPU)):
            assert loader.given == i + 1, "a batch was taken before the step on the one before"
            assert labels is loader.all[i][1]
            gpu.later(stream, lambda x=x: None)  # a step takes a while
            gpu.later(stream, lambda x=x: seen.append(np.array(x)))
    gpu.run()
    assert not any(stream.todo for stream in gpu.streams.values())
    assert len(seen) == len(sizes)
    return all(np.array_equal(x, right) for x, (right, _) in zip(seen, loader.all, strict=True))


ORDERS = ("neither", "copy", "compute")


@pytest.mark.parametrize("first", ORDERS)
def test_every_step_reads_its_own_batch(first):
    assert read(Slow(first))


@pytest.mark.parametrize("missing", ["the host's", "the copy's", "the step's"])
def test_every_wait_is_needed(monkeypatch, missing):
    if missing == "the host's":
        monkeypatch.setattr(ahead.StagingBuffer, "wait", lambda self: None)
    else:
        name = {"the copy's": "copy", "the step's": "compute"}[missing]
        waits = Stream.wait_event
        monkeypatch.setattr(Stream, "wait_event", lambda self, e: None if self.name == name else waits(self, e))
    assert not all(read(Slow(first)) for first in ORDERS)


def test_leaving_the_loop_waits_for_the_copy(monkeypatch):
    """Or its memory would go back to the pool while it is written to."""
    gpu = Slow("neither")
    monkeypatch.setattr(backend, "load_cupy", lambda: gpu)
    for x, _ in ahead.batches(Batches([2, 2]), GPU):
        there = x
        break
    np.testing.assert_array_equal(there, Batches([2, 2]).all[0][0])


def test_on_the_cpu_batches_are_the_loaders_own():
    loader = Batches([3, 2])
    assert all(x is mine for (x, _), (mine, _) in zip(ahead.batches(loader, backend.CPU), loader.all, strict=True))


@pytest.mark.parametrize("device", [backend.CPU, GPU])
def test_the_loaders_place_is_that_of_the_batch_in_hand(monkeypatch, device):
    gpu = Slow("copy")
    monkeypatch.setattr(backend, "load_cupy", lambda: gpu)
    loader = data.Loader(data.RelationClips("test", clips=6, frames=8, size=12), 2, shuffle=True, workers=1)
    places = [loader.state_dict()["batch"] for _ in ahead.batches(loader, device)]
    assert places == [1, 2, 3]
