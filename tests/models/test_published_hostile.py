"""Files that are not what they say: nothing in them is run, they take no memory, and nothing is written for them."""

import io
import os
import pickle
import struct
import sys
import tracemalloc
import types
import zipfile

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

import models
from minnl.training import checkpoint
from models import published
from models.published import torch_files
from tests.models.published_streams import blobs_of, python_2, torch_stream, torch_zip

pytestmark = pytest.mark.slow

PROTOCOL = b"\x80\x02"


@pytest.fixture(scope="module")
def blobs():
    return blobs_of("c2d_r50_8x8", width=1, classes=2)


def refused(folder, raw, message, **asked):
    """The file is refused with a message that names it, and nothing is left behind."""
    path = folder / "file"
    path.write_bytes(raw)
    with pytest.raises(ValueError, match=rf"(?s)^{path}: .*(?:{message})"):
        published.import_file(path, folder / "out", **asked)
    assert sorted(os.listdir(folder)) == ["file"]


def calls(module, name, argument=b"X\x01\x00\x00\x00x"):
    """Instructions that call module.name with one argument."""
    return f"c{module}\n{name}\n".encode() + argument + b"\x85R"


EVIL = [
    ("os", "system"), ("posix", "system"), ("builtins", "eval"), ("__builtin__", "eval"), ("builtins", "exec"),
    ("builtins", "__import__"), ("subprocess", "Popen"), ("numpy", "load"), ("numpy", "fromfile"),
    ("numpy.core.multiarray", "fromstring"), ("numpy._core.multiarray", "_reconstruct.__globals__"),
    ("numpy.testing._private.utils", "runstring"), ("numpy", "ndarray.tofile"), ("torch", "load"),
    ("torch.hub", "load"), ("torch._utils", "_rebuild_tensor"), ("models.published.files", "read"),
    ("collections", "namedtuple"), ("functools", "partial"), ("operator", "attrgetter"),
]  # fmt: skip


@pytest.mark.parametrize("evil", EVIL)
@pytest.mark.parametrize("wrap", [lambda raw: raw, torch_zip, torch_stream], ids=["pkl", "zip", "stream"])
def test_nothing_is_called(tmp_path, evil, wrap):
    touch = f"touch {tmp_path / 'touched'}".encode()
    raw = PROTOCOL + b"}X\x05\x00\x00\x00blobs" + calls(*evil, b"U" + bytes([len(touch)]) + touch) + b"s."
    refused(tmp_path, wrap(raw), rf"nothing of it was run: it asks for {'.'.join(evil)}")


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_an_ordinary_hostile_pickle(tmp_path, protocol, blobs):
    raw = pickle.dumps({"blobs": blobs | {"x": Evil(tmp_path / "touched")}}, protocol=protocol)
    refused(tmp_path, raw, r"it asks for (posix|nt)\.system")


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (b"cos\nsystem\n.", "asks for os.system"),
        (b"\x8c\x02os\x8c\x06system\x93.", "asks for os.system"),
        (b"cnumpy\nndarray\n)R.", "calls str, which is no function"),
        (b"cnumpy\ndtype\n)R.", "a damaged pickle"),
        (b"cnumpy\ndtype\nX\x01\x00\x00\x00O\x85R.", "dtype 'O'; numbers are expected"),
        (b"cnumpy\ndtype\nX\x02\x00\x00\x00V8\x85R.", "dtype 'V8'"),
        (b"cnumpy\ndtype\n)}\x92.", "a function with named arguments"),
        (b"c_codecs\nencode\nX\x01\x00\x00\x00xX\x04\x00\x00\x00zlib\x86R.", "encoding 'zlib'"),
        (b"(S'os'\n.", "instruction STRING"),
        (b"(ios\nsystem\n.", "instruction INST"),
        (b"(cos\nsystem\no.", "asks for os.system"),
        (b"\x82\x01.", "instruction EXT1"),
        (b"X\x01\x00\x00\x00xQ.", "object outside of the file"),
        (b"}}}s.", "a dict with a key of type dict"),
        (b"})Ns.", "a dict with a key of type tuple"),
        (b"h\x07.", "value 7 of its memo"),
        (b"0.", "values that it never made"),
        (b".", "damaged pickle"),
        (b"t.", "damaged pickle"),
        (b"Na.", "damaged pickle"),
        (b"N}b.", "damaged pickle"),
        (b"].", "with a list in it; a dict of arrays expected"),
        (b"}.", "without weights"),
        (b"}K\x01K\x01s.", "an array with the name 1;"),
        (b"c" + b"x" * 2000 + b"\n\n.", "no newline found"),
    ],
)
def test_programs_that_are_no_weights(tmp_path, program, message):
    refused(tmp_path, PROTOCOL + program, message)


def little(n):
    return struct.pack("<I", n)


BOMBS = {
    "bytes": (b"\x8e" + struct.pack("<Q", 2**62), "expected 4611686018427387904 bytes in a bytes8, but only .* remain"),
    "bytearray": (b"\x96" + struct.pack("<Q", 2**40), "expected 1099511627776 bytes in a .*, but only .* remain"),
    "text": (b"X" + little(2**31), "expected 2147483648 bytes in a unicodestring4, but only .* remain"),
    "long text": (b"\x8d" + struct.pack("<Q", 2**63), "unicodestring8 byte count > sys.maxsize: 9223372036854775808"),
    "str of python 2": (b"T" + struct.pack("<i", 2**31 - 1), "expected 2147483647 bytes in a .*, but only .* remain"),
    "str of negative length": (b"T" + struct.pack("<i", -5), "string4 byte count < 0: -5"),
    "int": (b"\x8b" + struct.pack("<i", 2**31 - 1), "not enough data in stream to read long4"),
    "int of negative length": (b"\x8b" + struct.pack("<i", -1), "long4 byte count < 0: -1"),
}
END = b"\x85\x81.0"


@pytest.mark.parametrize("name", BOMBS)
@pytest.mark.parametrize("wrap", [lambda raw: raw, torch_zip, torch_stream], ids=["pkl", "zip", "stream"])
def test_sizes_that_are_only_announced(tmp_path, name, wrap):
    bomb, message = BOMBS[name]
    tracemalloc.start()
    refused(tmp_path, wrap(PROTOCOL + bomb + END), message)
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()


def test_a_memo_with_a_huge_number_takes_no_room(tmp_path):
    raw = PROTOCOL + b"]r" + little(2**32 - 1) + b"j" + little(2**32 - 1) + b"."
    tracemalloc.start()
    refused(tmp_path, raw, "with a list in it")
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()


def test_what_a_small_file_could_grow_to(tmp_path):
    """Ten thousand copies of a text, each by an instruction or two."""
    megabyte = b"X" + little(2**20) + b"x" * 2**20 + b"q\x00"
    encoded = b"c_codecs\nencode\nq\x01X\x06\x00\x00\x00latin1q\x02" + b"h\x01h\x00h\x02\x86R" * 10_000
    number = b"\x8b" + struct.pack("<i", 2**20) + b"\x7f" * 2**20
    programs = {
        "makes more bytes than it has": megabyte + encoded + b".",
        "a name of 1,048,576 letters": b"T" + little(2**20) + b"x" * 2**20 + b"q\x00}h\x00Ns.",
        "or a huge number": b"}" + number + b"Ns.",
        "the encoding|a name of": megabyte + b"c_codecs\nencode\nh\x00h\x00\x86R.",
        "a name of 1,048,576 letter": megabyte + b"h\x00\x93.",
    }
    tracemalloc.start()
    for message, program in programs.items():
        refused(tmp_path, PROTOCOL + program, message)
    assert tracemalloc.get_traced_memory()[1] < 20_000_000
    tracemalloc.stop()


def test_an_array_larger_than_its_bytes(tmp_path):
    refused(
        tmp_path, python_2({"conv1_w": (np.ones(3, "f4"), (10**6, 10**6))}), r"\(1000000, 1000000\) .* with 12 bytes"
    )
    refused(tmp_path, python_2({"conv1_w": (np.ones(3, "f4"), (-1, -3))}), r"an array with shape \(-1, -3\)")


def test_depth_and_length(tmp_path, monkeypatch):
    deep = b"]" * 100_000 + b"a" * 99_999
    refused(tmp_path, PROTOCOL + b"}X\x01\x00\x00\x00x" + deep + b"s.", "is of type list among the weights")
    monkeypatch.setattr(published.pickles, "MOST_INSTRUCTIONS", 10_000)
    refused(tmp_path, PROTOCOL + b"}0" * 5001 + b".", "more than 10,000 instructions")
    laughs = b")q\x00" + b"".join(b"h" + bytes([i]) + b"h" + bytes([i]) + b"\x86q" + bytes([i + 1]) for i in range(60))
    refused(tmp_path, PROTOCOL + laughs + b"}h\x3cNs.", "a dict with a key of type tuple")
    itself = PROTOCOL + b"}q\x00X\x05\x00\x00\x00blobsh\x00s."
    refused(tmp_path, itself, "'blobs' is of type dict among the weights")


# PyTorch's archives.


def entries(raw):
    with zipfile.ZipFile(io.BytesIO(raw)) as archive:
        return {info.filename: archive.read(info) for info in archive.infolist()}


def archive(files, how=zipfile.ZIP_STORED):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", how) as made:
        for name, data in files.items() if isinstance(files, dict) else files:
            made.writestr(name, data)
    return buffer.getvalue()


def tensor_program(offset=0, shape=(3,), stride=(1,), size=3, kind="FloatStorage", key="0"):
    """A pickle with one tensor, "conv1_w", whatever it claims of itself."""

    class Reference:
        pass

    class Pickler(pickle._Pickler):
        def persistent_id(self, value):
            return ("storage", Global(f"ctorch\n{kind}\n".encode()), key, "cpu", size) if value is reference else None

        def save(self, value, **options):
            if isinstance(value, Global):
                self.write(value.raw)
            else:
                super().save(value, **options)

    class Global:
        def __init__(self, raw):
            self.raw = raw

    class Tensor:
        def __reduce__(self):
            return struct.pack, (reference, offset, shape, stride, False, None)

    reference, buffer = Reference(), io.BytesIO()
    Pickler(buffer, 2).dump({"conv1_w": Tensor()})
    return buffer.getvalue().replace(b"c_struct\npack\n", b"ctorch._utils\n_rebuild_tensor_v2\n")


@pytest.mark.parametrize(
    ("claims", "message"),
    [
        ({"shape": (10**9, 10**9), "stride": (0, 0)}, r"shape \(1000000000, 1000000000\), strides \(0, 0\)"),
        ({"shape": (4,)}, r"a tensor of shape \(4,\).* in 3 numbers"),
        ({"offset": 1}, "offset 1 in 3 numbers"),
        ({"offset": -1}, r"an array with offset \(-1,\)"),
        ({"stride": (-1,)}, r"an array with strides \(-1,\)"),
        ({"shape": 3}, "an array whose shape is no tuple"),
        ({"size": -1}, r"an array with storage \(-1,\)"),
        ({"shape": (3, 1)}, "damaged"),
        ({"shape": (2.5,)}, r"an array with shape \(2.5,\)"),
        ({"size": 2**60, "shape": (2**60,)}, r"an array with storage"),
        ({"size": 2**40, "shape": (2**40,)}, r"its arrays have 1,099,511,627,776 numbers, the file \d+ bytes"),
        ({"size": 100, "shape": (100,)}, r"storage '0' should have 400 bytes \(100 numbers\), but the file has 12"),
        ({"key": "../../data"}, "no such entry"),
        ({"kind": "ComplexFloatStorage"}, "a storage of class 'ComplexFloatStorage'"),
        ({"kind": "QInt8Storage"}, "a storage of class 'QInt8Storage'"),
    ],
)
def test_tensors_that_lie(tmp_path, monkeypatch, claims, message):
    made = archive({"a/data.pkl": tensor_program(**claims), "a/data/0": b"\0" * 12})
    monkeypatch.setattr(published.importing, "matched", materialise)
    tracemalloc.start()
    refused(tmp_path, made, message)
    assert tracemalloc.get_traced_memory()[1] < 5_000_000
    tracemalloc.stop()


def materialise(where, names, arrays):
    """What an import does later, once the network is known: read every array."""
    for name, entry in arrays.items():
        published.files.values(where, name, entry)
    raise LookupError("the file passed")


def test_archives_that_are_not_stored_as_torch_stores_them(tmp_path):
    small = torch_zip(tensor_program())
    good = entries(small)
    refused(tmp_path, archive(good, zipfile.ZIP_DEFLATED), "is compressed or encrypted")
    bomb = archive(good | {"archive/data/1": bytes(50_000_000)}, zipfile.ZIP_DEFLATED)
    tracemalloc.start()
    refused(tmp_path, bomb, "is compressed or encrypted")
    assert tracemalloc.get_traced_memory()[1] < 5_000_000
    tracemalloc.stop()
    for name in ("../evil", "/etc/evil", "archive/../../evil", "c:/evil"):
        refused(tmp_path, archive(good | {name: b"x"}), "out of its folder")
    with pytest.warns(UserWarning, match="Duplicate name"):
        twice = archive([*good.items(), ("archive/data.pkl", b"x")])
    refused(tmp_path, twice, "twice or out of its folder")
    refused(tmp_path, archive(good | {"other/data.pkl": b"x"}), "no data.pkl|TorchScript|not one that torch.save")
    refused(tmp_path, archive(good | {"archive/constants.pkl": b"x"}), "a TorchScript program")
    refused(tmp_path, archive({"word/document.xml": b"x"}), "no data.pkl in it")
    refused(tmp_path, archive(good | {"archive/byteorder": b"big"}), "big-endian")


def patched(raw, name, **fields):
    """An archive whose directory says something else of an entry."""
    place = raw.rindex(name.encode()) - 46
    directory = bytearray(raw[place : place + 46])
    for field, value in fields.items():
        offset = {"flags": 8, "packed": 20, "size": 24, "start": 42}[field]
        directory[offset : offset + (2 if field == "flags" else 4)] = value.to_bytes(
            2 if field == "flags" else 4, "little"
        )
    return raw[:place] + bytes(directory) + raw[place + 46 :]


def test_directories_that_lie(tmp_path):
    raw = torch_zip(tensor_program())
    refused(tmp_path, patched(raw, "archive/data/0", size=2**31), "is compressed or encrypted")
    refused(tmp_path, patched(raw, "archive/data/0", size=2**31, packed=2**31), "add up to 2,147,4.. ?.*the file has")
    refused(tmp_path, patched(raw, "archive/data.pkl", flags=1), "encrypted")
    refused(tmp_path, patched(raw, "archive/data.pkl", start=7), "damaged")
    refused(tmp_path, patched(raw, "archive/data.pkl", start=2**31), "damaged|cut short")


def test_objects_of_training_programs_are_passed_over_but_not_as_weights(tmp_path, monkeypatch, blobs):
    """mmaction2 leaves its settings in the file, as objects of a class of its own."""
    ran = []

    class ConfigDict(dict):
        def __setstate__(self, state):
            ran.append(state)

    ConfigDict.__module__, ConfigDict.__qualname__ = "mmengine.config.config", "ConfigDict"
    monkeypatch.setitem(sys.modules, "mmengine", types.ModuleType("mmengine"))
    monkeypatch.setitem(sys.modules, "mmengine.config", types.ModuleType("mmengine.config"))
    module = types.ModuleType("mmengine.config.config")
    module.ConfigDict = ConfigDict
    monkeypatch.setitem(sys.modules, "mmengine.config.config", module)
    thing = ConfigDict(a=1)
    thing.attribute = 2
    raw = pickle.dumps({"state_dict": blobs, "meta": {"cfg": thing, "list": [thing, getattr]}}, protocol=2)
    (tmp_path / "net.pth").write_bytes(torch_zip(raw))
    model, report = published.import_file(tmp_path / "net.pth", model="c2d_r50_8x8")
    assert ("meta", "beside state_dict, not needed") in report.left and not ran
    (tmp_path / "net.pth").unlink()
    refused(
        tmp_path,
        torch_zip(pickle.dumps({"state_dict": blobs | {"x": thing}}, protocol=2)),
        "type Inert among the weights",
    )
    refused(
        tmp_path, pickle.dumps({"blobs": blobs, "cfg": thing}, protocol=2), "asks for mmengine.config.config.ConfigDict"
    )


# Cut, altered, or something else altogether.


def test_a_stream_as_python_2_wrote_it(tmp_path, blobs):
    (tmp_path / "net.pkl").write_bytes(python_2({name: (array, array.shape) for name, array in blobs.items()}))
    model, report = published.import_file(tmp_path / "net.pkl", model="c2d_r50_8x8")
    np.testing.assert_array_equal(model.state_dict()["conv1.conv.weight"], blobs["conv1_w"].transpose(2, 3, 4, 1, 0))
    assert len(report.matched) == 267 and ("lr", "bookkeeping of the training") in report.left


def files_of(blobs):
    flat = {"conv1_w": blobs["conv1_w"], "pred_b": blobs["pred_b"]}
    return {
        "pkl": pickle.dumps({"blobs": flat}, protocol=2),
        "python 2": python_2({name: (array, array.shape) for name, array in flat.items()}),
        "zip": torch_zip(tensor_program()),
        "stream": torch_stream(tensor_program(), b"\0" * 12),
        "safetensors": safetensors.numpy.save(flat),
    }


@pytest.mark.parametrize("kind", ["pkl", "python 2", "zip", "stream", "safetensors"])
def test_a_file_that_was_cut_short_is_refused(tmp_path, monkeypatch, blobs, kind):
    raw = files_of(blobs)[kind]
    monkeypatch.setattr(published.importing, "matched", materialise)
    (tmp_path / "whole").write_bytes(raw)
    with pytest.raises(LookupError, match="the file passed"):
        published.import_file(tmp_path / "whole", tmp_path / "out")
    (tmp_path / "whole").unlink()
    for end in range(0, len(raw), 1 if len(raw) < 2000 else 7):
        refused(tmp_path, raw[:end], "")


@pytest.mark.parametrize("kind", ["pkl", "python 2", "zip", "stream", "safetensors"])
@settings(deadline=None, max_examples=150)
@given(data=st.data())
def test_a_file_that_was_altered_raises_nothing_but_value_errors(tmp_path_factory, blobs, kind, data):
    raw = bytearray(files_of(blobs)[kind])
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / f"altered-{kind}"
    path.write_bytes(raw)
    with pytest.raises(ValueError, match="altered"):
        published.import_file(path)  # two arrays are no network, altered or not


@settings(deadline=None, max_examples=300)
@given(program=st.binary(max_size=60))
def test_any_program_raises_nothing_but_value_errors(tmp_path_factory, program):
    path = tmp_path_factory.getbasetemp() / "program"
    path.write_bytes(PROTOCOL + program)
    with pytest.raises(ValueError, match="program: "):
        published.import_file(path)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "an empty file"),
        (b"\x1f\x8b\x08 more", "a gzip archive .gunzip it first"),
        (b" <!DOCTYPE html><html>", "a web page, so the download failed"),
        (b"(dp0\nS'blobs'\n", "perhaps a text pickle"),
        (b"\x93NUMPY", "which is no file of weights"),
        (bytes(257) + b"ustar  ", "a tar archive"),
        (b"\x02\0\0\0\0\0\0\0{}", "names of no known format|without weights"),
        (b"\x02\0\0\0\0\0\0\0{]", "not a safetensors file"),
        (b"\xff\xff\xff\xff\xff\xff\xff\x7f{" + b"[" * 100_000, "not a safetensors file"),
        (safetensors.numpy.save({"conv1.weight": np.zeros(3)}), "names of no known format: conv1.weight"),
        (safetensors.numpy.save({"a": np.zeros(3)}, {"minnl_network": "["}), "description of the network is damaged"),
        (torch_files.MAGIC, "cut short"),
    ],
)
def test_other_files_are_told_apart(tmp_path, raw, message):
    refused(tmp_path, raw, message)


def test_files_that_are_not_there(tmp_path):
    with pytest.raises(ValueError, match="none: no such file"):
        published.import_file(tmp_path / "none")
    with pytest.raises(ValueError, match="is a folder, a file of weights expected"):
        published.import_file(tmp_path)


def test_a_checkpoint_of_minnl_is_told(tmp_path):
    checkpoint.save(tmp_path / "c", {"w": np.zeros(3)}, {})
    with pytest.raises(ValueError, match="a checkpoint of minnl already"):
        published.import_file(tmp_path / "c")


@pytest.mark.parametrize("network", ["[]", "{}", '{"depth": 50}'])
def test_a_description_that_was_tampered_with(tmp_path, blobs, network):
    refused(
        tmp_path, safetensors.numpy.save(blobs, {"minnl_network": network}), "description of the network is damaged"
    )


def test_settings_that_make_no_sense(tmp_path, blobs):
    names = published.names.Names("slowfast")
    ours = published.names.Names("video-nonlocal-net")
    state = {names.theirs(ours.ours(name)): array for name, array in blobs.items()}
    raw = pickle.dumps({"model_state": state, "cfg": "DATA:\n  NUM_FRAMES: many\n"}, protocol=2)
    refused(tmp_path, torch_zip(raw), r"the settings beside its weights: DATA.NUM_FRAMES is 'many'; an integer from")


def test_the_presets_are_there():
    """Names that the messages above and docs/published.md tell users to ask for."""
    assert {"c2d_r50", "c2d_r50_8x8", "nl_i3d_r50_5", "nl_i3d_r50_5_8x8", "nl_i3d_r50_5_32x4"} <= models.PRESETS.keys()
