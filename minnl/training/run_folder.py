"""A run's folder: one process at a time writes to it, and its log is never ahead of its checkpoint."""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import math
import os
import platform
import warnings
from pathlib import Path

from minnl.training import checkpoint

TAKEN = {errno.EAGAIN, errno.EACCES, errno.EDEADLK}
NO_LOCKS = {getattr(errno, name, None) for name in ("ENOLCK", "ENOSYS", "ENOTSUP", "EOPNOTSUPP", "EINVAL")}
FAR = 2**30  # offset of the byte that Windows locks: a locked byte cannot be read by others, and the text can
_held = set()  # the open files of this process's locks


def _forked():
    """A forked child closes the locks of its parent, or it would hold them after the parent is killed."""
    for file in _held:
        file.close()
    _held.clear()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_forked)


class RunFolder:
    """A folder that one process at a time writes to: ``with RunFolder(path): ...``, which may be nested.

    The lock is one of the operating system, on the file ``lock`` in the folder. It ends with the process, however that
    ends, so a killed run blocks no other. On a file system without locks (some network ones) a warning says so: there
    two processes can resume one run, and only :meth:`first_free` keeps new runs apart.

    A folder that did not exist is made, and removed again if nothing was written to it.

    Attributes
    ----------
    path : Path
        Absolute, so that the process may change its working folder. ``str(folder)`` is the path as given.
    """

    def __init__(self, path):
        self.given, self.path = path, Path(path).absolute()
        self._depth, self._made, self._lock = 0, False, None

    @classmethod
    def first_free(cls, path):
        """Make the first of `path`, `path`-2, `path`-3, … that does not exist, in one step: two processes get two."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        numbered = (path.with_name(f"{path.name}-{n}") for n in itertools.count(2))
        return next(free for free in map(cls, itertools.chain([path], numbered)) if free._make())

    def __enter__(self):
        if self._depth == 0:
            if not self._made:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._make()
            self._lock, alone = self._locked()
            _held.add(self._lock)
            checkpoint.remove_temporaries(self.path, age=-math.inf if alone else checkpoint.STALE)
        self._depth += 1
        return self

    def __exit__(self, *_):
        self._depth -= 1
        if self._depth == 0 and not self._lock.closed:  # in a child that was forked it is
            with contextlib.suppress(OSError):  # Windows keeps the file of an open lock
                os.unlink(self.path / "lock")
            if self._made:
                with contextlib.suppress(OSError):  # it is not empty
                    self.path.rmdir()
                self._made = False
            self._lock.close()
            _held.discard(self._lock)

    def __str__(self):
        return str(self.given)

    @property
    def begun(self):
        """Whether the folder holds a checkpoint, or the log of an epoch."""
        log = self.path / "log.jsonl"
        return any((self.path / f"{name}.safetensors").exists() for name in ("last", "best")) or (
            log.exists() and '"kind": "epoch"' in log.read_text("utf-8", "replace")
        )

    def log(self, **record):
        """Add a line of JSON to ``log.jsonl``."""
        path, line = self.path / "log.jsonl", json.dumps(record, allow_nan=False)
        with checkpoint.naming(path), open(path, "a", encoding="utf-8") as file:
            file.write(f"{line}\n")
            file.flush()
            os.fsync(file.fileno())  # the log reaches the disk before the next checkpoint

    def cut_log(self, epoch, step):
        """Drop lines of the log about later epochs and steps, and lines that a crash cut short."""
        path = self.path / "log.jsonl"
        if not path.exists():
            return
        text = path.read_text("utf-8", "replace")
        kept = "".join(f"{line}\n" for line in text.splitlines() if _before(line, epoch, step))
        if kept != text:
            checkpoint.write(path, [kept.encode()])

    def _make(self):
        """Make the folder; False if there is one already."""
        try:
            self.path.mkdir()
        except FileExistsError:
            return False
        checkpoint.sync_folder(self.path.parent)
        self._made = True
        return True

    def _locked(self):
        """The open lock file, and whether it is really locked: on some file systems it cannot be."""
        path = self.path / "lock"
        while True:
            file = open(path, "a+b", buffering=0)  # noqa: SIM115, closed by __exit__
            try:
                taken = lock(file)
            except BaseException:
                file.close()
                raise
            if taken is None:
                warnings.warn(
                    f"{self}: this file system has no locks; see to it that no other process trains there meanwhile",
                    RuntimeWarning,
                    stacklevel=3,
                )
                return file, False
            if not taken:
                file.seek(0)
                holder = "".join(filter(str.isprintable, file.read(80).decode("ascii", "replace")))
                file.close()
                raise ValueError(f"{self}: another process trains there ({holder}); wait for its end, or stop it")
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                    with contextlib.suppress(OSError):  # on a full disk the lock holds without its text
                        file.truncate(0)
                        file.write(f"process {os.getpid()} on {platform.node()}".encode("ascii", "replace"))
                    return file, True
            file.close()  # the holder has removed this file since: try the file that now has the name


def lock(file):
    """Lock an open file without waiting: True; False if another process has the lock, None without locks there."""
    try:
        try:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except ImportError:  # Windows
            import msvcrt

            os.lseek(file.fileno(), FAR, os.SEEK_SET)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    except OSError as error:
        if error.errno in TAKEN:
            return False
        if error.errno in NO_LOCKS:
            return None
        raise
    return True


def _before(line, epoch, step):
    try:
        record = json.loads(line)
        return record["epoch"] <= epoch and record["step"] <= step
    except (ValueError, KeyError, TypeError):
        return False
