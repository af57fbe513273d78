"""How much there is to read of a kernel: docs/kernels/README.md lists the files, and the imports are the list."""

import re

import pytest

from tests.project.test_floors import ROOT, imports

PAGE = (ROOT / "docs/kernels/README.md").read_text()
SETS = {  # file to begin with: files and lines at most
    "conv3d": (9, 1400),
    "batch_norm": (4, 600),
    "pooling": (4, 600),
    "non_local": (4, 600),
}


def reading_set(file):
    """The file and all files of minnl/kernels that it imports, directly or not."""
    found, waiting = [], [file]
    while waiting:
        file = waiting.pop()
        if file not in found and file.startswith("minnl/kernels/"):
            found.append(file)
            waiting += [other for _, other in imports((ROOT / file).read_text(), file)]
    return sorted(found)


@pytest.mark.parametrize("folder", SETS)
def test_the_reading_set_of_a_cpu_kernel(folder):
    files, lines = SETS[folder]
    found = [file for file in reading_set(f"minnl/kernels/{folder}/cpu.py") if (ROOT / file).stat().st_size]
    assert len(found) <= files
    assert sum(len((ROOT / file).read_text().splitlines()) for file in found) <= lines
    row = re.search(rf"(?m)^\| {folder} \|.*$", PAGE)[0]
    assert sorted(re.findall(r"`([\w/]+\.py)`", row)) == [file.removeprefix("minnl/kernels/") for file in found]
