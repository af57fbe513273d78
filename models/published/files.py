"""The arrays in a published file, under the names that they have there, and what is beside them."""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from minnl.checks import clean, quoted
from minnl.training import checkpoint, tensor_file
from models.published import pickles, torch_files
from models.published.pickles import Refused

WEIGHTS = ("model_state", "state_dict", "blobs")  # Keys of SlowFast and pytorchvideo, of mmaction2, of the authors.
BOOKKEEPING = ("_momentum", "num_batches_tracked")  # Ends of names that are beside weights and are none.
COUNTERS = ("model_iter", "lr", "epoch")
OURS = "minnl_network"  # Where a file that minnl exported describes the network.
DTYPES = ("float16", "bfloat16", "float32", "float64")
CONVERT = "load it where it was written and save its state_dict with torch.save or as safetensors"


@dataclass
class Contents:
    """What a file holds."""

    container: str  # The format of the file.
    arrays: dict = field(default_factory=dict)  # Name -> ndarray, or torch_files.Tensor, which is not yet read.
    left: list = field(default_factory=list)  # (name, why) of what is beside the arrays.
    settings: str = ""  # The text in the file that says how the network was trained.
    network: dict | None = None  # The network, if minnl wrote the file.


def read(path):
    """The Contents of a published file.

    Raises ValueError, naming the file, what was found and what would do, for everything else.
    """
    path = Path(path)
    raw = checkpoint.read(path, "a file of weights")
    try:
        contents = opened(path, raw)
    except Refused as error:
        raise ValueError(f"{path}: {error}") from None
    numbers = sum(math.prod(entry.shape) for entry in contents.arrays.values())
    if numbers > len(raw):  # A small file would become a large network.
        raise ValueError(f"{path}: its arrays have {numbers:,} numbers, the file {len(raw):,} bytes")
    return contents


def opened(path, raw):
    """The Contents of a file's bytes, whatever its format."""
    if raw[:4] == b"PK\x03\x04":
        return state("PyTorch zip archive", torch_files.read_zip(raw))
    if raw.startswith(torch_files.MAGIC):
        return state("PyTorch file of before version 1.6", torch_files.read_stream(raw))
    if raw[8:9] == b"{":
        return safetensors(path, raw)
    if raw[:1] == b"\x80":
        return state("pickle", pickles.load(raw, pickles.NUMPY.get)[0])
    raise Refused(f"{guess(raw)}; a .pkl of video-nonlocal-net, a file of torch.save or a .safetensors expected")


def guess(raw):
    """What a file that cannot be read seems to be."""
    if not raw:
        return "an empty file"
    if raw[:2] == b"\x1f\x8b":
        return "a gzip archive (gunzip it first; if a tar is in it, unpack that too)"
    if raw[257:262] == b"ustar":
        return "a tar archive (unpack it first)"
    if raw[:200].lstrip()[:1] == b"<":
        return "a web page, so the download failed"
    if raw[:1] in (b"(", b"c", b"}"):
        return "perhaps a text pickle (protocol 0; save it again with protocol 2)"
    return f"begins with {raw[:8]!r}, which is no file of weights"


def safetensors(path, raw):
    """The Contents of a safetensors file."""
    entries, metadata = tensor_file.header(path, raw)
    if "minnl_checkpoint" in metadata:
        raise Refused("a checkpoint of minnl already; use it as it is, or export it")
    halves = [name for name, entry in entries.items() if entry["dtype"] == "BF16"]
    if halves:  # NumPy has no bfloat16, and safetensors.numpy fails on it.
        raise Refused(f"{clean(halves[0])} is bfloat16; convert the file to float16 or float32")
    contents = Contents("safetensors", network=network(metadata.get(OURS)))
    return sort(contents, tensor_file.arrays(path, raw))


def state(container, value):
    """The Contents of a pickled object: a dict of arrays, by itself or in a dict of a training program."""
    if not isinstance(value, dict):
        raise Refused(f"a {container} with a {type(value).__name__} in it; a dict of arrays expected; {CONVERT}")
    contents = Contents(container)
    key = next((k for k in WEIGHTS if isinstance(value.get(k), dict)), None)
    if key is not None:
        meta = value["meta"] if isinstance(value.get("meta"), dict) else {}
        settings = (value.get("cfg"), meta.get("cfg"), meta.get("config"))  # SlowFast's, and mmaction2's two.
        contents.settings = next(filter(None, map(text, settings)), "")
        contents.network = network(text(value.get(OURS)))
        contents.left = [(str(k), f"beside {key}, not needed") for k in value if k not in (key, OURS)]
        value = value[key]
    return sort(contents, value)


def text(value):
    """A str of Python 2 or 3 as a str, and "" for anything else."""
    return pickles.text(value, len(value)) if isinstance(value, (str, memoryview)) else ""


def network(text):
    """The description of the network in a file that minnl wrote, from JSON."""
    try:
        return json.loads(text or "null")
    except (ValueError, RecursionError):
        raise Refused("its description of the network is damaged") from None


def sort(contents, value):
    """Put the weights of a dict under `arrays`, and what is beside them under `left`."""
    for name, entry in value.items():
        if isinstance(entry, pickles.Array):
            entry = entry.values
        if not isinstance(name, str):
            raise Refused(f"an array with the name {quoted(name)}; texts are expected; {CONVERT}")
        if name.endswith(BOOKKEEPING) or name in COUNTERS:
            contents.left.append((name, "bookkeeping of the training"))
        elif isinstance(entry, (np.ndarray, torch_files.Tensor)):
            contents.arrays[name] = entry
        else:
            problem = f"{quoted(name)} is of type {type(entry).__name__} among the weights, where arrays belong"
            raise Refused(f"{problem}; {CONVERT}")
    if not contents.arrays:
        raise Refused(f"a {contents.container} without weights in it")
    if all(name.startswith("module.") for name in contents.arrays):  # It was trained on several GPUs.
        contents.arrays = {name.removeprefix("module."): entry for name, entry in contents.arrays.items()}
    return contents


def dtype(entry):
    """The name of an entry's dtype."""
    return entry.dtype.name if isinstance(entry, np.ndarray) else entry.dtype


def values(path, name, entry):
    """An entry as an array of float32, a view where possible.

    Raises ValueError for integers, and for numbers that are not finite.
    """
    if dtype(entry) not in DTYPES:
        raise ValueError(f"{path}: {clean(name)} has dtype {dtype(entry)}, weights are {', '.join(DTYPES)}")
    try:
        array = entry if isinstance(entry, np.ndarray) else entry.array()
    except Refused as error:
        raise ValueError(f"{path}: {error}") from None
    with np.errstate(over="ignore"):  # Infinity is found below.
        array = array.astype(np.float32, copy=False)
    if not np.isfinite(array).all():
        raise ValueError(f"{path}: {clean(name)} has values that are not finite (in float32); the file is damaged")
    return array


def distinct(command, path, to):
    """Raise ValueError if a command would write over the file that it reads."""
    if to is not None and os.path.exists(path) and os.path.exists(to) and os.path.samefile(path, to):
        raise ValueError(f"{command}: {to} is the file that is read; name another one to write")
