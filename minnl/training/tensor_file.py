"""Safetensors files from anywhere, read with short errors that name the file.

A file consists of the length of its header, a header in JSON (dtype, shape and offsets of each array, and texts under
``__metadata__``), and the numbers. The library safetensors checks that the arrays neither overlap nor leave gaps.
"""

from __future__ import annotations

import json

import safetensors.numpy
from safetensors import SafetensorError

from minnl.checks import clean, quoted

LARGEST_HEADER = 10_000_000  # bytes; whole networks need some 100,000, and JSON takes thirty times its size in memory


def header(where, raw, refuse=ValueError):
    """(entries, metadata) of a file's bytes: name -> {"dtype", "shape", …}, and name -> text.

    Raises an error of the class `refuse` if it is no safetensors file. The arrays themselves are not read.
    """
    size = int.from_bytes(raw[:8], "little")
    try:
        if size > LARGEST_HEADER:
            raise ValueError
        entries = json.loads(bytes(raw[8 : 8 + size]).decode(), object_pairs_hook=_unique)
        metadata = entries.pop("__metadata__", {})
        whole = all(type(text) is str for text in metadata.values())
        whole = whole and all(type(entry) is dict and type(entry.get("dtype")) is str for entry in entries.values())
    except (ValueError, AttributeError, TypeError, RecursionError):
        whole = False
    if not whole:
        raise refuse(f"{where}: not a safetensors file, or its header was cut short or altered")
    return entries, metadata


def arrays(where, raw, refuse=ValueError):
    """name -> array of a file's bytes; raises an error of the class `refuse` if the file is damaged."""
    try:
        return safetensors.numpy.load(bytes(raw))
    except KeyError as error:  # a dtype that NumPy does not have
        problem = f"it has arrays of dtype {quoted(error.args[0])}"
    except (SafetensorError, ValueError, TypeError, AttributeError, OverflowError) as error:
        problem = f"{type(error).__name__}: {clean(str(error))}"
    raise refuse(f"{where}: a damaged safetensors file, or one that was cut short: {problem}")


def _unique(pairs):
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError
    return found
