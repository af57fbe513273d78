"""A run's folder: taken by one process at a time, given back by its end, cleared of what kills left."""

import errno
import os
import pathlib
import signal
import subprocess
import sys
import types

import pytest

from minnl.training import run_folder
from minnl.training.run_folder import RunFolder

HOLD = """
import sys
from minnl.training.run_folder import RunFolder
with RunFolder(sys.argv[1]):
    print(flush=True)
    sys.stdin.read()
"""


def holder(path):
    """Another process that has the folder."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], **pipes)
    process.stdout.readline()
    return process


@pytest.mark.parametrize("end", ["by itself", "killed"])
def test_another_process_is_refused_until_the_first_has_ended(tmp_path, end):
    process = holder(tmp_path / "run")
    try:
        with pytest.raises(ValueError, match=f"run: another process trains there .process {process.pid} on .*; wait"):
            RunFolder(tmp_path / "run").__enter__()
    finally:
        if end == "killed":
            process.kill()
        process.communicate(timeout=60)
    assert process.returncode == (-signal.SIGKILL if end == "killed" else 0)
    (tmp_path / "run").mkdir(exist_ok=True)
    with RunFolder(tmp_path / "run"):
        pass


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_what_a_killed_process_has_forked_does_not_keep_its_lock(tmp_path):
    code = """
import os, sys, time
from minnl.training.run_folder import RunFolder
with RunFolder(sys.argv[1]):
    child = os.fork()
    if child == 0:
        time.sleep(60)
        os._exit(0)
    if os.fork() == 0:
        sys.exit()  # which leaves the context, and not its parent's folder
    os.wait()
    print(child, *os.listdir(sys.argv[1]), flush=True)
    time.sleep(60)
"""
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    child, *files = process.stdout.readline().split()
    try:
        assert files == ["lock"]
        with pytest.raises(ValueError, match=f"process {process.pid} on"):
            RunFolder(tmp_path).__enter__()
        process.kill()
        process.wait(timeout=60)
        os.kill(int(child), 0)  # it lives
        with RunFolder(tmp_path):
            pass
    finally:
        os.kill(int(child), signal.SIGKILL)
        process.communicate(timeout=60)


def test_the_lock_may_be_nested_and_goes_with_its_file(tmp_path):
    folder, other = RunFolder(tmp_path), RunFolder(tmp_path)
    with folder:
        with folder:
            pass
        with pytest.raises(ValueError, match=f"process {os.getpid()} on "):
            other.__enter__()
    assert os.listdir(tmp_path) == []
    with other:
        assert os.listdir(tmp_path) == ["lock"]


def test_a_lock_whose_file_was_removed_in_between_is_no_lock(tmp_path, monkeypatch):
    """Its last owner removes the file and lets go; a third makes a new one. Who had the old one open must not go on."""
    lock, taken = run_folder.lock, []

    def removed(file):
        taken.append(lock(file))
        if len(taken) == 1:
            os.unlink(tmp_path / "lock")
        return taken[-1]

    monkeypatch.setattr(run_folder, "lock", removed)
    with RunFolder(tmp_path):
        assert taken == [True, True]
        with pytest.raises(ValueError, match="another process"):
            RunFolder(tmp_path).__enter__()


def test_of_two_starts_at_once_each_gets_a_folder(tmp_path, monkeypatch):
    mkdir, rivals = pathlib.Path.mkdir, [tmp_path / "runs/a", tmp_path / "runs/a-2"]

    def late(path, *arguments, **options):
        if path in rivals:  # made by another after this one looked, and before it makes its own
            rivals.remove(path)
            mkdir(path)
        mkdir(path, *arguments, **options)

    monkeypatch.setattr(pathlib.Path, "mkdir", late)
    with RunFolder.first_free(tmp_path / "runs/a") as folder:
        assert folder.path == tmp_path / "runs/a-3" and rivals == []


def test_a_folder_to_which_nothing_was_written_goes_again(tmp_path):
    with RunFolder(tmp_path / "runs/a"):
        pass
    with RunFolder.first_free(tmp_path / "runs/a") as folder:
        (folder.path / "config.json").touch()
    (tmp_path / "mine").mkdir()
    with RunFolder(tmp_path / "mine"):
        pass
    assert os.listdir(tmp_path / "runs") == ["a"] and (tmp_path / "mine").is_dir()


def test_temporaries_of_killed_saves_go(tmp_path):
    left = {"." + name + "." + "0a" * 8 + ".tmp" for name in ("last.safetensors", "best.safetensors", "config.json")}
    mine = {"last.safetensors", ".mine.tmp", "0a.tmp", ".last.safetensors.tmp"}
    for name in left | mine:
        (tmp_path / name).touch()
    with RunFolder(tmp_path):
        assert set(os.listdir(tmp_path)) == mine | {"lock"}


@pytest.mark.parametrize("number", ["ENOLCK", "ENOSYS", "EOPNOTSUPP"])
def test_a_file_system_without_locks_is_told_of(tmp_path, monkeypatch, number):
    fcntl = pytest.importorskip("fcntl")

    def refused(*_):
        raise OSError(getattr(errno, number), "No locks available")

    monkeypatch.setattr(fcntl, "flock", refused)
    young = tmp_path / f".last.safetensors.{'0' * 16}.tmp"
    young.touch()
    for _ in range(2):  # after a kill too
        with pytest.warns(RuntimeWarning, match="this file system has no locks"), RunFolder(tmp_path):
            assert young.exists(), "it may be of a save that is under way"


def test_other_errors_of_a_lock_are_not_taken_for_its_absence(tmp_path, monkeypatch):
    fcntl = pytest.importorskip("fcntl")

    def fails(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(fcntl, "flock", fails)
    with pytest.raises(OSError, match="Input/output error"):
        RunFolder(tmp_path).__enter__()


def test_on_windows_a_byte_is_locked(tmp_path, monkeypatch):
    taken = []

    def locking(descriptor, mode, count):
        assert (mode, count, os.lseek(descriptor, 0, os.SEEK_CUR)) == ("without waiting", 1, 2**30)
        if taken:
            raise PermissionError(errno.EACCES, "Permission denied")
        taken.append(descriptor)

    monkeypatch.setitem(sys.modules, "fcntl", None)
    monkeypatch.setitem(sys.modules, "msvcrt", types.SimpleNamespace(LK_NBLCK="without waiting", locking=locking))
    with RunFolder(tmp_path):
        with pytest.raises(ValueError, match=f"process {os.getpid()} on "):
            RunFolder(tmp_path).__enter__()
        assert (tmp_path / "lock").stat().st_size < 100


def test_a_process_may_change_its_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = RunFolder("run")
    with folder:
        monkeypatch.chdir("/")
        folder.log(epoch=0, step=1)
    assert os.listdir(tmp_path / "run") == ["log.jsonl"] and str(folder) == "run"


def test_what_a_log_says_of_later_is_dropped(tmp_path):
    folder, log = RunFolder(tmp_path), tmp_path / "log.jsonl"
    for epoch, step in ((0, 2), (0, 4), (1, 4), (1, 6)):
        folder.log(epoch=epoch, step=step)
    lines = log.read_text().splitlines(True)
    log.write_bytes(log.read_bytes() + b'{"epoch": 0, "st\xff\x00\n[1]\n{"epoch": 0, "step": 3')
    folder.cut_log(0, 4)
    assert log.read_text() == "".join(lines[:2]), "the epoch's own line belongs to its end, after the same step"
    log.write_text("".join(lines[:2]).rstrip())
    folder.cut_log(1, 4)
    assert log.read_text() == "".join(lines[:2])
    log.unlink()
    folder.cut_log(1, 4)
    assert not log.exists()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_names_the_log(tmp_path):
    (tmp_path / "log.jsonl").symlink_to("/dev/full")
    with pytest.raises(OSError, match=f"No space left on device: '{tmp_path}/log.jsonl'"):
        RunFolder(tmp_path).log(epoch=0, step=1)


def test_numbers_that_are_not_json_are_not_logged(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        RunFolder(tmp_path).log(epoch=0, step=1, loss=float("nan"))
    assert os.listdir(tmp_path) == []
