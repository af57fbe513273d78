"""The training loop: steps, evaluation, log and checkpoints, such that stopping and going on changes no bit.

What is random in a run comes from three places, and a checkpoint holds all three: the generator of minnl.random
(dropout), the loader's epoch and batch (order, crops, mirroring), and the arrays themselves.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import math
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from minnl import backend, checkpoint, checks, out_of_memory, random, schema, stopping
from minnl import functional as F
from minnl.data import ahead
from minnl.engine import Tensor
from minnl.evaluation import evaluate
from minnl.optim import clip_grad_norm
from minnl.precise import precise_batch_norm
from minnl.progress import Progress
from minnl.run_checks import check_clips, not_finite
from minnl.run_folder import RunFolder

LOG_EVERY = 20  # steps between two looks at the loss: on a GPU each look waits for all that was launched
ADVICE = "the last checkpoint is untouched. Try a lower --lr, or --debug to see which layer it started in"
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
    folder : path or RunFolder
        Gets ``log.jsonl``, ``last.safetensors`` and ``best.safetensors``. No other process may train there meanwhile:
        see :class:`minnl.run_folder.RunFolder`.
    config : dict
        Values that JSON gives back, stored in every checkpoint: what is needed to build the same run again.
    epochs : int
    clip_norm : float or None
        Largest joint norm of the gradients, above 0.
    label_smoothing : float
    accumulate : int
        Batches whose clips make one step, for steps larger than memory: the gradient is that of all their clips
        together. Batch norm sees each batch by itself. An epoch's last step has what is left.
    precise : int
        Batches of training clips from which running statistics are found anew before each evaluation, at most an
        epoch's: see :func:`minnl.precise.precise_batch_norm`. 0 leaves them as they came up in training.
    save_every : float
        Minutes between two checkpoints, however long an epoch; besides, there is one before and one after each test.

    Attributes
    ----------
    step, epoch : int
        Steps done, epochs finished.
    best : float
        Best test top-1 so far (in [0, 1]; -1 before the first evaluation).
    stopped_by : int or None
        The signal that stopped `fit`.

    Raises
    ------
    TypeError, ValueError
        For arguments out of range, a config that JSON would not give back, and clips that would end the run later
        (:func:`minnl.run_checks.check_clips`).
    """

    def __init__(
        self, model, optimizer, schedule, train, test, folder, config, epochs, clip_norm=None, label_smoothing=0.0,
        accumulate=1, precise=0, save_every=10.0,
    ):  # fmt: skip
        self.model, self.optimizer, self.schedule = model, optimizer, schedule
        self.train_loader, self.test_loader = train, test
        self.run = folder if isinstance(folder, RunFolder) else RunFolder(folder)
        self.folder, self.config = self.run.path, config
        checkpoint.check_plain("Trainer", "config", config, finite=True)
        self.epochs = checks.count("Trainer", "epochs", epochs)
        self.clip_norm = None if clip_norm is None else checks.positive("Trainer", "clip_norm", clip_norm)
        self.label_smoothing = checks.number("Trainer", "label_smoothing", label_smoothing, 0, 1)
        self.accumulate = checks.count("Trainer", "accumulate", accumulate)
        self.precise = checks.count("Trainer", "precise", precise, 0)
        self.save_every = checks.number("Trainer", "save_every", save_every, 0)
        check_clips(model, train, test)
        self.device = model.parameters()[0].device
        self.step, self.epoch, self.best = 0, 0, -1.0
        self.sums = dict(NOTHING)  # of the epoch so far
        self.parts = []  # (loss, predicted, labels) of batches that the step in hand consists of so far
        self.pending = []  # the parts of each step not yet looked at; on a GPU still in flight
        self.most_memory = 0  # bytes that were held at once, as far as was looked
        self.stopped_by = None
        self._begun = self._resumed = False

    def fit(self, max_steps=None, plain=False):
        """Train until all epochs are done, `max_steps` steps are, or a signal asks for a stop (:mod:`minnl.stopping`).

        Returns True if the run is complete. However it ends, ``last.safetensors`` goes on where it stopped; a process
        that is killed loses what it did since the last checkpoint.

        Raises
        ------
        FloatingPointError
            If a loss, a weight or another number to be saved is no longer finite. Nothing of the kind is saved.
        ValueError
            If another process trains in the folder, or if it holds a run already that this one does not go on with.
        MemoryError
            Saying what was held, what would fit, and what was saved: the state before the step that failed, as if
            the run had been stopped there.
        """
        limit = math.inf if max_steps is None else checks.count("fit", "max_steps", max_steps)
        self.stopped_by = None
        with self.run:
            self.parts.clear()
            self.train_loader.set_epoch(self.epoch)
            if not self._begun:
                self._begin()
            progress = Progress(self.epochs, steps_of(self.train_loader, self.accumulate), plain)
            self._remember()
            with stopping.politely(self._stop), progress:
                try:
                    return self._fit(progress, limit)
                except MemoryError as error:
                    reason, then = str(error).rstrip("."), out_of_memory.usage(self.device)
                # Here the traceback is gone, and with it the arrays of the step that failed.
                raise MemoryError(self._rescued(reason, then))

    def _begin(self):
        """Save before the first step: what cannot be saved ends the run now, and a kill at any time leaves a run."""
        last = self.folder / "last.safetensors"
        if not self._resumed:
            if self.run.begun:
                raise ValueError(f"Trainer: {self.folder} holds a run already; resume({str(last)!r}) goes on with it")
            self.run.cut_log(0, 0)  # of a run that was killed before it had a checkpoint
        if self.epoch < self.epochs and not last.exists():
            self.save("last")
        self._begun, self._saved_at = True, time.monotonic()

    def _stop(self, number):
        self.stopped_by = number

    def _fit(self, progress, limit):
        while self.epoch < self.epochs:
            if self.stopped_by or self.step >= limit or not self._train_epoch(progress, limit):
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
        place = self.train_loader.state_dict()
        for x, labels in ahead.batches(self.train_loader, self.device):
            self.train_step(x, labels)
            if not self.parts and self._after_step(progress, limit):
                return False
            place = self.train_loader.state_dict()
        self.train_loader.load_state_dict(place)  # its pass is over, and the epoch is not: its evaluation is to come
        if self.parts:
            self._update()
            if self._after_step(progress, limit):
                return False
        self._look()
        self._take_time()
        self.save("last")
        return True

    def _after_step(self, progress, limit):
        """Notes for a rescue, log, a checkpoint if it is time for one, and progress; whether to stop here."""
        self._remember()
        stops = self.stopped_by is not None or self.step >= limit
        logs = stops or self.step % LOG_EVERY == 0
        saves = not stops and time.monotonic() - self._saved_at >= 60 * self.save_every
        if logs or saves:
            self._look()
            self._take_time()
        if logs:
            self._log("step", loss=self.last_loss, lr=self.optimizer.lr)
        if saves:
            self.save("last")
            self._mark = time.perf_counter()
        progress.advance(self.sums)
        return stops

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
            self.optimizer.lr = checks.number("Trainer", f"schedule({self.step})", self.schedule(self.step), 0)
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
            raise FloatingPointError(f"the loss became {self.last_loss} by step {self.step}; {ADVICE}")

    def _finish_epoch(self, progress):
        if self.precise:
            self._find_precise()
        result = evaluate(self.model, self.test_loader)
        if not math.isfinite(result["loss"]):
            raise FloatingPointError(f"the test loss became {result['loss']} after step {self.step}; {ADVICE}")
        clips = self.sums["clips"]
        summary = {
            "loss": self.sums["loss"] / clips,
            "accuracy": self.sums["correct"] / clips,
            "test_loss": result["loss"],
            "test_top1": result["top1"],
            "test_top5": result["top5"],
            "lr": self.optimizer.lr,
            "clips_per_second": clips / max(self.sums["seconds"], 1e-9),
        }
        self.epoch += 1
        self.sums = dict(NOTHING)
        self.train_loader.set_epoch(self.epoch)
        self._remember()
        self._log("epoch", **summary)
        better = result["top1"] > self.best
        self.best = max(self.best, result["top1"])
        if better:
            self.save("best")  # before `last`: a run that is killed in between tests again, no best is lost
        self.save("last")
        progress.end_epoch(self.epoch, summary)

    def _find_precise(self):
        """Running statistics from clips of the epoch to come, which the loader itself has yet to begin."""
        loader = copy.copy(self.train_loader)
        loader.set_epoch(self.epoch + 1)
        with contextlib.closing(ahead.batches(loader, self.device)) as batches:
            precise_batch_norm(self.model, (x for x, _ in itertools.islice(batches, self.precise)))

    def _log(self, kind, **values):
        self.run.log(kind=kind, epoch=self.epoch, step=self.step, **values)

    def save(self, name):
        """Write everything that going on needs to ``folder/name.safetensors``.

        Raises FloatingPointError if a number among it is not finite, and leaves the file as it was.
        """
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
            "versions": checkpoint.versions(),
        }
        arrays = {f"model/{k}": v for k, v in self.model.state_dict().items()}
        arrays |= {f"optimizer/{k}": v for k, v in slots.items()}
        arrays = {k: backend.to_host(v) for k, v in arrays.items()}
        bad = not_finite(arrays)
        if bad:
            raise FloatingPointError(f"{bad} holds NaN or infinities after step {self.step}; {ADVICE}")
        checkpoint.save(self.folder / f"{name}.safetensors", arrays, meta)
        self._saved_at = time.monotonic()

    def _remember(self):
        """Note what a step edits before its last act, the update of the parameters."""
        self._before = {
            "step": self.step,
            "updates": self.optimizer.steps,
            "lr": self.optimizer.lr,
            "loader": self.train_loader.state_dict(),
            "random": random.get_state(),
            "buffers": {name: backend.copied(a) for name, a in self.model.named_buffers()},  # running statistics
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
                    backend.assign(array, before["buffers"][name])
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
        """Take over everything from a checkpoint; what the log says of later steps is dropped.

        Where the folder has no ``best.safetensors``, as where `last` was copied alone, the best begins anew.

        Raises
        ------
        ValueError
            If another process trains in the folder, or it holds a run that the checkpoint is not of; for a checkpoint
            that cannot be trusted, does not fit, or holds NaN.
        """
        path = Path(path)
        with self.run:
            if self.run.begun and path.absolute().parent.resolve() != self.folder.resolve():
                raise ValueError(f"resume: {self.folder} holds a run already, and {path} is not in it")
            arrays, meta = checkpoint.load(path)
            schema.check(f"{path}: meta", meta, schema.RUN)
            bad = not_finite(arrays)
            if bad:
                raise ValueError(f"resume: {path}: {bad} holds NaN or infinities; go on from another checkpoint")
            self.model.load_state_dict(part(arrays, "model/"))
            self.optimizer.load_state_dict(part(arrays, "optimizer/") | meta["optimizer"])
            self.step, self.epoch, self.best, self.sums = meta["step"], meta["epoch"], meta["best"], meta["sums"]
            if not (self.folder / "best.safetensors").exists():
                self.best = -1.0
            self.train_loader.load_state_dict(meta["loader"])
            random.set_state(meta["random"])
            self.run.cut_log(self.epoch, self.step)
            self._resumed = True


def steps_of(loader, accumulate):
    """Steps an epoch, if no batch is left out whole."""
    return -(-len(loader) // accumulate)


def part(arrays, prefix):
    """The arrays whose names start with a prefix, without it."""
    return {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}
