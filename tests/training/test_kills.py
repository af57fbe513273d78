"""The short form of tests/kills.py."""

import os
import subprocess
import sys

import pytest

from tests import ROOT


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="needs fork and POSIX signals")
def test_a_few_kills_lose_nothing():
    command = [sys.executable, "-m", "tests.kills", "--kills", "8", "--seed", "1"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert found.returncode == 0, found.stdout + found.stderr
    assert " kills, nothing lost" in found.stdout and "bit for bit the same" in found.stdout
