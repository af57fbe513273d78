"""The most memory that a contender takes: in a process of its own, where nothing else was before.

``python -m benchmarks.memory TITLE WAY THREADS DEVICE TF32`` is that process. It runs something small of both libraries
first, so that what they load and set up once is not counted; then it makes the contender and lets it work three times.
The answer, in bytes, is the most that was held during that work less what was held before the contender was made:
inputs, weights, gradients, the optimiser's arrays and all that was at work. On the CPU it is the process's resident
size (Linux only, for it counts in /proc), on a GPU what arrays take of the library's pool.
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
    """Bytes, or None where they cannot be counted."""
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
    """Who counts: `held()` are the bytes of this moment, `most` the most of them within ``with counter:``."""
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
    """What arrays hold of CuPy's pool, which is asked after each of them that is made."""

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
    """The same of PyTorch's pool, which counts by itself."""

    def held(self):
        return torch.cuda.memory_allocated()

    def __enter__(self):
        torch.cuda.reset_peak_memory_stats()

    def __exit__(self, *_):
        self.most = torch.cuda.max_memory_allocated()


if __name__ == "__main__":
    main(*sys.argv[1:])
