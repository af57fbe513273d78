"""The peak memory of a contender, in its own process.

``python -m benchmarks.memory TITLE WAY THREADS DEVICE TF32`` is that process. It first runs a small case of both
libraries, so that libraries loaded once are not counted. Then it makes the contender and runs it three times. The
result is the peak in bytes during these runs minus the memory before the contender was made: inputs, weights,
gradients, the optimiser's arrays and scratch. On the CPU it is the process's resident size (Linux only, from /proc), on
a GPU the size of the arrays in the library's pool.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import minnl
from benchmarks import cases, ops, places
from benchmarks.contest import BACKWARD
from benchmarks.optional import torch
from minnl import backend

STATUS = Path("/proc/self/status")


def peak(contest, way, threads, place=places.CPU):
    """The peak memory in bytes, or None where it cannot be measured."""
    if place.device == backend.CPU and not STATUS.exists():
        return None
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    told = [contest.title, way, str(threads), place.name, "tf32" if place.tf32 else ""]
    done = subprocess.run([sys.executable, "-m", "benchmarks.memory", *told], env=env, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{contest.title}, {way}: its process ended with {done.returncode}:\n{done.stderr}")
    return int(done.stdout)


def main(title, way, threads, name="cpu", tf32=""):
    minnl.set_threads(int(threads))
    if torch is not None:
        torch.set_num_threads(int(threads))
    place = places.find(name, bool(tf32))
    with backend.on(place.device):
        print(taken(next(c for c in cases.every() if c.title == title), way, place))


def taken(contest, way, place):
    for small in ops.conv((2, 4, 8, 8, 8), (3, 3, 3, 8, 8)).contests("warm up", ""):
        if small.work == BACKWARD:
            small.contenders(place)
    counter = counter_of(place, way)
    place.make_room()
    before = counter.held()
    contender = contest.ways[way](place)
    place.make_room()
    with counter:
        for _ in range(3):
            contender.call()
    return counter.most - before


def counter_of(place, way):
    """A counter: `held()` is the present number of bytes, `most` their peak inside ``with counter:``."""
    if place.device == backend.CPU:
        return Resident()
    return CupyPool() if way == "minnl" else TorchPool()


class Resident:
    """The resident size of this process."""

    def held(self):
        return self.read("VmRSS")

    def __enter__(self):
        Path("/proc/self/clear_refs").write_text("5")  # the largest size so far is forgotten

    def __exit__(self, *_):
        self.most = self.read("VmHWM")

    def read(self, which):
        line = next(line for line in STATUS.read_text().splitlines() if line.startswith(f"{which}:"))
        return 1024 * int(line.split()[1])


class CupyPool:
    """The size of the arrays in CuPy's pool, read after each allocation."""

    def __init__(self):
        cupy = backend.load_cupy()
        self.held = cupy.get_default_memory_pool().used_bytes

        class Watch(cupy.cuda.MemoryHook):
            def malloc_postprocess(_, **which):
                self.most = max(self.most, self.held())

        self.watch = Watch()

    def __enter__(self):
        self.most = self.held()
        self.watch.__enter__()

    def __exit__(self, *error):
        self.watch.__exit__(*error)


class TorchPool:
    """The size of the arrays in PyTorch's pool, which records its own peak."""

    def held(self):
        return torch.cuda.memory_allocated()

    def __enter__(self):
        torch.cuda.reset_peak_memory_stats()

    def __exit__(self, *_):
        self.most = torch.cuda.max_memory_allocated()


if __name__ == "__main__":
    main(*sys.argv[1:])
