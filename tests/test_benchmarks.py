"""The benchmark runs, compares equal things, and computes its ratios rightly. No test here looks at a clock."""

import itertools
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from benchmarks.measure import Result, measure
from benchmarks.ops import loss


def run(tmp_path, prelude, *arguments):
    code = f"{prelude}\nfrom benchmarks.__main__ import main\nmain({list(arguments)!r})"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    return subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120
    )


SMALL = "--only", "cross_entropy", "--repeats", "2", "--threads", "1", "--json", "out.json", "--picture", "out.png"


def test_beside_pytorch(tmp_path):
    pytest.importorskip("torch")
    done = run(tmp_path, "", *SMALL)
    assert done.returncode == 0, done.stderr
    content = json.loads((tmp_path / "out.json").read_text())
    assert content["setting"]["threads"] == 1
    assert [list(r["seconds"]) for r in content["results"]] == [["minnl", "default"]] * 2
    assert all(len(times) == 2 for r in content["results"] for times in r["seconds"].values())
    assert done.stdout.count("cross_entropy, 1024 clips, 400 classes") == 2
    assert (tmp_path / "out.png").stat().st_size > 0


def test_alone(tmp_path):
    done = run(tmp_path, "import sys; sys.modules['torch'] = None", *SMALL)
    assert done.returncode == 0, done.stderr
    assert "no PyTorch here: minnl's times alone" in done.stdout
    content = json.loads((tmp_path / "out.json").read_text())
    assert [list(r["seconds"]) for r in content["results"]] == [["minnl"]] * 2
    assert (tmp_path / "out.png").stat().st_size > 0


def test_an_unknown_case_is_answered_with_the_known(tmp_path):
    done = run(tmp_path, "", "--only", "conv7d")
    assert done.returncode == 1
    assert "no case contains 'conv7d'" in done.stderr and "training step of nl_small" in done.stderr


def test_ratios_are_of_rounds_and_of_the_better_rival():
    result = Result("x", {"minnl": [1.0, 2.0, 4.0], "slow": [9.0, 9.0, 9.0], "quick": [2.0, 2.0, 2.0]})
    assert result.rival == "quick"
    assert result.minnl == 2.0
    np.testing.assert_allclose(result.ratios, (0.75, 1.0, 1.5))


def test_contenders_take_turns():
    called = []
    result = measure("x", {"minnl": lambda: called.append("m"), "other": lambda: called.append("o")}, 3)
    turns = [name for name, _ in itertools.groupby(called)]
    assert turns == ["m", "o"] * 4  # the uncounted one, then three rounds
    assert [len(times) for times in result.seconds.values()] == [3, 3]


def test_different_results_are_not_compared():
    with pytest.raises(RuntimeError, match="cross_entropy, 2 clips, 3 classes: minnl and PyTorch differ by 0.5 of 1"):
        loss(2, 3).agree(np.array(1.5), np.array(1.0))
