"""The training loop: steps, evaluation, log and checkpoints, such that stopping and going on changes no bit.

What is random in a run comes from three places, and a checkpoint holds all three: the generator of minnl.random
(dropout), the loader's epoch and batch (order, crops, mirroring), and the arrays themselves.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import platform
import signal
import threading
import time
from pathlib import Path

import numpy as np

from minnl import backend, checkpoint, kernels, random
from minnl import functional as F
from minnl.engine import Tensor
from minnl.nn import evaluating
from minnl.optim import clip_grad_norm
from minnl.progress import Progress

LOG_EVERY = 20  # steps between two looks at the loss: on a GPU each look waits for all that was launched
NOTHING = {"loss": 0.0, "correct": 0, "clips": 0, "seconds": 0.0}


class Trainer:
    """Trains a model on a loader's batches and keeps a folder with its log and checkpoints.

    Parameters
    ----------
    model : nn.Module
        Clips (N, T, H, W, C) -> logits (N, classes), on the device where it is to train.
    optimizer : optim.Optimizer
    schedule : callable, step -> learning rate
    train, test : data.Loader
    folder : path
        Gets ``log.jsonl``, ``last.safetensors`` and ``best.safetensors``.
    config : dict
        Plain values, stored in every checkpoint: what is needed to build the same run again.
    epochs : int
    clip_norm : float or None
        Largest joint norm of the gradients.
    label_smoothing : float

    Attributes
    ----------
    step, epoch : int
        Steps done, epochs finished.
    best : float
        Best test top-1 so far (in [0, 1]; -1 before the first evaluation).
    """

    def __init__(
        self, model, optimizer, schedule, train, test, folder, config, epochs, clip_norm=None, label_smoothing=0.0
    ):  # fmt: skip
        self.model, self.optimizer, self.schedule = model, optimizer, schedule
        self.train_loader, self.test_loader = train, test
        self.folder, self.config, self.epochs = Path(folder), config, epochs
        self.clip_norm, self.label_smoothing = clip_norm, label_smoothing
        self.device = model.parameters()[0].device
        self.step, self.epoch, self.best = 0, 0, -1.0
        self.sums = dict(NOTHING)  # of the epoch so far
        self.pending = []  # (loss, correct, clips) of steps not yet looked at; on a GPU still in flight
        self._stop = False

    def fit(self, max_steps=None, plain=False):
        """Train until all epochs are done, `max_steps` steps are, or someone presses Ctrl-C.

        Returns True if the run is complete. However it ends, ``last.safetensors`` goes on where it stopped.
        """
        self._stop = False
        self.folder.mkdir(parents=True, exist_ok=True)
        limit = math.inf if max_steps is None else max_steps
        progress = Progress(self.epochs, len(self.train_loader), plain)
        with self._stopping_politely(), progress:
            while self.epoch < self.epochs:
                if self._stop or self.step >= limit or not self._train_epoch(progress, limit):
                    self.save("last")
                    return False
                self._finish_epoch(progress)
        return True

    def _train_epoch(self, progress, limit):
        """Steps to the end of the epoch; False if stopped before."""
        self.model.train()
        self.train_loader.set_epoch(self.epoch)
        progress.start_epoch(self.epoch + 1, self.train_loader.state_dict()["batch"])
        mark = time.perf_counter()
        for x, labels in self.train_loader:
            self.train_step(x, labels)
            stopping = self._stop or self.step >= limit
            if self.step % LOG_EVERY == 0 or stopping:
                self._look()
                now = time.perf_counter()
                self.sums["seconds"] += now - mark
                mark = now
                self._log("step", loss=self.last_loss, lr=self.optimizer.lr)
            progress.advance(self.sums)
            if stopping:
                return False
        self._look()
        self.sums["seconds"] += time.perf_counter() - mark
        return True

    def train_step(self, x, labels):
        """One update on a batch of NumPy arrays."""
        x = Tensor(backend.to_device(x, self.device))
        self.optimizer.lr = self.schedule(self.step)
        self.optimizer.zero_grad()
        logits = self.model(x)
        loss = F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
        loss.backward()
        if self.clip_norm is not None:
            clip_grad_norm(self.optimizer.params, self.clip_norm)
        self.optimizer.step()
        self.step += 1
        correct = (logits.data.argmax(axis=-1) == backend.to_device(labels, self.device)).sum()
        self.pending.append((loss.data, correct, len(labels)))

    def _look(self):
        """Read the losses of the steps since the last look, and add them up."""
        for loss, correct, clips in self.pending:
            self.last_loss = float(loss)
            self.sums["loss"] += self.last_loss * clips
            self.sums["correct"] += int(correct)
            self.sums["clips"] += clips
        self.pending.clear()
        if not math.isfinite(self.sums["loss"]):
            raise FloatingPointError(
                f"the loss became {self.last_loss} by step {self.step}; the last checkpoint is untouched. "
                "Try a lower --lr, or --debug to see which layer it started in"
            )

    def _finish_epoch(self, progress):
        result = evaluate(self.model, self.test_loader)
        clips = self.sums["clips"]
        summary = {
            "loss": self.sums["loss"] / clips,
            "accuracy": self.sums["correct"] / clips,
            "test_loss": result["loss"],
            "test_top1": result["top1"],
            "test_top5": result["top5"],
            "lr": self.optimizer.lr,
            "clips_per_second": clips / self.sums["seconds"],
        }
        self.epoch += 1
        self.sums = dict(NOTHING)
        self.train_loader.set_epoch(self.epoch)
        self._log("epoch", **summary)
        better = result["top1"] > self.best
        self.best = max(self.best, result["top1"])
        if better:
            self.save("best")  # before `last`: a run that is killed in between repeats the epoch, no best is lost
        self.save("last")
        progress.end_epoch(self.epoch, summary)

    def _log(self, kind, **values):
        record = {"kind": kind, "epoch": self.epoch, "step": self.step, **values}
        with open(self.folder / "log.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def save(self, name):
        """Write everything that going on needs to ``folder/name.safetensors``."""
        optimizer = self.optimizer.state_dict()
        slots = {k: v for k, v in optimizer.items() if backend.is_array(v)}
        meta = {
            "config": self.config,
            "step": self.step,
            "epoch": self.epoch,
            "best": self.best,
            "sums": self.sums,
            "optimizer": {k: v for k, v in optimizer.items() if k not in slots},
            "loader": self.train_loader.state_dict(),
            "random": random.get_state(),
            "versions": versions(),
        }
        arrays = {f"model/{k}": v for k, v in self.model.state_dict().items()}
        checkpoint.save(
            self.folder / f"{name}.safetensors", arrays | {f"optimizer/{k}": v for k, v in slots.items()}, meta
        )

    def resume(self, path):
        """Take over everything from a checkpoint; what the log says of later steps is dropped."""
        arrays, meta = checkpoint.load(path)
        self.model.load_state_dict(part(arrays, "model/"))
        self.optimizer.load_state_dict(part(arrays, "optimizer/") | meta["optimizer"])
        self.step, self.epoch, self.best, self.sums = meta["step"], meta["epoch"], meta["best"], meta["sums"]
        self.train_loader.load_state_dict(meta["loader"])
        random.set_state(meta["random"])
        log = self.folder / "log.jsonl"
        if log.exists():
            kept = [line for line in log.read_text("utf-8").splitlines(True) if _step_of(line) <= self.step]
            new = log.with_suffix(".tmp")
            new.write_text("".join(kept), "utf-8")
            os.replace(new, log)

    @contextlib.contextmanager
    def _stopping_politely(self):
        """Ctrl-C (or SIGTERM) asks for a stop after the step in hand; a second one does not wait."""

        def ask(number, frame):
            if self._stop:
                raise KeyboardInterrupt
            self._stop = True

        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {s: signal.signal(s, ask) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for s, handler in before.items():
                signal.signal(s, handler)


def evaluate(model, loader):
    """Loss and accuracy over a loader, with the model in eval mode.

    Returns {"loss", "top1", "top5", "clips"}; top-1 and top-5 in [0, 1], top-5 of all classes if those are fewer.
    """
    device = model.parameters()[0].device
    totals = np.zeros(3)
    clips = 0
    with evaluating(model):
        for x, labels in loader:
            logits = model(Tensor(backend.to_device(x, device)))
            loss = F.cross_entropy(logits, labels, reduction="sum").item()
            order = np.argsort(-logits.numpy(), axis=-1, kind="stable")[:, :5]
            hits = order == labels[:, None]
            totals += loss, hits[:, 0].sum(), hits.any(axis=1).sum()
            clips += len(labels)
    loss, top1, top5 = (totals / clips).tolist()
    return {"loss": loss, "top1": top1, "top5": top5, "clips": clips}


def part(arrays, prefix):
    """The arrays whose names start with a prefix, without it."""
    return {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}


def versions():
    """What made a checkpoint: for the reader, and for whoever wonders why two runs differ."""
    return {
        "python": platform.python_version(),
        "numpy": np.__version__,
        "machine": platform.machine(),
        "kernels": kernels.mode(),
        "threads": backend.threads(),
    }


def _step_of(line):
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return math.inf  # a line that a crash cut short
