"""What came, in a message: short, harmless, and soon, whatever it is."""

import time

import numpy as np
import pytest

import train
from minnl import __main__, checks


def laughs(levels):
    made = ()
    for _ in range(levels):
        made = (made, made)
    return made


def deep(levels):
    made = ()
    for _ in range(levels):
        made = (made,)
    return made


loop = {}
loop["self"] = [loop]
HOSTILE = {
    "(t, t) sixty times": laughs(60), "deep": deep(200_000), "itself": loop, "long": "x" * 10**7, "huge": 10**100_000,
    "huge, negative": -(10**100_000), "wide": [0] * 10**6, "a wide dict": dict.fromkeys(range(10**6)),
    "bytes": bytes(10**7),
    "long texts": ["x" * 10**5] * 1000, "escapes": "\x1b[2J\x07\u202e\r\n\ud800", "keys": {"\x1b]0;x\x07": "\x9b"},
    "bytes with escapes": b"\x1b[31m", "array": np.zeros(10**6), "set": set(range(10**6)),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_quoted(name):
    began = time.process_time()
    made = checks.quoted(HOSTILE[name])
    assert time.process_time() - began < 1
    assert 0 < len(made) < 1500 and made.isprintable() and made.isascii() or "…" in made


@pytest.mark.parametrize(
    "value", [0, -3, 1.5, True, None, "it's", 'a "b"', (1, 2), [3], {"a": 1}, b"x", float("inf"), 2**60]
)
def test_what_is_short_is_quoted_as_python_writes_it(value):
    assert checks.quoted(value) == repr(value)


def test_clean():
    assert checks.clean("plain é 漢字") == "plain é 漢字"
    assert checks.clean("\x1b[31ma\nb\u202e\ud800") == r"\x1b[31ma\nb\u202e\ud800"
    assert checks.clean("x" * 500) == "x" * 120 + "… (500 letters)"


def test_listed_and_printable():
    assert checks.listed(["a", "\x1b"]) == r"a, \x1b"
    assert checks.listed(map(str, range(100))).endswith("18, 19, … (100 in all)")
    assert checks.printable("a\n  b\x1b[2J\tc") == "a\n  b\\x1b[2J    c"
    assert len(checks.printable("x\n" * 10**6)) < 13_000


@pytest.mark.parametrize("name", [name for name in HOSTILE if name != "array"])
def test_checks_refuse_it_soon(name):
    value = HOSTILE[name]
    for check in (
        lambda: checks.count("f", "n", -value if name == "huge" else value),
        lambda: checks.choice("f", "n", value, ("a",)),
        lambda: checks.pair("f", "n", (value, value, value)), lambda: checks.number("f", "n", value, -1, 1),
    ):  # fmt: skip
        began = time.process_time()
        with pytest.raises((ValueError, TypeError), match="f: n must be") as caught:
            check()
        assert time.process_time() - began < 2 and len(str(caught.value)) < 2000


def test_what_float64_cannot_hold_is_refused():
    with pytest.raises(ValueError, match="must be a number that float64 can hold, got <a number of 1,329 bits>"):
        checks.number("f", "n", 10**400)


def test_commands_send_no_escape_sequences_to_the_terminal(capsys, tmp_path, monkeypatch):
    """Not even those in a file's name, or in a class's."""
    monkeypatch.chdir(tmp_path)
    name = "no\x1b[2J\x07file"
    (tmp_path / "list.csv").write_text(f"path,label,split\na.mp4,\x1b[31mred,train\nb.mp4,{'x' * 100_000},val\n")
    assert __main__.main(["import", name, "--to", "x"]) == 2
    assert train.main(["--evaluate", name]) == 1
    assert train.main(["--data", "list.csv"]) == 1
    said = "".join(capsys.readouterr())
    assert r"no\x1b[2J\x07file: no such file" in said and r"\x1b[31mred" in said and len(said) < 2000
    assert all(c.isprintable() or c == "\n" for c in said)
