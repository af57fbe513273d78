"""The benchmark on a GPU, real or emulated: it runs to its end and computes what it computes on the CPU.

No test here looks at a clock.
"""

import json

import numpy as np
import pytest

import minnl
import models
from benchmarks import memory, networks, ops, places
from benchmarks.contest import BACKWARD, FORWARD, Contender, Contest
from minnl import backend
from tests.gpu.device import GPU
from tests.study.test_benchmarks import NAME, run


@pytest.fixture(scope="module")
def place():
    with backend.on(GPU):
        yield places.find(str(GPU))


def test_a_case_runs_to_the_end(tmp_path):
    arguments = "--device", "gpu", "--only", NAME, "--repeats", "2", "--memory", "--json", "out.json"
    done = run(tmp_path, "", *arguments, "--picture", "out.png")
    assert done.returncode == 0, done.stderr
    content = json.loads((tmp_path / "out.json").read_text())
    called = backend.load_cupy().cuda.runtime.getDeviceProperties(GPU.index)["name"].decode()
    assert content["setting"]["gpu"] == called and content["setting"]["tf32"] is False
    assert done.stdout.startswith(f"gpu: {called}, driver for CUDA ")
    assert "TF32 off; times by CUDA events" in done.stdout.splitlines()[0]
    assert [r["work"] for r in content["results"]] == [FORWARD, BACKWARD]
    for result in content["results"]:
        assert len(result["seconds"]["minnl"]) == 2 and result["bytes"]["minnl"] > 0
    assert (tmp_path / "out.png").stat().st_size > 0


@pytest.mark.parametrize(
    "operation",
    [
        ops.conv((2, 4, 6, 5, 3), (3, 3, 3, 3, 4), (1, 2, 2)),
        ops.norm((2, 4, 6, 5, 3), residual=True),
        ops.pool("max", (2, 4, 6, 6, 3), (1, 2, 2), (1, 2, 2)),
        ops.non_local(2, (2, 4, 4), (2, 2, 2), 8),
        ops.loss(5, 3),
    ],
    ids=["conv", "norm", "max", "non_local", "loss"],
)
def test_operations_are_computed_there(place, operation):
    for contest in operation.contests("x", ""):
        agree(contest, place)


def small():
    minnl.manual_seed(0)
    return models.build("nl_small", classes=3, in_channels=1)


def test_networks_are_computed_there(place):
    shape = (2, 4, 8, 8, 1)
    agree(networks.training("x", "", small, shape, 3, 1e-3, ()), place)
    agree(networks.inference("x", "", small, shape, ()), place)
    for contest in networks.block("x", "", (1, 2, 4, 4, 8)):
        agree(contest, place)


def agree(contest, place):
    """What the contender returns lies on the GPU, and is what the one on the CPU computes."""
    there, here = contest.ways["minnl"](place), contest.ways["minnl"](places.CPU)
    made = there.call()
    for one in made if isinstance(made, list) else [made]:
        assert backend.device_of(one if backend.is_array(one) else one.data) == GPU
    contest.agree("on a GPU", there.arrays(made), here.arrays(here.call()), 1)


def test_time_is_the_mean_of_the_calls(place):
    called = []
    seconds = place.timed(lambda: called.append(1), 3)
    assert len(called) == 3 and seconds >= 0


def test_memory_is_what_the_pool_has_taken(place):
    """8 MB held and 8 MB at work, once more each time; making it took more, which does not count."""
    xp = backend.load_cupy()

    def make(_):
        xp.ones(8_000_000)
        held = xp.ones(1_000_000)
        return Contender(lambda: held + 1, list)

    with xp.cuda.using_allocator(xp.get_default_memory_pool().malloc):  # tests also run without a pool
        assert 15e6 < memory.taken(Contest("greedy", "", FORWARD, {"minnl": make}), "minnl", place) < 19e6


def test_results_with_tf32_may_lie_further_apart():
    contest = Contest("x", "", FORWARD, {})
    contest.agree("torch", [np.array([1.0, 2.001])], [np.array([1.0, 2.0])], slack=100)
    with pytest.raises(RuntimeError, match="differ"):
        contest.agree("torch", [np.array([1.0, 2.1])], [np.array([1.0, 2.0])], slack=100)
