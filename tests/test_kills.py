"""The short form of tests/kills.py, and that it would find what it looks for."""

import os
import subprocess
import sys

import pytest

from tests.test_train_cli import ROOT

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs fork and POSIX signals")


def kills(count, before=""):
    code = f"import sys\nfrom tests import kills\n{before}\nsys.exit(kills.main(['--kills', '{count}', '--seed', '1']))"
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300)


def test_a_few_kills_lose_nothing():
    found = kills(8)
    assert found.returncode == 0, found.stdout + found.stderr
    assert " kills, nothing lost" in found.stdout and "bit for bit the same" in found.stdout
