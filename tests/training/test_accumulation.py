"""Steps of several batches: the gradient of all their clips together, and stopping still changes no bit."""

import os
import signal

import numpy as np
import pytest

import minnl
from minnl import Tensor, data, nn, optim
from minnl import functional as F
from minnl.training import Trainer, checkpoint, loop
from minnl.training.precise import precise_batch_norm
from tests import strict_cupy
from tests.training.test_training import Clips, log, network, saved, without_times


def plain(dropout=0.0):
    """A network whose clips know nothing of each other."""
    return nn.Sequential(
        conv=nn.Conv3d(1, 4, 3, padding=1),
        relu=nn.ReLU(),
        block=nn.NonLocalBlock(4, norm=None),
        pool=nn.GlobalAvgPool3d(),
        dropout=nn.Dropout(dropout),
        classify=nn.Linear(4, 3, std=0.1),
    )


def make(folder, model=None, batch_size=2, accumulate=2, epochs=2, clips=None, schedule=None, seed=0, **options):
    """9 clips by 2, two batches a step: steps of 4, 4 and 1 clips."""
    minnl.manual_seed(seed)
    model = model or network()
    return Trainer(
        model,
        optim.SGD(model.parameters(), 0.05, momentum=0.9, nesterov=True, weight_decay=1e-4),
        schedule or optim.step_schedule(0.05, [3]),
        data.Loader(clips or Clips(9), batch_size, shuffle=True, seed=5),
        data.Loader(Clips(5), 4, seed=5),
        folder,
        {"recipe": "test"},
        epochs,
        **{"label_smoothing": 0.1, "accumulate": accumulate} | options,
    )


@pytest.mark.parametrize("batch_size, accumulate", [(3, 3), (2, 5), (4, 3), (1, 9), (4, 7)])
def test_the_gradient_is_that_of_the_whole_batch(tmp_path, batch_size, accumulate):
    """Whether the last part is as large as the others, or smaller, or there are fewer of them than asked for."""
    found = []
    for sizes in ((9, 1), (batch_size, accumulate)):
        minnl.manual_seed(0)
        trainer = make(tmp_path, plain().to(dtype=np.float64), *sizes, epochs=1, schedule=lambda step: 0.0)
        trainer.model.block.W_z.weight.data += 1.0  # it starts at 0, and would hide the rest of the block
        step, meter = trainer.accumulated_step, trainer.meter
        step.begin(0.0)
        meter.start_clock()
        for i, (x, labels) in enumerate(trainer.train_loader):
            assert not step.full, f"a step of {accumulate} batches is complete before batch {i}"
            step.add(x.astype(np.float64), labels)
        meter.add(step.update())
        assert (step.batches, trainer.optimizer.steps) == ([], 1)
        meter.read(1)
        found.append([p.grad for p in trainer.model.parameters()] + [meter.last_loss, meter.sums["correct"]])
        assert meter.sums["loss"] == pytest.approx(meter.last_loss * 9)
    for whole, parts in zip(*found, strict=True):
        np.testing.assert_allclose(parts, whole, rtol=1e-9, atol=1e-12)
    assert np.abs(found[0][0]).max() > 1e-3


def test_one_batch_a_step_is_the_plain_step(tmp_path):
    trainer = make(tmp_path, batch_size=4, accumulate=1)
    minnl.manual_seed(0)
    model = network().train()
    optimizer = optim.SGD(model.parameters(), 0.05, momentum=0.9, nesterov=True, weight_decay=1e-4)
    batches = list(data.Loader(Clips(9), 4, shuffle=True, seed=5))
    minnl.manual_seed(3)
    for x, labels in batches:
        optimizer.zero_grad()
        F.cross_entropy(model(Tensor(x)), labels, label_smoothing=0.1).backward()
        optimizer.step()
    minnl.manual_seed(3)
    trainer.fit(max_steps=3)
    mine, expected = trainer.model.state_dict(), model.state_dict()
    assert {k: a.tobytes() for k, a in mine.items()} == {k: a.tobytes() for k, a in expected.items()}


def test_an_epoch_has_a_step_for_what_is_left(tmp_path):
    steps = []
    trainer = make(tmp_path, schedule=lambda step: steps.append(step) or 0.01)
    assert trainer.fit()
    assert steps == [0, 1, 2, 3, 4, 5] and trainer.optimizer.steps == trainer.step == 6
    assert [r["step"] for r in log(tmp_path) if r["kind"] == "epoch"] == [3, 6]
    assert loop.steps_per_epoch(trainer.train_loader, 2) == 3


class Broken(Clips):
    """The last two clips cannot be used."""

    def clip(self, index, rng):
        if index >= self.count - 2:
            raise ValueError("broken")
        return super().clip(index, rng)


@pytest.mark.filterwarnings("ignore:Loader. left out")
@pytest.mark.parametrize("stop", [1, 2, 3])
def test_a_last_batch_without_any_clip_leaves_a_step_of_the_others(tmp_path, stop):
    """7 clips of 9, one a batch, three batches a step: 3, 3 and 1, wherever the broken ones are."""
    options = {"batch_size": 1, "accumulate": 3, "epochs": 1}
    trainer = make(tmp_path / "whole", clips=Broken(9), **options)
    assert trainer.fit() and trainer.step == 3
    assert not make(tmp_path / "run", clips=Broken(9), **options).fit(max_steps=stop)
    trainer = make(tmp_path / "run", clips=Broken(9), seed=99, **options)
    trainer.resume(tmp_path / "run" / "last.safetensors")
    assert trainer.fit() and saved(tmp_path / "run") == saved(tmp_path / "whole")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The run that nobody stopped, with precise batch norm."""
    folder = tmp_path_factory.mktemp("whole")
    assert make(folder, precise=2).fit()
    return folder


@pytest.mark.parametrize("stops", [(1,), (2,), (3,), (4,), (1, 2, 3, 5), (6,)])
def test_stopping_changes_no_bit(whole, tmp_path, stops):
    folder = tmp_path / "run"
    for stop in (*stops, None):
        trainer = make(folder, precise=2, seed=99 if folder.exists() else 0)
        if folder.exists():
            trainer.resume(folder / "last.safetensors")
        assert trainer.fit(max_steps=stop) == (stop is None)
    for name in ("last", "best"):
        assert saved(folder, name) == saved(whole, name)
    epochs = [[r for r in without_times(log(f)) if r["kind"] == "epoch"] for f in (folder, whole)]
    assert epochs[0] == epochs[1]


@pytest.mark.parametrize("part", [0, 1, 4])
def test_a_signal_waits_for_the_end_of_the_step(whole, tmp_path, part, monkeypatch):
    trainer, count = make(tmp_path, precise=2), []
    add = trainer.accumulated_step.add

    def interrupted(x, labels):
        if len(count) == part:
            os.kill(os.getpid(), signal.SIGINT)
        count.append(1)
        add(x, labels)

    monkeypatch.setattr(trainer.accumulated_step, "add", interrupted)
    assert not trainer.fit() and trainer.step == part // 2 + 1
    trainer = make(tmp_path, precise=2, seed=99)
    trainer.resume(tmp_path / "last.safetensors")
    assert trainer.fit() and saved(tmp_path) == saved(whole)


@pytest.mark.parametrize("batch", [1, 2, 3, 4])
def test_out_of_memory_within_a_step_goes_back_to_its_beginning(whole, tmp_path, batch, monkeypatch):
    trainer, count = make(tmp_path, precise=2), []
    forward = trainer.model.forward

    def full(x):
        count.append(1)
        if len(count) == batch + 1:
            raise MemoryError("no room")
        return forward(x)

    monkeypatch.setattr(trainer.model, "forward", full, raising=False)
    with pytest.raises(MemoryError, match=f"after step {batch // 2}"):
        trainer.fit()
    assert checkpoint.load(tmp_path / "last.safetensors")[1]["step"] == batch // 2
    trainer = make(tmp_path, precise=2, seed=99)
    trainer.resume(tmp_path / "last.safetensors")
    assert trainer.fit() and saved(tmp_path) == saved(whole)


@pytest.mark.parametrize("step", range(1, 7))
def test_a_kill_after_a_checkpoint_changes_no_bit(whole, tmp_path, step):
    """With a checkpoint after each step; after the last one of an epoch the kill comes in its evaluation."""
    trainer = make(tmp_path, precise=2, save_every=0)

    def until(function):
        def act(*arguments):
            if trainer.step == step:
                raise SystemExit
            return function(*arguments)

        return act

    trainer.schedule = until(trainer.schedule)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(loop, "evaluate", until(loop.evaluate))
        trainer.fit()
    meta = saved(tmp_path)[1]
    assert (meta["step"], meta["epoch"]) == (step, (step - 1) // 3)
    trainer = make(tmp_path, precise=2, seed=99)
    trainer.resume(tmp_path / "last.safetensors")
    assert trainer.fit()
    for name in ("last", "best"):
        assert saved(tmp_path, name) == saved(whole, name)


@pytest.mark.parametrize("precise", [2, 100])
def test_an_evaluation_comes_after_precise_batch_norm(tmp_path, precise):
    """Over clips of the epoch to come, at most all of them; what was learned is the same as without."""
    trainer = make(tmp_path / "a", epochs=1, precise=precise)
    assert trainer.fit()
    bare = make(tmp_path / "b", epochs=1)
    assert bare.fit()
    loader = data.Loader(Clips(9), 2, shuffle=True, seed=5)
    loader.set_epoch(1)
    precise_batch_norm(bare.model, [x for x, _ in loader][:precise])
    arrays = [checkpoint.load(tmp_path / "a" / f"{name}.safetensors")[0] for name in ("last", "best")]
    for name, array in bare.model.state_dict().items():
        for found in arrays:
            np.testing.assert_array_equal(found[f"model/{name}"], array)
    assert trainer.train_loader.state_dict() == bare.train_loader.state_dict()


@pytest.mark.parametrize(
    "options, message", [({"accumulate": 0}, "accumulate must be 1"), ({"precise": -1}, "precise must be 0")]
)
def test_wrong_numbers_are_refused(tmp_path, options, message):
    with pytest.raises(ValueError, match=f"Trainer: {message}"):
        make(tmp_path, **options)


def test_on_a_gpu_it_is_the_same(tmp_path):
    with minnl.use_kernels("textbook"), strict_cupy.installed():
        for device in ("cpu", "gpu"):
            minnl.manual_seed(0)
            assert make(tmp_path / device, network().to(device), precise=2).fit()
    here, there = (checkpoint.load(tmp_path / device / "last.safetensors")[0] for device in ("cpu", "gpu"))
    for name, array in here.items():
        np.testing.assert_allclose(there[name], array, rtol=1e-4, atol=1e-6, err_msg=name)
