"""Small files that could hang, fill the memory or crash: each is refused soon, with a short message, in 1.5 GB."""

import struct

import numpy as np
import pytest

from tests.limited import outcomes, refused
from tests.models.published_streams import PROTOCOL, python_2, torch_stream, torch_zip

pytest.importorskip("resource", reason="needs POSIX limits")

pytestmark = pytest.mark.slow

REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\n"


def little(n):
    return struct.pack("<I", n)


def text(data):
    return b"X" + little(len(data)) + data


def deep(levels):
    """A tuple in a tuple in a tuple, `levels` deep."""
    return b")" + b"\x85" * levels


def laughs(levels):
    """t = (t, t), `levels` times: 2^levels entries for whoever looks at all of them. It is left in the memo."""
    return b")q\x00" + b"".join(b"h\x00h\x00\x86q\x00" for _ in range(levels))


KEYED = text(b"conv1_w")
FLOAT, KEY, DTYPE = b"ctorch\nFloatStorage\n", text(b"0"), b"cnumpy\ndtype\n" + text(b"f4") + b"\x85R"


def storage(kind=FLOAT, key=KEY, size=b"K\x03"):
    return b"(" + text(b"storage") + kind + key + text(b"cpu") + size + b"tQ"


STORAGE = storage()


def tensor(storage=STORAGE, offset=b"K\x00", shape=b"K\x03\x85", stride=b"K\x01\x85"):
    """A state with a tensor, of whatever parts."""
    return PROTOCOL + b"}" + text(b"conv1_w") + REBUILD + b"(" + storage + offset + shape + stride + b"\x89NtRs."


def array(shape=b"K\x03\x85", dtype=DTYPE, data=b"C\x0c" + bytes(12)):
    state = b"(K\x01" + shape + dtype + b"\x89" + data + b"t"
    made = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + text(b"b") + b"\x87R"
    return PROTOCOL + b"}" + text(b"conv1_w") + made + state + b"bs."


ARRAY = array(shape=b"M\xe8\x03\x85", data=b"B" + little(4000) + bytes(4000))[len(PROTOCOL + b"}" + KEYED) : -2]


def ordered(pairs, times):
    """collections.OrderedDict called `times` times with one list of `pairs` pairs."""
    entries = b"".join(b"M" + struct.pack("<H", i) + b"N\x86" for i in range(pairs))
    begin = PROTOCOL + b"ccollections\nOrderedDict\nq\x01]("
    return begin + entries + b"e\x85q\x02]q\x03(" + b"h\x01h\x02R" * times + b"e."


EMPTY = b"K\x00" + (b"\x8a\x06" + b"\xff" * 5 + b"\x3f") * 2 + b"\x87"  # (0, 2**46 - 1, 2**46 - 1)
ESCAPES = b"\x1b[31m\x1b]0;title\x07" + "\u202e".encode()
STORAGES = {
    "kind: 400,000 nested tuples": storage(kind=deep(400_000)),
    "kind: (t, t) forty times": laughs(40) + storage(kind=b"h\x00"),
    "kind: a list in itself": b"]q\x00h\x00a" + storage(kind=b"h\x00"),
    "kind: a dict": storage(kind=b"}"),
    "kind: a long text": storage(kind=text(b"x" * 2_000_000)),
    "kind: escapes": storage(kind=text(ESCAPES)),
    "key: nested": storage(key=deep(100_000)),
    "key: a huge number": storage(key=b"\x8b" + little(2_000_000) + b"\x7f" * 2_000_000),
    "size: (t, t) forty times": laughs(40) + storage(size=b"h\x00"),
    "size: a huge number": storage(size=b"\x8b" + little(2_000_000) + b"\x7f" * 2_000_000),
    "size: true": storage(size=b"\x88"),
    "a reference that is a list": b"](" + text(b"storage") + b"e" + b"Q",
    "a reference that is nested": deep(400_000) + b"Q",
}
TENSORS = {f"storage {name}": tensor(storage=made) for name, made in STORAGES.items()} | {
    "shape: nested": tensor(shape=deep(300_000)),
    "shape: (t, t) forty times": tensor(storage=laughs(40) + storage(), shape=b"h\x00"),
    "shape: huge numbers": tensor(shape=b"\x8b" + little(100_000) + b"\x7f" * 100_000 + b"\x85"),
    "shape: empty and huge": tensor(shape=EMPTY, stride=b"K\x01K\x01K\x01\x87"),
    "stride: (t, t) forty times": tensor(storage=laughs(40) + storage(), stride=b"h\x00"),
    "offset: nested": tensor(offset=deep(300_000)),
    "offset: beyond an empty tensor": tensor(offset=b"M\xff\xff", shape=b"K\x00\x85"),
}
PICKLES = {
    "OrderedDict 50,000 times": ordered(60_000, 50_000),
    "OrderedDict of a text": PROTOCOL + b"ccollections\nOrderedDict\n" + text(b"ab" * 500_000) + b"\x85R.",
    "array: shape (t, t) forty times": array(shape=laughs(40)),
    "array: shape nested": array(shape=deep(300_000)),
    "array: shape empty and huge": array(shape=EMPTY, data=b"C\x00"),
    "array: dtype nested": array(dtype=deep(300_000)),
    "array: data (t, t) forty times": array(data=laughs(40)),
    "array: a state of two million bytes": PROTOCOL + b"}" + text(b"x") + b"cnumpy.core.multiarray\n_reconstruct\n"
    b"NNN\x87R" + text(b"y" * 2_000_000) + b"bs.",
    "a name that is not UTF-8": PROTOCOL + b"X" + little(3_000_000) + b"\xff" * 3_000_000 + b".",
    "bytes that latin-1 has not": PROTOCOL
    + b"c_codecs\nencode\n"
    + text("\u4e00".encode() * 1_000_000)
    + text(b"latin1")
    + b"\x86R.",
    "a key (t, t) forty times": PROTOCOL + laughs(40) + b"}h\x00Ns.",
    "a key that is nested": PROTOCOL + b"}" + deep(400_000) + b"Ns.",
    "a value (t, t) forty times": PROTOCOL + laughs(40) + b"}" + text(b"conv1_w") + b"h\x00s.",
    "a call (t, t) forty times": PROTOCOL + laughs(40) + b"h\x00h\x00R.",
    "one array under 300 names": PROTOCOL
    + b"}("
    + text(b"conv1_w")
    + ARRAY
    + b"q\x07"
    + b"".join(text(b"pred_b%d" % i) + b"h\x07" for i in range(300))
    + b"u.",
    "a list (t, t) forty times": PROTOCOL + laughs(40) + b"](h\x00e.",
    "escapes in a name": PROTOCOL + b"c" + ESCAPES + b"\nx\n.",
    "escapes in a key": PROTOCOL + b"}" + text(ESCAPES) + b"K\x01s.",
    "escapes in names of arrays": python_2({f"{ESCAPES.decode()}{i}": (np.ones(3, "f4"), (3,)) for i in range(300)}),
    "names of a thousand letters": python_2({f"{'x' * 200}{i}": (np.ones(3, "f4"), (3,)) for i in range(2000)}),
    "marks below an empty stack": PROTOCOL + b"N(0t.",
    "400,000 marks": PROTOCOL + b"(" * 400_000 + b".",
    "400,000 lists in lists": PROTOCOL + b"]" * 250_000 + b"a" * 249_999 + b".",
    "a memo of 200,000 values": PROTOCOL + b"".join(b"Nr" + little(i) for i in range(200_000)) + b".",
}
SHARED = (
    b"}("
    + b"".join(text(b"w%d" % i) + REBUILD + b"(" + STORAGE + b"K\x00K\x03\x85K\x01\x85\x89NtR" for i in range(20_000))
    + b"u."
)
TENSORS["20,000 tensors of one storage"] = PROTOCOL + SHARED
FILES = (
    PICKLES
    | {f"zip, {name}": torch_zip(raw) for name, raw in TENSORS.items()}
    | {f"stream, {name}": torch_stream(raw, bytes(12)) for name, raw in TENSORS.items()}
    | {"a directory of two million entries": torch_zip(b"N.") + b"PK\x01\x02" * 2_000_000}
)  # fmt: skip


@pytest.fixture(scope="module")
def imports(tmp_path_factory):
    """name -> outcome of importing each file."""
    folder = tmp_path_factory.mktemp("bombs")
    paths = {}
    for i, (name, raw) in enumerate(FILES.items()):
        paths[name] = folder / str(i)
        paths[name].write_bytes(raw)
    found = outcomes("published.import_file", paths.values())
    return {name: found.get(str(path)) for name, path in paths.items()}


@pytest.mark.parametrize("name", FILES)
def test_a_bomb_is_refused(imports, name):
    assert imports[name] is not None, "the process was killed"
    assert refused(imports[name]) is None


def test_arrays_that_share_their_numbers_are_told(imports):
    assert "its arrays have 301,000 numbers, the file" in imports["one array under 300 names"][1]
