"""Training steps through the strict stand-in for CuPy: the same numbers as on the CPU, and resumable on either."""

import numpy as np
import pytest

import minnl
import models
from minnl import data, optim
from minnl.training import Trainer, loop
from tests import strict_cupy

STEPS = 3


def trainer(folder, device):
    minnl.manual_seed(0)
    model = models.build("nl_small", dropout=0.2).to(device)
    clips = data.RelationClips("train", clips=6 * STEPS, frames=8, size=12)
    train, test = data.Loader(clips, 6, shuffle=True), data.Loader(clips, 6)
    return Trainer(model, optim.AdamW(model.parameters(), 1e-3), lambda step: 1e-3, train, test, folder, {}, 2, 1.0)


def state(made):
    return {name: minnl.backend.to_host(array) for name, array in made.model.state_dict().items()}


def test_a_run_on_the_gpu_is_the_run_on_the_cpu(tmp_path):
    with minnl.use_kernels("textbook"):
        here = trainer(tmp_path / "cpu", "cpu")
        assert here.fit(plain=True)
        with strict_cupy.installed():
            there = trainer(tmp_path / "gpu", "gpu")
            assert not there.fit(STEPS + 1, plain=True)  # stopped in the second epoch
            resumed = trainer(tmp_path / "gpu", "cpu")
            resumed.resume(tmp_path / "gpu" / "last.safetensors")
            assert resumed.fit(plain=True)
            back = trainer(tmp_path / "back", "gpu")
            back.resume(tmp_path / "cpu" / "last.safetensors")
            assert {type(p.data) for p in back.model.parameters()} == {strict_cupy.ndarray}
            assert state(back).keys() == state(here).keys()
        wanted = state(here)
        for name, array in state(resumed).items():
            np.testing.assert_allclose(array, wanted[name], rtol=1e-4, atol=1e-6)


def test_on_the_second_gpu_the_first_does_nothing(tmp_path):
    with minnl.use_kernels("textbook"), strict_cupy.installed(gpus=2):
        made = trainer(tmp_path, "gpu:1")
        made.precise = 2
        assert not made.fit(2, plain=True)
        made = trainer(tmp_path, "gpu:1")
        made.precise = 2
        made.resume(tmp_path / "last.safetensors")
        assert made.fit(plain=True)
        assert strict_cupy.devices.used == {1}


def test_a_step_waits_for_nothing(tmp_path):
    """Up go the labels, and the clips if they are not there yet; the host learns nothing."""
    with minnl.use_kernels("textbook"), strict_cupy.installed():
        made = trainer(tmp_path, "gpu")
        step = made.accumulated_step
        x, labels = next(iter(made.train_loader))
        there = minnl.backend.to_device(x, made.device)
        for clips, copied in ((x, [(x.shape, "float32")]), (there, [])):
            strict_cupy.counts.reset()
            step.begin(0.01)
            step.add(clips, labels)
            step.update()
            assert strict_cupy.counts.to_device == [*copied, (labels.shape, "int64")]
            assert (strict_cupy.counts.synchronised, strict_cupy.counts.to_host) == (0, [])
        grads = [p.grad for p in made.model.parameters()]
        assert {(type(g), str(g.dtype)) for g in grads} == {(strict_cupy.ndarray, "float32")}
        assert sum(float((g * g).sum()) for g in grads) <= 1.0001, "clipped to a norm of 1"


def test_an_epoch_waits_for_its_looks(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "LOG_EVERY", 2)
    monkeypatch.setattr(Trainer, "_finish_epoch", lambda self, progress: setattr(self, "epoch", 2))
    monkeypatch.setattr(Trainer, "save", lambda self, name: None)  # a checkpoint is copied down, and is no step
    with minnl.use_kernels("textbook"), strict_cupy.installed():
        made = trainer(tmp_path, "gpu")
        strict_cupy.counts.reset()
        assert made.fit(plain=True) and made.step == STEPS
        counts = strict_cupy.counts
        assert counts.to_device == STEPS * [((6, 8, 12, 12, 1), "float32"), ((6,), "int64")]
        assert counts.to_host == [((2,), "float32"), ((12,), "int64"), ((1,), "float32"), ((6,), "int64")]
        assert counts.synchronised == len(counts.to_host)


@pytest.mark.parametrize("largest", [0.01, 10.0])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_clipping_does_not_wait(dtype, largest):
    host = [np.random.default_rng(i).normal(size=(3, i)).astype(dtype) for i in range(4)]
    params = [minnl.Tensor(np.zeros_like(g), requires_grad=True) for g in host]
    for p, g in zip(params, host, strict=True):
        p.grad = g
    norm = optim.clip_grad_norm(params, largest)
    with strict_cupy.installed() as cupy:
        there = [minnl.Tensor(np.zeros_like(g), requires_grad=True, device="gpu") for g in host]
        for p, g in zip(there, host, strict=True):
            p.grad = cupy.asarray(g)
        strict_cupy.counts.reset()
        found = optim.clip_grad_norm(there, largest)
        assert strict_cupy.counts.synchronised == 0 and not strict_cupy.counts.to_device
        assert (found.shape, str(found.dtype)) == ((), "float64") and float(found) == norm
        for p, q in zip(params, there, strict=True):
            assert q.grad.dtype == dtype
            np.testing.assert_array_equal(q.grad.get(), p.grad)


@pytest.mark.parametrize("value", [0.0, np.nan])
def test_clipping_no_gradient_or_nan_changes_nothing(value):
    with strict_cupy.installed() as cupy, np.errstate(all="ignore"):
        p = minnl.Tensor(np.zeros(3, np.float32), requires_grad=True, device="gpu")
        p.grad = cupy.asarray(np.array([value, 0, 0], np.float32))
        optim.clip_grad_norm([p], 1.0)
        np.testing.assert_array_equal(p.grad.get(), np.array([value, 0, 0], np.float32))
