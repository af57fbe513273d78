"""Training steps through the strict stand-in for CuPy: the same numbers as on the CPU, and resumable on either."""

import numpy as np

import minnl
import models
from minnl import data, optim
from minnl.training import Trainer
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
