"""The bill before a run: shapes, parameters, multiply-adds and memory of a network, from shapes alone.

The network runs once on arrays that have a shape but take no memory (engine.hollow); every op answers with `infer`,
says what it would keep, and computes nothing. What nn.Recompute runs is listed once, without anything kept.
"""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass

import numpy as np

from minnl import debugging, engine, random
from minnl.engine import Tensor, hollow
from minnl.nn.modes import keeping_modes


@dataclass(frozen=True)
class Row:
    """One op of the network."""

    path: str  # the module that called it
    op: str
    shape: tuple  # of its output
    parameters: int
    multiply_adds: int
    kept: int  # bytes that stay for backward, and nothing before kept already
    made: int  # bytes of its output
    received: int  # bytes of its inputs
    again: tuple = ()  # the rows of what runs a second time in its backward (nn.Recompute)


@dataclass(frozen=True)
class Bill:
    """What one training step of a network costs.

    Attributes
    ----------
    rows : list of Row
    batch : int
    parameters : int
        Numbers learned.
    fixed : int
        Bytes whatever the batch: parameters, their gradients, the optimiser's arrays, buffers.
    forward_peak, peak : int
        Estimated bytes at the worst moment of an evaluation, and of a training step.
    """

    rows: list
    batch: int
    parameters: int
    fixed: int
    forward_peak: int
    peak: int

    @property
    def multiply_adds(self):
        return sum(row.multiply_adds for row in self.rows)

    @property
    def kept(self):
        return sum(row.kept for row in self.rows)

    def largest_batch(self, memory):
        """How many clips fit into `memory` bytes (0 if not one does): beyond what is fixed, cost is linear in clips."""
        return max(0, int((memory - self.fixed) // max((self.peak - self.fixed) / self.batch, 1)))


def plan(model, shape, optimizer_arrays=2):
    """The bill of one training step.

    Parameters
    ----------
    model : nn.Module
        On any device; its parameters are not touched, its mode is put back.
    shape : tuple
        (N, T, H, W, C) of a batch.
    optimizer_arrays : int
        Arrays the optimiser keeps for each parameter: 1 for SGD with momentum, 2 for AdamW.
    """
    if len(shape) != 5 or min(shape) < 1:
        raise ValueError(f"plan: shape must be five sizes (N, T, H, W, C) of 1 or more, got {tuple(shape)}")
    parameters = model.parameters()
    dtype = parameters[0].dtype if parameters else np.dtype(np.float32)
    x = Tensor(hollow(tuple(shape), dtype), requires_grad=False)
    chance = random.get_state()  # dropout draws a seed all the same
    engine.state.plan, log = [], []
    with _hollowed(model):
        try:
            with keeping_modes(model), debugging.module_paths():
                model.train()(x)
            log = engine.state.plan
        finally:
            engine.state.plan = None
            random.set_state(chance)
        state = list(model.state_dict().values())
        trained = (1 + optimizer_arrays) * sum(p.data.nbytes for p in parameters if p.requires_grad)
        fixed = sum(a.nbytes for a in state) + trained
        rows = _rows(log, {id(root(a)) for a in [*state, x.data]}, {id(p.data) for p in parameters if p.requires_grad})
    return Bill(
        rows=rows,
        batch=shape[0],
        parameters=sum(p.size for p in parameters if p.requires_grad),
        fixed=fixed,
        forward_peak=fixed - trained + x.data.nbytes + _forward_peak(rows),
        peak=fixed + _peak(rows, x.data.nbytes),
    )


@contextlib.contextmanager
def _hollowed(model):
    """Context in which parameters and buffers, wherever they are, stand as shapes on the host."""
    data = [(p, p.data) for p in model.parameters()]
    buffers = [(m, name, array) for m in model.modules() for name, array in m._buffers.items()]
    try:
        for p, array in data:
            p.data = hollow(array.shape, array.dtype)
        for m, name, array in buffers:
            m._buffers[name] = hollow(array.shape, array.dtype)
        yield
    finally:
        for p, array in data:
            p.data = array
        for m, name, array in buffers:
            m._buffers[name] = array


def root(array):
    """The array that owns the memory of a view."""
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array


def _rows(log, known, learned):
    """A row an op; `known` holds the arrays that are kept already, `learned` the parameters that no row counts yet."""
    rows = []
    for op, inputs, y, path in log:
        kept = 0
        for key in op.keeps if op.sources else ():  # without a graph an op is gone as soon as it has computed
            array = getattr(op, key, None)
            if array is not None and id(root(array)) not in known:
                known.add(id(root(array)))
                kept += array.nbytes
        weights = {id(x): x.size for x in inputs if id(x) in learned}
        learned.difference_update(weights)
        rows.append(
            Row(
                path=path.partition(".")[2],
                op=op.name,
                shape=y.shape,
                parameters=sum(weights.values()),
                multiply_adds=op.multiply_adds,
                kept=kept,
                made=y.nbytes,
                received=inputs[0].nbytes,
                again=tuple(_rows(getattr(op, "second", ()), set(known), set())),
            )
        )
    return rows


def _forward_peak(rows):
    """Worst moment without a graph: an op's input and output, and a copy of one of them at work (padded, centred)."""
    return max((row.received + row.made + max(row.received, row.made) for row in rows), default=0)


def _peak(rows, alive):
    """Worst moment of forward and backward, with `alive` bytes there before.

    Backward of an op holds all that earlier ops keep, the gradients of its output and input, and two arrays at work.
    What runs again has, beside all that earlier ops keep, its own forward and backward to go through.
    """
    peak = alive
    for row in rows:
        peak = max(peak, alive + row.received + row.made + max(row.received, row.made))
        alive += row.kept
    for row in reversed(rows):
        at_work = alive + row.made + row.received + 2 * max(row.received, row.made)
        peak = max(peak, _peak(row.again, alive + row.made) if row.again else at_work)
        alive -= row.kept
    return peak


def table(bill, memory=None):
    """The bill as lines of text: a row an op, then sums, the peak, and the largest batch for `memory` bytes."""
    head = f"{'layer':<28} {'op':<18} {'output':<24} {'parameters':>11} {'multiply-adds':>15} {'kept for backward':>18}"
    lines = [head, "-" * len(head)]
    for row in bill.rows:
        lines.append(
            f"{row.path[-28:]:<28} {row.op:<18} {'x'.join(map(str, row.shape)):<24} {row.parameters or '':>11} "
            f"{row.multiply_adds or '':>15} {size(row.kept) if row.kept else '':>18}"
        )
    lines += [
        "-" * len(head),
        f"parameters {bill.parameters:,}; multiply-adds {bill.multiply_adds:,} a batch of {bill.batch}, "
        f"{bill.multiply_adds // bill.batch:,} a clip (forward)",
        f"kept for backward {size(bill.kept)}; estimated peak of a training step {size(bill.peak)}, "
        f"of an evaluation {size(bill.forward_peak)}",
    ]
    if memory is not None:
        lines.append(f"largest batch for {size(memory)}: {bill.largest_batch(memory)} clips in training")
    return "\n".join(lines)


def size(count):
    """Bytes for people: "3.2 MB" (powers of 1000)."""
    if count < 1000:
        return f"{count} B"
    power = min(int(math.log(count, 1000)), 4)
    return f"{count / 1000**power:.1f} {'kMGT'[power - 1]}B"
