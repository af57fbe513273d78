"""train.py from the command line: train, stop, resume, evaluate, predict, plan; and one clear line for wrong input."""

import argparse
import functools
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

import train
from minnl import data
from minnl.training import checkpoint, command_line
from models import run_config
from tests import ROOT
from tests.fast import as_before  # noqa: F401 (a fixture: threads and kernels as they were)
from tests.videos import SHARED, numbered, write_video

ARRAYS = ("--data", "arrays", "--frames", "4", "--size", "16", "--stride", "1", "--rgb")
SMALL = ("--epochs", "2", "--batch-size", "4", "--threads", "1")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder with arrays, and a run on them that is complete: runs/done."""
    folder = tmp_path_factory.mktemp("cli")
    (folder / "arrays").mkdir()
    write_arrays(folder / "arrays", ("down", "up"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert train.main([*ARRAYS, *SMALL, "--name", "done"]) == 0
    return folder


def write_arrays(folder, classes, train_clips=10):
    rng = np.random.default_rng(0)
    for split, count in (("train", train_clips), ("val", 6)):
        clips = rng.normal(size=(count, 4, 16, 16, 1)).astype(np.float32)
        labels = np.arange(count) % len(classes)
        np.savez(folder / f"{split}.npz", clips=clips + labels[:, None, None, None, None].astype(np.float32),
                 labels=labels, classes=np.array(classes))  # fmt: skip


@pytest.fixture
def run(runs, monkeypatch, capsys):
    """run(*arguments) -> (exit status, stdout, stderr), in the folder of `runs`."""
    monkeypatch.chdir(runs)

    def run(*arguments):
        try:
            status = train.main(list(arguments))
        except SystemExit as exit:
            status = exit.code
        return status, *capsys.readouterr()

    return run


def epochs(name):
    records = map(json.loads, pathlib.Path(f"runs/{name}/log.jsonl").read_text().splitlines())
    return [r for r in records if r["kind"] == "epoch"]


def weights(name, which="last"):
    arrays, meta = checkpoint.load(f"runs/{name}/{which}.safetensors")
    return {key: a.tobytes() for key, a in arrays.items()}, meta


def test_what_a_run_leaves(run):
    assert sorted(os.listdir("runs/done")) == [
        "attention.png", "best.safetensors", "config.json", "curves.png", "last.safetensors", "log.jsonl",
    ]  # fmt: skip
    config = json.loads(pathlib.Path("runs/done/config.json").read_text())
    assert config["classes"] == ["down", "up"] and config["channels"] == 1 and config["non_local"] == "embedded"
    assert weights("done")[1]["config"] == config
    assert [r["epoch"] for r in epochs("done")] == [1, 2]


def test_stop_and_resume_with_the_same_bits(run):
    status, out, _ = run(*ARRAYS, *SMALL, "--name", "stopped", "--max-steps", "2")
    assert status == 0 and "stopped after step 2; go on with: python train.py --resume runs/stopped" in out
    assert not pathlib.Path("runs/stopped/curves.png").exists()
    status, out, _ = run("--resume", "runs/stopped", "--threads", "2", "--workers", "0")
    assert status == 0 and "best test top-1" in out
    assert weights("stopped")[0] == weights("done")[0]
    assert weights("stopped", "best")[0] == weights("done", "best")[0]
    assert pathlib.Path("runs/stopped/attention.png").exists()
    assert run(*ARRAYS, *SMALL, "--name", "stopped", "--resume", "runs/stopped")[0] == 0  # said again, nothing changed


def test_evaluate(run):
    status, out, _ = run("--evaluate", "runs/done", "--threads", "1")
    best = max(r["test_top1"] for r in epochs("done"))
    assert status == 0 and out.startswith(f"6 clips: top-1 {best:.2%}, top-5 100.00%, loss ")
    assert run("--evaluate", "runs/done/last.safetensors")[0] == 0


def test_the_twin_without_a_block_has_no_picture_of_attention(run):
    status, out, _ = run(*ARRAYS, *SMALL, "--epochs", "1", "--non-local", "none")
    assert status == 0 and "runs/small-none-seed0: small, non-local none" in out
    assert "attention.png" not in os.listdir("runs/small-none-seed0")
    assert run(*ARRAYS, *SMALL, "--max-steps", "1", "--non-local", "none")[1].startswith("runs/small-none-seed0-2:")


def test_the_built_in_task(run, monkeypatch):
    few = {"train": 6, "test": 6}
    relation_clips = data.RelationClips

    def clips(split, clips=None, **options):
        return relation_clips(split, clips=few[split], **options)

    monkeypatch.setattr(data, "RelationClips", clips)
    arguments = ("--frames", "8", "--size", "16", *SMALL, "--epochs", "1", "--name", "built-in", "--debug")
    status, out, _ = run(*arguments)
    assert status == 0 and "best test top-1" in out
    assert json.loads(pathlib.Path("runs/built-in/config.json").read_text())["channels"] == 1
    status, out, _ = run("--evaluate", "runs/built-in")
    assert status == 0 and out.startswith("6 clips:")
    status, _, err = run("--predict", "x.mp4", "--checkpoint", "runs/built-in")
    assert status == 1 and "trained on the built-in task or on other arrays of 1 channels, not on videos" in err


def test_videos(run):
    for split, count in (("train", 3), ("val", 2)):
        for k, name in enumerate(("dark", "light")):
            folder = pathlib.Path("videos", split, name)
            folder.mkdir(parents=True)
            for i in range(count):
                write_video(folder / f"{i}.mp4", numbered(10 + i) // 4 + np.uint8(100 * k + (split == "val")))
    pathlib.Path("videos/val/dark/0.mp4").write_bytes(b"not a video")  # the first of the test clips
    arguments = ("--data", "videos", "--frames", "4", "--size", "16", "24", *SMALL, "--name", "videos")
    with pytest.warns(RuntimeWarning, match=r"left out videos/val/dark/0.mp4"):
        assert run(*arguments)[0] == 0
    assert "attention.png" in os.listdir("runs/videos")
    with pytest.warns(RuntimeWarning, match="left out"):
        status, out, _ = run("--evaluate", "runs/videos")
    assert status == 0 and out.startswith("3 clips:")
    status, out, _ = run("--predict", "videos/val/light/1.mp4", "--checkpoint", "runs/videos")
    lines = [line.split() for line in out.splitlines()]
    assert status == 0 and sorted(name for _, name in lines) == ["dark", "light"]
    shares = [float(share.rstrip("%")) for share, _ in lines]
    assert sum(shares) == pytest.approx(100, abs=0.11) and shares[0] >= shares[1]
    for wrong, message in (("videos/val/dark/0.mp4", "dark/0.mp4: "), ("nowhere.mp4", "nowhere.mp4: No such file")):
        status, _, err = run("--predict", wrong, "--checkpoint", "runs/videos")
        assert status == 1 and message in err and err.count("\n") == 1
    status, _, err = run(*arguments, "--name", "strict", "--on-error", "error")
    assert status == 1 and "videos/val/dark/0.mp4: " in err


def test_plan_trains_nothing(run):
    before = sorted(os.listdir("runs"))
    status, out, _ = run(*ARRAYS, *SMALL, "--plan", "--memory", "2", "--name", "planned")
    assert status == 0 and sorted(os.listdir("runs")) == before
    assert "non_local" in out and "multiply-adds" in out and "largest batch for 2.0 GB: " in out


def test_the_page_tells_of_every_option_and_no_other():
    text = (ROOT / "docs/training.md").read_text()
    told = set(re.findall(r"(?m)^\| `(--[a-z-]+)` \|", text))
    with pytest.MonkeyPatch.context() as patch:
        seen = []
        patch.setattr(argparse.ArgumentParser, "parse_args", lambda parser, _: seen.append(parser) or 1 / 0)
        with pytest.raises(ZeroDivisionError):
            command_line.arguments([], run_config.defaults())
    every = {name for action in seen[0]._actions for name in action.option_strings if name.startswith("--")}
    assert told == every - {"--help"}


@pytest.fixture
def wrong(runs, monkeypatch):
    """Files that wrong input is about."""
    monkeypatch.chdir(runs)
    good = pathlib.Path("runs/done/last.safetensors").read_bytes()
    pathlib.Path("short.safetensors").write_bytes(good[: len(good) // 2])
    altered = bytearray(good)
    altered[-5] ^= 1
    pathlib.Path("altered.safetensors").write_bytes(altered)
    checkpoint.save("foreign.safetensors", {"a": np.zeros(1)}, {})
    for name in ("other", "empty"):
        pathlib.Path(name).mkdir(exist_ok=True)
    write_arrays(pathlib.Path("other"), ("left", "right"))


@pytest.mark.parametrize(
    "arguments, status, message",
    [
        (("--data", "nowhere"), 1, "open_dataset: no 'train' data in nowhere|open_dataset: no 'val' data in nowhere"),
        (("--data", "empty"), 1, "data in empty.*found: nothing"),
        ((*ARRAYS, "--blocks", "res9"), 1, "Small: blocks must be one of .*, got 'res9'"),
        ((*ARRAYS, "--blocks", "9"), 1, "Small: blocks must be one of .*, got 9"),
        ((*ARRAYS, "--axes", "time"), 1, 'axes="time" compares pixels with themselves; .* must be None'),
        ((*ARRAYS, "--device", "tpu"), 1, 'device: expected "cpu", "gpu" or "gpu:N", got \'tpu\''),
        ((*ARRAYS, "--name", "done"), 1, "--name: runs/done holds a run already; --resume runs/done goes on with it"),
        ((*ARRAYS, "--threads", "0"), 1, "set_threads: n must be 1 or more"),
        ((*ARRAYS, "--batch-size", "0"), 1, "Loader: batch_size must be 1 or more"),
        ((*ARRAYS, "--epochs", "0"), 1, "recipe: --epochs must be 1 or more, got 0"),
        ((*ARRAYS, "--accumulate", "0"), 1, "recipe: --accumulate must be 1 or more, got 0"),
        ((*ARRAYS, "--precise", "-1"), 1, "recipe: --precise must be 0 or more, got -1"),
        ((*ARRAYS, "--warm-up", "3"), 1, "recipe: --warm-up must be from 0 to 1, got 3.0"),
        ((*ARRAYS, "--label-smoothing", "2"), 1, "recipe: --label-smoothing must be from 0 to 1"),
        ((*ARRAYS, "--clip-norm", "-1"), 1, "recipe: --clip-norm must be above 0, got -1.0"),
        ((*ARRAYS, "--clip-norm", "0"), 1, "recipe: --clip-norm must be above 0, got 0.0"),
        ((*ARRAYS, "--memory", "-2", "--plan"), 1, "recipe: --memory must be above 0, got -2.0"),
        ((*ARRAYS, "--max-steps", "0"), 1, "recipe: --max-steps must be 1 or more, got 0"),
        ((*ARRAYS, "--max-steps", "-3"), 1, "recipe: --max-steps must be 1 or more, got -3"),
        ((*ARRAYS, "--save-every", "-1"), 1, "recipe: --save-every must be 0 or more, got -1.0"),
        ((*ARRAYS, "--save-every", "inf"), 1, "recipe: --save-every must be finite, got inf"),
        ((*ARRAYS, "--lr", "inf"), 1, "recipe: --lr must be finite, got inf"),
        ((*ARRAYS, "--lr", "nan"), 1, "recipe: --lr must be 0 or more, got nan"),
        ((*ARRAYS, "--weight-decay", "inf"), 1, "recipe: --weight-decay must be finite, got inf"),
        ((*ARRAYS, "--clip-norm", "inf"), 1, "recipe: --clip-norm must be finite, got inf"),
        ((*ARRAYS, "--drop-last", "--batch-size", "11"), 1, "Loader: 10 samples make no batch of batch_size=11 with"),
        ((*ARRAYS, "--lr", "-1"), 1, "recipe: --lr must be 0 or more, got -1.0"),
        ((*ARRAYS, "--seed", "-1"), 1, "manual_seed: seed must be 0 or more"),
        ((*ARRAYS, "--dropout", "2"), 1, "Dropout: p must be from 0 to 1"),
        ((*ARRAYS, "--dropout", "1"), 1, "Dropout: p must be below 1"),
        (("--frames", "3"), 1, "RelationClips: frames must be 8 or more, got 3"),
        (("--resume", "runs/nothing"), 1, "runs/nothing: no such file"),
        (("--evaluate", "short.safetensors"), 1, "short.safetensors: cut short or altered"),
        (("--resume", "runs/done", "--epochs", "9"), 1, "--resume: the run .* --epochs 2 and keeps it, got 9;"),
        (
            ("--resume", "runs/done", "--non-local", "none"),
            1,
            "begun with --non-local embedded and keeps it, got none;",
        ),
        (("--resume", "altered.safetensors"), 1, "altered.safetensors: cut short or altered"),
        (("--resume", "foreign.safetensors"), 1, "foreign.safetensors: a checkpoint, but not one of train.py"),
        (("--evaluate", "runs/done", "--data", "other"), 1, r"trained on classes down, up, the data has"),
        (("--predict", "clip.mp4"), 2, "--predict needs --checkpoint"),
        (("--evaluate", "runs/done", "--lr", "1", "--resume", "runs/done"), 2, "does not use --lr, --resume; leave"),
        (("--predict", "a.mp4", "--checkpoint", "b", "--seed", "1"), 2, "--predict does not use --seed; leave it out"),
        ((*ARRAYS, "--checkpoint", "runs/done"), 2, "--checkpoint is for --predict; --resume goes on with a run"),
        ((*ARRAYS, "--clips", "9"), 2, "a training on --data does not use --clips; leave it out"),
        (("--stride", "2", "--no-rgb"), 2, "the built-in task does not use --stride, --rgb; leave it out"),
        ((*ARRAYS, "--memory", "1"), 2, "--memory is for --plan and --views"),
        ((*ARRAYS, "--size", "1", "2", "3"), 2, "--size takes one number or two, got 3"),
        (("--non-local", "softmax"), 2, "argument --non-local: invalid choice: 'softmax'"),
        (("--model", "resnet"), 2, "argument --model: invalid choice: 'resnet'"),
        (("--epochs", "many"), 2, "argument --epochs: invalid int value: 'many'"),
    ],
)
def test_wrong_input_is_one_clear_line(run, wrong, arguments, status, message):
    before = sorted(os.listdir("runs"))
    got, out, err = run(*arguments)
    line = err.splitlines()[-1]
    assert (got, out) == (status, "") and line.startswith("train.py: ") == (status == 1)
    assert re.search(message, line), line
    assert "Traceback" not in err and (status == 2 or err.count("\n") == 1)
    assert sorted(os.listdir("runs")) == before, "a failed start leaves no folder"


def test_resuming_with_other_classes_is_refused(run):
    folder = pathlib.Path("moving")
    folder.mkdir()
    write_arrays(folder, ("down", "up"))
    assert run(*ARRAYS, "--data", "moving", *SMALL, "--name", "moving", "--max-steps", "1")[0] == 0
    write_arrays(folder, ("left", "right"))
    status, _, err = run("--resume", "runs/moving")
    assert status == 1 and "--resume: begun with classes down, up, the data has left, right" in err


def test_debug_shows_the_traceback(run):
    with pytest.raises(ValueError, match="blocks must be one of"):
        run(*ARRAYS, "--blocks", "res9", "--debug")


def test_a_run_that_diverges_says_so(run):
    with np.errstate(all="ignore"):
        status, _, err = run(*ARRAYS, *SMALL, "--name", "diverges", "--lr", "1e30", "--warm-up", "0")
    assert status == 1 and "the loss became" in err and "Try a lower --lr" in err


def test_ctrl_c_leaves_a_run_that_goes_on(tmp_path):
    (tmp_path / "arrays").mkdir()
    write_arrays(tmp_path / "arrays", ("down", "up"), train_clips=400)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    start = functools.partial(subprocess.Popen, cwd=tmp_path, env=environment, stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE, text=True)  # fmt: skip
    script = [sys.executable, str(ROOT / "train.py"), "--threads", "1"]
    process = start([*script, *ARRAYS, "--batch-size", "2", "--epochs", "50", "--name", "long"])
    log = tmp_path / "runs" / "long" / "log.jsonl"
    deadline = time.monotonic() + 90
    while not log.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in err, err
    assert "go on with: python train.py --resume runs/long" in out
    step = checkpoint.load(tmp_path / "runs/long/last.safetensors")[1]["step"]
    assert step >= 20 and f"stopped after step {step};" in out
    process = start([*script, "--resume", "runs/long", "--max-steps", str(step + 3)])
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0 and f"stopped after step {step + 3};" in out, err


@pytest.mark.slow
@pytest.mark.skipif(not (SHARED / "containers").is_dir(), reason="needs ../shared/data/containers")
@pytest.mark.filterwarnings("ignore:Loader. left out:RuntimeWarning")
@pytest.mark.filterwarnings("ignore:open_dataset. 17 of 18 files of val are in train too:RuntimeWarning")
def test_odd_and_broken_videos_do_not_stop_a_run(run, tmp_path):
    pytest.importorskip("av")
    files = sorted((SHARED / "containers").iterdir())
    rows = [f"{path},{i % 2},{split}" for split in ("train", "val") for i, path in enumerate(files)]
    listing = tmp_path / "containers.csv"
    listing.write_text("\n".join(["path,label,split", *rows]) + "\n")
    options = ("--frames", "4", "--size", "16", "--epochs", "1", "--batch-size", "4", "--threads", "1")
    status, out, _ = run("--data", str(listing), *options, "--name", "containers")
    assert status == 0 and "best test top-1" in out
    with pytest.warns(RuntimeWarning, match="left out .*corrupted.mp4: decoding failed after 28 frames"):
        assert run("--evaluate", "runs/containers")[0] == 0
    status, _, error = run("--data", str(listing), *options, "--name", "containers-strict", "--on-error", "error")
    assert status == 1 and re.search("(corrupted|derived_).*: ", error)


def test_a_new_run_may_start_with_trained_weights(run, runs):
    (runs / "three").mkdir(exist_ok=True)
    write_arrays(runs / "three", ("a", "b", "c"), train_clips=12)
    options = ("--data", "three", *ARRAYS[2:], *SMALL[2:], "--epochs", "1", "--lr", "0", "--weight-decay", "0")
    status, out, err = run(*options, "--start", "runs/done", "--name", "started")
    assert status == 0, err
    assert "weights from runs/done/best.safetensors; fresh are head.classify.weight, head.classify.bias" in out
    before, after = (
        checkpoint.load(f"runs/{name}/best.safetensors")[0] for name in ("done", "started")
    )  # a rate of 0 leaves all but running statistics as they began
    for name, array in after.items():
        if name.startswith("model/") and "running" not in name:
            assert np.array_equal(array, before[name]) != name.startswith("model/head.classify"), name


def test_weights_without_a_run_are_no_run_to_go_on_with(run, runs):
    arrays, meta = checkpoint.load(runs / "runs/done/best.safetensors")
    weights = {name: array for name, array in arrays.items() if name.startswith("model/")}
    checkpoint.save(runs / "weights.safetensors", weights, {"config": meta["config"]})
    status, _, err = run("--resume", "weights.safetensors")
    assert status == 1
    assert "weights.safetensors holds weights, but no run to go on with; --start begins one with them" in err
    status, _, err = run("--resume", "runs/done", "--start", "weights.safetensors")
    assert status == 2 and "--start is for a new run" in err
