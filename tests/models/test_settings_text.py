"""The two readers of settings, and the tables of what is done about each key. No PyTorch is needed."""

import time

import pytest

from models.published import keys, settings_text
from models.published.settings_text import UNREADABLE
from tests import ROOT


def test_yaml():
    read = settings_text.yaml(
        "A:\n  B: [1, [2, x y], 'z']\n  C: 1e-4 # why\n  D: long\n    folded\n  E:\n  - - 1\n    - 2\n  - {}\n"
        "  F: null\n  G: 'q: r'\nH: -3\nI:\n  J:\n    K: True\n"
    )
    assert read == {
        "A": {"B": [1, [2, "x y"], "z"], "C": 1e-4, "D": "long folded", "E": [[1, 2], {}], "F": None, "G": "q: r"},
        "H": -3, "I": {"J": {"K": True}},
    }  # fmt: skip


def test_python():
    read = settings_text.python(
        "a = dict(b=(1, 2), c=[x for x in y], d='e' 'f', g=-1.5e3)\nh = a\nif True:\n    a = 3\n"
        "i = {'j': (1,), 'k': list((1, 2,))}\na = dict(b=None, **i)\nl = 3, 4\nm = f'{n}'\no = lambda: 3\n"
        "p = dict(q)\nr = 1"
    )
    assert read["a"] == {"b": None, "c": UNREADABLE, "d": "ef", "g": -1500.0, "j": [1], "k": [1, 2]}
    assert read["h"]["b"] == [1, 2] and read["l"] == [3, 4] and read["r"] == 1
    assert all(read[name] is UNREADABLE for name in "mo") and read["p"] == {"**": UNREADABLE}


BOMBS = [
    "a = " + "(" * 90_000, "a = " + "-" * 90_000 + "1", "a = '" + "\\'" * 50_000, "a = [" + "[]," * 60_000,
    "l0 = dict(a=1)\n" + "".join(f"l{i} = dict(x=l{i - 1}, y=l{i - 1})\n" for i in range(1, 60)) + "l59 = l59\n" * 2,
    "a = " + "9" * 190_000, "x = dict(" * 20_000, "a:\n" + " - " * 60_000, "a: " + "[" * 90_000, "a: " + "[x" * 90_000,
    *(f"a = {start}{20_000 // len(more) * more}{end}" for start, more, end in (  # below the length that is parsed
        ("a", ".b", ""), ("1", "+1", ""), ("a", "[0]", ""), ("a", "(1,2)", ""), ("", "x if y else ", "z"),
        ("", "not ", "x"), ("", "-", "1"), ("", "lambda:", "1"), ("1", "**1", ""),
        ("f'", "{x}", "'"), ("a", " and a", ""),
    )),
    "a:\n" + "".join(f"{' ' * i}- \n" for i in range(500)), "x = '''" * 25_000, "a.b" * 60_000, "a: 'b" * 30_000,
]  # fmt: skip


@pytest.mark.parametrize("read", [settings_text.yaml, settings_text.python])
@pytest.mark.parametrize("text", BOMBS, ids=range(len(BOMBS)))
def test_settings_that_could_take_ages(read, text):
    """Read, in whatever way, or refused: soon, with no other error, and in few words."""
    began = time.process_time()
    try:
        read(text)
    except ValueError as error:
        assert len(str(error)) < 300
    assert time.process_time() - began < 5


def test_the_page_has_the_tables_of_settings():
    page = (ROOT / "docs/published.md").read_text("utf-8")
    for table in (keys.SLOWFAST, keys.MMACTION2):
        for key, rule in table.items():
            what = rule if isinstance(rule, str) else "must be " + " or ".join(f"`{value!r}`" for value in rule)
            assert f"| `{key}` | {what} |" in page, key
