"""A child that is forked while another thread of the parent computes is not left with a lock that nobody will free."""

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a system that forks")

SCRIPT = """
import os, signal, sys, threading, time
import numpy as np
import minnl
from minnl import Tensor, functional as F, nn
from minnl.kernels.runtime import memory, threads
from minnl.nn.recompute import TwoRuns

minnl.set_threads(2)
x, w = (np.random.default_rng(0).normal(size=s).astype("f4") for s in ((2, 4, 28, 28, 32), (3, 3, 3, 32, 32)))
layer = nn.Recompute(nn.Conv3d(32, 8, 3))

def step():
    leaves = [Tensor(x, requires_grad=True), Tensor(w, requires_grad=True)]
    F.sum(F.conv3d(*leaves, padding=1)).backward()
    F.sum(layer(Tensor(x))).backward()
    return leaves[1].grad.tobytes()

expected = step()

def wait_for(pid):
    end = time.monotonic() + 60
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return "deadlock"

def fork():
    pid = os.fork()
    if pid == 0:
        try:
            os._exit(0 if step() == expected else 1)
        except BaseException:
            os._exit(2)
    return pid
"""

HELD = """
held, let_go = threading.Event(), threading.Event()

def hold():
    with {lock}:
        held.set()
        let_go.wait({seconds})

thread = threading.Thread(target=hold)
thread.start()
held.wait()
pid = fork()
let_go.set()
thread.join()
print(wait_for(pid))
assert step() == expected, "the parent goes on"
"""

BUSY = """
stop = threading.Event()

def compute():
    while not stop.is_set():
        step()

others = [threading.Thread(target=compute) for _ in range(2)]
for other in others:
    other.start()
print({wait_for(fork()) for _ in range(20)})
stop.set()
for other in others:
    other.join()
"""


def outcome(script):
    env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OPENBLAS_NUM_THREADS": "2"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", script],
        env=env, capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.slow
@pytest.mark.parametrize(
    "lock, seconds",
    [
        ("threads.one_blas_thread.lock", 60),
        ("TwoRuns._lock", 60),
    ],
)
def test_a_lock_that_another_thread_held(lock, seconds):
    assert outcome(SCRIPT + HELD.format(lock=lock, seconds=seconds)) == "0"


def test_blas_gets_its_threads_back_in_a_child_forked_in_the_middle_of_a_kernel():
    script = """
def blas_threads():
    return [library.num_threads for library in threads.blas_libraries()]

before = blas_threads()
""" + HELD.format(lock="threads.one_blas_thread", seconds=60).replace(
        "pid = fork()",
        """
assert blas_threads() == [1] * len(before) != []
pid = os.fork()
if pid == 0:
    step()
    os._exit(0 if blas_threads() == before else 1)
""",
    )
    assert outcome(SCRIPT + script) == "0"


@pytest.mark.slow
def test_children_of_a_busy_parent():
    assert outcome(SCRIPT + BUSY) == "{0}"
