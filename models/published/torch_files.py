"""Reads files of torch.save without PyTorch, and without running anything that is in them.

Since version 1.6 such a file is a zip archive, uncompressed. In it ``data.pkl`` is a pickle, in which a tensor is a
shape, strides, an offset and the key of a storage. The storages are raw numbers: ``data/0``, ``data/1``, …. Before 1.6
the file was one stream of pickles with the storages behind them. Tensors may share a storage, and need not be
contiguous.
"""

import functools
import io
import math
import struct
import zipfile

import numpy as np

from minnl.checks import clean, quoted
from models.published import pickles
from models.published.pickles import Inert, Refused

MOST_ENTRIES = 50_000  # The most entries of an archive; published ones have some hundred.
MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03."  # The first bytes of the older files.
DTYPES = {
    "FloatStorage": "f4", "DoubleStorage": "f8", "HalfStorage": "f2", "BFloat16Storage": "u2",
    "LongStorage": "i8", "IntStorage": "i4", "ShortStorage": "i2", "CharStorage": "i1", "ByteStorage": "u1",
    "BoolStorage": "b1",
}  # fmt: skip
# What zipfile raises for a damaged archive.
DAMAGED = (
    zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, OSError, ValueError, OverflowError, struct.error
)  # fmt: skip

# Modules and names of objects that training programs leave beside the weights; no such object is made.
BYSTANDERS = ("mmengine", "mmcv", "mmaction", "addict", "yacs", "fvcore")
BYSTANDER_NAMES = ("builtins getattr", "__builtin__ getattr", "torch device", "torch float32", "torch Size")


class Storage:
    """The numbers of a reference ('storage', class, key, device, size, …); `read` gives the bytes of a key."""

    def __init__(self, read, reference):
        if not isinstance(reference, tuple):
            raise Refused(f"a reference of type {type(reference).__name__}, a tuple expected")
        _, self.name, key, _, self.size = reference[:5]
        self.key, self.read = pickles.text(key), read
        if not isinstance(self.name, str) or self.name not in DTYPES:
            raise Refused(f"a storage of class {quoted(self.name)}")
        pickles.sizes((self.size,), "storage")
        if any(view is not None for view in reference[5:]):
            raise Refused("a storage that is a view of another one; save it again with a newer PyTorch")
        self.dtype = np.dtype(DTYPES[self.name])
        self.bytes = self.size * self.dtype.itemsize

    def data(self):
        """The bytes, read when they are needed."""
        found = self.read(self.key)
        if found is None or len(found) < self.bytes:
            raise Refused(
                f"storage {quoted(self.key)} should have {self.bytes:,} bytes ({self.size:,} numbers), but the file "
                f"has {'no such entry' if found is None else f'{len(found):,} bytes'}"
            )
        return found


class Tensor:
    """A view of a storage; :meth:`array` makes an array of it."""

    def __init__(self, storage, offset, shape, stride, *rest):
        self.storage, self.offset, self.shape, self.stride = storage, offset, shape, stride
        if not isinstance(storage, Storage):
            raise Refused("a tensor without a storage")
        for name, values in (("shape", shape), ("strides", stride), ("offset", (offset,))):
            pickles.sizes(values, name)
        # Strides of 0 would let a few bytes pass for a huge array; no weights are saved so.
        last = offset + sum((n - 1) * s for n, s in zip(shape, stride, strict=True))
        if math.prod(shape) > storage.size or (offset if 0 in shape else last + 1) > storage.size:
            raise Refused(f"a tensor of shape {shape}, strides {stride} and offset {offset} in {storage.size} numbers")

    @property
    def dtype(self):
        """The name of the dtype, as NumPy has it."""
        return "bfloat16" if self.storage.name == "BFloat16Storage" else self.storage.dtype.name

    def array(self):
        """The tensor as an array of its own dtype, or of float32 for bfloat16, which NumPy does not have."""
        dtype = self.storage.dtype
        strides = [s * dtype.itemsize for s in self.stride]
        values = np.ndarray(self.shape, dtype, self.storage.data(), self.offset * dtype.itemsize, strides)
        return (values.astype(np.uint32) << 16).view(np.float32) if self.dtype == "bfloat16" else values


STAND_INS = pickles.NUMPY | {
    "torch._utils _rebuild_tensor_v2": Tensor,
    "torch._utils _rebuild_parameter": lambda data, *rest: data,
}


def stand_in(name):
    """The stand-in for "module name"; that of a class of storages is the name."""
    module, _, last = name.partition(" ")
    if module == "torch" and last.endswith("Storage"):
        return last
    if module.partition(".")[0] in BYSTANDERS or name in BYSTANDER_NAMES:
        return Inert()
    return STAND_INS.get(name)


def read_zip(raw):
    """The object in a zip archive, with Tensors in it.

    Raises Refused for an archive that torch.save did not write, that is damaged, or that is not what it says it is.
    """
    if raw.count(b"PK\x01\x02") > MOST_ENTRIES:  # These bytes begin an entry of the directory; zipfile makes objects.
        raise Refused(f"its zip archive has more than {MOST_ENTRIES:,} entries")
    try:
        archive = zipfile.ZipFile(io.BytesIO(raw))
    except DAMAGED as error:
        raise Refused(f"a damaged zip archive, or one that was cut short: {clean(str(error))}") from None
    infos = archive.infolist()
    folder = folder_of(infos, len(raw))
    entries = {info.filename.removeprefix(folder): info for info in infos if info.filename.startswith(folder)}

    @functools.cache
    def read(name):
        """The bytes of an entry, held to its checksum, or None."""
        try:
            return archive.read(entries[name]) if name in entries else None
        except DAMAGED as error:
            raise Refused(f"entry {quoted(name)} is damaged: {clean(str(error))}") from None

    if read("byteorder") not in (None, b"little"):
        raise Refused("written on a big-endian machine; save it again on a little-endian one")

    def storage(reference):
        return Storage(lambda key: read(f"data/{key}"), reference)

    return pickles.load(read("data.pkl"), stand_in, storage)[0]


def folder_of(entries, length):
    """The folder of data.pkl in an archive of `length` bytes.

    torch.save stores its entries as they are. Compressed entries, and sizes that add up to more than the file, are how
    a small archive fills the memory. Raises Refused for these, and for an archive of anything else.
    """
    folders, names = [], set()
    for entry in entries:
        name, size, stored = entry.filename, entry.file_size, entry.compress_size
        parts = name.split("/")
        if name.startswith("/") or "\\" in name or ".." in parts or ":" in parts[0] or name in names:
            raise Refused(f"its zip archive has the entry {quoted(name)}, twice or out of its folder")
        if entry.compress_type != zipfile.ZIP_STORED or size != stored or entry.flag_bits & 1:
            raise Refused(
                f"entry {quoted(name)} of its zip archive is compressed or encrypted ({stored:,} "
                f"bytes for {size:,}); torch.save stores entries as they are"
            )
        names.add(name)
        if parts[-1] == "data.pkl":
            folders.append(name.removesuffix("data.pkl"))
    announced = sum(entry.file_size for entry in entries)
    if announced > length:
        raise Refused(f"the entries of its zip archive add up to {announced:,} bytes, the file has {length:,}")
    if len(folders) != 1 or f"{folders[0]}constants.pkl" in names:
        found = "a TorchScript program" if folders else "no data.pkl in it"
        raise Refused(f"a zip archive, but not one that torch.save wrote of weights ({found}); save the state_dict")
    return folders[0]


def read_stream(raw):
    """The object in a file of torch.save before version 1.6: magic number, protocol, system, object, keys, storages."""
    system, place = pickles.load(raw, stand_in, start=len(MAGIC))
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise Refused("written on a big-endian machine, or damaged; save it again with a newer PyTorch")
    storages, data = {}, {}

    def storage(reference):
        made = Storage(data.get, reference)
        return storages.setdefault(made.key, made)

    value, place = pickles.load(raw, stand_in, storage, place)
    keys, place = pickles.load(raw, stand_in, start=place)
    for key in keys if isinstance(keys, list) else ():  # The storages follow in this order, each behind its length.
        key = pickles.text(key)
        if key not in storages:
            raise Refused(f"damaged: storage {quoted(key)} belongs to no tensor")
        begin, place = place + 8, place + 8 + storages[key].bytes
        if int.from_bytes(raw[begin - 8 : begin], "little") != storages[key].size or place > len(raw):
            raise Refused(
                f"damaged or cut short: storage {quoted(key)} should have {storages[key].bytes:,} bytes at byte "
                f"{begin:,}, the file has {len(raw):,}"
            )
        data[key] = memoryview(raw)[begin:place]
    return value
