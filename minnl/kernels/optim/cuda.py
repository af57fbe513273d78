"""Steps of optimisers, of up to 64 parameters in one launch: docs/kernels/optim.md."""

from __future__ import annotations

import math

import numpy as np

from minnl import backend
from minnl.kernels.runtime.cuda import THREADS, CudaKernel, Source, ceil_div, contiguous
from minnl.optim import SGD, AdamW

OPTIM = Source("optim/optim.cu", "adamw<T>", "sgd<T>")
MAX_PARAMETERS = 64  # A launch updates at most 64 parameters, whose table fits the 4 KB of a launch's arguments.
ELEMENTS = 2048  # A block updates 2,048 elements, 8 a thread (not timed).
PARAMETER = np.dtype(
    [(name, np.uintp) for name in ("w", "gw", "first", "second")]
    + [(name, np.int64) for name in ("size", "block")]
    + [("decay", np.float64)]
)
PARAMETERS = np.dtype([("count", np.int64), ("of", PARAMETER, MAX_PARAMETERS)])


class _Step(CudaKernel):
    """A step for parameters of one dtype on one GPU. The parameters and their state are contiguous."""

    @staticmethod
    def suits(optimizer, updates):
        edited = [array for w, _, state, _ in updates for array in (w, *state)]
        arrays = edited + [gw for _, gw, _, _ in updates]
        homes = {(a.dtype, backend.device_of(a)) for a in arrays}
        return len(homes) == 1 and CudaKernel.suits(optimizer, arrays) and all(a.flags.c_contiguous for a in edited)


class CudaAdamW(_Step, AdamW):
    def apply(self, updates):
        for ((b1, b2), eps, lr, t), group in by_options(updates, "betas", "eps", "lr", "step"):
            rows = [(w, gw, 1 - lr * options["weight_decay"], m, v) for w, gw, (m, v), options in group]
            launch("adamw<T>", rows, b1, b2, lr / (1 - b1**t), math.sqrt(1 - b2**t), eps)


class CudaSGD(_Step, SGD):
    def apply(self, updates):
        for numbers, group in by_options(updates, "lr", "momentum", "nesterov"):
            launch("sgd<T>", [(w, gw, options["weight_decay"], *state) for w, gw, state, options in group], *numbers)


def by_options(updates, *names):
    """(options, updates) for each combination of the named options: a launch takes one value of each."""
    groups = {}
    for update in updates:
        groups.setdefault(tuple(update.options[name] for name in names), []).append(update)
    return groups.items()


def launch(kernel, rows, *numbers):
    """A launch for every 64 rows. A row is (w, gw, decay, *state) of a parameter."""
    dtype = rows[0][0].dtype
    with backend.on(backend.device_of(rows[0][0])):
        gradients = contiguous(*(gw for _, gw, *_ in rows))  # the copies have to live until the launch
        for start in range(0, len(rows), MAX_PARAMETERS):
            chunk = slice(start, start + MAX_PARAMETERS)
            parameters, blocks = table(rows[chunk], gradients[chunk])
            OPTIM.launch(kernel, dtype, blocks, THREADS, parameters, *numbers)


def table(rows, gradients):
    """The struct Parameters of optim.cu as a NumPy record, and the number of blocks."""
    entries, blocks = [], 0
    for (w, _, decay, *state), gw in zip(rows, gradients, strict=True):
        first, second = (*(a.data.ptr for a in state), 0, 0)[:2]
        entries.append((w.data.ptr, gw.data.ptr, first, second, w.size, blocks, decay))
        blocks += ceil_div(w.size, ELEMENTS)
    parameters = np.zeros((), PARAMETERS)
    parameters["count"] = len(entries)
    parameters["of"][: len(entries)] = entries
    return parameters[()], blocks
