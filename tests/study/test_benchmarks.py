"""The benchmark runs, compares equal things, and computes its ratios rightly. No test here looks at a clock."""

import itertools
import json
import os
import re
import subprocess
import sys
import types

import numpy as np
import pytest

import minnl
from benchmarks import cases, memory, ops, places, published, report
from benchmarks.contest import BACKWARD, FORWARD, Contender, Contest
from benchmarks.measure import Result, measure
from minnl.study import cost_summary


def run(tmp_path, prelude, *arguments):
    code = f"{prelude}\nfrom benchmarks.__main__ import main\nmain({list(arguments)!r})"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    return subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120
    )


NAME = "cross_entropy, 32 clips, 3 classes"
SMALL = (
    "--only",
    f"{NAME}, forward + backward",
    "--repeats",
    "2",
    "--threads",
    "1",
    "--json",
    "out.json",
    "--picture",
    "out.png",
)


@pytest.mark.slow
@pytest.mark.torch
def test_beside_pytorch(tmp_path):
    pytest.importorskip("torch")
    done = run(tmp_path, "", *SMALL, "--memory")
    assert done.returncode == 0, done.stderr
    content = json.loads((tmp_path / "out.json").read_text())
    assert content["setting"]["threads"] == 1
    assert [list(r["seconds"]) for r in content["results"]] == [["minnl", "default"]]
    assert all(len(times) == 2 for r in content["results"] for times in r["seconds"].values())
    assert [set(r["bytes"]) for r in content["results"]] == [{"minnl", "default"}]
    assert done.stdout.count(f"| {NAME} ") == 1
    assert "| softmax + cross-entropy | " in done.stdout
    assert (tmp_path / "out.png").stat().st_size > 0


def test_alone(tmp_path):
    done = run(tmp_path, "import sys; sys.modules['torch'] = None", *SMALL)
    assert done.returncode == 0, done.stderr
    assert "no PyTorch here: minnl's times alone" in done.stdout
    content = json.loads((tmp_path / "out.json").read_text())
    assert [list(r["seconds"]) for r in content["results"]] == [["minnl"]]
    assert (tmp_path / "out.png").stat().st_size > 0


@pytest.mark.slow
def test_an_unknown_case_is_answered_with_the_known(tmp_path):
    done = run(tmp_path, "", "--only", "conv7d")
    assert done.returncode == 1
    assert "no case contains 'conv7d'" in done.stderr and "nl_small, clips 32x16x24x24x1, training step" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--device", "gpu"), "python -m benchmarks --device gpu: device: CuPy cannot be imported .* pip install"),
        (("--device", "tpu"), """--device tpu: device: expected "cpu", "gpu" or "gpu:N", got 'tpu'"""),
        (("--tf32",), "--tf32 is a way to multiply on a GPU; add --device gpu"),
    ],
)
def test_a_device_that_is_not_there(tmp_path, options, words):
    done = run(tmp_path, "import sys; sys.modules['cupy'] = None", *options)
    assert done.returncode == 1 and done.stdout == ""
    assert re.search(words, done.stderr), done.stderr


def test_what_is_aimed_at_is_meant_for_a_cpu():
    results = [result(minnl=[1.0], torch=[4.0])]
    assert "mean 0.8" in report.summary(results, {"torch": "2", "device": "cpu"})
    assert "mean" not in report.summary(results, {"torch": "2", "device": "gpu"}).splitlines()[-1]


def test_every_case_has_a_name_of_its_own_and_a_group():
    every = cases.every()
    titles = [contest.title for contest in every]
    assert len(set(titles)) == len(titles)
    groups = [name for name, _ in itertools.groupby(contest.group for contest in every)]
    assert len(groups) == len(set(groups)), "a group's cases stand together"
    assert set(cases.AIMS) <= set(groups)


def test_layers_are_where_they_belong():
    assert cases.group_of((1, 3, 3, 64, 64)) == cases.group_of((3, 3, 3, 512, 512)) == cases.THREE
    assert cases.group_of((1, 1, 1, 3, 64)) == cases.group_of((3, 1, 1, 256, 64)) == cases.ONE
    assert cases.group_of((1, 3, 3, 32, 64)) == cases.group_of((1, 7, 7, 3, 64)) == cases.OTHER


def result(group="pooling", name="a", work=BACKWARD, **seconds):
    return Result(name, group, work, seconds)


def test_ratios_are_of_rounds_and_of_the_better_rival():
    found = result(minnl=[1.0, 2.0, 4.0], slow=[9.0, 9.0, 9.0], quick=[2.0, 2.0, 2.0])
    assert found.rival == "quick"
    assert found.minnl == 2.0
    np.testing.assert_allclose(found.ratios, (0.75, 1.0, 1.5))


def test_the_summary_takes_geometric_means_by_group_and_work():
    results = [
        result(minnl=[1.0], torch=[4.0]),
        result(minnl=[1.0], torch=[9.0], name="b"),
        result(minnl=[2.0], torch=[1.0], work=FORWARD),
        result("inference", minnl=[1.0], torch=[3.0], work="inference"),
        result("training steps", minnl=[1.0], torch=[1.5], work="training step"),
    ]
    lines = report.summary(results, {"torch": "2", "device": "cpu"}).splitlines()
    assert lines[-3:] == [
        "| pooling | 0.50 | 0.50 (a) | 6.00 | 4.00 (a) | mean 0.8 |",
        "| inference | 3.00 | 3.00 (a) |  |  |  |",
        "| training steps |  |  | 1.50 | 1.50 (a) | mean 1.2 |",
    ]


def test_a_row_is_readable_as_it_is_and_tells_the_memory():
    found = result(minnl=[0.5], torch=[1.0])
    assert report.line(found).split("|")[-2].strip() == ""
    found.bytes = {"minnl": 12_300_000, "torch": 45_600_000}
    cells = [cell.strip() for cell in report.line(found).strip("|").split("|")]
    assert cells == ["a", BACKWARD, "500.00 ms", "1000.00 ms", "2.00 (2.00 to 2.00)", "torch", "12 / 46"]
    heading = report.group("pooling", {"torch": "2"}).splitlines()
    assert heading[1] == "### pooling" and len({len(line) for line in (*heading[3:], report.line(found))}) == 1


def test_many_groups_are_drawn_in_two_columns(tmp_path):
    seconds = {"minnl": [1.0, 1.1], "torch": [0.5, 2.0]}
    results = [
        result(str(g), str(i), work, **seconds) for g in range(5) for i in range(9) for work in (FORWARD, BACKWARD)
    ]
    columns = report.balanced(report.grouped(results))
    assert [[name for name, _ in column] for column in columns] == [["0", "1"], ["2", "3", "4"]]
    about = {"torch": "2", "device": "cpu", "kernels": "fast", "threads": 1}
    report.draw(tmp_path / "x.png", about, results)
    assert (tmp_path / "x.png").stat().st_size > 0


def test_contenders_take_turns():
    called = []
    seconds = measure({"minnl": lambda: called.append("m"), "other": lambda: called.append("o")}, 3)
    turns = [name for name, _ in itertools.groupby(called)]
    assert turns == ["m", "o"] * 4  # the uncounted one, then three rounds
    assert [len(times) for times in seconds.values()] == [3, 3]


def numbers(*arrays):
    return lambda place: Contender(lambda: arrays, lambda found: [np.array(a, np.float32) for a in found])


def test_different_results_are_not_compared():
    def contenders(**ways):
        return Contest("x", "", FORWARD, ways).contenders(place)

    place, same = types.SimpleNamespace(torch=True, slack=1), numbers([1.0, 2.0], [3.0, 4.0])  # with PyTorch or without
    assert list(contenders(minnl=same, a=same, b=same)) == ["minnl", "a", "b"]
    with pytest.raises(RuntimeError, match=r"x, forward: results of minnl and of PyTorch \(b\) differ: 0.001 > 0.0002"):
        contenders(minnl=same, a=same, b=numbers([1.0, 2.001], [3.0, 4.0]))
    with pytest.raises(RuntimeError, match=r"x, forward: gradients of input 0 of minnl and of PyTorch \(b\) differ"):
        contenders(minnl=same, b=numbers([1.0, 2.0], [3.0, 4.1]))


@pytest.mark.torch
@pytest.mark.parametrize(
    "operation",
    [
        ops.conv((2, 4, 6, 5, 3), (3, 3, 3, 3, 4), (1, 2, 2)),
        ops.conv((2, 4, 6, 5, 3), (1, 1, 1, 3, 4), first=True),
        ops.norm((2, 4, 6, 5, 3)),
        ops.norm((2, 4, 6, 5, 3), residual=True),
        ops.pool("max", (2, 4, 6, 6, 3), (3, 3, 3), (2, 2, 2), 1),
        ops.pool("avg", (2, 4, 6, 6, 3), (1, 2, 2), (1, 2, 2)),
        ops.mean((2, 4, 6, 5, 3)),
        ops.non_local(2, (2, 4, 4), (2, 2, 2), 8),
        ops.loss(5, 3),
    ],
    ids=["conv", "first conv", "norm", "norm + residual", "max", "avg", "mean", "non_local", "loss"],
)
def test_operations_and_their_twins_agree(operation):
    pytest.importorskip("torch")
    for contest in operation.contests("x", ""):
        assert len(contest.contenders()) == 3 - (operation.orders[0] is None and len(operation.rivals) == 1)


def test_the_first_layers_input_wants_no_gradient():
    forward, backward = ops.conv((1, 2, 4, 4, 3), (1, 3, 3, 3, 4), first=True).contests("x", "")
    assert len(backward.ways["minnl"](places.CPU).call()) == 2, "the result, and the gradient of the weight"


@pytest.mark.torch
def test_the_twin_of_a_block_agrees():
    pytest.importorskip("torch")
    from benchmarks import networks

    for contest in networks.block("x", "", (1, 2, 4, 4, 8)):
        assert len(contest.contenders()) == 5


def test_c2d_is_the_network_of_the_paper():
    """24,327,632 parameters without non-local blocks, 7,358,464 in five of them; 27.4 G multiply-adds at 224 x 224."""
    assert sum(p.size for p in published.build().parameters()) == 24_327_632 + 7_358_464
    net = published.build()
    plan = cost_summary.summarize(net, (1, 8, 224, 224, 3))
    shapes = {row.path: row.shape for row in plan.rows}
    assert shapes["pool2"][1:] == (4, 56, 56, 256) and shapes["res5.res2.branch.c.norm"][1:] == (4, 7, 7, 2048)
    assert [path for path in shapes if path.endswith(".theta")] == [
        f"{place}.theta"
        for place in ("res3.nonlocal1", "res3.nonlocal3", "res4.nonlocal1", "res4.nonlocal3", "res4.nonlocal5")
    ]
    assert plan.multiply_adds == pytest.approx(27.4e9, rel=0.02)


@pytest.mark.skipif(not memory.STATUS.exists(), reason="counts in /proc")
def test_the_memory_of_a_contender_is_what_it_takes(tmp_path, monkeypatch):
    """100 MB held and 100 MB at work, once more each time; making it took more, which does not count."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "greedy.py").write_text(
        """
import numpy as np
from benchmarks import cases, memory
from benchmarks.contest import Contender, Contest

def make(place):
    np.ones(40_000_000)
    held = np.ones(12_500_000)
    return Contender(lambda: held + 1, list)

cases.every = lambda: [Contest("greedy", "", "forward", {"minnl": make})]
memory.main("greedy, forward", "minnl", "1")
"""
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run([sys.executable, "greedy.py"], env=env, capture_output=True, text=True, check=True)
    assert 190e6 < int(done.stdout) < 240e6


def test_memory_complains_by_name():
    if not memory.STATUS.exists():
        pytest.skip("counts in /proc")
    with pytest.raises(RuntimeError, match="no such, forward, minnl: its process ended with 1"):
        memory.peak(Contest("no such", "", FORWARD, {}), "minnl", minnl.backend.threads())
