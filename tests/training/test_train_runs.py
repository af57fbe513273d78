"""train.py: ways on from every end, exit statuses, and surroundings that end no run."""

import contextlib
import io
import json
import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest

import train
from minnl.training import checkpoint, evaluation, progress, stopping
from minnl.training.accumulated_step import AccumulatedStep
from minnl.training.run_folder import RunFolder
from tests import ROOT
from tests.fast import as_before  # noqa: F401 (a fixture: threads and kernels as they were)
from tests.training.test_train_cli import ARRAYS, SMALL, run, runs, weights, write_arrays  # noqa: F401 (two fixtures)
from tests.videos import numbered, write_video

RUN = (*ARRAYS, *SMALL)


def files(name):
    """What is in the files of a run, but for pictures and times."""
    return {path.name: path.read_bytes() for path in pathlib.Path("runs", name).iterdir() if path.suffix != ".png"}


@pytest.mark.slow
@pytest.mark.parametrize("number", stopping.SIGNALS)
@pytest.mark.parametrize("limit", [(), ("--max-steps", "2")])
def test_a_signal_shows_in_the_exit_status(run, monkeypatch, number, limit):  # noqa: F811
    name = f"signal{number}{len(limit)}"
    add = AccumulatedStep.add
    with monkeypatch.context() as patch:
        patch.setattr(AccumulatedStep, "add", lambda *a: os.kill(os.getpid(), number) or add(*a))
        status, out, _ = run(*RUN, "--name", name, *limit)
    assert status == 128 + number and f"stopped after step 1; go on with: python train.py --resume runs/{name}" in out
    assert run("--resume", f"runs/{name}")[0] == 0
    assert weights(name)[0] == weights("done")[0]


@pytest.mark.slow
def test_a_start_that_was_killed_before_its_first_checkpoint(run, runs):  # noqa: F811
    """As it leaves its folder now, and as it did when the first checkpoint came after an epoch."""
    for left in ({}, {"config.json": "{"}, {"config.json": "{}", "log.jsonl": '{"kind": "step", "epoch": 0, "step"'}):
        folder = pathlib.Path("runs/early")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for name, text in left.items():
            (folder / name).write_text(text)
        status, _, err = run("--resume", "runs/early")
        assert status == 1 and "--resume: runs/early: no last.safetensors is there; begin with --name" in err
        assert run(*RUN, "--name", "early")[0] == 0
        assert weights("early")[0] == weights("done")[0]
        lines = (folder / "log.jsonl").read_text().splitlines()
        assert [json.loads(line)["kind"] for line in lines] == ["epoch", "epoch"]


def test_without_its_last_checkpoint_a_run_goes_on_from_its_best(run):  # noqa: F811
    shutil.copytree("runs/done", "runs/halved")
    os.unlink("runs/halved/last.safetensors")
    status, _, err = run("--resume", "runs/halved")
    assert status == 1 and "no last.safetensors is there; go on from runs/halved/best.safetensors" in err
    assert run("--resume", "runs/halved/best.safetensors")[0] == 0
    assert weights("halved", "best")[0] == weights("done", "best")[0]
    if weights("done", "best")[1]["epoch"] < 2:  # what comes after it comes again
        assert weights("halved")[0] == weights("done")[0]


def test_the_log_of_a_run_whose_checkpoints_were_removed_is_not_written_over(run):  # noqa: F811
    pathlib.Path("runs/kept").mkdir(parents=True)
    shutil.copy("runs/done/log.jsonl", "runs/kept/log.jsonl")
    before = files("kept")
    status, _, err = run(*RUN, "--name", "kept")
    assert status == 1 and "--name: runs/kept holds a run already" in err and files("kept") == before


def test_data_that_moved(run):  # noqa: F811
    assert run(*RUN, "--name", "moved", "--max-steps", "2")[0] == 0
    shutil.copytree("arrays", "old")
    config = json.loads(pathlib.Path("runs/moved/config.json").read_text())
    arrays, meta = checkpoint.load("runs/moved/last.safetensors")
    meta["config"]["data"] = "gone"
    checkpoint.save("runs/moved/last.safetensors", arrays, meta)
    before = files("moved")
    status, _, err = run("--resume", "runs/moved")
    assert status == 1 and "data in gone" in err and err.endswith("; if the data moved, --data says where to\n")
    pathlib.Path("wrong").mkdir()
    for classes, count, message in (
        (("left", "right"), 10, "begun with classes down, up, the data has left, right"),
        (("down", "up"), 12, "begun with training clips 10, the data has 12; they must be the same"),
    ):
        write_arrays(pathlib.Path("wrong"), classes, count)
        status, _, err = run("--resume", "runs/moved", "--data", "wrong")
        assert status == 1 and message in err
    files_of = np.load("arrays/train.npz"), np.load("arrays/val.npz")
    for name, found in zip(("train", "val"), files_of, strict=True):
        clips = np.repeat(found["clips"], 3, axis=-1)
        np.savez(f"wrong/{name}.npz", clips=clips, labels=found["labels"], classes=found["classes"])
    status, _, err = run("--resume", "runs/moved", "--data", "wrong")
    assert status == 1 and "begun with channels 1, the data has 3; they must be the same" in err
    assert files("moved") == before
    status, out, _ = run("--resume", "runs/moved", "--data", "old")
    assert status == 0 and "data from old, before from gone" in out
    assert weights("moved")[0] == weights("done")[0]
    now = json.loads(pathlib.Path("runs/moved/config.json").read_text())
    assert now | {"threads": 1} == config | {"data": "old"}


def test_the_built_in_task_does_not_move(run):  # noqa: F811
    built = ("--clips", "4", "--frames", "8", "--size", "12", *SMALL, "--name", "synthetic", "--max-steps", "1")
    assert run(*built)[0] == 0
    status, _, err = run("--resume", "runs/synthetic", "--data", "arrays")
    assert status == 1 and "--resume: the run was begun on the built-in task and keeps it" in err


@pytest.mark.slow
@pytest.mark.parametrize("stop", ["1", "4", None])
def test_a_copy_of_the_last_checkpoint_alone(run, stop):  # noqa: F811
    """Of the first epoch, of the second, and of a complete run."""
    name = f"copied{stop}"
    assert run(*RUN, "--name", name, *(("--max-steps", stop) if stop else ()))[0] == 0
    pathlib.Path(f"alone{stop}").mkdir()
    shutil.copy(f"runs/{name}/last.safetensors", f"alone{stop}")
    status, out, err = run("--resume", f"alone{stop}/last.safetensors")
    assert status == 0
    found = checkpoint.load(f"alone{stop}/last.safetensors")[0]
    assert {key: a.tobytes() for key, a in found.items()} == weights("done")[0]
    if stop:
        assert f"pictures, log and checkpoints in alone{stop}" in out and "best test top-1" in out and not err
    else:
        assert f"complete before; log and checkpoints in alone{stop}" in out and "log.jsonl" in err


def test_a_second_resume_is_refused_while_the_first_goes_on(run):  # noqa: F811
    assert run(*RUN, "--name", "going", "--max-steps", "1")[0] == 0
    before = files("going")
    with RunFolder("runs/going"):
        status, _, err = run("--resume", "runs/going")
        assert status == 1 and f"runs/going: another process trains there (process {os.getpid()} on " in err
        status, _, err = run(*RUN, "--name", "going")
        assert status == 1 and "--name: runs/going holds a run already" in err
    assert files("going") == before
    with RunFolder("runs/starting"):
        status, _, err = run(*RUN, "--name", "starting")
        assert status == 1 and "runs/starting: another process trains there" in err


def test_a_checkpoint_behind_a_symlink_is_written_through(run):  # noqa: F811
    assert run(*RUN, "--name", "linked", "--max-steps", "1")[0] == 0
    pathlib.Path("elsewhere").mkdir()
    for name in ("last.safetensors", "log.jsonl"):
        shutil.move(f"runs/linked/{name}", f"elsewhere/{name}")
        pathlib.Path(f"runs/linked/{name}").symlink_to(f"../../elsewhere/{name}")
    assert run("--resume", "runs/linked")[0] == 0
    for name in ("last.safetensors", "log.jsonl"):
        assert pathlib.Path(f"runs/linked/{name}").is_symlink()
    assert sorted(os.listdir("elsewhere")) == ["last.safetensors", "log.jsonl"]
    found = checkpoint.load("elsewhere/last.safetensors")[0]
    assert {key: a.tobytes() for key, a in found.items()} == weights("done")[0]


def test_without_matplotlib_a_run_is_complete(run, monkeypatch):  # noqa: F811
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "matplotlib", None)
        patch.setitem(sys.modules, "matplotlib.figure", None)
        patch.setitem(sys.modules, "matplotlib.backends.backend_agg", None)
        status, out, err = run(*RUN, "--name", "bare")
    assert status == 0 and "log and checkpoints in runs/bare" in out and "pictures" not in out
    assert err.count("\n") == 1 and "complete, but without pictures, which --resume draws: " in err
    assert not list(pathlib.Path("runs/bare").glob("*.png"))
    assert run("--resume", "runs/bare")[0] == 0 and pathlib.Path("runs/bare/curves.png").exists()


def test_a_disk_that_is_full_is_named_with_its_file(run, monkeypatch):  # noqa: F811
    replace = os.replace

    def full(source, target):
        if str(target).endswith(name):
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    for name in ("config.json", "last.safetensors", "best.safetensors"):
        status, _, err = run(*RUN, "--name", f"full-{name}")
        assert status == 1 and err.endswith(f"{name}: not saved, what was there before is untouched: No space left on "
                                            "device\n")  # fmt: skip
    name = "curves.png"
    status, _, err = run(*RUN, "--name", "full-picture")
    assert status == 0 and "which --resume draws: " in err and "curves.png: not saved" in err


def train_py(shell, *arguments, **environment):
    """train.py in a process of its own, by a shell whose line goes on after the command: (status, stdout, stderr)."""
    command = [sys.executable, str(ROOT / "train.py"), *arguments]
    found = subprocess.run(
        ["sh", "-c", f'"$@" {shell}', "sh", *command], capture_output=True, timeout=120, env=os.environ | environment
    )
    return found.returncode, found.stdout.decode(), found.stderr.decode()


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="needs a POSIX shell")
@pytest.mark.parametrize("closed", ["2>&-", ">&-", "<&- >&- 2>&-"])
def test_closed_output_ends_no_training(runs, monkeypatch, closed):  # noqa: F811
    monkeypatch.chdir(runs)
    name = "closed" + str(len(closed))
    status, _, err = train_py(closed, *RUN, "--name", name)
    assert status == 0 and err == ""
    assert weights(name)[0] == weights("done")[0] and pathlib.Path(f"runs/{name}/curves.png").exists()


def test_what_output_cannot_encode_is_escaped(runs, monkeypatch):  # noqa: F811
    pytest.importorskip("av")
    monkeypatch.chdir(runs)
    pathlib.Path("accents").mkdir()
    write_arrays(pathlib.Path("accents"), ("déjà", "日本"))
    for split in ("train", "val"):
        found = np.load(f"accents/{split}.npz")
        clips = np.repeat(found["clips"], 3, axis=-1)
        np.savez(f"accents/{split}.npz", clips=clips, labels=found["labels"], classes=found["classes"])
    assert train.main([*RUN, "--data", "accents", "--name", "accents", "--max-steps", "4"]) == 0
    write_video("a.mp4", numbered(10, 32, 32))
    output = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    with contextlib.redirect_stdout(output):
        assert train.main(["--predict", "a.mp4", "--checkpoint", "runs/accents"]) == 0
    output.seek(0)
    names = sorted(line.split()[1] for line in output.read().splitlines())
    assert names == ["\\u65e5\\u672c", "d\\xe9j\\xe0"]


def test_a_path_that_is_not_utf8_ends_no_scores(tmp_path):
    name = os.fsdecode(b"caf\xe9.mp4")
    with evaluation.Scores(tmp_path / "scores.csv", ("a", "b")) as table:
        table.scored(0, name, np.array([[0.75, 0.25]]))
        table.skipped(1, name, f"{name} is broken")
    lines = (tmp_path / "scores.csv").read_bytes().decode("utf-8").splitlines()
    assert lines[1].startswith("caf\\udce9.mp4,a,ok,1,a,0.750000,b,0.250000,")
    assert lines[2].startswith("caf\\udce9.mp4,b,skipped,0,") and lines[2].endswith("caf\\udce9.mp4 is broken")


def test_scores_are_of_one_evaluation(tmp_path):
    path = tmp_path / "scores.csv"
    path.write_text("before")
    with evaluation.Scores(path, ("a",)) as table:
        with pytest.raises(ValueError, match=r"another evaluation writes .*scores.csv.part now"):
            evaluation.Scores(path, ("a",)).__enter__()
        table.scored(0, "x.mp4", np.array([[1.0]]))
        assert path.read_text() == "before"
    assert path.read_text().splitlines()[1].startswith("x.mp4,a,ok,1,a,1.000000")
    (tmp_path / "link.csv").symlink_to(path)
    with evaluation.Scores(tmp_path / "link.csv", ("a",)):
        pass
    assert (tmp_path / "link.csv").is_symlink() and len(path.read_text().splitlines()) == 1
    with pytest.raises(ValueError, match="is a folder, name a file in it"):
        evaluation.Scores(tmp_path, ("a",)).__enter__()
    (tmp_path / "full.csv.part").symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"No space left on device: .*full.csv.part"):
        evaluation.Scores(tmp_path / "full.csv", ("a",)).__enter__()


def test_numbers_of_closed_output_are_not_given_to_files():
    """Or what a library says on standard error would go into a checkpoint."""
    code = (
        "import os\nfrom minnl.training import progress\nprogress.secure()\n"
        "print(open(os.devnull).fileno() > 2, file=open(os.environ['ANSWER'], 'w'))"
    )
    read = f"{os.environ.get('TMPDIR', '/tmp')}/minnl-answer-{os.getpid()}"
    command = [sys.executable, "-c", code]
    subprocess.run(
        ["sh", "-c", '"$@" <&- >&- 2>&-', "sh", *command], check=True, timeout=60, env=os.environ | {"ANSWER": read}
    )
    answer = pathlib.Path(read).read_text()
    os.unlink(read)
    assert answer == "True\n"


def test_a_line_that_nobody_reads(monkeypatch):
    class Gone(io.StringIO):
        def write(self, text):
            raise OSError(5, "Input/output error")

    monkeypatch.setattr(sys, "stdout", Gone())
    progress.say("a")
    progress.say("b")
    assert sys.stdout.name == os.devnull
    sys.stdout.close()


def test_drop_last(run):  # noqa: F811
    """10 clips by 4: two steps an epoch instead of three, and a run keeps to it."""
    assert run(*RUN, "--name", "dropped", "--drop-last", "--max-steps", "3")[0] == 0
    status, _, err = run("--resume", "runs/done", "--drop-last")
    assert status == 1 and "begun with --drop-last False and keeps it, got True" in err
    assert run("--resume", "runs/dropped")[0] == 0
    assert weights("dropped")[1]["step"] == 4 and weights("done")[1]["step"] == 6


def test_a_run_from_before_there_was_an_option(run):  # noqa: F811
    assert run(*RUN, "--name", "older", "--max-steps", "2")[0] == 0
    arrays, meta = checkpoint.load("runs/older/last.safetensors")
    del meta["config"]["drop_last"], meta["config"]["save_every"]
    checkpoint.save("runs/older/last.safetensors", arrays, meta)
    assert run("--resume", "runs/older", "--save-every", "5")[0] == 0
    assert weights("older")[0] == weights("done")[0] and weights("older")[1]["config"]["save_every"] == 5
