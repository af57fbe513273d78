"""Where the tests lie, and how they are marked."""

import ast

import pytest

from tests import ROOT

FILES = [path.relative_to(ROOT).as_posix() for path in sorted(ROOT.glob("tests/*/**/test_*.py"))]


def unmarked(source):
    """Tests that skip without PyTorch and do not have the marker ``torch``."""
    tree = ast.parse(source)
    if any("mark.torch" in ast.unparse(n) for n in tree.body if isinstance(n, ast.Assign)):
        return []
    skipping = [n for n in tree.body if "importorskip('torch')" in ast.unparse(n)]
    fixtures = {n.name for n in skipping if isinstance(n, ast.FunctionDef)}
    return [
        getattr(n, "name", "the module")
        for n in tree.body
        if (n in skipping or isinstance(n, ast.FunctionDef) and fixtures & {a.arg for a in n.args.args})
        and (not isinstance(n, ast.FunctionDef) or n.name.startswith("test_"))
        and not any("mark.torch" in ast.unparse(d) for d in getattr(n, "decorator_list", []))
    ]


def test_no_test_lies_outside_the_folders():
    assert not list(ROOT.glob("tests/test_*.py"))


@pytest.mark.parametrize("file", FILES)
def test_what_needs_pytorch_is_marked(file):
    assert unmarked((ROOT / file).read_text()) == []


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("torch = pytest.importorskip('torch')", ["the module"]),
        ("torch = pytest.importorskip('torch')\npytestmark = pytest.mark.torch", []),
        ("def test_a():\n    pytest.importorskip('torch')", ["test_a"]),
        ("@pytest.mark.torch\ndef test_a():\n    pytest.importorskip('torch')", []),
        ("def fixture():\n    pytest.importorskip('torch')\ndef test_a(fixture): pass", ["test_a"]),
    ],
)
def test_a_missing_marker_is_found(source, names):
    assert unmarked(source) == names


def test_every_marker_is_registered(pytestconfig):
    assert pytestconfig.getoption("strict_markers")
    registered = {line.partition(":")[0].partition("(")[0] for line in pytestconfig.getini("markers")}
    assert {"gpu", "slow", "torch"} <= registered
