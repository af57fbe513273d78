"""Checkpoint files: arrays and plain values. A file is written whole or not at all, and read as written or refused.

A checkpoint is a safetensors file (no pickle, nothing in it is ever executed): the arrays are its tensors, and its
header holds the format's version, the other values as JSON, and a SHA-256. The checksum is computed over the whole
file with 64 zeros in place of its own digits, so a single flipped byte is found anywhere, header and padding included.

A save writes a temporary file beside the target, syncs it to the disk, and renames it over the target. Whatever stops
the save (a full disk, a signal, a power cut), the target is either the old checkpoint or the new one. A symlink is
followed: the file that it points to is replaced.

What belongs into a checkpoint of a run is decided in state.py.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import platform
import re
import secrets
import time
from pathlib import Path

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError

from minnl import backend, dispatch
from minnl.checks import quoted
from minnl.training import schema, tensor_file

VERSION = "1"
CHECKSUM = b'"sha256":"'  # cannot occur a second time in the header: quotes inside JSON strings are escaped
BLANK = b"0" * 64
TEMPORARY = re.compile(r"\.(.+)\.[0-9a-f]{16}\.tmp")
STALE = 3600  # seconds without a write after which a temporary file counts as left by a killed run
PLAIN = (bool, int, float, str, type(None))
INTEGERS = (np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint16, np.uint32, np.uint64)
DTYPES = {np.dtype(scalar) for scalar in (np.bool, *INTEGERS, np.float16, np.float32, np.float64, np.complex64)}


class CheckpointError(ValueError):
    """A file that cannot be written, or cannot be trusted; the message names it and says why."""


def save(path, arrays, meta):
    """Write a checkpoint in place of what is at `path`, if anything, all of it or nothing.

    Parameters
    ----------
    path : str or Path
        Usually ``*.safetensors``. The folder must exist.
    arrays : dict of str -> ndarray (NumPy or CuPy) of any shape; bool, integers, float16/32/64 or complex64
    meta : dict
        Values that JSON gives back unaltered: dict with str keys, list, str, int of any size, float (NaN and infinities
        too), bool, None.

    Raises
    ------
    TypeError
        For an array or a value that would not come back unaltered; the message says where it is.
    CheckpointError
        If the file cannot be written. What was at `path` before is still there, unless the message says otherwise.
    """
    path = Path(path)
    host = {name: _saved_array(name, array) for name, array in _str_keys("save", "arrays", arrays).items()}
    check_plain("save", "meta", _str_keys("save", "meta", meta))
    content = json.dumps({"meta": meta, "order": list(host)})
    header = {"minnl_checkpoint": VERSION, "content": content, "sha256": BLANK.decode()}
    try:
        raw = memoryview(safetensors.numpy.save(host, header))
    except SafetensorError as error:
        raise CheckpointError(f"{path}: not saved: {error}") from error
    if int.from_bytes(raw[:8], "little") > tensor_file.LARGEST_HEADER:
        raise CheckpointError(
            f"{path}: not saved: meta and names of arrays take more than {tensor_file.LARGEST_HEADER:,} bytes, and "
            "could not be read again; keep large things in arrays"
        )
    start = _checksum_place(raw)
    chunks = raw[:start], _checksum(raw, start), raw[start + len(BLANK) :]
    write(path, chunks)


def write(path, chunks):
    """Write a file of `chunks` (bytes) in place of what is at `path`, if anything, all of it or nothing.

    Raises CheckpointError as :func:`save` does.
    """
    path = Path(path)
    if path.is_dir():
        raise CheckpointError(f"{path}: not saved: it is a folder, name a file in it")
    if path.exists() and not path.is_file():
        raise CheckpointError(f"{path}: not saved: it is a device or a pipe, which a file would replace")
    target = Path(os.path.realpath(path))  # a rename onto a symlink would replace the link
    try:
        _write_temporary(target, chunks)
    except OSError as error:
        reason = error.strerror or error
        raise CheckpointError(f"{path}: not saved, what was there before is untouched: {reason}") from error
    try:
        sync_folder(target.parent)
    except OSError as error:
        raise CheckpointError(f"{path}: saved, but a power cut may undo it: {error.strerror or error}") from error
    remove_temporaries(target.parent, target.name, STALE)


def read(path, wanted, refuse=ValueError):
    """The bytes of a file; an error of the class `refuse`, naming it and what is `wanted`, if it cannot be read."""
    try:
        if path.exists() and not path.is_file() and not path.is_dir():
            raise refuse(f"{path}: is a pipe or a device, {wanted} expected")
        return path.read_bytes()
    except FileNotFoundError:
        raise refuse(f"{path}: no such file") from None
    except IsADirectoryError:
        raise refuse(f"{path}: is a folder, {wanted} expected") from None
    except OSError as error:
        raise refuse(f"{path}: cannot be read: {error.strerror}") from error


def load(path):
    """Read a checkpoint: (arrays, meta) as given to :func:`save`, the arrays in NumPy and in the same order.

    Raises
    ------
    CheckpointError
        If there is no such file, it is no checkpoint of minnl, another version wrote it, or a byte of it is
        missing or not the one that was written.
    """
    path = Path(path)
    raw = read(path, "a checkpoint file", CheckpointError)
    metadata = _header(path, raw)
    start = _checksum_place(raw)
    if raw[start : start + len(BLANK)] != _checksum(raw, start):
        raise CheckpointError(f"{path}: cut short or altered since it was saved: its checksum does not match")
    arrays = tensor_file.arrays(path, raw, CheckpointError)
    try:
        content = json.loads(metadata.get("content", ""))
    except (ValueError, RecursionError):
        raise CheckpointError(f"{path}: what stands beside its arrays is no JSON: it was altered") from None
    schema.check(f"{path}: its header", content, schema.CONTENT, CheckpointError)
    if sorted(content["order"]) != sorted(arrays):
        raise CheckpointError(f"{path}: its header lists other arrays than it has: it was altered")
    return {name: arrays[name] for name in content["order"]}, content["meta"]


def versions():
    """The versions that made a checkpoint: they may explain why two runs differ."""
    return {
        "python": platform.python_version(),
        "numpy": np.__version__,
        "machine": platform.machine(),
        "kernels": dispatch.mode(),
        "threads": backend.threads(),
    }


def under(arrays, prefix):
    """The arrays whose names start with a prefix, without it."""
    return {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}


@contextlib.contextmanager
def naming(path):
    """Context in which every OSError names the file; that of a full disk, at a write or a close, has no name."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = os.fspath(path)
        raise


def check_plain(where, name, value, finite=False):
    """Refuse a value that JSON would not give back unaltered; the message names its place and the caller, `where`.

    `finite` refuses NaN and infinities too: Python reads them back, but they are not JSON, and other programs cannot.
    """
    if type(value) is dict:
        for key, inner in _str_keys(where, name, value).items():
            check_plain(where, f"{name}[{key!r}]", inner, finite)
    elif type(value) is list:
        for i, inner in enumerate(value):
            check_plain(where, f"{name}[{i}]", inner, finite)
    elif finite and type(value) is float and not math.isfinite(value):
        raise ValueError(f"{where}: {name} is {value}, which is not JSON; None or a str would do")
    elif type(value) not in PLAIN:
        raise TypeError(
            f"{where}: {name} is of type {type(value).__name__}, which JSON does not give back; "
            "dict, list, str, int, float, bool or None expected"
        )


def remove_temporaries(folder, name=None, age=-math.inf):
    """Remove what killed saves left in a folder: temporary files of `name`, or all, if older than `age` seconds.

    A younger file may belong to a save in progress, unless no other process can be saving there.
    """
    for entry in Path(folder).iterdir():
        found = TEMPORARY.fullmatch(entry.name)
        if found and name in (None, found[1]):
            with contextlib.suppress(OSError):
                if time.time() - entry.stat().st_mtime > age:
                    entry.unlink()


def _str_keys(where, name, value):
    if type(value) is not dict:
        raise TypeError(f"{where}: {name} must be a dict, got {type(value).__name__}")
    for key in value:
        if type(key) is not str:
            raise TypeError(f"{where}: {name} has the key {key!r}, a str expected")
    return value


def _saved_array(name, array):
    if name == "__metadata__":
        raise TypeError("save: an array cannot have the name '__metadata__', safetensors keeps it for its header")
    if not backend.is_array(array):
        raise TypeError(f"save: arrays[{name!r}] must be an array, got {type(array).__name__}")
    if array.dtype not in DTYPES:
        names = ", ".join(sorted(d.name for d in DTYPES))
        raise TypeError(f"save: arrays[{name!r}] has dtype {array.dtype}, {names} (native byte order) can be saved")
    return np.asarray(backend.to_host(array), order="C")  # safetensors reads the memory as if it were contiguous


def _header(path, raw):
    """The header's metadata, if the file is a checkpoint of this version. The checksum is not compared here."""
    _, metadata = tensor_file.header(path, raw, CheckpointError)
    if "minnl_checkpoint" not in metadata:
        raise CheckpointError(f"{path}: a safetensors file, but not a checkpoint of minnl, or an altered one")
    version = metadata["minnl_checkpoint"]
    if version != VERSION:
        raise CheckpointError(
            f"{path}: a checkpoint of format {quoted(version)}, this minnl reads {VERSION!r}; "
            "a newer minnl wrote it, or it was altered"
        )
    return metadata


def _checksum_place(raw):
    """Where the 64 digits of the checksum begin; the end of the file if the header has no checksum."""
    place = bytes(raw[: 8 + int.from_bytes(raw[:8], "little")]).find(CHECKSUM)
    return len(raw) if place < 0 else place + len(CHECKSUM)


def _checksum(raw, start):
    """SHA-256 of all bytes, with zeros where the digits themselves stand."""
    view = memoryview(raw)
    digest = hashlib.sha256(view[:start])
    digest.update(BLANK)
    digest.update(view[start + len(BLANK) :])
    return digest.hexdigest().encode()


def _write_temporary(path, chunks):
    # Every save has a temporary file of its own: of two saves at once the last rename wins.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        with open(temporary, "xb") as file:
            for chunk in chunks:
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:  # Ctrl-C too leaves nothing behind
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def sync_folder(folder):
    """Sync a folder, so that a rename in it reaches the disk. Only POSIX can, and not on every file system."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
    finally:
        os.close(descriptor)
