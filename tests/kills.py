"""Kills runs at random moments, has them go on, and compares their ends with a run that nobody touched.

    python -m tests.kills --kills 200

Three runs go at once; begun together by one command line, each is to get a folder of its own. A third of the kills
come at any time; the others begin where a run writes, evaluates, draws, starts or ends. After each kill every
checkpoint that was there is there, whole, and no older. Going on takes a run to its end with the same bits, log and
files. While a run goes, a second `--resume` now and then must be refused.

POSIX only: a run is a fork of this process, which has everything imported, so that a kill takes a second and not four.
"""

import argparse
import collections
import json
import os
import random
import signal
import sys
import tempfile
import threading
import time
import traceback
from pathlib import Path

import matplotlib.backends.backend_agg
import matplotlib.figure  # noqa: F401 (imported once, for all forks)
import numpy as np

import train
from minnl.study import pictures
from minnl.training import checkpoint, loop
from minnl.training.run_folder import RunFolder

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGHUP)
# Where a kill begins: an object and its function, how often a run calls it, and the most seconds until the signal.
PLACES = {
    "a save": (checkpoint, "_write_temporary", 4, 0.01),
    "a rename": (os, "replace", 4, 0.001),
    "a sync of the folder": (checkpoint, "sync_folder", 4, 0.001),
    "evaluation": (loop, "evaluate", 2, 0.03),
    "a line of the log": (RunFolder, "log", 3, 0.001),
    "the start": (RunFolder, "__enter__", 2, 0.01),
    "the end": (RunFolder, "__exit__", 2, 0.001),
    "pictures": (pictures, "curves", 1, 0.5),
}
RUNTIME = ("--threads", "1")
DATA = ("--frames", "4", "--size", "16", "--stride", "1", "--rgb", *RUNTIME)
# Options of a run, and those that --resume wants again.
RUNS = {
    "plain": (("--epochs", "3", "--batch-size", "4"), ()),
    "parts": (("--epochs", "3", "--batch-size", "2", "--accumulate", "2", "--precise", "2", "--dropout", "0.2"), ()),
    "saves": (("--epochs", "2", "--batch-size", "3", "--drop-last"), ("--save-every", "0", "--workers", "2")),
}
AT_ONCE = 3
PATIENCE = 120.0  # seconds for any process


class Failed(Exception):
    """Something was lost, damaged or mixed up."""


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    loop.LOG_EVERY = 1
    began = time.monotonic()
    work = Path(tempfile.mkdtemp(prefix="minnl-kills-"))
    driver = Driver(work, random.Random(args.seed), args.kills)
    try:
        driver.run()
    except (Failed, checkpoint.CheckpointError) as failure:
        print(f"FAILED: {failure}\nwhat is left of it: {work}", file=sys.stderr)
        return 1
    print(driver.report(time.monotonic() - began))
    for path in sorted(work.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    work.rmdir()
    return 0


class Process:
    """train.py in a fork; `plan` is (place, call, seconds, signal) for one that a signal is to end."""

    def __init__(self, folder, arguments, plan=None):
        self.plan, self.began, self.status = plan, time.monotonic(), None
        self.output = folder / f"output-{time.monotonic_ns()}.txt"
        self.pid = os.fork()
        if self.pid == 0:
            self._child(folder, arguments)

    def _child(self, folder, arguments):
        status = 99
        try:
            os.setsid()
            file = os.open(self.output, os.O_WRONLY | os.O_CREAT)
            os.dup2(file, 1)
            os.dup2(file, 2)
            os.chdir(folder)
            if self.plan and self.plan[0] is not None:
                prepare(*self.plan)
            status = train.main(list(arguments))
            sys.stdout.flush()
            sys.stderr.flush()
        except BaseException:
            os.write(2, traceback.format_exc().encode())
        finally:
            os._exit(status)

    def ended(self):
        """Whether it has ended, with `status` (of a signal its number below 0); sends the signal when it is due."""
        age = time.monotonic() - self.began
        if self.plan and self.plan[0] is None and age > self.plan[2]:
            os.kill(self.pid, self.plan[3])
            self.plan = ("any time", 0, 0.0, self.plan[3])
        if age > PATIENCE:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            raise Failed(f"a process did not end: {self.said()}")
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        if pid:
            self.status = os.waitstatus_to_exitcode(status)
        return bool(pid)

    def said(self):
        return self.output.read_text("utf-8", "replace") if self.output.exists() else ""


def prepare(place, call, seconds, number):
    """Have a signal come so many seconds after a function of the place was called for the so many-th time."""
    owner, name, *_ = PLACES[place]
    function, calls = getattr(owner, name), [0]

    def called(*arguments, **options):
        calls[0] += 1
        if calls[0] == call:
            threading.Thread(target=lambda: time.sleep(seconds) or os.kill(os.getpid(), number), daemon=True).start()
        return function(*arguments, **options)

    setattr(owner, name, called)


class Driver:
    def __init__(self, work, rng, kills):
        self.work, self.rng, self.wanted = work, rng, kills
        self.kills, self.counts = collections.Counter(), collections.Counter()
        self.whole, self.seconds = {}, {}

    def run(self):
        write_arrays(self.work / "arrays")
        for kind in RUNS:
            folder = self.work / f"whole-{kind}"
            folder.mkdir()
            process = Process(folder, self.begin(kind))
            wait([process])
            self.seconds[kind] = time.monotonic() - process.began
            if process.status:
                raise Failed(f"the run that nobody kills ends with status {process.status}: {process.said()}")
            (run,) = (folder / "runs").iterdir()
            self.whole[kind] = state(run)
        while self.kills.total() < self.wanted:
            self.round(self.rng.choice(list(RUNS)))

    def begin(self, kind):
        own, runtime = RUNS[kind]
        return ("--data", str(self.work / "arrays"), *DATA, *own, *runtime)

    def plan(self, kind):
        number = self.rng.choices(SIGNALS, (2, 1, 1))[0]
        if self.rng.random() < 1 / 3:
            return (None, 0, self.rng.uniform(0, 1.2 * self.seconds[kind]), number)
        place = self.rng.choice(list(PLACES))
        *_, calls, most = PLACES[place]  # few calls: one that goes on has fewer to make
        return (place, self.rng.randint(1, calls), self.rng.uniform(0, most), number)

    def round(self, kind):
        """Begin runs together, kill them, and take each to its end."""
        folder = self.work / f"round-{self.counts['rounds']}"
        folder.mkdir()
        self.counts["rounds"] += 1
        processes = [Process(folder, self.begin(kind), self.plan(kind)) for _ in range(AT_ONCE)]
        wait(processes)
        said = [line.split(":")[0] for p in processes for line in p.said().splitlines() if line.startswith("runs/")]
        runs = sorted((folder / "runs").iterdir()) if (folder / "runs").exists() else []
        if len(set(said)) != len(said) or len(runs) > AT_ONCE:
            raise Failed(f"runs that began together share a folder: {said}, there are {runs}")
        for process in processes:
            self.note(process)
        going = [Run(self, kind, run) for run in runs if self.begun(run)]
        for run in going:
            run.check()
        while going:
            wait([process for run in going for process in run.go_on()])
            going = [run for run in going if not run.is_complete()]

    def begun(self, run):
        """Whether it has a checkpoint; if it has none, it is to hold nothing that a new start would mix up."""
        if (run / "last.safetensors").exists():
            return True
        left = {path.name for path in run.iterdir() if not checkpoint.TEMPORARY.fullmatch(path.name)}
        if left - {"lock", "config.json"}:
            raise Failed(f"{run} has no checkpoint, but {left}")
        self.counts["starts killed before their first checkpoint"] += 1
        return False

    def note(self, process):
        """Count how a process ended; True if it was by its signal, which is the only reason but its end."""
        number = process.plan[3] if process.plan else None
        if process.status == 0:
            return False
        if number is None or process.status not in (-number, 128 + number):
            raise Failed(f"status {process.status} with the plan {process.plan}: {process.said()}")
        self.kills[process.plan[0], signal.Signals(number).name] += 1
        self.counts["stopped politely" if process.status > 0 else "died at once"] += 1
        return True

    def report(self, seconds):
        places = ["any time", *PLACES]
        names = [number.name for number in SIGNALS]
        lines = [f"{'kills at':<24}" + "".join(f"{name:>9}" for name in names)]
        lines += [f"{place:<24}" + "".join(f"{self.kills[place, name]:>9}" for name in names) for place in places]
        lines.append(f"{'all':<24}" + "".join(f"{sum(self.kills[p, n] for p in places):>9}" for n in names))
        lines += [f"{what}: {count}" for what, count in sorted(self.counts.items())]
        return "\n".join([*lines, f"{self.kills.total()} kills, nothing lost, in {seconds:.0f} s"])


class Run:
    """A run that is killed several times, and goes on."""

    def __init__(self, driver, kind, folder):
        self.driver, self.kind, self.folder = driver, kind, folder
        self.kills, self.found = 0, {}
        self.process = self.second = None

    def go_on(self):
        """Processes that go on with it: one, and now and then a second that is to be refused."""
        driver, rng = self.driver, self.driver.rng
        plan = driver.plan(self.kind) if self.kills < 4 else None
        arguments = ("--resume", f"runs/{self.folder.name}", *RUNTIME, *RUNS[self.kind][1])
        place = self.folder.parent.parent
        self.process, self.second = Process(place, arguments, plan), None
        if rng.random() < 0.2:
            while not self.process.ended() and not holds(self.folder, self.process.pid):
                time.sleep(0.001)
            self.second = Process(place, arguments)
        return [p for p in (self.process, self.second) if p and p.status is None]

    def is_complete(self):
        self.driver.counts["times gone on"] += 1
        killed = self.driver.note(self.process)
        complete = not killed
        if self.second:  # it may have come when the first had ended
            if self.second.status == 1 and "another process trains there" in self.second.said():
                self.driver.counts["a second one refused"] += 1
            elif self.second.status == 0:
                self.driver.counts["a second one that came after the first's end"] += 1
                complete = True
            else:
                raise Failed(f"a second --resume ends with status {self.second.status}: {self.second.said()}")
        self.kills += killed
        self.check()
        if complete:
            self.compare()
        return complete

    def check(self):
        """Every checkpoint that was there is there, whole, and no older."""
        for name in ("last", "best"):
            path = self.folder / f"{name}.safetensors"
            if not path.exists():
                if name in self.found:
                    raise Failed(f"{path} is lost")
                continue
            meta = checkpoint.load(path)[1]
            now = (meta["epoch"], meta["step"])
            if now < self.found.get(name, (0, 0)):
                raise Failed(f"{path} was at {self.found[name]}, is at {now}")
            self.found[name] = now
            self.driver.counts["checkpoints read"] += 1
            if name == "last" and meta["best"] >= 0 and not (self.folder / "best.safetensors").exists():
                raise Failed(f"{path} knows of a best that is not there")

    def compare(self):
        """The end is that of the run that nobody killed."""
        found, whole = state(self.folder), self.driver.whole[self.kind]
        for what in whole:
            if found[what] != whole[what]:
                raise Failed(f"{self.folder} ends with other {what} than the run in one piece")
        self.driver.counts["runs taken to their end, bit for bit the same"] += 1


def wait(processes):
    while processes:
        processes = [process for process in processes if not process.ended()]
        time.sleep(0.001)


def holds(folder, pid):
    try:
        return (folder / "lock").read_text().startswith(f"process {pid} ")
    except FileNotFoundError:
        return False


def state(folder):
    """What two runs are compared by: names of files, arrays and values of checkpoints, and the log, but for times."""
    found = {"files": sorted(os.listdir(folder))}
    for name in ("last", "best"):
        arrays, meta = checkpoint.load(folder / f"{name}.safetensors")
        meta["sums"].pop("seconds")
        found[f"arrays of {name}"] = {key: (array.dtype, array.tobytes()) for key, array in arrays.items()}
        found[f"values of {name}"] = meta
    records = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    found["log"] = [{key: value for key, value in record.items() if key != "clips_per_second"} for record in records]
    found["config"] = json.loads((folder / "config.json").read_text())
    for name in ("curves.png", "attention.png"):
        if not (folder / name).read_bytes().endswith(b"IEND\xaeB`\x82"):
            raise Failed(f"{folder / name} is half a picture")
    return found


def write_arrays(folder):
    """Few clips, so that an epoch has about four steps; the last batch is not full."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    for split, count in (("train", 14), ("val", 6)):
        labels = np.arange(count) % 2
        clips = rng.normal(size=(count, 4, 16, 16, 1)) + labels[:, None, None, None, None]
        np.savez(folder / f"{split}.npz", clips=clips.astype(np.float32), labels=labels, classes=np.array(["a", "b"]))


if __name__ == "__main__":
    sys.exit(main())
