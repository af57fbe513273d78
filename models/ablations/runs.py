"""The runs behind the tables: which there are, where they are, and training each to its end, or on from a stop."""

from __future__ import annotations

import dataclasses
import functools
import json
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import minnl
import models
from minnl import data, nn
from minnl.checks import quoted
from minnl.study import cost_summary, pictures
from minnl.training import Trainer, checkpoint, recipes
from minnl.training.loop import steps_per_epoch
from minnl.training.run_data import TEST_CLIPS
from minnl.training.run_data import datasets as opened
from models.ablations.paper import TABLES
from models.ablations.scales import NotHere

BACKWARD = 2  # a backward counts as two forwards
MEASURED_STEPS, MEASURED_SECONDS = 64, 2.0  # at most so many, and no more once it took so long
MEASURED_BATCH = 2e10  # most multiply-adds of a forward in a measured step, if two clips do not have more


@dataclasses.dataclass(frozen=True)
class Case:
    """What one or several rows run, once for each seed."""

    name: str  # of its folder
    config: dict  # all but the seed

    def folder(self, out, seed):
        return Path(out) / self.name / f"seed{seed}"

    @functools.cached_property
    def cost(self):
        """(parameters, multiply-adds of one clip forward), from shapes alone."""
        train_set, _ = datasets(self.config)
        with nn.init.skipped():
            model = build(self.config, train_set)
        plan = cost_summary.summarize(
            model, (2, *train_set.shape)
        )  # of one clip, batch norm may have a single value a channel
        return sum(p.size for p in model.parameters()), plan.multiply_adds // 2

    @functools.cached_property
    def work(self):
        """Multiply-adds of a whole run: training, and a test an epoch."""
        train_set, test_set = datasets(self.config)
        clips = (1 + BACKWARD) * len(train_set) + len(test_set)
        clips += min(self.config["precise"] * self.config["batch_size"], len(train_set))
        return self.cost[1] * clips * self.config["epochs"]


def cases(tables, scale, base):
    """The rows of tables as runs: {table: [(row, Case, or the reason why it has none)]}; equal runs are one Case.

    Parameters
    ----------
    tables : list of str
    scale : SmallScale or PublishedScale
    base : dict
        What all runs have in common; "options" of the network go before those of a row.
    """
    found, made = {}, {}
    for name in tables:
        found[name] = []
        for row in TABLES[name].rows:
            try:
                options = base["options"] | scale.options(row.network)
            except NotHere as reason:
                found[name].append((row, str(reason)))
                continue
            config = plain(base | scale.clip_of(row.network, base) | {"options": options})
            folder = folder_name(options | ({"frames": config["frames"]} if row.network.longer else {}))
            found[name].append((row, made.setdefault(folder, Case(folder, config))))
    return found


def folder_name(options):
    """A folder's name that tells the options: "non_local=embedded-blocks=res2.1.2+res3.0"."""

    def text(value):
        if isinstance(value, dict):
            return "+".join(f"{key}.{text(inner)}" for key, inner in value.items())
        return ".".join(map(str, value)) if isinstance(value, (tuple, list)) else str(value)

    return "-".join(f"{key}={text(options[key])}" for key in options) or "baseline"


def plain(config):
    """A configuration as JSON gives it back."""
    return json.loads(json.dumps(config))


def datasets(config):
    """(training set, test set) of a run."""
    keys = ("data", "clips", "frames", "stride", "size", "resize", "rgb", "short_side")
    return _opened(json.dumps({key: config[key] for key in keys}), TEST_CLIPS)


@functools.lru_cache(maxsize=4)
def _opened(given, test_clips):
    config = json.loads(given)
    if config["data"] is None and len(set(config["size"])) > 1:
        raise ValueError(
            f"ablate: clips of the built-in task are square, --size takes one number, got {config['size']}"
        )
    return opened(config | {"seed": 0}, test_clips=test_clips)  # a run's clips are drawn by its loader


def build(config, dataset):
    """The network of a run, freshly initialised."""
    clip = {} if config["model"] == "small" else {"frames": dataset.shape[0], "size": dataset.shape[1:3]}
    return models.build(
        config["model"], classes=len(dataset.classes), in_channels=dataset.shape[-1], dropout=config["dropout"],
        **clip, **config["options"],
    )  # fmt: skip


def trainer(config, folder, device="cpu", workers=1):
    """The Trainer of a run, at its start."""
    train_set, test_set = datasets(config)
    minnl.manual_seed(config["seed"])
    model = build(config, train_set).to(device)
    options = {"batch_size": config["batch_size"], "seed": config["seed"], "workers": workers}
    train_loader = data.Loader(train_set, shuffle=True, **options)
    optimizer = recipes.optimizer(model.parameters(), config)
    schedule = recipes.schedule(config, steps_per_epoch(train_loader, config["accumulate"]) * config["epochs"])
    kept = config | {"classes": list(train_set.classes), "channels": train_set.shape[-1]}  # train.py evaluates it
    if config["model"] != "small":
        kept["network"] = plain(dataclasses.asdict(model.config))
    return Trainer(
        model, optimizer, schedule, train_loader, data.Loader(test_set, **options), folder, kept, config["epochs"],
        config["clip_norm"], accumulate=config["accumulate"], precise=config["precise"],
    )  # fmt: skip


def check(case, seed, out):
    """Refuse a folder that holds a run with other settings, naming the first that differs."""
    path = case.folder(out, seed) / "config.json"
    if not path.exists():
        return
    found = _read(path)
    asked = case.config | {"seed": seed}
    for key in sorted(found.keys() | asked.keys()):
        if found.get(key) != asked.get(key):
            raise ValueError(
                f"ablate: {path.parent} holds a run with {key} {quoted(found.get(key))}, now it is {asked.get(key)!r}; "
                "choose another --out, or remove it"
            )


def result(case, seed, out):
    """What a complete run ended with: {"top1", "top5", "loss"} of the test clips, or {"diverged"}; None before."""
    path = case.folder(out, seed) / "result.json"
    if not path.exists():
        return None
    found = _read(path)
    if not ({"top1", "top5", "loss"} <= found.keys() or "diverged" in found):
        raise ValueError(f"ablate: {path} has no top1, top5 and loss; remove its folder, or choose another --out")
    return found


def begun(case, seed, out):
    """Whether there is a checkpoint to go on from."""
    return (case.folder(out, seed) / "last.safetensors").exists()


def train(case, seed, out, device="cpu", workers=1):
    """Train a run to its end, or on from where it was stopped; True if it is complete then."""
    folder, config = case.folder(out, seed), case.config | {"seed": seed}
    made = trainer(config, folder, device, workers)
    with made.run:
        if begun(case, seed, out):
            made.resume(folder / "last.safetensors")
        _write(folder / "config.json", config)
        try:
            if not made.fit():
                return False
        except FloatingPointError as error:
            _write(folder / "result.json", {"diverged": str(error)})
            return True
        end = pictures.read_log(folder)["epoch"][-1]
        _write(folder / "result.json", {"top1": end["test_top1"], "top5": end["test_top5"], "loss": end["test_loss"]})
    return True


def _read(path):
    """The dict in a JSON file."""
    try:
        found = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise ValueError(f"ablate: {path} cannot be read; remove its folder, or choose another --out")
    return found


def _write(path, values):
    checkpoint.write(path, [(json.dumps(values, indent=2) + "\n").encode()])


def measure(case, device="cpu", workers=1):
    """Seconds a multiply-add of training, from a few seconds of it in a folder that is thrown away."""
    config = case.config | {"seed": 0, "epochs": MEASURED_STEPS, "accumulate": 1, "precise": 0}
    config["batch_size"] = max(2, min(config["batch_size"], int(MEASURED_BATCH // case.cost[1])))
    config["clips"] = MEASURED_STEPS * config["batch_size"]  # of the built-in task: there no test comes between
    step, seconds = 0, 0.0
    with TemporaryDirectory() as folder:
        made = trainer(config, folder, device, workers)
        while seconds < MEASURED_SECONDS and step < MEASURED_STEPS:  # the last time counts: the first makes pools
            before, step = step, max(1, 4 * step)
            began = time.perf_counter()
            made.fit(step)
            seconds = time.perf_counter() - began
            if made.step < step:
                raise KeyboardInterrupt  # a Trainer takes Ctrl-C politely
    clips = (step - before) * min(config["batch_size"], len(made.train_loader.dataset))
    return seconds / (clips * (1 + BACKWARD) * case.cost[1])
