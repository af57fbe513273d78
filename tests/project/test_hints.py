"""The hints of what users call: complete, and as mypy and an editor read them from the installed package."""

import ast
import inspect
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import minnl
import models
from minnl import Tensor, data, engine, functional, methods, nn, optim
from minnl.study import cost_summary, pictures
from models import blocks, published, transfer
from tests import ROOT

SNIPPET = Path(__file__).with_name("user_snippet.py")
HIDDEN = {"__array__"}  # from checkers, on purpose: minnl/methods.py says why
SLOTS = {"_data", "_grad", "__weakref__", "__init__", "__slotnames__"}  # not asked for by users, or not of an instance
CALLED = {"__init__", "__call__", "__len__", "__iter__", "__getitem__", "__setitem__"}


@pytest.fixture(scope="module")
def mypy(tmp_path_factory):
    """What ``mypy --strict`` prints about files of a user, outside of the repository, who has installed minnl."""
    folder = tmp_path_factory.mktemp("user")

    def run(**files):
        for name, text in files.items():
            folder.joinpath(f"{name}.py").write_text(text)
        command = [sys.executable, "-m", "mypy", "--strict", "--config-file=", *(f"{name}.py" for name in files)]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}  # mypy does not follow the hook of an editable install
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
        return done.stdout + done.stderr

    return run


def attributes():
    """A line for each attribute of a Tensor: a checker must know it, and must not know what only refuses."""
    lines = ["from minnl import Tensor", "t = Tensor(0.0)"]
    for name in sorted(vars(Tensor).keys() - SLOTS):
        unknown = name in methods.INSTEAD or name in HIDDEN
        lines.append(f"t.{name}" + "  # type: ignore[attr-defined]" * unknown)
    return "\n".join(lines)


def declared(body):
    """The names that the body of a class gives, for a checker or for Python."""
    for node in body:
        if isinstance(node, ast.If):
            yield from declared([*node.body, *node.orelse])
        elif isinstance(node, ast.FunctionDef):
            yield node.name
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from (name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name))


def functions(place):
    """(name, function) of what users call of a module or class: public functions, and methods of public classes."""
    for name in getattr(place, "__all__", None) or [n for n in vars(place) if n[0] != "_" or n in CALLED]:
        if place is Tensor and name in methods.INSTEAD:
            continue
        found = inspect.getattr_static(place, name)
        found = found.fget if isinstance(found, property) else getattr(found, "__func__", found)
        if inspect.ismodule(place) and not hasattr(place, "__all__") and inspect.getmodule(found) is not place:
            continue  # imported
        if inspect.isclass(found):
            yield from ((f"{name}.{method}", function) for method, function in functions(found))
        elif inspect.isfunction(found):
            yield name, found


def missing(function):
    """The parameters of a function without a hint, and "return" if it has none for its result."""
    called = inspect.signature(function)
    found = [p.name for p in called.parameters.values() if p.annotation is p.empty and p.name not in ("self", "cls")]
    needs = function.__name__ != "__init__" and called.return_annotation is called.empty
    return found + ["return"] * needs


def test_mypy_understands_a_user(mypy):
    report = mypy(snippet=SNIPPET.read_text(), attributes=attributes())
    assert report == "Success: no issues found in 2 source files\n"


def test_a_method_that_is_not_declared_is_found(mypy, monkeypatch):
    monkeypatch.setattr(Tensor, "cube", lambda x: x**3, raising=False)
    assert '"Tensor" has no attribute "cube"' in mypy(attributes=attributes())


def test_a_declaration_has_a_method():
    for cls in (methods.Methods, engine.Tensor):
        tree = ast.parse(Path(inspect.getsourcefile(cls)).read_text())
        (body,) = (node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == cls.__name__)
        names = set(declared(body)) - {"__slots__"}
        assert len(names) > 10
        assert names <= vars(Tensor).keys()


def test_the_snippet_runs():
    assert callable(runpy.run_path(str(SNIPPET))["refused"])


@pytest.mark.parametrize(
    "place",
    [minnl, Tensor, functional, nn, nn.init, optim, data, data.transforms, cost_summary.CostSummary, pictures, models,
     blocks,
     transfer, published],
    ids=lambda place: place.__name__,
)  # fmt: skip
def test_what_users_call_has_hints(place):
    found = dict(functions(place))
    assert found
    assert {name: gone for name, function in found.items() if (gone := missing(function))} == {}


def test_a_hint_that_is_missing_is_found():
    def half(x: int, y) -> int:
        return x

    assert missing(half) == ["y"]
    assert missing(lambda x: x) == ["x", "return"]
