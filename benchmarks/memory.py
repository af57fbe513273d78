"""The most memory that a contender takes: in a process of its own, where nothing else was before.

``python -m benchmarks.memory TITLE WAY THREADS`` is that process. It runs something small of both libraries first, so
that what they load and set up once is not counted; then it makes the contender and lets it work three times. The
answer, in bytes, is the largest resident size during that work less the one before the contender was made: inputs,
weights, gradients, the optimiser's arrays and all that was at work. Linux only, for it counts in /proc.
"""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from pathlib import Path

import minnl
from benchmarks import cases, ops
from benchmarks.contest import BACKWARD
from benchmarks.optional import torch

STATUS = Path("/proc/self/status")


def peak(contest, way, threads):
    """Bytes, or None where they cannot be counted."""
    if not STATUS.exists():
        return None
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    call = [sys.executable, "-m", "benchmarks.memory", contest.title, way, str(threads)]
    done = subprocess.run(call, env=env, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{contest.title}, {way}: its process ended with {done.returncode}:\n{done.stderr}")
    return int(done.stdout)


def main(title, way, threads):
    minnl.set_threads(int(threads))
    if torch is not None:
        torch.set_num_threads(int(threads))
    contest = next(c for c in cases.every() if c.title == title)
    for small in ops.conv((2, 4, 8, 8, 8), (3, 3, 3, 8, 8)).contests("warm up", ""):
        if small.work == BACKWARD:
            small.contenders()
    gc.collect()
    before = resident("VmRSS")
    contender = contest.ways[way]()
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the largest size so far is forgotten: that of making the contender
    for _ in range(3):
        contender.call()
    print(resident("VmHWM") - before)


def resident(which):
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(f"{which}:"))
    return 1024 * int(line.split()[1])


if __name__ == "__main__":
    main(*sys.argv[1:])
