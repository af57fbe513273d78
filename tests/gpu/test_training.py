"""Training on a real CuPy: it follows NumPy's run, stops and goes on across devices, waits for nothing but the log."""

import contextlib
import gc
import json
import re

import numpy as np
import pytest

import minnl
import models
import train
from minnl import backend, data, dispatch, optim
from minnl.kernels.conv3d import cuda_im2col
from minnl.training import Trainer, checkpoint, loop
from tests.gpu.device import GPU  # noqa: F401 (skips all of this where there is none)
from tests.gpu.watch import watched

CUPY = backend.load_cupy()
CLIPS = {"frames": 8, "size": 12}


def trainer(folder, device, steps=10, batch=4, dropout=0.2, **options):
    """A run of the small network: two epochs of so many steps."""
    minnl.manual_seed(0)
    model = models.build("nl_small", dropout=dropout).to(device)
    train_set, test_set = (data.RelationClips(s, clips=n, **CLIPS) for s, n in (("train", steps * batch), ("test", 6)))
    loaders = data.Loader(train_set, batch, shuffle=True, workers=1), data.Loader(test_set, batch)
    schedule = optim.warm_up(optim.cosine_schedule(1e-3, 2 * steps), 5)
    return Trainer(
        model, optim.AdamW(model.parameters(), 1e-3), schedule, *loaders, folder, {}, 2, clip_norm=0.5, **options
    )


@pytest.fixture(autouse=True)
def every_loss(monkeypatch):
    monkeypatch.setattr(loop, "LOG_EVERY", 1)


def losses(folder):
    records = map(json.loads, (folder / "log.jsonl").read_text().splitlines())
    return [r["loss"] for r in records if r["kind"] == "step"]


def weights(folder):
    return checkpoint.load(folder / "last.safetensors")[0]


def assert_close(folder, other, tolerance):
    got, expected = weights(folder), weights(other)
    assert got.keys() == expected.keys()
    for name in expected:
        np.testing.assert_allclose(got[name], expected[name], rtol=0, atol=tolerance, err_msg=name)


@pytest.fixture(scope="module")
def on_the_cpu(tmp_path_factory):
    """20 steps by NumPy, the textbook."""
    folder = tmp_path_factory.mktemp("cpu")
    with pytest.MonkeyPatch.context() as patch, minnl.use_kernels("textbook"):
        patch.setattr(loop, "LOG_EVERY", 1)
        assert trainer(folder, "cpu").fit(plain=True)
    return folder


@pytest.mark.parametrize("mode", dispatch.MODES)
def test_twenty_steps_follow_numpy(on_the_cpu, tmp_path, mode):
    with minnl.use_kernels(mode):
        assert trainer(tmp_path, "gpu").fit(plain=True)
    assert len(losses(tmp_path)) == 20
    np.testing.assert_allclose(losses(tmp_path), losses(on_the_cpu), rtol=0, atol=1e-4)
    assert_close(tmp_path, on_the_cpu, 1e-4)


@pytest.mark.parametrize(("begins", "goes_on"), [("cpu", "gpu"), ("gpu", "cpu")])
def test_a_run_goes_on_on_the_other_device(on_the_cpu, tmp_path, begins, goes_on):
    assert not trainer(tmp_path, begins).fit(max_steps=7, plain=True)
    resumed = trainer(tmp_path, goes_on)
    resumed.resume(tmp_path / "last.safetensors")
    assert {str(p.device)[:3] for p in resumed.model.parameters()} == {goes_on}
    assert resumed.fit(plain=True)
    np.testing.assert_allclose(losses(tmp_path), losses(on_the_cpu), rtol=0, atol=1e-4)
    assert_close(tmp_path, on_the_cpu, 1e-4)


def test_stopping_on_a_gpu_changes_no_bit(tmp_path):
    assert trainer(tmp_path / "whole", "gpu", steps=3).fit(plain=True)
    assert not trainer(tmp_path / "stopped", "gpu", steps=3).fit(max_steps=2, plain=True)
    resumed = trainer(tmp_path / "stopped", "gpu", steps=3)
    resumed.resume(tmp_path / "stopped" / "last.safetensors")
    assert resumed.fit(plain=True)
    assert_close(tmp_path / "stopped", tmp_path / "whole", 0)


@pytest.mark.parametrize("mode", dispatch.MODES)
def test_what_crosses_the_bus_in_training(tmp_path, monkeypatch, mode):
    """Up go the clips and labels of each step, down the losses and answers of each look; nothing else waits."""
    monkeypatch.setattr(loop, "LOG_EVERY", 3)
    monkeypatch.setattr(Trainer, "_finish_epoch", lambda self, progress: setattr(self, "epoch", 2))
    monkeypatch.setattr(Trainer, "save", lambda self, name: None)  # a checkpoint is copied down, and is no step
    made = trainer(tmp_path, "gpu", steps=6)
    with minnl.use_kernels(mode):
        step = trainer(tmp_path, "gpu").accumulated_step
        step.begin(0.01)
        step.add(*next(iter(made.train_loader)))
        step.update()  # kernels keep tables of their own from now on
        with watched(CUPY) as watch:
            assert made.fit(plain=True)
    x, labels = ((4, 8, 12, 12, 1), "float32"), ((4,), "int64")
    assert watch.to_device == 6 * [x, labels]
    assert watch.to_host == 2 * [((3,), "float32"), ((12,), "int64")]
    copies = [name for name in watch.waited if name == "Event.synchronize"]
    assert len(watch.waited) - len(copies) <= len(watch.to_host)
    assert len(copies) <= 6  # of the batch before the last, if it is still on its way (data/ahead.py)
    assert watch.mixed == []


@pytest.mark.parametrize(
    ("act", "seen"),
    [
        (lambda a: float(a.sum()), "to_host"),
        (lambda a: 1 if a[0] else 0, "to_host"),
        (lambda a: a.get(), "to_host"),
        (lambda a: CUPY.asnumpy(a), "to_host"),
        (lambda a: CUPY.asarray(np.ones(3)), "to_device"),
        (lambda a: a.set(np.ones(3)), "to_device"),
        (lambda a: a[np.array([0, 1])], "mixed"),
        (lambda a: CUPY.multiply(a, b=np.ones(3)), "mixed"),
        (lambda a: CUPY.maximum(a, np.ones(3)), "mixed"),
        (lambda a: a + np.ones(3), "mixed"),
        (lambda a: CUPY.cuda.get_current_stream().synchronize(), "waited"),
        (lambda a: CUPY.cuda.runtime.deviceSynchronize(), "waited"),
    ],
)
def test_the_watch_sees(act, seen):
    with watched(CUPY) as watch:
        a = CUPY.ones(3)
        assert not any((watch.to_host, watch.to_device, watch.waited, watch.mixed))
        with contextlib.suppress(TypeError):  # CuPy refuses most mixtures itself
            act(a)
    assert getattr(watch, seen)


@pytest.fixture
def limited(monkeypatch):
    """Says how many bytes beyond those in use the pool may hold: a pool of the test's own, without others' gaps."""
    pool, before = CUPY.cuda.MemoryPool(), CUPY.cuda.get_allocator()
    CUPY.cuda.set_allocator(pool.malloc)
    monkeypatch.setattr(CUPY, "get_default_memory_pool", lambda: pool)

    def limit(more):
        gc.collect()
        pool.free_all_blocks()
        pool.set_limit(pool.used_bytes() + more)

    yield limit
    CUPY.cuda.set_allocator(before)


def test_out_of_memory_in_the_middle_of_a_run(tmp_path, limited):
    """A step that has not enough memory leaves what a stop before it leaves, bit for bit."""
    short = trainer(tmp_path / "short", "gpu", steps=3)
    rate = short.schedule

    def rate_of_a_full_gpu(step):
        if step == 4:
            limited(600_000)
        return rate(step)

    short.schedule = rate_of_a_full_gpu
    with pytest.raises(MemoryError, match=r"after step 4 \(Out of memory allocating [\d,]+ bytes") as caught:
        short.fit(plain=True)
    CUPY.get_default_memory_pool().set_limit(0)
    assert "batches of 4 clips of 8x12x12x1 are too large for gpu:0. Held were " in str(caught.value)
    assert not trainer(tmp_path / "stopped", "gpu", steps=3).fit(max_steps=4, plain=True)
    assert_close(tmp_path / "short", tmp_path / "stopped", 0)
    states = [checkpoint.load(tmp_path / name / "last.safetensors")[1] for name in ("short", "stopped")]
    for state in states:
        state["sums"].pop("seconds")
    assert states[0] == states[1]


def test_the_batch_that_should_fit_does(tmp_path, limited, monkeypatch):
    monkeypatch.setattr(cuda_im2col, "SLICE", 2**16)  # beside 8 MB what the real one is beside 8 GB

    def fit(batch):
        limited(8_000_000)
        trainer(tmp_path / str(batch), "gpu", steps=2, batch=batch).fit(max_steps=3, plain=True)

    with pytest.raises(MemoryError, match=r"By the cost summary \d+ should fit") as caught:
        fit(96)
    batch = int(re.search(r"--batch-size (\d+)", str(caught.value))[1])
    assert batch >= 8
    fit(batch)


def test_every_command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    threads = backend.threads()
    numbers = {"clips": 8, "frames": 8, "size": 12, "batch-size": 4, "epochs": 1}
    options = [*(f"--{name}={number}" for name, number in numbers.items()), "--name=run", "--device=gpu"]
    assert train.main([*options, "--plan"]) == 0
    assert "largest batch for" in capsys.readouterr().out
    assert train.main([*options, "--max-steps", "1"]) == 0
    assert train.main(["--resume", "runs/run", "--device", "gpu"]) == 0
    assert (tmp_path / "runs/run/attention.png").exists()
    capsys.readouterr()
    answers = []
    for device in ("gpu", "cpu"):
        assert train.main(["--evaluate", "runs/run", "--device", device, "--batch-size", "100"]) == 0
        answers.append(capsys.readouterr().out)
    assert answers[0] == answers[1]
    minnl.set_threads(threads)
