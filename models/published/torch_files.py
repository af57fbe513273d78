"""Files that torch.save wrote, read without PyTorch and without running anything that stands in them.

Since version 1.6 such a file is a zip archive, uncompressed: ``data.pkl`` is a pickle in which a tensor is a shape,
strides, an offset, and the number of a storage, and ``data/0``, ``data/1``, … are the storages, raw numbers. Before
1.6 it was one stream: a few pickles, then the storages. Tensors may share a storage, and need not be contiguous.
"""

import io
import math
import struct
import zipfile

import numpy as np

from minnl.checks import clean, quoted
from models.published import pickles
from models.published.pickles import Inert, Refused

MOST_ENTRIES = 50_000  # of an archive; published ones have some hundred
MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03."  # how the older files begin
DTYPES = {
    "FloatStorage": "f4", "DoubleStorage": "f8", "HalfStorage": "f2", "BFloat16Storage": "u2",
    "LongStorage": "i8", "IntStorage": "i4", "ShortStorage": "i2", "CharStorage": "i1", "ByteStorage": "u1",
    "BoolStorage": "b1",
}  # fmt: skip
# What zipfile raises for an archive that is not as it should be.
BROKEN = (
    zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, OSError, ValueError, OverflowError, struct.error
)  # fmt: skip

# Objects that training programs leave in their files, beside the weights: they are passed over, not made.
BYSTANDERS = ("mmengine", "mmcv", "mmaction", "addict", "yacs", "fvcore")
BYSTANDER_NAMES = ("builtins getattr", "__builtin__ getattr", "torch device", "torch float32", "torch Size")


class Storage:
    """`size` numbers of a kind, whose bytes data() gives: they are read when they are needed."""

    def __init__(self, kind, size, data):
        self.kind, self.size, self.data = kind, size, data


class Tensor:
    """A view of a storage; :meth:`array` makes an array of it."""

    def __init__(self, storage, offset, shape, stride):
        self.storage, self.offset, self.shape, self.stride = storage, offset, shape, stride
        if not isinstance(storage, Storage):
            raise Refused("a tensor without a storage")
        for name, values in (("shape", shape), ("strides", stride), ("offset", (offset,))):
            pickles.sizes(values, name)
        # Strides of 0 would let a few bytes pass for a huge array; no weights are saved so.
        last = offset + sum((n - 1) * s for n, s in zip(shape, stride, strict=True))
        if math.prod(shape) > storage.size or (offset if 0 in shape else last + 1) > storage.size:
            raise Refused(f"a tensor of shape {shape}, strides {stride} and offset {offset} in {storage.size} numbers")

    def array(self):
        """The tensor as an array of its own dtype; float32 for bfloat16, which NumPy does not have."""
        dtype, data = np.dtype(DTYPES[self.storage.kind]), self.storage.data()
        strides = [s * dtype.itemsize for s in self.stride]
        values = np.ndarray(self.shape, dtype, data, self.offset * dtype.itemsize, strides)
        if self.storage.kind == "BFloat16Storage":
            return (values.astype(np.uint32) << 16).view(np.float32)
        return values


def tensor(storage, offset, shape, stride, *rest):
    """torch._utils._rebuild_tensor_v2"""
    return Tensor(storage, offset, shape, stride)


def parameter(data, *rest):
    """torch._utils._rebuild_parameter"""
    return data


def names(name):
    """What stands for the names in such a pickle."""
    module, _, last = name.partition(" ")
    if module == "torch" and last.endswith("Storage"):
        return last
    if name == "torch._utils _rebuild_tensor_v2":
        return tensor
    if name == "torch._utils _rebuild_parameter":
        return parameter
    if name in pickles.NUMPY:
        return pickles.NUMPY[name]
    if module.partition(".")[0] in BYSTANDERS or name in BYSTANDER_NAMES:
        return Inert(name.replace(" ", "."))
    raise Refused(
        f"it asks for {clean(name.replace(' ', '.'))}, and weights need no such thing; if you trust the file, load it "
        "with PyTorch and save the state_dict alone"
    )


def storage_of(reference, read):
    """('storage', kind, key, device, size, …) as a Storage whose bytes read(kind, key, size) gives when needed."""
    if not isinstance(reference, tuple):
        raise Refused(f"a reference of type {type(reference).__name__}, a tuple expected")
    _, kind, key, _, size = reference[:5]
    key = pickles.text(key)
    if not isinstance(kind, str) or kind not in DTYPES:
        raise Refused(f"a storage of kind {quoted(kind)}")
    pickles.sizes((size,), "storage")
    return Storage(kind, size, lambda: read(kind, key, size))


def byte_count(kind, size):
    return size * np.dtype(DTYPES[kind]).itemsize


def read_zip(where, raw):
    """The object in a zip archive, with Tensors in it.

    Raises ValueError for an archive that is no file of torch.save, damaged, or not what it says it is.
    """
    if raw.count(b"PK\x01\x02") > MOST_ENTRIES:  # begins an entry of the directory, of which zipfile makes objects
        raise ValueError(f"{where}: refused: its zip archive has more than {MOST_ENTRIES:,} entries")
    try:
        archive = zipfile.ZipFile(io.BytesIO(raw))
    except BROKEN as error:
        problem = f"a damaged zip archive, or one that was cut short: {clean(str(error))}"
        raise ValueError(f"{where}: {problem}") from None
    folder = checked(where, archive.infolist(), len(raw))
    entries = {info.filename: info for info in archive.infolist()}
    if f"{folder}byteorder" in entries and read(where, archive, entries[f"{folder}byteorder"]) != b"little":
        raise ValueError(f"{where}: written on a big-endian machine; save it again on a little-endian one")

    data = {}

    def numbers(kind, key, size):
        entry = entries.get(f"{folder}data/{key}")
        if entry is None or entry.file_size < byte_count(kind, size):
            found = "no such entry" if entry is None else f"{entry.file_size:,} bytes"
            raise ValueError(
                f"{where}: storage {quoted(key)} should have {byte_count(kind, size):,} bytes ({size:,} numbers), but "
                f"the archive has {found}"
            )
        if key not in data:
            data[key] = read(where, archive, entry)
        return data[key]

    program = read(where, archive, entries[f"{folder}data.pkl"])
    return pickles.load(where, program, names, lambda reference: storage_of(reference, numbers))[0]


def checked(where, entries, length):
    """The folder within an archive, `length` bytes long, that holds data.pkl; raises ValueError for what is not so.

    torch.save stores its entries as they are. Compressed ones, and sizes that add up to more than the file, are what
    archives are made of that fill the memory.
    """
    folders, seen = [], set()
    for entry in entries:
        name = entry.filename
        parts = name.split("/")
        if name.startswith("/") or "\\" in name or ".." in parts or ":" in parts[0] or name in seen:
            raise ValueError(
                f"{where}: refused: its zip archive has the entry {quoted(name)}, twice or out of its folder"
            )
        size, packed = entry.file_size, entry.compress_size
        if entry.compress_type != zipfile.ZIP_STORED or size != packed or entry.flag_bits & 1:
            raise ValueError(
                f"{where}: refused: entry {quoted(name)} of its zip archive is compressed or encrypted ({packed:,} "
                f"bytes for {size:,}); torch.save stores entries as they are"
            )
        seen.add(name)
        if parts[-1] == "data.pkl":
            folders.append(name.removesuffix("data.pkl"))
    announced = sum(entry.file_size for entry in entries)
    if announced > length:
        raise ValueError(
            f"{where}: refused: the entries of its zip archive add up to {announced:,} bytes, the file has {length:,}"
        )
    if len(folders) != 1 or any(folder + "constants.pkl" in seen for folder in folders):
        found = "a TorchScript program" if folders else "no data.pkl in it"
        raise ValueError(
            f"{where}: a zip archive, but not one that torch.save wrote of weights ({found}); save the state_dict"
        )
    return folders[0]


def read(where, archive, entry):
    """The bytes of an entry, held to its checksum."""
    try:
        return archive.read(entry)
    except BROKEN as error:
        raise ValueError(f"{where}: entry {quoted(entry.filename)} is damaged: {clean(str(error))}") from None


def read_stream(where, raw):
    """The object in a file of torch.save before version 1.6: magic number, protocol, system, object, keys, storages."""
    system, place = pickles.load(where, raw, names, start=len(MAGIC))
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise ValueError(f"{where}: written on a big-endian machine, or damaged; save it again with a newer PyTorch")
    places = {}

    def numbers(kind, key, size):
        begin = places.get(key, len(raw))
        count = int.from_bytes(raw[begin : begin + 8], "little")
        end = begin + 8 + byte_count(kind, size)
        if count != size or end > len(raw):
            raise ValueError(
                f"{where}: cut short or damaged: storage {quoted(key)} should have {byte_count(kind, size):,} bytes at "
                f"byte {begin:,} of {len(raw):,}"
            )
        return memoryview(raw)[begin + 8 : end]

    kinds = {}

    def storage(reference):
        made = storage_of(reference, numbers)
        if len(reference) > 5 and reference[5] is not None:
            raise Refused("a storage that is a view of another one; save it again with a newer PyTorch")
        return kinds.setdefault(pickles.text(reference[2]), made)

    value, place = pickles.load(where, raw, names, storage, place)
    keys, place = pickles.load(where, raw, names, start=place)
    for key in keys if isinstance(keys, list) else ():  # the storages follow in this order, each behind its length
        key = pickles.text(key)
        if key not in kinds:
            raise ValueError(f"{where}: damaged: storage {quoted(key)} belongs to no tensor")
        places[key] = place
        place += 8 + byte_count(kinds[key].kind, kinds[key].size)
    if place > len(raw):
        raise ValueError(f"{where}: cut short: its storages end at byte {place:,}, the file at {len(raw):,}")
    return value
