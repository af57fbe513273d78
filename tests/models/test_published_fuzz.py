"""Valid files of each format, damaged at random: each is read or refused, soon, in few words, in 1.5 GB of memory."""

import io
import pickle
import random

import numpy as np
import pytest
import safetensors.numpy

import minnl
import models
from minnl import checkpoint
from models import published
from tests.limited import outcomes, refused
from tests.models.published_streams import blobs_of, python_2

pytest.importorskip("resource", reason="needs POSIX limits")
pytestmark = pytest.mark.slow

EACH = 60
READ = """
from minnl.training import part

def digest(arrays):
    import hashlib
    found = hashlib.sha256()
    for name in sorted(arrays):
        found.update(name.encode() + repr(arrays[name].shape).encode() + arrays[name].tobytes())
    return found.hexdigest()

def imported(path):
    return digest(published.import_file(path, model="c2d_r50_8x8", changes={"pool1_padding": 1})[0].state_dict())

def trained(path):
    arrays, meta = checkpoint.load(path)
    return digest(arrays) + json.dumps(meta)
"""
SETTINGS = "DATA:\n  NUM_FRAMES: 8\nMODEL:\n  ARCH: c2d\nNONLOCAL:\n  GROUP: [[1], [1], [1], [1]]\n"


def valid(kind, folder):
    """The bytes of a file that holds a whole network, and settings where its format has them."""
    blobs = blobs_of("c2d_r50_8x8", width=1, classes=2)
    if kind == "python 2":
        return python_2({name: (array, array.shape) for name, array in blobs.items()})
    if kind.startswith("pickle"):
        return pickle.dumps({"blobs": blobs, "lr": 0.1}, protocol=int(kind[-1]))
    if kind == "safetensors":
        return safetensors.numpy.save(blobs)
    minnl.manual_seed(0)
    model = models.build("c2d_r50_8x8", width=1, classes=2, pool1_padding=1)
    arrays = {f"model/{name}": array for name, array in model.state_dict().items()}
    checkpoint.save(folder / "net", arrays, {"config": published.described(model.config)})
    if kind == "minnl":
        return (folder / "net").read_bytes()
    published.export_file(folder / "net", folder / "out", "slowfast")
    if kind == "exported":
        return (folder / "out").read_bytes()
    torch = pytest.importorskip("torch")
    state = {name: torch.tensor(array) for name, array in safetensors.numpy.load_file(folder / "out").items()}
    buffer = io.BytesIO()
    torch.save({"model_state": state, "cfg": SETTINGS}, buffer, _use_new_zipfile_serialization=kind == "torch zip")
    return buffer.getvalue()


def damaged(raw, draw):
    """The file with something done to it, more often than not where its structure is and not its numbers."""
    made = bytearray(raw)
    for _ in range(draw.choice((1, 1, 2, 8))):
        edge = draw.choice((200, 2000, 20_000, len(made)))
        place = draw.choice((0, max(0, len(made) - edge))) + draw.randrange(min(edge, len(made)))
        how, size = draw.randrange(8), draw.choice((1, 4, 8, 100, 4000))
        if how < 3:
            made[place] ^= 1 << draw.randrange(8)
        elif how == 3:
            del made[place : place + size]
        elif how == 4:
            made[place:place] = made[draw.randrange(len(made)) :][:size]
        elif how == 5:
            made[place : place + 4] = draw.choice((b"\xff" * 4, b"\xff\xff\xff\x7f", b"\0\0\0\x80", bytes(4)))
        elif how == 6:
            made[place:place] = bytes(draw.randrange(256) for _ in range(size))
        else:
            del made[max(1, place) :]
    return bytes(made)


@pytest.mark.parametrize(
    "kind",
    [
        *("python 2", "pickle 2", "pickle 4", "pickle 5", "safetensors", "exported", "minnl"),
        *(pytest.param(kind, marks=pytest.mark.torch) for kind in ("torch zip", "torch stream")),
    ],
)
def test_damaged_files(tmp_path, kind):
    draw, raw = random.Random(kind), valid(kind, tmp_path)
    (tmp_path / "valid").write_bytes(raw)
    paths = [tmp_path / str(i) for i in range(EACH)]
    for path in paths:
        path.write_bytes(damaged(raw, draw))
    read = "trained" if kind == "minnl" else "imported"
    found = outcomes(read, [tmp_path / "valid", *paths], READ)
    right = found.pop(str(tmp_path / "valid"))
    assert right[0] == "read", right
    assert len(found) == EACH, "the process was killed"
    assert not {path: problem for path, got in found.items() if got[0] != "read" and (problem := refused(got, 10))}
    passed = [path for path, got in found.items() if got[0] == "read"]
    assert len(passed) < EACH / 2, "files that are hardly damaged prove little"
    if kind in ("minnl", "torch zip"):  # with checksums: what was read is what was written
        assert all(found[path][1] == right[1] for path in passed)


def test_headers_of_safetensors_that_lie(tmp_path):
    """Each as a file of weights and as a checkpoint."""
    whole = '{"w":{"dtype":"F32","shape":[3],"data_offsets":[0,12]}'
    headers = {
        "twice": whole + ',"w":{"dtype":"F32","shape":[3],"data_offsets":[0,12]}}',
        "overlapping": whole + ',"v":{"dtype":"F32","shape":[3],"data_offsets":[0,12]}}',
        "a gap": '{"w":{"dtype":"F32","shape":[1],"data_offsets":[8,12]}}',
        "beyond": '{"w":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}',
        "negative": '{"w":{"dtype":"F32","shape":[-3],"data_offsets":[0,12]}}',
        "overflow": '{"w":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,12]}}',
        "empty and huge": whole + ',"v":{"dtype":"F32","shape":[0,4611686018427387904,4611686018427387904],'
        '"data_offsets":[12,12]}}',
        "unknown dtype": '{"w":{"dtype":"F8_E4M3","shape":[12],"data_offsets":[0,12]}}',
        "dtype of a long name": '{"w":{"dtype":"' + "x" * 1_000_000 + '","shape":[3],"data_offsets":[0,12]}}',
        "no dict": '{"w":[]}',
        "metadata of numbers": whole + ',"__metadata__":{"a":1}}',
        "metadata no dict": whole + ',"__metadata__":[]}',
        "a long name": '{"\\u001b[2J' + "x" * 1_000_000 + '":{"dtype":"F32","shape":[3],"data_offsets":[0,12]}}',
        "many names": "{"
        + ",".join(f'"{i}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}' for i in range(100_000))
        + "}",
        "deep": '{"__metadata__":' + "[" * 1_000_000,
        "wide": '{"x":[' + "[]," * 2_000_000 + "[]]}",
        "a huge number": '{"w":{"dtype":"F32","shape":[' + "9" * 1_000_000 + '],"data_offsets":[0,12]}}',
    }
    paths = {}
    for i, (name, text) in enumerate(headers.items()):
        paths[name] = tmp_path / str(i)
        raw = text.encode()
        paths[name].write_bytes(len(raw).to_bytes(8, "little") + raw + np.ones(3, "<f4").tobytes())
    for size in (2**63, 2**64 - 1, 100_000_000):
        paths[f"a header of {size} bytes"] = tmp_path / f"size{size}"
        paths[f"a header of {size} bytes"].write_bytes(size.to_bytes(8, "little") + b"{" * 1000)
    for read in ("imported", "trained"):
        found = outcomes(read, paths.values(), READ)
        assert not {name: problem for name, path in paths.items() if (problem := refused(found[str(path)], 10))}
