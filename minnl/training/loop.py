"""The training loop: steps, log, checkpoints and evaluation. A run that is stopped and resumed has the same bits.

:meth:`Trainer._train` is the loop. What it calls has a module each: a step (accumulated_step.py), the losses of an
epoch (meter.py), what is saved (state.py) and where (run_folder.py), and what is done when memory runs out (rescue.py).
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import math
import time
from pathlib import Path

from minnl import checks
from minnl.data import ahead
from minnl.training import checkpoint, out_of_memory, state, stopping
from minnl.training.accumulated_step import AccumulatedStep
from minnl.training.evaluation import evaluate
from minnl.training.meter import Meter
from minnl.training.precise import precise_batch_norm
from minnl.training.progress import Progress
from minnl.training.rescue import Rescue
from minnl.training.run_checks import check_clips, diverged
from minnl.training.run_folder import RunFolder

LOG_EVERY = 20  # steps between two readings of the loss: on a GPU each reading waits for all that was launched


class Trainer:
    """Trains a model on a loader's batches and keeps a folder with its log and checkpoints.

    Parameters
    ----------
    model : nn.Module
        Clips (N, T, H, W, C) -> logits (N, classes), on the device of the training.
    optimizer : optim.Optimizer
    schedule : callable, step -> learning rate
    train, test : data.Loader
    folder : path or RunFolder
        Gets ``log.jsonl``, ``last.safetensors`` and ``best.safetensors``. No other process may train there meanwhile:
        see :class:`minnl.training.run_folder.RunFolder`.
    config : dict
        Values that JSON gives back unaltered, stored in every checkpoint: all that building the same run again needs.
    epochs : int
    clip_norm : float or None
        Largest joint norm of the gradients, above 0.
    label_smoothing : float
    accumulate : int
        Batches of one step, for steps larger than memory: the gradient is the mean over all their clips. Batch norm
        normalises each batch by itself. An epoch's last step has the remaining batches.
    precise : int
        Batches of training clips for new running statistics before each test, at most an epoch's: see
        :func:`minnl.training.precise.precise_batch_norm`. With 0 running statistics are those of the training.
    save_every : float
        Minutes between two checkpoints within an epoch; there is also one before and one after each test.

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
        (:func:`minnl.training.run_checks.check_clips`).
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
        self.step, self.epoch, self.best, self.stopped_by = 0, 0, -1.0, None
        self.accumulated_step = AccumulatedStep(model, optimizer, self.accumulate, self.clip_norm, self.label_smoothing)
        self.meter = Meter(self.device)
        self.rescue = Rescue(model, optimizer, train)
        self._begun = self._resumed = False

    def fit(self, max_steps=None, plain=False):
        """Train until all epochs are done, `max_steps` steps are, or a signal asks for a stop (:mod:`stopping`).

        Returns True if the run is complete. However `fit` ends, ``last.safetensors`` is the state at its end; a killed
        process loses the work since the last checkpoint.

        Raises
        ------
        FloatingPointError
            If a loss, a weight or another number to be saved is no longer finite. Such numbers are not saved.
        ValueError
            If another process trains in the folder, or if the folder holds a run that was not resumed.
        MemoryError
            With the memory held, the batch that would fit, and what was saved: the state before the failed step, as if
            the run had been stopped there.
        """
        limit = math.inf if max_steps is None else checks.count("fit", "max_steps", max_steps)
        self.stopped_by = None
        with self.run:
            self._share_attributes()
            self.train_loader.set_epoch(self.epoch)
            if not self._begun:
                self._begin()
            progress = Progress(self.epochs, steps_per_epoch(self.train_loader, self.accumulate), plain)
            self.rescue.note(self.step)
            with stopping.on_signals(self._stop), progress:
                try:
                    return self._train(progress, limit)
                except MemoryError as error:
                    reason, then = str(error).rstrip("."), out_of_memory.usage(self.device)
                # Here the traceback is gone, and with it the arrays of the step that failed.
                raise MemoryError(self._rescued(reason, then))

    def _train(self, progress, limit):
        """The loop: epochs of steps, a test after each epoch. True if the run is complete, False if it was stopped."""
        while self.epoch < self.epochs and not self._stops(limit):
            self.model.train()
            progress.start_epoch(self.epoch + 1, self.train_loader.state_dict()["batch"] // self.accumulate)
            self.meter.start_clock()

            for batches in self._steps():
                self.step += 1
                self.meter.add(batches)
                self.rescue.note(self.step)
                stops = self._stops(limit)
                logs = stops or self.step % LOG_EVERY == 0
                saves = not stops and time.monotonic() - self._saved_at >= 60 * self.save_every
                if logs or saves:
                    self.meter.read(self.step)
                if logs:
                    self._log("step", loss=self.meter.last_loss, lr=self.optimizer.lr)
                if saves:
                    self.save("last")
                    self.meter.start_clock()
                progress.advance(self.meter.sums)
                if stops:
                    break
            else:
                self.meter.read(self.step)
                self.save("last")  # before the test, which may take long
                self._finish_epoch(progress)

        complete = self.epoch >= self.epochs
        if not complete:
            self.save("last")
            self.train_loader.load_state_dict(self.train_loader.state_dict())  # another `fit` continues at this batch
        return complete

    def _steps(self):
        """Train to the end of the epoch; yields the results of the batches of each step after its update."""
        step, place = self.accumulated_step, self.train_loader.state_dict()
        for x, labels in ahead.batches(self.train_loader, self.device):
            if not step.batches:
                step.begin(checks.number("Trainer", f"schedule({self.step})", self.schedule(self.step), 0))
            step.add(x, labels)
            place = self.train_loader.state_dict()
            if step.full:
                yield step.update()
        self.train_loader.load_state_dict(place)  # the pass is over, but the epoch is not: its test follows
        if step.batches:
            yield step.update()

    def _finish_epoch(self, progress):
        """Test, log, and save; the next epoch begins."""
        if self.precise:
            self._find_precise()
        result = evaluate(self.model, self.test_loader)
        if not math.isfinite(result["loss"]):
            raise diverged(f"the test loss became {result['loss']} after step {self.step}")
        sums = self.meter.sums
        summary = {
            "loss": sums["loss"] / sums["clips"],
            "accuracy": sums["correct"] / sums["clips"],
            "test_loss": result["loss"],
            "test_top1": result["top1"],
            "test_top5": result["top5"],
            "lr": self.optimizer.lr,
            "clips_per_second": sums["clips"] / max(sums["seconds"], 1e-9),
        }
        self.epoch += 1
        self.meter.start_epoch()
        self.train_loader.set_epoch(self.epoch)
        self.rescue.note(self.step)
        self._log("epoch", **summary)
        better = result["top1"] > self.best
        self.best = max(self.best, result["top1"])
        if better:
            self.save("best")  # before `last`: a run that is killed in between repeats the test, so no best is lost
        self.save("last")
        progress.end_epoch(self.epoch, summary)

    def _find_precise(self):
        """Compute running statistics from clips of the next epoch; the loader itself does not move."""
        loader = copy.copy(self.train_loader)
        loader.set_epoch(self.epoch + 1)
        with contextlib.closing(ahead.batches(loader, self.device)) as batches:
            precise_batch_norm(self.model, (x for x, _ in itertools.islice(batches, self.precise)))

    def _begin(self):
        """Save before the first step: an unsavable state ends the run now, and a killed run can be resumed."""
        last = self.folder / "last.safetensors"
        if not self._resumed:
            if self.run.begun:
                raise ValueError(f"Trainer: {self.folder} holds a run already; resume({str(last)!r}) goes on with it")
            self.run.cut_log(0, 0)  # left by a run that was killed before its first checkpoint
        if self.epoch < self.epochs and not last.exists():
            self.save("last")
        self._begun, self._saved_at = True, time.monotonic()

    def _share_attributes(self):
        """Hand attributes on that may have been set since the Trainer was made, such as another optimiser."""
        step, rescue = self.accumulated_step, self.rescue
        step.batches, step.size = [], self.accumulate
        step.clip_norm, step.label_smoothing = self.clip_norm, self.label_smoothing
        step.model, step.optimizer = rescue.model, rescue.optimizer = self.model, self.optimizer
        rescue.loader = self.train_loader

    def _stop(self, number):
        self.stopped_by = number

    def _stops(self, limit):
        return self.stopped_by is not None or self.step >= limit

    def _log(self, kind, **values):
        self.run.log(kind=kind, epoch=self.epoch, step=self.step, **values)

    def save(self, name):
        """Write the state of the run to ``folder/name.safetensors``.

        Raises FloatingPointError if a number in it is not finite; the file then stays as it was.
        """
        progress = {key: getattr(self, key) for key in ("config", "step", "epoch", "best")} | {"sums": self.meter.sums}
        path = self.folder / f"{name}.safetensors"
        state.save(path, self.model, self.optimizer, self.train_loader, progress)
        self._saved_at = time.monotonic()

    def resume(self, path):
        """Continue from a checkpoint; lines of the log about later steps are dropped.

        If the folder has no ``best.safetensors``, because `last` was copied alone, the best accuracy starts anew.

        Raises
        ------
        ValueError
            If another process trains in the folder, or it holds another run than that of the checkpoint; if the
            checkpoint cannot be trusted, does not fit, or holds NaN.
        """
        path = Path(path)
        with self.run:
            if self.run.begun and path.absolute().parent.resolve() != self.folder.resolve():
                raise ValueError(f"resume: {self.folder} holds a run already, and {path} is not in it")
            meta = state.load(path, self.model, self.optimizer, self.train_loader)
            self.step, self.epoch, self.best = meta["step"], meta["epoch"], meta["best"]
            self.meter.sums = meta["sums"]
            if not (self.folder / "best.safetensors").exists():
                self.best = -1.0
            self.run.cut_log(self.epoch, self.step)
            self._resumed = True

    def _rescued(self, reason, then):
        """After memory ran out: save the state before the failed step, if possible; returns the message."""
        last = self.folder / "last.safetensors"
        if self.rescue.undo(self.step):
            self.meter.read(self.step)
            self.save("last")
            saved = f"{last} holds the state after step {self.step}: with more memory, --resume goes on from there."
        else:
            saved = f"In the middle of an update nothing can be saved; {last}, if there is one, is as it was."
        found = self.rescue.report(then, self.meter.most_memory)
        return f"out of memory after step {self.step}{reason and f' ({reason})'}: {found} {saved}"


def steps_per_epoch(loader, accumulate):
    """Steps of an epoch, if no batch is left out whole."""
    return -(-len(loader) // accumulate)
