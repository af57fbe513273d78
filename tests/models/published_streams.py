"""Files put together by hand, byte by byte, as Python 2 and torch.save write them. No PyTorch is needed."""

import io
import pickle
import struct
import zipfile

import numpy as np

import models
from models.published import layout, torch_files
from models.published.names import Names

PROTOCOL = b"\x80\x02"


def blobs_of(preset, **changes):
    """A network with random weights as arrays under the names and in the layout of Caffe2."""
    model = models.build(preset, **changes)
    names = Names("video-nonlocal-net")
    return {names.theirs(name): layout.there(name, array) for name, array in model.state_dict().items()}


def python_2(arrays):
    """{'blobs': arrays, …} as cPickle of Python 2 wrote it, name -> (array, the shape that it claims).

    A str is a SHORT_BINSTRING or, from 256 bytes on, a BINSTRING, array data included.
    """
    return PROTOCOL + b"}" + short(b"blobs") + b"}(" + b"".join(
        short(name.encode()) + array(*claimed) for name, claimed in arrays.items()
    ) + short(b"lr") + b"G" + struct.pack(">d", 0.01) + b"us."  # fmt: skip


def short(data):
    return (b"U" + bytes([len(data)]) if len(data) < 256 else b"T" + struct.pack("<i", len(data))) + data


def array(values, shape):
    sizes = b"".join(b"J" + struct.pack("<i", n) for n in shape)
    dtype = (
        short(values.dtype.str[1:].encode())
        + b"K\x00K\x01\x87R(K\x03"
        + short(b"<")
        + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    )
    return (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00t" + short(b"b") + b"tR(K\x01(" + sizes + b"t"
        + b"cnumpy\ndtype\n" + dtype + b"\x89" + short(np.ascontiguousarray(values).tobytes()) + b"tb"
    )  # fmt: skip


def torch_zip(program, storage=bytes(12)):
    """A zip archive as torch.save writes it, around a pickle."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as made:
        for name, data in (("data.pkl", program), ("byteorder", b"little"), ("data/0", storage), ("version", b"3\n")):
            made.writestr(f"archive/{name}", data)
    return buffer.getvalue()


def torch_stream(program, storage=None):
    """A file of torch.save before version 1.6, around a pickle; with one storage "0" of float32, or none."""
    system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}
    keys = [] if storage is None else ["0"]
    tail = b"" if storage is None else struct.pack("<q", len(storage) // 4) + storage
    return torch_files.MAGIC + pickle.dumps(system, 2) + program + pickle.dumps(keys, 2) + tail
