"""Memory that runs out in training: what is saved is the state before the step that failed, and the message helps."""

import functools
import mmap
import sys
import weakref

import numpy as np
import pytest

import models
from minnl import backend, engine, nn, optim
from minnl.study import cost_summary
from minnl.training import accumulated_step, checkpoint, loop, meter, out_of_memory
from minnl.training.out_of_memory import Usage, report, usage
from tests.training.test_training import STEPS, Clips, make, saved

DONE = STEPS + 1  # steps that work: the first of the second epoch is the last


@pytest.fixture(autouse=True)
def a_look_then(monkeypatch):
    monkeypatch.setattr(loop, "LOG_EVERY", DONE)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """What a run that was told to stop there leaves, and what it leaves when it has gone on to its end."""
    folder = tmp_path_factory.mktemp("stopped")
    trainer = make(folder)
    assert not trainer.fit(max_steps=DONE, plain=True)
    there = saved(folder)
    assert trainer.fit(plain=True)
    return there, saved(folder)


def fails(patch, trainer, owner, name):
    """Have a function fail once, when DONE steps are done."""
    function, failed = getattr(owner, name), []

    @functools.wraps(function)
    def short(*arguments, **options):
        if trainer.step == DONE and not failed:
            failed.append(True)
            raise MemoryError("Unable to allocate 1.00 TiB.")
        return function(*arguments, **options)

    patch.setattr(owner, name, short)


PLACES = {
    "making a clip": (Clips, "clip", 0),
    "forward, after batch norm and dropout": (nn.Linear, "forward", 0),
    "with workers ahead": (nn.Linear, "forward", 2),
    "backward": (engine.Op, "gradients", 0),
    "clipping": (accumulated_step, "clip_grad_norm", 0),
    "the optimiser's arrays": (optim.Optimizer, "array", 0),
    "reading the losses": (meter.Meter, "read", 0),
}


@pytest.mark.slow
@pytest.mark.parametrize("place", PLACES)
def test_it_is_as_if_the_run_had_been_stopped(tmp_path, stopped, place):
    owner, name, workers = PLACES[place]
    trainer = make(tmp_path, workers=workers)
    with pytest.MonkeyPatch.context() as patch:
        fails(patch, trainer, owner, name)
        with pytest.raises(MemoryError) as caught:
            trainer.fit(plain=True)
    message = str(caught.value)
    assert f"out of memory after step {DONE} (Unable to allocate 1.00 TiB): batches of 4 clips of 3x6x6x1" in message
    assert f"last.safetensors holds the state after step {DONE}" in message
    assert saved(tmp_path) == stopped[0]
    again = make(tmp_path, seed=99)
    again.resume(tmp_path / "last.safetensors")
    assert again.fit(plain=True)
    assert saved(tmp_path) == stopped[1]


def test_the_same_trainer_may_go_on(tmp_path, stopped):
    trainer = make(tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        fails(patch, trainer, nn.Linear, "forward")
        with pytest.raises(MemoryError):
            trainer.fit(plain=True)
    assert trainer.fit(plain=True)
    assert saved(tmp_path) == stopped[1]


def test_memory_that_runs_out_in_an_evaluation(tmp_path):
    trainer = make(tmp_path / "run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "evaluate", lambda *_: np.empty(2**50, np.uint8))
        with pytest.raises(MemoryError, match=rf"after step {STEPS} \(Unable to allocate"):
            trainer.fit(plain=True)
    other = make(tmp_path / "other")
    other.fit(max_steps=STEPS, plain=True)
    assert saved(tmp_path / "run") == saved(tmp_path / "other")


def test_half_an_update_is_not_saved(tmp_path):
    trainer = make(tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        fails(patch, trainer, optim.AdamW, "update")
        with pytest.raises(MemoryError, match=r"In the middle of an update nothing can be saved; .*last.safetensors"):
            trainer.fit(plain=True)
    assert checkpoint.load(tmp_path / "last.safetensors")[1]["step"] == STEPS


def test_the_arrays_of_the_step_are_gone_before_anything_is_saved(tmp_path, monkeypatch):
    trainer, kept, alive = make(tmp_path), [], []

    def short(root, *arguments):
        kept.append(weakref.ref(root))
        raise MemoryError

    monkeypatch.setattr(engine, "backward", short)
    monkeypatch.setattr(out_of_memory, "release", lambda device: alive.extend(ref() for ref in kept))
    with pytest.raises(MemoryError, match="out of memory after step 0: batches"):
        trainer.fit(plain=True)
    assert alive == [None]


def test_a_network_without_a_bill(tmp_path, monkeypatch):
    def short(x):
        raise MemoryError("no memory")

    trainer = make(tmp_path)
    monkeypatch.setattr(trainer.model, "forward", short)
    with pytest.raises(MemoryError, match="there is no cost summary to say which: MemoryError.*last.safetensors holds"):
        trainer.fit(plain=True)


# The message.

CLIP = (16, 24, 24, 1)


@pytest.fixture(scope="module")
def model():
    return models.build("nl_small")


def said(model, free, batch=64, held=3e9, most=5e9, ahead=0):
    usages = Usage(held, most, 0), Usage(0, 0, free)
    return report(model, optim.AdamW(model.parameters()), (batch, *CLIP), ahead, *usages)


def test_what_was_held(model):
    text = said(model, 1e9)
    fixed = cost_summary.size(cost_summary.summarize(model, (64, *CLIP)).fixed)
    assert "batches of 64 clips of 16x24x24x1 are too large for cpu. Held were 3.0 GB, at most so far 5.0 GB. " in text
    assert f" {fixed} are parameters, gradients and the optimiser's arrays" in text


@pytest.mark.parametrize("ahead", [0, 2])
@pytest.mark.parametrize(("wanted", "parts"), [(1, 64), (7, 10), (20, 4)])
def test_a_batch_that_fits(model, wanted, parts, ahead):
    """With the summary's bytes of a batch free, beside the weights that are there already, and a fifth to spare."""
    weights = sum(array.nbytes for array in model.state_dict().values())
    peak = cost_summary.summarize(model, (wanted, *CLIP)).peak + wanted * ahead * 4 * np.prod(CLIP)
    free = peak / (1 - out_of_memory.SPARE) - weights
    text = said(model, free + 99, ahead=ahead)
    assert (
        f"By the cost summary {wanted} should fit: begin anew with --batch-size {wanted}, and {parts} times the" in text
    )
    assert f"By the cost summary {wanted} " not in said(model, free - 99, ahead=ahead)


def test_a_batch_smaller_than_the_one_that_failed(model):
    assert "--batch-size 32, and 2 times the --accumulate for steps of about as many clips." in said(model, 1e12)
    assert "Not one clip fits" in said(model, 1e12, batch=1)
    assert "Not one clip fits" in said(model, 0)


def test_where_the_system_does_not_tell(model):
    text = said(model, None, held=None, most=None)
    assert "Held were" not in text and "Try a smaller --batch-size." in text


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's /proc")
def test_what_this_process_holds():
    before = usage(backend.CPU)
    array = np.frombuffer(mmap.mmap(-1, 50_000_000), np.uint8)  # the C library may have as much at hand already
    array[:] = 1
    after = usage(backend.CPU)
    assert after.held - before.held == pytest.approx(array.nbytes, rel=0.2)
    assert after.most >= after.held and after.free > 0
