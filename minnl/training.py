"""The training loop: steps, evaluation, log and checkpoints, such that stopping and going on changes no bit.

What is random in a run comes from three places, and a checkpoint holds all three: the generator of minnl.random
(dropout), the loader's epoch and batch (order, crops, mirroring), and the arrays themselves.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import json
import math
import os
import platform
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from minnl import backend, checkpoint, checks, kernels, out_of_memory, random, schema
from minnl import functional as F
from minnl.data import ahead
from minnl.engine import Tensor
from minnl.evaluation import evaluate
from minnl.optim import clip_grad_norm
from minnl.precise import precise_batch_norm
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
    accumulate : int
        Batches whose clips make one step, for steps larger than memory: the gradient is that of all their clips
        together. Batch norm sees each batch by itself. An epoch's last step has what is left.
    precise : int
        Batches of training clips from which running statistics are found anew before each evaluation, at most an
        epoch's: see :func:`minnl.precise.precise_batch_norm`. 0 leaves them as they came up in training.

    Attributes
    ----------
    step, epoch : int
        Steps done, epochs finished.
    best : float
        Best test top-1 so far (in [0, 1]; -1 before the first evaluation).
    """

    def __init__(
        self, model, optimizer, schedule, train, test, folder, config, epochs, clip_norm=None, label_smoothing=0.0,
        accumulate=1, precise=0,
    ):  # fmt: skip
        self.model, self.optimizer, self.schedule = model, optimizer, schedule
        self.train_loader, self.test_loader = train, test
        self.folder, self.config, self.epochs = Path(folder), config, epochs
        self.clip_norm, self.label_smoothing = clip_norm, label_smoothing
        self.accumulate = checks.count("Trainer", "accumulate", accumulate)
        self.precise = checks.count("Trainer", "precise", precise, 0)
        self.device = model.parameters()[0].device
        self.step, self.epoch, self.best = 0, 0, -1.0
        self.sums = dict(NOTHING)  # of the epoch so far
        self.parts = []  # (loss, predicted, labels) of batches that the step in hand consists of so far
        self.pending = []  # the parts of each step not yet looked at; on a GPU still in flight
        self.most_memory = 0  # bytes that were held at once, as far as was looked
        self._stop = False

    def fit(self, max_steps=None, plain=False):
        """Train until all epochs are done, `max_steps` steps are, or someone presses Ctrl-C.

        Returns True if the run is complete. However it ends, ``last.safetensors`` goes on where it stopped.

        Raises
        ------
        FloatingPointError
            If the loss is no longer finite.
        MemoryError
            Saying what was held, what would fit, and what was saved: the state before the step that failed, as if
            the run had been stopped there.
        """
        self._stop = False
        self.folder.mkdir(parents=True, exist_ok=True)
        limit = math.inf if max_steps is None else max_steps
        progress = Progress(self.epochs, steps_of(self.train_loader, self.accumulate), plain)
        self.parts.clear()
        self.train_loader.set_epoch(self.epoch)
        self._remember()
        with self._stopping_politely(), progress:
            try:
                return self._fit(progress, limit)
            except MemoryError as error:
                reason, then = str(error).rstrip("."), out_of_memory.usage(self.device)
            # Here the traceback is gone, and with it the arrays of the step that failed.
            raise MemoryError(self._rescued(reason, then))

    def _fit(self, progress, limit):
        while self.epoch < self.epochs:
            if self._stop or self.step >= limit or not self._train_epoch(progress, limit):
                self.save("last")
                self.train_loader.load_state_dict(self.train_loader.state_dict())  # another `fit` goes on there
                return False
            self._finish_epoch(progress)
        return True

    def _train_epoch(self, progress, limit):
        """Steps to the end of the epoch; False if stopped before."""
        self.model.train()
        progress.start_epoch(self.epoch + 1, self.train_loader.state_dict()["batch"] // self.accumulate)
        self._mark = time.perf_counter()
        for x, labels in ahead.batches(self.train_loader, self.device):
            self.train_step(x, labels)
            if not self.parts and self._after_step(progress, limit):
                return False
            place = self.train_loader.state_dict()
        if self.parts:
            self._update()
            self.train_loader.load_state_dict(place)  # its pass is over, and the epoch is not
            if self._after_step(progress, limit):
                return False
        self._look()
        self._take_time()
        return True

    def _after_step(self, progress, limit):
        """Notes for a rescue, log and progress; whether to stop here."""
        self._remember()
        stopping = self._stop or self.step >= limit
        if self.step % LOG_EVERY == 0 or stopping:
            self._look()
            self._take_time()
            self._log("step", loss=self.last_loss, lr=self.optimizer.lr)
        progress.advance(self.sums)
        return stopping

    def _take_time(self):
        now = time.perf_counter()
        self.sums["seconds"] += now - self._mark
        self._mark = now

    def train_step(self, x, labels):
        """Take in a batch, and update once `accumulate` of them have come.

        Clips where the model is or on the host, labels on the host. Nothing in it waits for a GPU, and all it copies
        there are the labels (and clips that are not there yet).
        """
        x = Tensor(backend.to_device(x, self.device))
        if not self.parts:
            self.optimizer.lr = self.schedule(self.step)
            self.optimizer.zero_grad()
            self.planned = self.accumulate * len(labels)
        logits = self.model(x)
        loss = F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
        (loss * (len(labels) / self.planned)).backward()
        with backend.on(self.device):
            predicted = logits.data.argmax(axis=-1)
        self.parts.append((loss.data, predicted, labels))
        if len(self.parts) == self.accumulate:
            self._update()

    def _update(self):
        """Move the parameters by the mean gradient over the clips of all parts."""
        clips = sum(len(labels) for *_, labels in self.parts)
        if clips != self.planned:  # a part was smaller than the first, or there were fewer of them
            with backend.on(self.device):
                for p in self.optimizer.params:
                    p.grad = None if p.grad is None else p.grad * (self.planned / clips)
        if self.clip_norm is not None:
            clip_grad_norm(self.optimizer.params, self.clip_norm)
        self.optimizer.step()  # last: once parameters change, nothing else may fail
        self.step += 1
        self.pending.append(self.parts)
        self.parts = []

    def _look(self):
        """Read the losses and answers of the steps since the last look, in two copies, and add them up."""
        if self.pending:
            losses, predicted, labels = zip(*itertools.chain(*self.pending), strict=True)
            xp = backend.namespace("look", *losses)
            with backend.on(self.device):
                losses, predicted = xp.stack(losses), xp.concatenate(predicted)
            losses = backend.to_host(losses).tolist()
            correct = backend.to_host(predicted) == np.concatenate(labels)
            for loss, batch in zip(losses, labels, strict=True):  # one by one, or the sum's bits depend on the looks
                self.sums["loss"] += loss * len(batch)
            last = len(self.pending[-1])
            self.last_loss = float(np.average(losses[-last:], weights=[len(batch) for batch in labels[-last:]]))
            self.sums["correct"] += int(correct.sum())
            self.sums["clips"] += len(correct)
            self.pending.clear()
            self.most_memory = max(self.most_memory, out_of_memory.usage(self.device).most or 0)
        if not math.isfinite(self.sums["loss"]):
            raise FloatingPointError(
                f"the loss became {self.last_loss} by step {self.step}; the last checkpoint is untouched. "
                "Try a lower --lr, or --debug to see which layer it started in"
            )

    def _finish_epoch(self, progress):
        if self.precise:
            self._find_precise()
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
        self._remember()
        self._log("epoch", **summary)
        better = result["top1"] > self.best
        self.best = max(self.best, result["top1"])
        if better:
            self.save("best")  # before `last`: a run that is killed in between repeats the epoch, no best is lost
        self.save("last")
        progress.end_epoch(self.epoch, summary)

    def _find_precise(self):
        """Running statistics from clips of the epoch to come, which the loader itself has yet to begin."""
        loader = copy.copy(self.train_loader)
        loader.set_epoch(self.epoch + 1)
        with contextlib.closing(ahead.batches(loader, self.device)) as batches:
            precise_batch_norm(self.model, (x for x, _ in itertools.islice(batches, self.precise)))

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

    def _remember(self):
        """Note what a step edits before its last act, the update of the parameters."""
        self._before = {
            "step": self.step,
            "updates": self.optimizer.steps,
            "lr": self.optimizer.lr,
            "loader": self.train_loader.state_dict(),
            "random": random.get_state(),
            "buffers": {name: array.copy() for name, array in self.model.named_buffers()},  # running statistics
        }

    def _rescued(self, reason, then):
        """After memory ran out: save the state before the step that failed, if there is one; and what to say."""
        self.optimizer.zero_grad()
        out_of_memory.release(self.device)
        before, last = self._before, self.folder / "last.safetensors"
        if self.step - before["step"] == self.optimizer.steps - before["updates"]:
            if self.step == before["step"]:
                self.optimizer.lr = before["lr"]
                self.train_loader.load_state_dict(before["loader"])
                random.set_state(before["random"])
                for name, array in self.model.named_buffers():
                    array[...] = before["buffers"][name]
            self._look()
            self.save("last")
            saved = f"{last} holds the state after step {self.step}: with more memory, --resume goes on from there."
        else:
            saved = f"In the middle of an update nothing can be saved; {last}, if there is one, is as it was."
        loader = self.train_loader
        shape = (loader.batch_size, *loader.dataset.shape)
        waiting = 1 if self.device.kind == "gpu" else loader.prefetch * bool(loader.workers)
        now, then = out_of_memory.usage(self.device), replace(then, most=max(then.most or 0, self.most_memory))
        found = out_of_memory.report(self.model, self.optimizer, shape, waiting, then, now)
        return f"out of memory after step {self.step}{reason and f' ({reason})'}: {found} {saved}"

    def resume(self, path):
        """Take over everything from a checkpoint; what the log says of later steps is dropped."""
        arrays, meta = checkpoint.load(path)
        schema.check(f"{path}: meta", meta, schema.RUN)
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


def steps_of(loader, accumulate):
    """Steps an epoch, if no batch is left out whole."""
    return -(-len(loader) // accumulate)


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
