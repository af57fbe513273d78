"""What a run never loses, never saves, and is refused for before it costs anything."""

import contextlib
import json
import os
import pathlib
import shutil
import signal
import sys

import numpy as np
import pytest

from minnl import data, nn
from minnl.training import Trainer, checkpoint, loop
from minnl.training.accumulated_step import AccumulatedStep
from tests.training.test_training import (  # noqa: F401 (quick_looks is a fixture)
    EPOCHS,
    STEPS,
    Clips,
    goes_on_as_if_nothing_had_been,
    log,
    make,
    quick_looks,
    saved,
    without_times,
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The run that nobody stopped."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "LOG_EVERY", 2)
        assert make(folder).fit()
    return folder


class Killed(BaseException):
    """The process ends here."""


def killed(*_, **__):
    raise Killed


def test_a_kill_before_the_first_step_leaves_a_run(whole, tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(AccumulatedStep, "add", killed)
        make(tmp_path).fit()
    assert saved(tmp_path)[1]["step"] == 0
    goes_on_as_if_nothing_had_been(tmp_path, whole)


@pytest.mark.parametrize("step", range(1, STEPS * EPOCHS))
def test_with_a_checkpoint_each_step_no_step_is_lost(whole, tmp_path, monkeypatch, step):
    trainer = make(tmp_path, save_every=0)
    schedule = trainer.schedule
    trainer.schedule = lambda n: killed() if n == step else schedule(n)
    with pytest.raises(Killed):
        trainer.fit()
    assert saved(tmp_path)[1]["step"] == step
    goes_on_as_if_nothing_had_been(tmp_path, whole)


def test_a_checkpoint_comes_by_time(tmp_path, monkeypatch):
    """Four minutes a step, one checkpoint in ten: after steps 3 and 6 of an epoch of 8, however long it lasts."""
    now, taken = [0.0], []
    monkeypatch.setattr(loop.time, "monotonic", lambda: now[0])
    save = Trainer.save
    monkeypatch.setattr(Trainer, "save", lambda self, name: taken.append((name, self.step)) or save(self, name))
    trainer = make(tmp_path, epochs=1)
    trainer.train_loader = data.Loader(Clips(32), 4, shuffle=True, seed=5)
    add = trainer.accumulated_step.add

    def slow(x, labels):
        now[0] += 240
        add(x, labels)

    monkeypatch.setattr(trainer.accumulated_step, "add", slow)
    assert trainer.fit()
    assert taken == [("last", step) for step in (0, 3, 6, 8)] + [("best", 8), ("last", 8)]


def test_a_test_begins_after_the_last_checkpoint(whole, tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(loop, "evaluate", killed)
        make(tmp_path).fit()
    assert [saved(tmp_path)[1][key] for key in ("step", "epoch")] == [STEPS, 0]
    goes_on_as_if_nothing_had_been(tmp_path, whole)


def spoil(trainer, kind, step):
    """After a step give a number of some kind a NaN, such that no loss shows it."""
    schedule = trainer.schedule

    def spoiling(n):
        if n == step:
            array = {
                "model/classify.bias": lambda: trainer.model.classify.bias.data,
                "model/norm.running_var": lambda: trainer.model.norm.running_var,
                "optimizer/second.0": lambda: trainer.optimizer.kept["second"][0],
            }[kind]()
            update = trainer.optimizer.step

            def last():
                update()
                array[...] = np.inf if kind.startswith("optimizer") else np.nan

            trainer.optimizer.step = last
        return schedule(n)

    trainer.schedule = spoiling


@pytest.mark.parametrize("kind", ["model/classify.bias", "model/norm.running_var", "optimizer/second.0"])
@pytest.mark.parametrize("step", [STEPS, 2 * STEPS - 1])
def test_nothing_bad_replaces_something_good(tmp_path, kind, step):
    """At the end of an epoch, where no loss follows, and where a stop is asked for."""
    trainer = make(tmp_path)
    spoil(trainer, kind, step)
    with pytest.raises(FloatingPointError, match=f"{kind} holds NaN or infinities after step {step + 1}; the last"):
        trainer.fit(max_steps=step + 1)
    assert saved(tmp_path)[1]["step"] == STEPS and saved(tmp_path, "best")[1]["epoch"] == 1
    for name in ("last", "best"):
        arrays = checkpoint.load(tmp_path / f"{name}.safetensors")[0]
        assert all(np.isfinite(array).all() for array in arrays.values())


def test_weights_that_blow_up_in_the_last_step_of_an_epoch(tmp_path):
    trainer = make(tmp_path, schedule=lambda step: 1e38 if step == STEPS - 1 else 0.01)
    with np.errstate(all="ignore"), pytest.raises(FloatingPointError, match=f"NaN or infinities after step {STEPS}"):
        trainer.fit()
    arrays, meta = checkpoint.load(tmp_path / "last.safetensors")
    assert meta["step"] == 0 and all(np.isfinite(array).all() for array in arrays.values())
    assert not (tmp_path / "best.safetensors").exists()


def test_a_test_whose_loss_is_nan_is_no_best(tmp_path, monkeypatch):
    results = iter([{"loss": 1.0, "top1": 0.5, "top5": 1.0}, {"loss": float("nan"), "top1": 1.0, "top5": 1.0}])
    monkeypatch.setattr(loop, "evaluate", lambda *_: next(results))
    trainer = make(tmp_path)
    with pytest.raises(FloatingPointError, match=f"the test loss became nan after step {2 * STEPS}; the last"):
        trainer.fit()
    assert saved(tmp_path, "best")[1]["epoch"] == 1 and saved(tmp_path)[1]["step"] == 2 * STEPS
    assert len([r for r in log(tmp_path) if r["kind"] == "epoch"]) == 1 and "NaN" not in json.dumps(log(tmp_path))


def test_a_checkpoint_that_holds_nan_is_not_gone_on_with(whole, tmp_path):
    arrays, meta = checkpoint.load(whole / "last.safetensors")
    arrays["model/norm.weight"][1] = np.nan
    checkpoint.save(tmp_path / "last.safetensors", arrays, meta)
    trainer = make(tmp_path, seed=99)
    with pytest.raises(ValueError, match="last.safetensors: model/norm.weight holds NaN or infinities; go on from"):
        trainer.resume(tmp_path / "last.safetensors")
    assert trainer.step == 0 and np.isfinite(trainer.model.norm.weight.data).all()


@pytest.mark.parametrize("rate", [float("inf"), float("nan"), -1.0])
def test_a_schedule_that_goes_wrong_is_named(tmp_path, rate):
    trainer = make(tmp_path, schedule=lambda step: rate if step == 1 else 0.01)
    with pytest.raises(ValueError, match=r"Trainer: schedule\(1\) must be .*, got (inf|nan|-1.0)"):
        trainer.fit()


@pytest.mark.parametrize(
    "value, message",
    [
        ((1, 2), r"config\['x'\] is of type tuple"),
        (pathlib.Path("a"), r"config\['x'\] is of type PosixPath|WindowsPath"),
        (np.float32(1), r"config\['x'\] is of type float32"),
        ([{"y": {1: 2}}], r"config\['x'\]\[0\]\['y'\] has the key 1"),
        (float("nan"), r"config\['x'\] is nan, which is not JSON"),
    ],
)
def test_a_config_that_could_not_be_saved_is_refused_at_once(tmp_path, value, message):
    made = make(tmp_path)
    rest = made.model, made.optimizer, made.schedule, made.train_loader, made.test_loader, tmp_path
    with pytest.raises((TypeError, ValueError), match=f"Trainer: {message}"):
        Trainer(*rest, {"x": value}, 1)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"clip_norm": 0}, "clip_norm must be above 0, got 0.0"),
        ({"clip_norm": float("inf")}, "clip_norm must be finite"),
        ({"save_every": -1}, "save_every must be 0 or more"),
        ({"label_smoothing": 2}, "label_smoothing must be from 0 to 1"),
        ({"epochs": 0, "schedule": lambda step: 0.01}, "epochs must be 1 or more"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(tmp_path, options, message):
    with pytest.raises(ValueError, match=f"Trainer: {message}"):
        make(tmp_path, **options)
    with pytest.raises(ValueError, match="fit: max_steps must be 1 or more, got 0"):
        make(tmp_path).fit(max_steps=0)


def test_a_folder_with_a_run_is_no_place_for_another(whole, tmp_path):
    before = saved(whole), log(whole)
    with pytest.raises(ValueError, match=r"Trainer: .* holds a run already; resume\('.*last.safetensors'\) goes on"):
        make(whole).fit()
    assert not make(tmp_path).fit(max_steps=1)
    with pytest.raises(ValueError, match="resume: .* holds a run already, and .*last.safetensors is not in it"):
        make(tmp_path).resume(whole / "last.safetensors")
    assert (saved(whole), log(whole)) == before


def test_a_copy_of_last_alone_goes_on(whole, tmp_path):
    assert not make(tmp_path / "run").fit(max_steps=2 * STEPS + 1)
    (tmp_path / "copy").mkdir()
    shutil.copy(tmp_path / "run/last.safetensors", tmp_path / "copy/last.safetensors")
    trainer = make(tmp_path / "copy", seed=99)
    trainer.resume(tmp_path / "copy/last.safetensors")
    assert trainer.best == -1, "of its best nothing is there"
    assert trainer.fit()
    assert saved(tmp_path / "copy")[0] == saved(whole)[0] == saved(tmp_path / "copy", "best")[0]
    (epoch,) = (r for r in log(tmp_path / "copy") if r["kind"] == "epoch")
    assert epoch == log(whole)[-1] | {"clips_per_second": epoch["clips_per_second"]}


def test_a_second_training_in_the_folder_is_refused(tmp_path):
    trainer, seen = make(tmp_path), []
    add = trainer.accumulated_step.add

    def step(x, labels):
        for act in (lambda t: t.fit(), lambda t: t.resume(tmp_path / "last.safetensors")):
            with pytest.raises(ValueError, match="another process trains there"):
                act(make(tmp_path))
            seen.append(act)
        add(x, labels)

    trainer.accumulated_step.add = step
    assert not trainer.fit(max_steps=1) and len(seen) == 2


class Other(Clips):
    def __init__(self, count=5, shape=Clips.shape, classes=Clips.classes):
        super().__init__(count)
        self.shape, self.classes = shape, classes


def with_data(folder, train=None, test=None, model=None, batch_size=4, drop_last=False):
    made = make(folder, model=model)
    loaders = data.Loader(train or Clips(), batch_size, shuffle=True, seed=5, drop_last=drop_last), data.Loader(test, 4)
    return Trainer(made.model, made.optimizer, made.schedule, *loaders, folder, {}, 1)


def test_a_test_set_that_does_not_fit_is_refused_before_the_first_step(tmp_path):
    with pytest.raises(ValueError, match=r"clips of the test set have the shape \(3, 6, 6, 3\) .*conv3d"):
        with_data(tmp_path, test=Other(shape=(3, 6, 6, 3)))
    with pytest.raises(ValueError, match=r"training has the classes \['dark', .* the test set has \['a', 'b', 'c'\]"):
        with_data(tmp_path, test=Other(classes=("a", "b", "c")))
    assert os.listdir(tmp_path) == []
    assert with_data(tmp_path, test=Other(shape=(4, 8, 7, 1))).fit(), "another size that the network takes"


def test_a_last_batch_that_batch_norm_refuses(tmp_path):
    def small():
        return nn.Sequential(pool=nn.GlobalAvgPool3d(), classify=nn.Linear(1, 3))

    class Normed(nn.Module):
        """Batch norm on maps of one value."""

        def __init__(self):
            super().__init__()
            self.conv, self.norm, self.rest = nn.Conv3d(1, 1, (3, 6, 6)), nn.BatchNorm3d(1), small()

        def forward(self, x):
            return self.rest(self.norm(self.conv(x)))

    with pytest.raises(ValueError, match="last batch of an epoch is a single one of 9 clips: batch_norm.*--drop-last"):
        with_data(tmp_path, Clips(9), Clips(5), Normed())
    with_data(tmp_path, Clips(10), Clips(5), Normed())
    with_data(tmp_path, Clips(9), Clips(5))  # whose maps have more values
    trainer = with_data(tmp_path, Clips(9), Clips(5), Normed(), drop_last=True)
    assert trainer.fit() and trainer.step == 2


def test_a_hangup_that_is_ignored_stays_so(tmp_path):
    hangup = getattr(signal, "SIGHUP", None)
    if hangup is None:
        pytest.skip("needs SIGHUP")
    before, trainer = signal.signal(hangup, signal.SIG_IGN), make(tmp_path)
    try:
        trainer.schedule = lambda step: os.kill(os.getpid(), hangup) or 0.01
        assert trainer.fit() and trainer.stopped_by is None
    finally:
        signal.signal(hangup, before)


def test_a_system_that_asks_twice_is_not_impatient(tmp_path):
    trainer = make(tmp_path)
    trainer.schedule = lambda step: [os.kill(os.getpid(), signal.SIGTERM) for _ in range(3)] and 0.01
    assert not trainer.fit() and (trainer.step, trainer.stopped_by) == (1, signal.SIGTERM)
    assert saved(tmp_path)[1]["step"] == 1


def test_a_training_goes_on_when_nobody_reads_what_it_says(tmp_path, monkeypatch):
    read, write = os.pipe()
    os.close(read)
    monkeypatch.setattr("sys.stdout", os.fdopen(write, "w"))
    monkeypatch.setattr("sys.stderr", None)
    broken = sys.stdout
    assert make(tmp_path).fit()
    assert sys.stdout is not broken
    sys.stdout.close()
    with contextlib.suppress(BrokenPipeError):
        broken.close()
