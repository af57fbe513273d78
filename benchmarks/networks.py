"""A training step of minnl's networks beside the same network written in torch.nn, from the same start."""

from __future__ import annotations

import numpy as np

import minnl
import models
from benchmarks.optional import memory_formats
from minnl import functional as F
from minnl import optim

RATE = {"lr": 1e-3, "weight_decay": 1e-4}


class StepCase:
    """One step: forward, loss, backward, AdamW."""

    def __init__(self, model, clips, classes=3):
        self.model, self.clips, self.classes = model, clips, classes
        self.name = f"training step of {model}, clips {clips}"

    def contenders(self):
        """Functions to time, by name, after three steps each that have to give the same losses."""
        rng = np.random.default_rng(0)
        x = rng.standard_normal(self.clips, dtype=np.float32)
        labels = rng.integers(0, self.classes, self.clips[0])
        calls = {"minnl": ours(self.build(), x, labels)}
        for layout, memory_format in memory_formats().items():
            from benchmarks import twin  # only where there is PyTorch

            calls[layout] = twin.step(self.build(), x, labels, memory_format, RATE)
        losses = {name: [call() for _ in range(3)] for name, call in calls.items()}
        for name, values in losses.items():
            if not np.allclose(values, losses["minnl"], rtol=1e-3):
                raise RuntimeError(f"{self.name}: first losses differ: minnl {losses['minnl']}, {name} {values}")
        return calls

    def build(self):
        minnl.manual_seed(0)
        return models.build(self.model, classes=self.classes, in_channels=self.clips[-1])


def ours(model, x, labels):
    optimizer = optim.AdamW(model.parameters(), **RATE)

    def step():
        optimizer.zero_grad()
        loss = F.cross_entropy(model(minnl.Tensor(x)), labels)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


CASES = [StepCase(name, (32, 16, 32, 32, 1)) for name in ("small", "nl_small")]
