"""Checkpoint files: what comes back, what is refused, and what survives when a save is stopped."""

import errno
import io
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from minnl.training import checkpoint
from minnl.training.checkpoint import CheckpointError, load, save

ARRAYS = {
    "z last in the alphabet, first here": np.arange(12, dtype=np.float32).reshape(3, 4),
    "conv.weight": np.linspace(0, 1, 7),
    "scalar": np.array(3, np.int64),
    "empty": np.zeros((0, 5), np.float32),
    "mask": np.array([True, False, True]),
    "bytes": np.arange(256, dtype=np.uint8),
    "sha256": np.zeros(2, np.int8),
}
META = {
    "epoch": 3,
    "name": 'é "sha256":"' + "0" * 64,
    "rng": np.random.default_rng(1).bit_generator.state,
    "none": None,
}


def same(loaded, saved):
    assert list(loaded) == list(saved)
    for name, array in saved.items():
        got = loaded[name]
        assert got.dtype == array.dtype and got.shape == array.shape, name
        assert got.tobytes() == array.tobytes(), name
        assert got.flags.writeable, name


def files(folder):
    return sorted(p.name for p in folder.iterdir())


def test_everything_comes_back(tmp_path):
    save(tmp_path / "last.safetensors", ARRAYS, META)
    arrays, meta = load(str(tmp_path / "last.safetensors"))
    same(arrays, ARRAYS)
    assert meta == META
    assert meta["rng"]["state"]["state"] > 2**64
    assert files(tmp_path) == ["last.safetensors"]


names = st.text(st.characters(codec="utf-8"), max_size=8).filter(lambda name: name != "__metadata__")
dtypes = st.sampled_from(sorted(checkpoint.DTYPES, key=str))
shapes = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)
plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**200), 2**200) | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@pytest.mark.slow
@settings(deadline=None, max_examples=50)
@given(
    arrays=st.dictionaries(names, dtypes.flatmap(lambda d: hnp.arrays(d, shapes)), max_size=4),
    meta=st.dictionaries(st.text(), plain, max_size=4),
)
def test_any_arrays_and_values_come_back(tmp_path_factory, arrays, meta):
    path = tmp_path_factory.mktemp("any") / "c.safetensors"
    save(path, arrays, meta)
    loaded, values = load(path)
    same(loaded, arrays)
    assert repr(values) == repr(meta)  # repr tells nan, -0.0, 1 and 1.0, True and 1 apart


@pytest.mark.parametrize("view", [lambda a: a.T, lambda a: a[::2, ::-1], lambda a: np.broadcast_to(a[:1], (4, 6))])
def test_views_are_saved_as_what_they_show(tmp_path, view):
    array = view(np.arange(24.0).reshape(4, 6))
    save(tmp_path / "c", {"a": array}, {})
    np.testing.assert_array_equal(load(tmp_path / "c")[0]["a"], array)


@pytest.mark.parametrize(
    ("arrays", "meta", "names"),
    [
        ({"w": np.zeros(2, complex)}, {}, r"arrays\['w'\] has dtype complex128"),
        ({"w": np.zeros(2, ">f4")}, {}, r"arrays\['w'\] has dtype >f4"),
        ({"w": np.array(["a"])}, {}, r"arrays\['w'\] has dtype <U1"),
        ({"w": np.array([None])}, {}, r"arrays\['w'\] has dtype object"),
        ({"w": [1.0]}, {}, r"arrays\['w'\] must be an array, got list"),
        ({1: np.zeros(2)}, {}, "arrays has the key 1"),
        ({"__metadata__": np.zeros(2)}, {}, "__metadata__"),
        ([np.zeros(2)], {}, "arrays must be a dict, got list"),
        ({}, {"lr": np.float64(1)}, r"meta\['lr'\] is of type float64"),
        ({}, {"a": [{"betas": (0.9, 0.99)}]}, r"meta\['a'\]\[0\]\['betas'\] is of type tuple"),
        ({}, {"a": {1: 2}}, r"meta\['a'\] has the key 1"),
        ({}, None, "meta must be a dict, got NoneType"),
    ],
)
def test_what_would_not_come_back_is_refused(tmp_path, arrays, meta, names):
    with pytest.raises(TypeError, match=names):
        save(tmp_path / "c", arrays, meta)
    assert files(tmp_path) == []


def test_every_flipped_bit_of_the_header_is_refused(tmp_path):
    path = tmp_path / "c"
    save(path, {"w": np.arange(3, dtype=np.float32), "é": np.zeros((), bool)}, {"epoch": 1})
    raw = path.read_bytes()
    for place in range(len(raw)):
        for bit in range(8):
            broken = bytearray(raw)
            broken[place] ^= 1 << bit
            path.write_bytes(broken)
            with pytest.raises(CheckpointError, match=str(path)):
                load(path)
    path.write_bytes(raw)
    assert load(path)[1] == {"epoch": 1}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("altered") / "c"
    save(path, ARRAYS, META)
    return path, path.read_bytes()


@settings(deadline=None, max_examples=200)
@given(data=st.data())
def test_an_altered_file_is_refused(saved, data):
    path, raw = saved[0], bytearray(saved[1])
    place = data.draw(st.integers(0, len(raw) - 1))
    how = data.draw(st.sampled_from(["change", "cut", "insert", "remove", "append"]))
    byte = data.draw(st.integers(0, 255))
    if how == "change":
        raw[place] ^= byte or 1
    elif how == "cut":
        del raw[place:]
    elif how == "remove":
        del raw[place]
    else:
        raw.insert(place if how == "insert" else len(raw), byte)
    path.write_bytes(raw)
    with pytest.raises(CheckpointError, match=str(path)):
        load(path)


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"", "not a safetensors file"),
        (b"PK\x03\x04 an npz, for example", "not a safetensors file"),
        (b"\x02\0\0\0\0\0\0\0[]", "not a safetensors file"),
        (b"[" * 100_000, "not a safetensors file"),
        (safetensors.numpy.save({"w": np.zeros(3)}), "not a checkpoint of minnl"),
        (safetensors.numpy.save({"w": np.zeros(3)}, {"format": "pt", "sha256": "0" * 64}), "not a checkpoint of minnl"),
        (safetensors.numpy.save({"w": np.zeros(3)}, {"minnl_checkpoint": "1"}), "checksum does not match"),
        (safetensors.numpy.save({"w": np.zeros(3)}, {"minnl_checkpoint": "2"}), "format '2', this minnl reads '1'"),
    ],
)
def test_other_files_are_refused(tmp_path, raw, reason):
    path = tmp_path / "other.safetensors"
    path.write_bytes(raw)
    with pytest.raises(CheckpointError, match=f"{path}: .*{reason}"):
        load(path)


def test_missing_and_misnamed_files_are_named(tmp_path):
    with pytest.raises(CheckpointError, match="none.safetensors: no such file"):
        load(tmp_path / "none.safetensors")
    with pytest.raises(CheckpointError, match=f"{tmp_path}: is a folder"):
        load(tmp_path)
    with pytest.raises(CheckpointError, match=f"{tmp_path}: not saved: it is a folder"):
        save(tmp_path, {}, {})
    with pytest.raises(CheckpointError, match="none/c: not saved, .*No such file or directory"):
        save(tmp_path / "none" / "c", {}, {})
    assert files(tmp_path) == []


def test_another_program_can_read_the_weights(tmp_path):
    save(tmp_path / "c", ARRAYS, META)
    with safetensors.safe_open(tmp_path / "c", framework="np") as file:
        np.testing.assert_array_equal(file.get_tensor("conv.weight"), ARRAYS["conv.weight"])
        assert json.loads(file.metadata()["content"])["meta"] == META


@pytest.mark.parametrize("step", ["write", "fsync", "replace"])
def test_a_disk_that_fills_leaves_the_old_checkpoint(tmp_path, monkeypatch, step):
    path = tmp_path / "last.safetensors"
    save(path, ARRAYS, {"epoch": 1})
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def fails(*args, **kwargs):
        raise full

    class FullFile:
        """A file that takes the first piece of a checkpoint and has no room for the second."""

        def __init__(self, name, mode):
            self.file, self.pieces = io.FileIO(name, mode), 0

        def write(self, piece):
            self.pieces += 1
            return self.file.write(piece) if self.pieces == 1 else fails()

        def __enter__(self):
            return self

        def __exit__(self, *error):
            self.file.close()

    if step == "write":
        monkeypatch.setattr(checkpoint, "open", FullFile, raising=False)
    else:
        monkeypatch.setattr(os, step, fails)
    with pytest.raises(CheckpointError, match=f"{path}: not saved, .* untouched: No space left on device") as caught:
        save(path, ARRAYS, {"epoch": 2})
    assert caught.value.__cause__ is full
    monkeypatch.undo()
    assert files(tmp_path) == ["last.safetensors"]
    assert load(path)[1] == {"epoch": 1}


def test_a_folder_that_cannot_be_synced_is_told(tmp_path, monkeypatch):
    synced, fsync = [], os.fsync

    def second_fails(descriptor):
        synced.append(descriptor)
        if len(synced) == 2:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", second_fails)
    with pytest.raises(CheckpointError, match="saved, but a power cut may undo it"):
        save(tmp_path / "c", ARRAYS, META)
    assert load(tmp_path / "c")[1] == META


def python(code, *args):
    imports = "import numpy as np, os, resource, signal, sys\nfrom minnl.training import checkpoint\n"
    code = imports + textwrap.dedent(code)
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, args)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX limits")
def test_a_write_that_the_system_refuses_half_way(tmp_path):
    path = tmp_path / "last.safetensors"
    save(path, ARRAYS, {"epoch": 1})
    run = python(
        """
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
        try:
            checkpoint.save(sys.argv[1], {"w": np.zeros(100_000)}, {"epoch": 2})
        except checkpoint.CheckpointError as error:
            print(error)
        """,
        path,
    )
    out, err = run.communicate(timeout=60)
    assert "not saved, what was there before is untouched: File too large" in out, err
    assert files(tmp_path) == ["last.safetensors"]
    assert load(path)[1] == {"epoch": 1}


def test_a_kill_half_way_leaves_the_old_checkpoint_and_a_rest_that_the_next_save_clears(tmp_path):
    path = tmp_path / "last.safetensors"
    save(path, ARRAYS, {"epoch": 1})
    run = python(
        """
        os.fsync = lambda descriptor: os.kill(os.getpid(), signal.SIGKILL)
        checkpoint.save(sys.argv[1], {"w": np.zeros(100_000)}, {"epoch": 2})
        """,
        path,
    )
    run.communicate(timeout=60)
    assert run.returncode == -signal.SIGKILL
    assert load(path)[1] == {"epoch": 1}
    (rest,) = (p for p in tmp_path.iterdir() if p != path)
    save(path, ARRAYS, {"epoch": 2})
    assert rest.exists()  # so young that a save could still be writing it
    old = time.time() - 2 * checkpoint.STALE
    os.utime(rest, (old, old))
    other = tmp_path / ".best.safetensors.0.tmp"
    other.touch()
    os.utime(other, (old, old))
    save(path, ARRAYS, {"epoch": 3})
    assert files(tmp_path) == [".best.safetensors.0.tmp", "last.safetensors"]


def test_kills_at_any_moment_leave_a_whole_checkpoint(tmp_path):
    path = tmp_path / "last.safetensors"
    for delay in (0.0, 0.01, 0.03):
        run = python(
            """
            for epoch in range(10**6):
                checkpoint.save(sys.argv[1], {"w": np.full(50_000, epoch)}, {"epoch": epoch})
                print(flush=True)
            """,
            path,
        )
        run.stdout.readline()
        time.sleep(delay)
        run.kill()
        run.communicate(timeout=60)
        arrays, meta = load(path)
        assert (arrays["w"] == meta["epoch"]).all()


def test_saves_at_once_do_not_tear(tmp_path):
    path, wrong = tmp_path / "last.safetensors", []
    save(path, {"w": np.full(50_000, 0)}, {"writer": 0})

    def write(writer):
        for _ in range(10):
            save(path, {"w": np.full(50_000, writer)}, {"writer": writer})

    writers = [threading.Thread(target=write, args=(i,)) for i in range(3)]
    for thread in writers:
        thread.start()
    while any(thread.is_alive() for thread in writers):
        arrays, meta = load(path)
        if not (arrays["w"] == meta["writer"]).all():
            wrong.append(meta)
    assert not wrong
    assert files(tmp_path) == ["last.safetensors"]


def test_ctrl_c_leaves_nothing_behind(tmp_path, monkeypatch):
    def interrupt(descriptor):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        save(tmp_path / "c", ARRAYS, META)
    assert files(tmp_path) == []


def test_the_file_has_the_usual_permissions(tmp_path):
    (tmp_path / "plain").touch()
    save(tmp_path / "c", ARRAYS, META)
    assert (tmp_path / "c").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_symlink_is_written_through(tmp_path):
    (tmp_path / "there").mkdir()
    link, chain = tmp_path / "last", tmp_path / "chain"
    link.symlink_to("there/real")  # which does not exist yet
    chain.symlink_to(link)
    for epoch, name in enumerate((link, chain)):
        save(name, ARRAYS, {"epoch": epoch})
        assert link.is_symlink() and chain.is_symlink() and files(tmp_path / "there") == ["real"]
        assert load(tmp_path / "there" / "real")[1] == load(link)[1] == {"epoch": epoch}
    assert files(tmp_path) == ["chain", "last", "there"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs FIFOs")
def test_what_is_no_file_is_not_replaced_by_one(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(CheckpointError, match="pipe: not saved: it is a device or a pipe"):
        save(tmp_path / "pipe", ARRAYS, META)
    assert (tmp_path / "pipe").is_fifo() and files(tmp_path) == ["pipe"]


def test_an_error_of_the_system_is_given_its_file():
    with pytest.raises(OSError, match="No space left on device: 'a file'"), checkpoint.naming("a file"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.raises(FileNotFoundError, match="'another'"), checkpoint.naming("a file"):
        raise FileNotFoundError(errno.ENOENT, "No such file", "another")
    with pytest.raises(OSError, match="^of somebody else$"), checkpoint.naming("a file"):
        raise OSError("of somebody else")
