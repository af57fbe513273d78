"""Steps of optimisers, of up to 64 parameters in one launch: docs/kernels/cuda_optim.md."""

from __future__ import annotations

import math

import numpy as np

from minnl import backend
from minnl.kernels.runtime.cuda import Source, ceil_div, contiguous
from minnl.kernels.runtime.cuda_kernel import CudaKernel
from minnl.optim import SGD, AdamW

OPTIM = Source("optim/optim.cu", "adamw<T>", "sgd<T>")
MOST, EACH, THREADS = 64, 2048, 256  # parameters of a launch; elements of a block, its threads
PART = np.dtype(
    [(name, np.uintp) for name in ("w", "gw", "first", "second")]
    + [(name, np.int64) for name in ("size", "block")]
    + [("decay", np.float64)]
)
PARTS = np.dtype([("count", np.int64), ("of", PART, MOST)])


class _Step(CudaKernel):
    """A step for parameters of one dtype on one GPU. Those, and what is kept of them, are contiguous."""

    @staticmethod
    def suits(optimizer, updates):
        arrays = [array for w, gw, kept, _ in updates for array in (w, gw, *kept)]
        alike = {(a.dtype, backend.device_of(a)) for a in arrays}
        edited = [array for w, _, kept, _ in updates for array in (w, *kept)]
        return len(alike) == 1 and CudaKernel.suits(optimizer, arrays) and all(a.flags.c_contiguous for a in edited)


class CudaAdamW(_Step, AdamW):
    """The step of optim.AdamW."""

    def apply(self, updates):
        for ((b1, b2), eps, lr, t), some in by_options(updates, "betas", "eps", "lr", "step"):
            keep = [(w, gw, 1 - lr * options["weight_decay"], m, v) for w, gw, (m, v), options in some]
            launch("adamw<T>", keep, b1, b2, lr / (1 - b1**t), math.sqrt(1 - b2**t), eps)


class CudaSGD(_Step, SGD):
    """The step of optim.SGD."""

    def apply(self, updates):
        for numbers, some in by_options(updates, "lr", "momentum", "nesterov"):
            launch("sgd<T>", [(w, gw, options["weight_decay"], *kept) for w, gw, kept, options in some], *numbers)


def by_options(updates, *names):
    """The updates for which options of these names are the same, and these options: for what a launch has one of."""
    found = {}
    for update in updates:
        found.setdefault(tuple(update.options[name] for name in names), []).append(update)
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
