"""The training loop: stopping changes no bit, what is saved and logged when, and evaluation by hand."""

import contextlib
import json
import os
import signal

import numpy as np
import pytest

import minnl
from minnl import Tensor, data, nn, optim
from minnl.training import Trainer, checkpoint, evaluate, loop, stopping

STEPS = 3  # batches an epoch: 10 clips by 4
EPOCHS = 3


class Clips:
    """Noise whose mean tells the class; every clip is drawn anew from the loader's generator."""

    classes = ("dark", "grey", "bright")
    shape = (3, 6, 6, 1)

    def __init__(self, count=10):
        self.count = count

    def __len__(self):
        return self.count

    def name(self, index):
        return f"clip {index}"

    def clip(self, index, rng):
        return rng.normal(size=self.shape).astype(np.float32) + np.float32(index % 3 - 1), index % 3


def network(dropout=0.3, channels=4):
    return nn.Sequential(
        conv=nn.Conv3d(1, channels, 3, padding=1, bias=False),
        norm=nn.BatchNorm3d(channels),
        relu=nn.ReLU(),
        block=nn.NonLocalBlock(channels),
        pool=nn.GlobalAvgPool3d(),
        dropout=nn.Dropout(dropout),
        classify=nn.Linear(channels, 3, std=0.1),
    )


def make(folder, seed=0, workers=0, epochs=EPOCHS, model=None, schedule=None, **options):
    minnl.manual_seed(seed)
    model = model or network()
    steps = STEPS * epochs
    return Trainer(
        model,
        optim.AdamW(model.parameters(), 0.01),
        schedule or optim.warm_up(optim.cosine_schedule(0.01, steps), 2),
        data.Loader(Clips(), 4, shuffle=True, seed=5, workers=workers),
        data.Loader(Clips(5), 4, seed=5, workers=workers),
        folder,
        {"recipe": "test"},
        epochs,
        **{"clip_norm": 1.0, "label_smoothing": 0.1} | options,
    )


@pytest.fixture(autouse=True)
def quick_looks(monkeypatch):
    monkeypatch.setattr(loop, "LOG_EVERY", 2)
    count = minnl.backend.threads()
    yield
    minnl.set_threads(count)


def log(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def without_times(records):
    return [{k: v for k, v in r.items() if k != "clips_per_second"} for r in records]


def goes_on_as_if_nothing_had_been(folder, whole):
    """Go on with what a kill left, and compare the end with that of the run in one piece."""
    trainer = make(folder, seed=99)
    trainer.resume(folder / "last.safetensors")
    assert trainer.fit(plain=True)
    for name in ("last", "best"):
        assert saved(folder, name) == saved(whole, name)
    assert without_times(log(folder)) == without_times(log(whole))


def saved(folder, name="last"):
    arrays, meta = checkpoint.load(folder / f"{name}.safetensors")
    meta["sums"].pop("seconds")
    meta.pop("versions")
    return {key: (a.tobytes(), a.dtype, a.shape) for key, a in arrays.items()}, meta


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The run that nobody stopped."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "LOG_EVERY", 2)
        assert make(folder).fit()
    return folder


@pytest.mark.parametrize(
    "stops, workers, threads",
    [
        ((1,), 0, 1),
        ((2,), 2, 2),  # in the middle of an epoch; with other workers and threads
        ((3,), 0, 1),  # after the last step of an epoch, before its evaluation
        ((4,), 3, 1),
        ((1, 2, 5), 1, 2),
        ((3, 6, 9), 0, 1),
        ((8,), 0, 2),
    ],
)
def test_stopping_changes_no_bit(whole, tmp_path, stops, workers, threads):
    folder = tmp_path / "run"
    assert not make(folder).fit(max_steps=stops[0])
    for stop in (*stops[1:], None):
        minnl.set_threads(threads)
        trainer = make(folder, seed=99, workers=workers)  # another start, which the checkpoint replaces
        trainer.resume(folder / "last.safetensors")
        assert trainer.fit(max_steps=stop) == (stop is None)
    for name in ("last", "best"):
        assert saved(folder, name) == saved(whole, name)
    mine, expected = without_times(log(folder)), without_times(log(whole))
    extra = {stop for stop in stops if stop % 2}  # a stop looks at the loss out of turn
    assert [r for r in mine if r["kind"] == "epoch" or r["step"] not in extra] == expected
    assert {r["step"] for r in mine if r["kind"] == "step"} == {2, 4, 6, 8} | extra


def test_the_whole_run_depends_on_its_seed(whole, tmp_path):
    assert make(tmp_path, seed=1).fit()
    assert saved(tmp_path)[0] != saved(whole)[0]


def test_resuming_a_complete_run_does_nothing(whole, tmp_path):
    trainer = make(tmp_path, seed=99)
    trainer.resume(whole / "last.safetensors")
    assert trainer.fit() and trainer.step == STEPS * EPOCHS
    assert os.listdir(tmp_path) == []


def test_a_limit_that_is_reached_already_takes_no_step(tmp_path):
    trainer = make(tmp_path)
    assert not trainer.fit(max_steps=2)
    assert not trainer.fit(max_steps=1) and trainer.step == 2
    assert not trainer.fit(max_steps=4) and trainer.step == 4


def test_a_trainer_that_stopped_goes_on_with_the_next_batch(whole, tmp_path):
    trainer = make(tmp_path)
    assert not trainer.fit(max_steps=2) and not trainer.fit(max_steps=4)
    assert trainer.fit()
    assert saved(tmp_path) == saved(whole)


def test_what_the_log_holds(whole):
    records = log(whole)
    epochs = [r for r in records if r["kind"] == "epoch"]
    assert [(r["epoch"], r["step"]) for r in epochs] == [(1, 3), (2, 6), (3, 9)]
    for r in epochs:
        assert set(r) == {
            "kind", "epoch", "step", "loss", "accuracy", "test_loss", "test_top1", "test_top5", "lr",
            "clips_per_second",
        }  # fmt: skip
        assert 0 <= r["test_top1"] <= r["test_top5"] == 1 and r["clips_per_second"] > 0
    steps = [r for r in records if r["kind"] == "step"]
    schedule = optim.warm_up(optim.cosine_schedule(0.01, 9), 2)
    assert [r["lr"] for r in steps] == [schedule(r["step"] - 1) for r in steps]


def test_the_epoch_line_is_the_mean_over_clips(tmp_path):
    """Without dropout, at learning rate 0 and without chance in the clips the loss can be computed afterwards."""
    trainer = make(tmp_path, epochs=1, model=network(dropout=0), schedule=lambda step: 0.0, label_smoothing=0.0)
    batches = list(data.Loader(Clips(), 4, shuffle=True, seed=5))
    assert trainer.fit()
    trainer.model.train()
    total, hits = 0.0, 0
    for x, labels in batches:
        logits = trainer.model(Tensor(x)).data.astype(np.float64)
        p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        total -= np.log(p[np.arange(len(labels)), labels]).sum()
        hits += (logits.argmax(axis=1) == labels).sum()
    record = next(r for r in log(tmp_path) if r["kind"] == "epoch")
    assert record["loss"] == pytest.approx(total / 10, rel=1e-5)
    assert record["accuracy"] == hits / 10


def test_best_and_last(tmp_path, monkeypatch):
    scores = iter([0.25, 0.5, 0.5, 0.25, 0.75])
    monkeypatch.setattr(loop, "evaluate", lambda *_: {"loss": 1.0, "top1": next(scores), "top5": 1.0, "clips": 5})

    def epochs_saved():
        return [saved(tmp_path, name)[1]["epoch"] for name in ("best", "last")]

    trainer = make(tmp_path, epochs=5)
    trainer.fit(max_steps=3 * STEPS + 1)
    assert trainer.best == 0.5
    assert epochs_saved() == [2, 3], "an equal score is not better"
    trainer = make(tmp_path, epochs=5)
    trainer.resume(tmp_path / "last.safetensors")
    assert trainer.best == 0.5
    trainer.fit(max_steps=4 * STEPS + 1)
    assert epochs_saved() == [2, 4], "a resumed run knows the best so far"
    assert trainer.fit() and trainer.best == 0.75
    assert epochs_saved() == [5, 5]


def test_killed_between_best_and_last_the_best_is_there(whole, tmp_path, monkeypatch):
    trainer, save = make(tmp_path), Trainer.save

    def killed(self, name):
        if name == "last" and self.epoch == 1:
            raise KeyboardInterrupt
        save(self, name)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "save", killed)
        with pytest.raises(KeyboardInterrupt):
            trainer.fit(plain=True)
    best = saved(tmp_path, "best")
    assert (best[1]["epoch"], saved(tmp_path)[1]["epoch"]) == (1, 0)
    assert len(log(tmp_path)) == 2, "a step and the epoch, which comes again"
    goes_on_as_if_nothing_had_been(tmp_path, whole)


def test_the_log_after_a_checkpoint_is_dropped(tmp_path):
    trainer = make(tmp_path)
    trainer.fit(max_steps=4)
    path = tmp_path / "log.jsonl"
    before = path.read_text()
    path.write_text(before + '{"kind": "step", "epoch": 1, "step": 6, "loss": 1}\n{"kind": "step", "epo')
    make(tmp_path).resume(tmp_path / "last.safetensors")
    assert path.read_text() == before
    assert sorted(os.listdir(tmp_path)) == ["best.safetensors", "last.safetensors", "log.jsonl"]


def test_a_loss_of_nan_stops_the_run_and_spares_the_checkpoint(tmp_path):
    trainer = make(tmp_path, schedule=lambda step: 0.01 if step < STEPS else 1e30)
    with np.errstate(all="ignore"), pytest.raises(FloatingPointError, match=r"the loss became nan by step \d.*--debug"):
        trainer.fit()
    arrays, meta = checkpoint.load(tmp_path / "last.safetensors")
    assert meta["step"] == STEPS and all(np.isfinite(a).all() for a in arrays.values())
    make(tmp_path).resume(tmp_path / "last.safetensors")


@pytest.mark.parametrize("number", stopping.SIGNALS)
def test_a_signal_stops_after_the_step_in_hand(whole, tmp_path, number, monkeypatch):
    before = signal.getsignal(number)
    trainer = make(tmp_path)
    add = trainer.accumulated_step.add

    def interrupted(x, labels):
        if trainer.step == 3:
            os.kill(os.getpid(), number)
        add(x, labels)

    monkeypatch.setattr(trainer.accumulated_step, "add", interrupted)
    assert not trainer.fit() and (trainer.step, trainer.stopped_by) == (4, number)
    assert signal.getsignal(number) is before
    trainer = make(tmp_path, seed=99)
    trainer.resume(tmp_path / "last.safetensors")
    assert trainer.fit()
    assert saved(tmp_path) == saved(whole)


def test_a_signal_during_an_evaluation_lets_it_end(tmp_path, monkeypatch):
    def interrupted(*arguments):
        os.kill(os.getpid(), signal.SIGINT)
        return evaluate(*arguments)

    monkeypatch.setattr(loop, "evaluate", interrupted)
    trainer = make(tmp_path)
    assert not trainer.fit()
    assert (trainer.step, trainer.epoch) == (STEPS, 1) and saved(tmp_path)[1]["epoch"] == 1


def test_a_second_signal_does_not_wait(tmp_path, monkeypatch):
    before, trainer = signal.getsignal(signal.SIGINT), make(tmp_path)

    def interrupted(x, labels):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(trainer.accumulated_step, "add", interrupted)
    with pytest.raises(KeyboardInterrupt):
        trainer.fit()
    assert signal.getsignal(signal.SIGINT) is before
    assert saved(tmp_path)[1]["step"] == 0, "the checkpoint from before the first step stands"


def test_a_checkpoint_of_another_network_changes_nothing(tmp_path):
    make(tmp_path / "other", model=network(channels=6)).fit(max_steps=1)
    trainer = make(tmp_path / "run")
    before = {k: a.tobytes() for k, a in trainer.model.state_dict().items()}
    with pytest.raises(ValueError) as caught:
        trainer.resume(tmp_path / "other" / "last.safetensors")
    message = str(caught.value)
    assert "does not fit Sequential, nothing was changed" in message
    assert "different: conv.weight is (3, 3, 3, 1, 4) float32, given (3, 3, 3, 1, 6) float32" in message
    assert message.count("different:") == len(before) - 1  # all but the classifier's bias
    assert {k: a.tobytes() for k, a in trainer.model.state_dict().items()} == before
    assert (trainer.step, trainer.optimizer.steps, trainer.optimizer.state_dict()["lr"]) == (0, 0, 0.01)


@contextlib.contextmanager
def files_no_larger_than(size):
    """Writing more to a file fails halfway, as on a disk that is full."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_disk_that_fills_leaves_the_old_checkpoint(tmp_path):
    trainer = make(tmp_path)
    trainer.fit(max_steps=2)
    files = sorted(os.listdir(tmp_path))
    with files_no_larger_than(2000), pytest.raises(ValueError, match="last.safetensors: not saved, what was there"):
        trainer.fit(max_steps=3)
    assert sorted(os.listdir(tmp_path)) == files, "half a file is left"
    assert saved(tmp_path)[1]["step"] == 2


class Preset(nn.Module):
    """Takes the logits from the clip itself."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(np.zeros(1, np.float32))

    def forward(self, x):
        assert not self.training
        return x.reshape(x.shape[0], x.shape[-1])


class Logits:
    def __init__(self, logits, labels):
        self.logits, self.labels, self.shape = logits.astype(np.float32), labels, (1, 1, 1, logits.shape[1])

    def __len__(self):
        return len(self.labels)

    def clip(self, index, rng):
        return self.logits[index].reshape(self.shape), int(self.labels[index])


@pytest.mark.parametrize("classes", [2, 5, 9])
def test_evaluation_by_hand(classes):
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(23, classes)), rng.integers(0, classes, 23)
    logits[:5] = np.round(logits[:5])  # ties: the lower class comes first
    loss, first, fifth = 0.0, 0, 0
    for row, label in zip(logits, labels, strict=True):
        ahead = sum(v > row[label] or (v == row[label] and k < label) for k, v in enumerate(row))
        loss += np.log(sum(np.exp(v - row[label]) for v in row))
        first, fifth = first + (ahead < 1), fifth + (ahead < 5)
    model = Preset()
    result = evaluate(model, data.Loader(Logits(logits, labels), 4))
    assert result == {
        "loss": pytest.approx(loss / 23, rel=1e-6), "top1": first / 23, "top5": fifth / 23, "clips": 23
    }  # fmt: skip
    assert model.training


def test_evaluation_learns_nothing():
    model = network()
    before = {k: a.tobytes() for k, a in model.state_dict().items()}
    loader = data.Loader(Clips(5), 2)
    assert evaluate(model, loader) == evaluate(model, loader)
    assert {k: a.tobytes() for k, a in model.state_dict().items()} == before


def test_the_epoch_is_told_in_a_plain_line(tmp_path, capsys):
    make(tmp_path, epochs=1).fit(plain=True)
    line = capsys.readouterr().out
    assert line.startswith("epoch 1/1: loss ") and "test top-1" in line and line.endswith("clips/s\n")


def test_attributes_that_are_set_after_the_trainer_was_made_count(tmp_path):
    trainer = make(tmp_path)
    trainer.clip_norm, trainer.label_smoothing, trainer.accumulate = 1e-30, 0.3, 2
    before = {k: a.copy() for k, a in trainer.model.state_dict().items() if "running" not in k}
    trainer.optimizer = optim.SGD(trainer.model.parameters(), 0.1)
    trainer.fit(plain=True)
    for name, array in before.items():
        np.testing.assert_allclose(trainer.model.state_dict()[name], array, rtol=0, atol=1e-12)
    assert trainer.optimizer.steps == trainer.step > 0
    assert (trainer.accumulated_step.size, trainer.accumulated_step.label_smoothing) == (2, 0.3)
