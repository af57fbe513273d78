"""A step of the optimiser from the gradients of one batch, or of several."""

from __future__ import annotations

from minnl import backend
from minnl import functional as F
from minnl.engine import Tensor
from minnl.optim import clip_grad_norm


class AccumulatedStep:
    """Adds up the gradients of batches, and moves the parameters by the mean gradient over all their clips.

    Nothing in a step waits for a GPU. All that it copies there are the labels, and clips that are not there yet.

    Parameters
    ----------
    model : nn.Module
    optimizer : optim.Optimizer
    size : int
        Batches of a full step.
    clip_norm, label_smoothing
        As in Trainer.

    Attributes
    ----------
    batches : list of (loss, predicted, labels)
        The batches of the step so far. Loss and predicted classes are arrays on the device, labels are on the host.
    """

    def __init__(self, model, optimizer, size, clip_norm=None, label_smoothing=0.0):
        self.model, self.optimizer, self.size = model, optimizer, size
        self.clip_norm, self.label_smoothing = clip_norm, label_smoothing
        self.device = model.parameters()[0].device
        self.batches = []

    @property
    def full(self):
        return len(self.batches) == self.size

    def begin(self, lr):
        """Start a step with a learning rate, without gradients."""
        self.batches = []
        self.optimizer.lr = lr
        self.optimizer.zero_grad()

    def add(self, x, labels):
        """Forward and backward of a batch: clips on the device of the model or on the host, labels on the host."""
        x = Tensor(backend.to_device(x, self.device))
        if not self.batches:
            self.planned = self.size * len(labels)  # clips of the step, if all of its batches are as large
        logits = self.model(x)
        loss = F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
        (loss * (len(labels) / self.planned)).backward()
        with backend.on(self.device):
            predicted = logits.data.argmax(axis=-1)
        self.batches.append((loss.data, predicted, labels))

    def update(self):
        """Move the parameters; returns the batches of the step."""
        clips = sum(len(labels) for *_, labels in self.batches)
        if clips != self.planned:  # a later batch was smaller than the first, or there were fewer batches
            with backend.on(self.device):
                for p in self.optimizer.params:
                    p.grad = None if p.grad is None else p.grad * (self.planned / clips)
        if self.clip_norm is not None:
            clip_grad_norm(self.optimizer.params, self.clip_norm)
        self.optimizer.step()  # last: once parameters change, nothing else may fail
        batches, self.batches = self.batches, []
        return batches
