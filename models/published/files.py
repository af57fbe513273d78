"""What kind of file it is, and the arrays in it, under the names that they have there."""

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
from models.published.torch_files import Tensor

WEIGHTS = ("model_state", "state_dict", "blobs")  # SlowFast and pytorchvideo, mmaction2, the authors
BOOKKEEPING = ("_momentum", "num_batches_tracked")  # ends of names that stand beside weights and are none
OURS = "minnl_network"  # what stands in files that minnl exported
KEPT = ("model_iter", "lr", "epoch")
DTYPES = ("float16", "bfloat16", "float32", "float64")
CONVERT = "load it where it was written and save its state_dict with torch.save or as safetensors"


@dataclass
class Contents:
    """What a file holds.

    Attributes
    ----------
    kind : str
        Of file, in words.
    arrays : dict of name -> ndarray or Tensor
        Not yet read where they are Tensors.
    left : list of (name, why)
        What stands beside them.
    settings : str
        Text in the file that says how the network was trained, or "".
    network : dict or None
        The network, if minnl wrote the file.
    """

    kind: str
    arrays: dict
    left: list = field(default_factory=list)
    settings: str = ""
    network: dict | None = None


def read(path):
    """The Contents of a published file.

    Raises ValueError, naming the file, what was found and what would do, for everything else.
    """
    path = Path(path)
    raw = checkpoint.read(path, "a file of weights")
    contents = opened(str(path), raw)
    numbers = sum(math.prod(entry.shape) for entry in contents.arrays.values())
    if numbers > len(raw):  # a small file would become a large network
        raise ValueError(f"{path}: refused: its arrays have {numbers:,} numbers, the file {len(raw):,} bytes")
    return contents


def opened(where, raw):
    """The Contents of a file's bytes, whatever kind it is."""
    if raw[:4] == b"PK\x03\x04":
        return state(where, "PyTorch zip archive", torch_files.read_zip(where, raw))
    if raw.startswith(torch_files.MAGIC):
        return state(where, "PyTorch file of before version 1.6", torch_files.read_stream(where, raw))
    if raw[8:9] == b"{":
        return tensors(where, raw)
    if raw[:1] == b"\x80":
        return state(where, "pickle", pickles.load(where, raw, pickles.arrays_only)[0])
    raise ValueError(
        f"{where}: {guess(raw)}; a .pkl of video-nonlocal-net, a file of torch.save or a .safetensors expected"
    )


def apart(where, path, to):
    """The path as a str; raises ValueError if the file would be written over."""
    if to is not None and os.path.exists(path) and os.path.exists(to) and os.path.samefile(path, to):
        raise ValueError(f"{where}: {to} is the file that is read; name another one to write")
    return str(path)


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


def tensors(where, raw):
    """A safetensors file."""
    entries, metadata = tensor_file.header(where, raw)
    if "minnl_checkpoint" in metadata:
        raise ValueError(f"{where}: a checkpoint of minnl already; use it as it is, or export it")
    halves = [name for name, entry in entries.items() if entry["dtype"] == "BF16"]
    if halves:  # NumPy has no bfloat16, and safetensors.numpy fails on it
        raise ValueError(f"{where}: {clean(halves[0])} is bfloat16; convert the file to float16 or float32")
    network = described(where, metadata.get(OURS, "null"))
    return split(where, Contents("safetensors", {}, [], "", network), tensor_file.arrays(where, raw))


def described(where, text):
    """The network that minnl says a file has that it wrote, as JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError(f"{where}: its description of the network is damaged") from None


def state(where, kind, value):
    """The weights in a pickled object: a dict of arrays, by itself or in a dict of a training program."""
    if not isinstance(value, dict):
        raise ValueError(f"{where}: a {kind} with a {type(value).__name__} in it; a dict of arrays expected; {CONVERT}")
    contents = Contents(kind, {})
    key = next((k for k in WEIGHTS if isinstance(value.get(k), dict)), None)
    if key is not None:
        contents.left += [(str(k), f"stands beside {key}, not needed") for k in value if k not in (key, OURS)]
        contents.network = described(where, text_of(value.get(OURS)) or "null")
        contents.settings = settings(value)
        value = value[key]
    return split(where, contents, value)


def settings(value):
    """SlowFast keeps its settings in cfg, mmaction2 in meta."""
    meta = value.get("meta")
    texts = [value.get("cfg"), *((meta.get("cfg"), meta.get("config")) if isinstance(meta, dict) else ())]
    return next(filter(None, map(text_of, texts)), "")


def text_of(value):
    """A str of Python 2 or 3 as a str, "" for what is none."""
    return value if isinstance(value, str) else bytes(value).decode("latin-1") if isinstance(value, memoryview) else ""


def split(where, contents, value):
    """Sort the entries of a dict into weights and what stands beside them."""
    for name, entry in value.items():
        if isinstance(entry, pickles.Array):
            entry = entry.values
        if not isinstance(name, str):
            raise ValueError(f"{where}: an array with the name {quoted(name)}; texts are expected; {CONVERT}")
        if name.endswith(BOOKKEEPING) or name in KEPT:
            contents.left.append((name, "bookkeeping of the training"))
        elif isinstance(entry, (np.ndarray, Tensor)):
            contents.arrays[name] = entry
        else:
            raise ValueError(
                f"{where}: {quoted(name)} is of type {type(entry).__name__} among the weights, where arrays belong; "
                f"{CONVERT}"
            )
    if not contents.arrays:
        raise ValueError(f"{where}: a {contents.kind} without weights in it")
    if all(name.startswith("module.") for name in contents.arrays):  # trained on several GPUs
        contents.arrays = {name.removeprefix("module."): entry for name, entry in contents.arrays.items()}
    return contents


def dtype(entry):
    """The name of an entry's dtype."""
    if isinstance(entry, Tensor):
        kind = entry.storage.kind
        return "bfloat16" if kind == "BFloat16Storage" else np.dtype(torch_files.DTYPES[kind]).name
    return entry.dtype.name


def values(where, name, entry):
    """An entry as an array of float32, a view where possible.

    Raises ValueError for integers, and for numbers that are not finite.
    """
    if dtype(entry) not in DTYPES:
        raise ValueError(f"{where}: {clean(name)} has dtype {dtype(entry)}, weights are {', '.join(DTYPES)}")
    array = entry.array() if isinstance(entry, Tensor) else entry
    with np.errstate(over="ignore"):  # found below
        array = array.astype(np.float32, copy=False)
    if not np.isfinite(array).all():
        raise ValueError(f"{where}: {clean(name)} has values that are not finite (in float32); the file is damaged")
    return array
