"""``python -m minnl ablate``: which runs, in which order, and what to say meanwhile."""

import time
from pathlib import Path

import minnl
from minnl import checks
from minnl.training import recipes
from minnl.training.progress import clock
from models.ablations import report, runs
from models.ablations.paper import tables
from models.ablations.runs import Case
from models.ablations.scales import scale
from models.published.commands import assignment


def ablate(given):
    """Run what was asked for, write its tables, and return the exit status."""
    names = tables(given.tables)
    chosen = scale(given.model)
    checks.count("ablate", "--seeds", given.seeds)
    checks.count("ablate", "--epochs", 1 if given.epochs is None else given.epochs)
    if given.threads is not None:
        minnl.set_threads(given.threads)
    rows = runs.cases(names, chosen, base(given, chosen))
    cases = list({case.name: case for name in names for _, case in rows[name] if isinstance(case, Case)}.values())
    for case in cases:
        for seed in range(given.seeds):
            runs.check(case, seed, given.out)
    if given.plan:
        return plan(given, names, rows, cases)
    try:
        complete = train(given, cases, rows)
    except KeyboardInterrupt:
        complete = False
    finally:
        for name in names if Path(given.out).exists() else ():  # it does not, if the first run could not start
            for path in report.write(name, rows[name], chosen, given.seeds, given.out):
                print(f"written {path}")
    if not complete:
        print("stopped; the same command goes on from here")
    return 0 if complete else 130


def base(given, chosen):
    """The configuration that all runs share, from the arguments and what the scale says where they are silent."""
    recipe = given.recipe or chosen.recipe
    options = dict(assignment(text) for text in given.set)
    for option in options:
        if option not in chosen.common:
            raise ValueError(f"ablate: --set cannot change {option!r} in all rows; it can {', '.join(chosen.common)}")
    made = {"model": chosen.model, "options": options, "data": given.data}
    made |= {"clips": given.clips, **chosen.clip, "recipe": recipe, **recipes.RECIPES[recipe]}
    if given.data is not None and chosen.video_size:
        made["size"] = chosen.video_size
    asked = {key: getattr(given, key) for key in ("frames", "stride", "size", "epochs", "batch_size", "lr")}
    made |= {key: value for key, value in asked.items() if value is not None}
    return made | {"short_side": list(recipes.jitter(made["size"])) if made["resize"] == "crop" else None}


def train(given, cases, rows):
    """Train all runs, seed by seed, so that whole tables come early; True if all are complete."""
    todo = pending(given, cases)
    left = Left(given, todo)
    for number, (case, seed) in enumerate(todo):
        name, row = next((name, row) for name in rows for row, c in rows[name] if c is case)
        about = f"about {clock(left.of(todo[number:]))} left for all"
        print(f"[{number + 1}/{len(todo)}] {name} {row.label}, seed {seed} ({case.name}); {about}", flush=True)
        fresh, began = not runs.begun(case, seed, given.out), time.perf_counter()
        if not runs.train(case, seed, given.out, given.device, given.workers):
            return False
        if fresh:
            left.saw(case, time.perf_counter() - began)
    return True


def pending(given, cases):
    """(case, seed) of every run that is not complete."""
    return [(c, s) for s in range(given.seeds) for c in cases if runs.result(c, s, given.out) is None]


class Left:
    """How long the runs that are left take: by multiply-adds, at the speed measured first, then that of runs seen."""

    def __init__(self, given, todo):
        self.rate = runs.measure(typical(todo), given.device, given.workers) if todo else 0.0
        self.seconds = self.work = 0.0

    def saw(self, case, seconds):
        self.seconds += seconds
        self.work += case.work
        self.rate = self.seconds / self.work

    def of(self, todo):
        """Seconds for (case, seed) pairs."""
        return sum(self.rate * case.work for case, _ in todo)


def typical(todo):
    """The run in the middle by work, to measure the speed of."""
    order = sorted((case for case, _ in todo), key=lambda case: case.work)
    return order[len(order) // 2]


def plan(given, names, rows, cases):
    """Print what would run, and for how long; nothing is run but a few steps to measure."""
    todo = pending(given, cases)
    left = Left(given, todo)
    width = max(len(case.name) for case in cases)
    head = f"{'tables':<12} {'parameters':>12} {'multiply-adds':>13} {'seeds left':>10} {'time':>9}"
    print(f"{'run':<{width}} {head}")
    for case in cases:
        used = ",".join(name for name in names if any(c is case for _, c in rows[name]))
        mine = [(c, s) for c, s in todo if c is case]
        parameters, multiply_adds = report.costs(case)
        print(
            f"{case.name:<{width}} {used:<12} {parameters:>12} {multiply_adds:>13} {len(mine):>10} "
            f"{clock(left.of(mine)):>9}"
        )
    for name in names:
        for row, reason in rows[name]:
            if not isinstance(reason, Case):
                print(f"not here: {name}, {row.label}: {reason}")
    time_ = f", about {clock(left.of(todo))} by a few steps of {typical(todo).name}" if todo else ""
    print(f"{len(todo)} runs left of {len(cases) * given.seeds}{time_}")
    return 0
