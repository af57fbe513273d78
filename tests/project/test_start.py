"""How little is loaded before there is work: `import minnl` brings hardly more than NumPy. No clock is looked at."""

import os
import subprocess
import sys

import pytest

# Each takes from a few to hundreds of milliseconds to load, and is needed only by some who use minnl.
LATER = {
    "av", "concurrent.futures", "cupy", "email", "importlib.metadata", "matplotlib", "safetensors", "threadpoolctl",
    "torch", "tqdm",
}  # fmt: skip


def loaded(statement):
    """Names of all modules that are there after a statement, in a process of its own."""
    code = f"{statement}\nimport sys\nprint(*sys.modules, sep='\\n')"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.fixture(scope="module")
def numpy():
    return loaded("import numpy, dataclasses, pathlib")  # these two pip's editable installs bring with Python's start


def test_import_brings_little_beyond_numpy(numpy):
    brought = loaded("import minnl") - numpy
    assert not brought & LATER
    others = {name for name in brought if name.partition(".")[0] != "minnl"}
    assert len(others) <= 12, sorted(others)
    assert "numpy.random" not in others, "made when chance is first asked for"


def test_a_network_can_be_built_and_trained_without_what_comes_later(numpy):
    """runtime/threads.py loads its pool of threads with the first work that is large enough, and nothing else."""
    step = """
import minnl, models
from minnl import functional as F, optim
import numpy as np
model = models.build("nl_small")
optimizer = optim.AdamW(model.parameters())
F.cross_entropy(model(minnl.Tensor(np.ones((2, 8, 16, 16, 1), np.float32))), [0, 1]).backward()
optimizer.step()
"""
    assert not (loaded(step) - numpy) & (LATER - {"concurrent.futures", "threadpoolctl"})


def test_train_starts_without_pictures_and_videos(numpy):
    assert not (loaded("import train") - numpy) & {"av", "cupy", "matplotlib", "torch"}


def test_what_comes_later_is_found_when_it_is_there():
    """So the tests above can fail."""
    assert {"threadpoolctl", "importlib.metadata"} <= loaded("import threadpoolctl, importlib.metadata") & LATER
