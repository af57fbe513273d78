"""The rule of conftest.py: in CI a skipped comparison with PyTorch is a failure, or one on the GPU it has."""

import os
import shutil
import subprocess
import sys

import pytest

from tests import ROOT
from tests.lowest import OTHERS, constraints

TESTS = {
    "passes": "def test(): pass",
    "gpu": "import pytest\ndef test(): pytest.skip('needs a GPU: none here')",
    "data": "import pytest\npytest.skip('needs ../shared/data', allow_module_level=True)",
    "call": "import pytest\ndef test(): pytest.skip('needs PyTorch')",
    "mark": "import pytest\n@pytest.mark.skipif(True, reason='needs PyTorch')\ndef test(): pass",
    "module": "import pytest\npytest.importorskip('no_such_module')",
    "nothing": "import pytest\n@pytest.mark.parametrize('case', [])\ndef test(case): pass",
}


@pytest.mark.parametrize(
    ("ci", "expected"),
    [
        ("0", "1 passed, 6 skipped"),
        ("1", "1 failed, 1 passed, 2 skipped, 3 errors"),
        ("gpu", "2 failed, 1 passed, 1 skipped, 3 errors"),
    ],
)
def test_skips(tmp_path, ci, expected):
    shutil.copy(ROOT / "tests/conftest.py", tmp_path)
    for name, code in TESTS.items():
        (tmp_path / f"test_{name}.py").write_text(code)
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--continue-on-collection-errors"],
        cwd=tmp_path,
        env={**os.environ, "MINNL_CI": ci},
        capture_output=True,
        text=True,
        timeout=60,
    )
    summary = run.stdout.rstrip().splitlines()[-1]
    assert summary.startswith(expected), run.stdout
    assert (run.returncode != 0) == (ci != "0")


def test_lowest_versions():
    named = ["numpy>=2.1.1", "av<19,>=17; extra == 'test'", "cupy-cuda12x[ctk]>=14; extra == 'cuda12'", "torch==2.13.0"]
    assert constraints(named) == ["av==17", "numpy==2.1.1", *OTHERS]
