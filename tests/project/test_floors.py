"""The house: imports point down, only the backend knows CuPy, files stay short, and no assert meets a user."""

import ast
import subprocess
import sys

import pytest

from tests import ROOT

# The first entry that a file's path begins with says its floor.
FLOORS = {
    "minnl/__init__.py": 5.9,  # the public face: it hands out what lies on floors 0 to 5
    "minnl/__main__.py": 7,  # commands, as train.py
    "minnl/backend.py": 0,
    "minnl/checks.py": 0,
    "minnl/random.py": 0,
    "minnl/sums.py": 0,
    "minnl/windows.py": 0,
    "minnl/contracts.py": 1,
    "minnl/debugging.py": 1,
    "minnl/dispatch.py": 1,
    "minnl/engine.py": 1,
    "minnl/ops/": 2,
    "minnl/optim.py": 2,
    "minnl/params.py": 2,
    "minnl/kernels/": 3,
    "minnl/functional.py": 4,
    "minnl/methods.py": 4,
    "minnl/": 5,
    "models/": 6,
    "train.py": 7,
}
# On floor 1 the engine uses the table of kernels and the debug mode, which know nothing of the engine. On floor 2
# optimisers know nothing of ops. On floor 3 the runtime knows no operation. On floor 5 study looks at everything, and
# training is above nn and data. Within training the loop is above everything else, and the modules that deal with files
# know no networks and no data.
ORDER = {
    "minnl/dispatch.py": ("minnl/engine.py",),
    "minnl/debugging.py": ("minnl/engine.py",),
    "minnl/contracts.py": ("minnl/engine.py",),
    "minnl/ops/": ("minnl/optim.py", "minnl/params.py"),
    "minnl/optim.py": ("minnl/ops/",),
    "minnl/kernels/runtime/": tuple(
        f"minnl/kernels/{name}/"
        for name in ("batch_norm", "conv3d", "linear", "non_local", "optim", "pointwise", "pooling", "softmax")
    ),
    "minnl/functional.py": ("minnl/methods.py",),
    "minnl/nn/": ("minnl/optim.py", "minnl/training/", "minnl/data/", "minnl/study/"),
    "minnl/data/": ("minnl/nn/", "minnl/optim.py", "minnl/training/", "minnl/study/"),
    "minnl/training/__init__.py": (),
    "minnl/training/loop.py": (),
    "minnl/training/precise.py": ("minnl/training/loop.py", "minnl/data/"),
    **{
        f"minnl/training/{name}.py": ("minnl/training/loop.py", "minnl/nn/", "minnl/data/", "minnl/study/")
        for name in ("checkpoint", "schema", "tensor_file", "run_folder", "progress", "stopping", "recipes")
    },
    "minnl/training/": ("minnl/training/loop.py",),
}
LONGEST = 400

FILES = sorted(
    path.relative_to(ROOT).as_posix() for top in ("minnl", "models") for path in (ROOT / top).rglob("*.py")
) + ["train.py"]


def floor(file):
    return next(level for start, level in FLOORS.items() if file.startswith(start))


def file_of(module):
    """The file of a dotted module name, or None if it is not of this project (or a name within a module)."""
    path = ROOT.joinpath(*module.split("."))
    for candidate in (path.with_suffix(".py"), path / "__init__.py"):
        if candidate.is_file():
            return candidate.relative_to(ROOT).as_posix()
    return None


def modules_of(node, file):
    """Dotted names that an import statement may load: ``from minnl import engine`` names minnl.engine."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    package = file.removesuffix("__init__.py").removesuffix(".py").strip("/").split("/")
    up = len(package) - node.level + file.endswith("__init__.py")
    base = ".".join([*package[:up], *([node.module] if node.module else [])]) if node.level else node.module
    inner = [f"{base}.{alias.name}" for alias in node.names]
    found = [name for name in inner if file_of(name)]
    return found if len(found) == len(inner) else [base, *found]


def imports(source, file):
    """(line, file) for every import of this project's files, wherever in the file it stands: any that Python runs."""
    found, tree = [], ast.parse(source)
    ifs = [node for node in ast.walk(tree) if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    never_run = {inner for node in ifs for statement in node.body for inner in ast.walk(statement)}
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)) and node not in never_run:
            found += [(node.lineno, target) for name in modules_of(node, file) if (target := file_of(name))]
    return found


def upward(source, file):
    """Complaints about imports that do not point down."""
    complaints = []
    for line, target in imports(source, file):
        beside = next((later for start, later in ORDER.items() if file.startswith(start)), ())
        if floor(target) > floor(file) or target.startswith(tuple(beside)):
            complaints.append(f"{file}:{line} imports {target}, on floor {floor(target):g} from floor {floor(file):g}")
    return complaints


def imports_cupy(source):
    """Lines with an import of CuPy, by statement or by name."""
    lines = []
    for node in ast.walk(ast.parse(source)):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        if isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) in (
            "import_module",
            "__import__",
        ):
            names += [a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
        if any(name.partition(".")[0] in ("cupy", "cupyx", "cupy_backends") for name in names):
            lines.append(node.lineno)
    return lines


@pytest.mark.parametrize("file", FILES)
def test_imports_point_down(file):
    assert upward((ROOT / file).read_text(), file) == []


@pytest.mark.parametrize("file", FILES)
def test_only_the_backend_imports_cupy(file):
    lines = imports_cupy((ROOT / file).read_text())
    assert bool(lines) == (file == "minnl/backend.py"), f"{file}: {lines}"


@pytest.mark.parametrize("file", FILES)
def test_a_file_fits_in_the_head(file):
    lines = len((ROOT / file).read_text().splitlines())
    assert lines <= LONGEST, f"{file} has {lines} lines"


@pytest.mark.parametrize("file", FILES)
def test_no_assert_meets_a_user(file):
    asserts = [n.lineno for n in ast.walk(ast.parse((ROOT / file).read_text())) if isinstance(n, ast.Assert)]
    assert asserts == [], f"{file}: raise ValueError or TypeError instead, which `python -O` keeps"


def test_the_case_table_passes_without_the_package_of_kernels():
    """Nothing but minnl/__init__.py needs the kernels: every op computes with its textbook body."""
    code = """
import sys, types
sys.modules["minnl.kernels"] = types.ModuleType("minnl.kernels")  # an empty module, of which nothing can be imported
import minnl
from minnl import dispatch
from minnl.study import check
assert dispatch.mode() == "fast" and not dispatch._kernels
status = check.main([])
assert not [name for name in sys.modules if name.startswith("minnl.kernels.")]
sys.exit(status)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr
    assert "all pass" in done.stdout


# The tests above can fail.


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("minnl/backend.py", "from minnl.engine import Tensor"),
        ("minnl/windows.py", "import minnl.functional"),
        ("minnl/engine.py", "from minnl import nn"),
        ("minnl/engine.py", "def f():\n    from minnl.ops import conv"),
        ("minnl/engine.py", "if TYPE_CHECKING:\n    pass\nelse:\n    from minnl.methods import Methods"),
        ("minnl/engine.py", "from minnl import kernels"),
        ("minnl/dispatch.py", "from .engine import Op"),
        ("minnl/ops/conv.py", "from minnl.kernels.conv3d import cpu"),
        ("minnl/optim.py", "from minnl.kernels.optim.cpu import CpuAdamW"),
        ("minnl/kernels/conv3d/cpu.py", "from ... import functional"),
        ("minnl/kernels/runtime/matmul.py", "from minnl.kernels.conv3d import taps"),
        ("minnl/ops/conv.py", "from minnl import functional"),
        ("minnl/ops/conv.py", "import minnl"),
        ("minnl/ops/conv.py", "from minnl import Tensor"),
        ("minnl/nn/layers.py", "from minnl import backend, optim"),
        ("minnl/training/loop.py", "import models"),
        ("minnl/training/meter.py", "from minnl.training import loop"),
        ("minnl/training/evaluation.py", "from minnl.training.loop import Trainer"),
        ("minnl/training/checkpoint.py", "from minnl import nn"),
        ("minnl/data/loader.py", "from minnl.training import checkpoint"),
        ("models/small.py", "import train"),
    ],
)
def test_an_upward_import_is_found(file, source):
    assert upward(source, file)


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("minnl/engine.py", "from minnl import backend, debugging, dispatch"),
        ("minnl/engine.py", "if TYPE_CHECKING:\n    from minnl.methods import Methods"),
        ("minnl/ops/conv.py", "from minnl import windows\nfrom minnl.ops.arguments import tensor\nimport numpy"),
        ("minnl/ops/conv.py", "from .arguments import tensor"),
        ("minnl/kernels/conv3d/cpu.py", "from minnl.ops.conv import Conv3d"),
        ("minnl/kernels/optim/cpu.py", "from minnl.optim import AdamW"),
        ("minnl/nn/layers.py", "from minnl import functional as F"),
        ("models/small.py", "import minnl\nfrom minnl import nn"),
        ("train.py", "import models, minnl"),
    ],
)
def test_a_downward_import_is_allowed(file, source):
    assert upward(source, file) == []


@pytest.mark.parametrize(
    "source",
    [
        "import cupy",
        "import numpy, cupy as xp",
        "from cupy.cuda import Device",
        "import cupyx.distributed",
        "def f():\n    import cupy",
        "importlib.import_module('cupy')",
        "__import__('cupy.cuda')",
    ],
)
def test_an_import_of_cupy_is_found(source):
    assert imports_cupy(source)
