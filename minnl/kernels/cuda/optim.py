"""Steps of optimisers, of up to 64 parameters in one launch: docs/kernels/cuda_optim.md."""

from __future__ import annotations

import math

import numpy as np

from minnl import backend
from minnl.kernels.cuda.kernel import GpuKernel
from minnl.kernels.cuda.source import Source, ceil_div, contiguous

OPTIM = Source("optim.cu", "adamw<T>", "sgd<T>")
MOST, EACH, THREADS = 64, 2048, 256  # parameters of a launch; elements of a block, its threads
PART = np.dtype(
    [(name, np.uintp) for name in ("w", "gw", "first", "second")]
    + [(name, np.int64) for name in ("size", "block")]
    + [("decay", np.float64)]
)
PARTS = np.dtype([("count", np.int64), ("of", PART, MOST)])


class _Step(GpuKernel):
    """A step for parameters of one dtype on one GPU. Those, and what is kept of them, are contiguous."""

    @staticmethod
    def suits(optimizer, arrays):
        if not arrays or not GpuKernel.suits(optimizer, arrays):
            return False
        written = [a for i, a in enumerate(arrays) if i % (2 + len(optimizer.slots)) != 1]  # all but the gradients
        alike = {(a.dtype, backend.device_of(a)) for a in arrays}
        return len(alike) == 1 and all(a.flags.c_contiguous for a in written)


class OneLaunchAdamW(_Step):
    """The step of optim.AdamW."""

    @staticmethod
    def step(optimizer, updates):
        for ((b1, b2), eps, lr, t), some in by_options(updates, "betas", "eps", "lr", "step"):
            keep = [(w, gw, 1 - lr * options["weight_decay"], m, v) for w, gw, options, m, v in some]
            launch("adamw<T>", keep, b1, b2, lr / (1 - b1**t), math.sqrt(1 - b2**t), eps)


class OneLaunchSGD(_Step):
    """The step of optim.SGD."""

    @staticmethod
    def step(optimizer, updates):
        for numbers, some in by_options(updates, "lr", "momentum", "nesterov"):
            launch("sgd<T>", [(w, gw, options["weight_decay"], *kept) for w, gw, options, *kept in some], *numbers)


def by_options(updates, *names):
    """The updates for which options of these names are the same, and these options: for what a launch has one of."""
    found = {}
    for update in updates:
        found.setdefault(tuple(update[2][name] for name in names), []).append(update)
    return found.items()


def launch(kernel, updates, *numbers):
    """A launch for every 64 updates (w, gw, decay, what is kept of it)."""
    dtype = updates[0][0].dtype
    with backend.on(backend.device_of(updates[0][0])):
        gradients = contiguous(*(gw for _, gw, *_ in updates))  # held until all is launched
        for start in range(0, len(updates), MOST):
            some = slice(start, start + MOST)
            parts, blocks = table(updates[some], gradients[some])
            OPTIM.launch(kernel, dtype, blocks, THREADS, parts, *numbers)


def table(updates, gradients):
    """Parts<T> of optim.cu as a NumPy record, and how many blocks they take."""
    rows, blocks = [], 0
    for (w, _, decay, *kept), gw in zip(updates, gradients, strict=True):
        first, second = (*(a.data.ptr for a in kept), 0, 0)[:2]
        rows.append((w.data.ptr, gw.data.ptr, first, second, w.size, blocks, decay))
        blocks += ceil_div(w.size, EACH)
    parts = np.zeros((), PARTS)
    parts["count"] = len(rows)
    parts["of"][: len(rows)] = rows
    return parts[()], blocks
