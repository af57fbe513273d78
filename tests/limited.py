"""Code that reads hostile files, run in a process of its own: with little memory, for a limited time."""

import json
import os
import subprocess
import sys
import textwrap

MEMORY = 1_500_000_000  # bytes of address space, of which Python with NumPy reserves most and touches little
LONGEST = 10_000  # letters of a message
SETUP = f"""
import json, resource, sys, time
import models, train
from minnl.training import checkpoint
from models import published
resource.setrlimit(resource.RLIMIT_AS, ({MEMORY}, {MEMORY}))
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

def said(read, path):
    began = time.process_time()
    try:
        outcome = ["read", str(read(path))]
    except Exception as error:
        outcome = ["ValueError" if isinstance(error, ValueError) else type(error).__name__, str(error)]
    print(json.dumps([str(path), *outcome, time.process_time() - began]), flush=True)
"""


def outcomes(read, paths, setup="", timeout=300):
    """path -> (name of the error's class, message, seconds), or ("read", what was read, seconds).

    `read` is the name of a function of a path, in Python after `setup`. A path that is missing killed the process.
    """
    code = (
        textwrap.dedent(SETUP)
        + textwrap.dedent(setup)
        + f"\nfor path in sys.stdin.read().splitlines():\n    said({read}, path)\n"
    )
    lines = "\n".join(map(str, paths))
    env = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}  # each thread of BLAS reserves memory
    run = subprocess.run(
        [sys.executable, "-c", code], input=lines, env=env, capture_output=True, text=True, timeout=timeout
    )
    found = {path: tuple(rest) for path, *rest in map(json.loads, run.stdout.splitlines())}
    assert found or not run.stderr, run.stderr
    return found


def refused(outcome, seconds=20):
    """Why an outcome is no refusal as it should be: a ValueError with a short and harmless message, soon; or None."""
    kind, message, took = outcome
    if kind != "ValueError":
        return f"{kind}: {message[:300]}"
    if len(message) > LONGEST:
        return f"a message of {len(message):,} letters"
    if not all(c.isprintable() or c == "\n" for c in message):
        return f"a message with {[c for c in message if not c.isprintable()][:3]}"
    return f"{took:.1f} s" if took > seconds else None
