"""Loss and accuracy of an epoch while it is trained, read from the device only now and then."""

from __future__ import annotations

import itertools
import math
import time

import numpy as np

from minnl import backend
from minnl.training import out_of_memory
from minnl.training.run_checks import diverged


class Meter:
    """Sums over the clips of an epoch. Results of steps stay on the device until they are read.

    On a GPU a reading waits for everything that was launched, so the Trainer reads every few steps only.

    Attributes
    ----------
    sums : dict
        "loss", "correct", "clips" and "seconds" of the epoch, as far as they were read.
    last_loss : float
        Mean loss of the last step that was read.
    most_memory : int
        Most bytes that were held at a reading.
    """

    def __init__(self, device):
        self.device, self.most_memory = device, 0
        self.unread = []  # the batches of each step that was not read yet
        self.start_epoch()

    def start_epoch(self):
        self.sums = {"loss": 0.0, "correct": 0, "clips": 0, "seconds": 0.0}

    def start_clock(self):
        """Count seconds from now on; those since the last reading are left out."""
        self.mark = time.perf_counter()

    def add(self, batches):
        """Take in the (loss, predicted, labels) of each batch of a step, without waiting for the device."""
        self.unread.append(batches)

    def read(self, step):
        """Add up the steps since the last reading, in two copies from the device, and their seconds.

        Raises FloatingPointError, which names the step, if a loss is not finite.
        """
        if self.unread:
            losses, predicted, labels = zip(*itertools.chain(*self.unread), strict=True)
            xp = backend.namespace("Meter.read", *losses)
            with backend.on(self.device):
                losses, predicted = xp.stack(losses), xp.concatenate(predicted)
            losses = backend.to_host(losses).tolist()
            correct = backend.to_host(predicted) == np.concatenate(labels)
            for loss, batch in zip(
                losses, labels, strict=True
            ):  # in order: the sum has the same bits whenever it is read
                self.sums["loss"] += loss * len(batch)
            last = len(self.unread[-1])
            self.last_loss = float(np.average(losses[-last:], weights=[len(batch) for batch in labels[-last:]]))
            self.sums["correct"] += int(correct.sum())
            self.sums["clips"] += len(correct)
            self.unread.clear()
            self.most_memory = max(self.most_memory, out_of_memory.usage(self.device).most or 0)
            self.sums["seconds"] += time.perf_counter() - self.mark
            self.start_clock()
        if not math.isfinite(self.sums["loss"]):
            raise diverged(f"the loss became {self.last_loss} by step {step}")
