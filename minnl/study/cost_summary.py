"""The cost summary before a run: shapes, parameters, multiply-adds and memory of a network, from shapes alone.

The network runs once, forward and backward, on meta arrays, which have a shape but take no memory
(engine.meta_array). Every op answers with `infer`, its shape inference, and computes nothing. The ops that nn.Recompute
runs are listed once, without anything saved for backward.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from minnl import debugging, engine, random
from minnl.engine import Tensor, meta_array
from minnl.nn.modes import keeping_modes
from minnl.nn.module import Module
from minnl.study.memory_plan import Events, most_at_once, pool_size

LARGEST = 2**20  # clips of a batch


@dataclass(frozen=True)
class Row:
    """One op of the network."""

    path: str  # the module that called it
    op: str
    shape: tuple[int, ...]  # of its output
    parameters: int
    multiply_adds: int
    kept: int  # bytes that stay for backward, and nothing before kept already
    made: int  # bytes of its output
    received: int  # bytes of its inputs
    again: tuple[Row, ...] = ()  # the rows of what runs a second time in its backward (nn.Recompute)


@dataclass(frozen=True)
class CostSummary:
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
        Estimated bytes at the worst moment of an evaluation, and of a training step; the second on a GPU as CuPy's pool
        takes them from the driver.
    peak_of : callable
        The peak of another number of clips.
    """

    rows: list[Row]
    batch: int
    parameters: int
    fixed: int
    forward_peak: int
    peak: int
    peak_of: Callable[[int], int] = field(compare=False, repr=False)

    @property
    def multiply_adds(self) -> int:
        return sum(row.multiply_adds for row in self.rows)

    @property
    def kept(self) -> int:
        return sum(row.kept for row in self.rows)

    def largest_batch(self, memory: float, beside: float = 0) -> int:
        """How many clips fit into `memory` bytes, each with `beside` bytes beside the summary's (0 if none fits).

        By cost summaries of several batches: gradients, workspace and a pool's gaps do not grow with the batch.
        """

        def fits(clips):
            try:
                return self.peak_of(clips) + clips * beside <= memory
            except ValueError:  # so few that batch norm refuses them
                return False

        most, over = 0, self.batch
        while over < LARGEST and fits(over):
            most, over = over, 2 * over
        while over - most > 1:
            middle = (most + over) // 2
            most, over = (middle, over) if fits(middle) else (most, middle)
        return most


def summarize(model: Module, shape: Sequence[int], optimizer_arrays: int = 2) -> CostSummary:
    """The cost summary of one training step.

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
        raise ValueError(f"summarize: shape must be five sizes (N, T, H, W, C) of 1 or more, got {tuple(shape)}")
    parameters = model.parameters()
    dtype = parameters[0].dtype if parameters else np.dtype(np.float32)
    x = Tensor(meta_array(tuple(shape), dtype), requires_grad=False)
    chance = random.get_state()  # dropout draws a seed all the same
    gpu = bool(parameters) and parameters[0].device.kind == "gpu"
    with _on_meta_arrays(model):
        state = list(model.state_dict().values())
        known, learned = {id(root(a)) for a in [*state, x.data]}, {id(p.data) for p in parameters if p.requires_grad}
        rows = engine.state.plan = Plan(Events(gpu), known, learned)
        try:
            with keeping_modes(model), debugging.module_paths():
                y = model.train()(x)
            ops = len(rows)
            grads = engine.sweep(y, meta_array(y.shape, y.dtype)) if y.requires_grad else None
        finally:
            engine.state.plan = None
            random.set_state(chance)
        events = list(rows.events)
        del y, grads
        weights = [p.data.nbytes for p in parameters if p.requires_grad]
    fixed, trained = sum(a.nbytes for a in state), (1 + optimizer_arrays) * sum(weights)
    later = [w for w in weights for _ in range(optimizer_arrays)] + gpu * [x.data.nbytes]  # the next batch, on its way
    return CostSummary(
        rows=rows[:ops],
        batch=shape[0],
        parameters=sum(p.size for p in parameters if p.requires_grad),
        fixed=fixed + trained,
        forward_peak=fixed + x.data.nbytes + _forward_peak(rows[:ops]),
        peak=(pool_size if gpu else most_at_once)([a.nbytes for a in [*state, x.data]], events, later),
        peak_of=lambda clips: summarize(model, (clips, *shape[1:]), optimizer_arrays).peak,
    )


@contextlib.contextmanager
def _on_meta_arrays(model):
    """Context in which parameters and buffers, wherever they are, stand as shapes on the host."""
    data = [(p, p.data) for p in model.parameters()]
    buffers = [(m, name, array) for m in model.modules() for name, array in m._buffers.items()]
    try:
        for p, array in data:
            p.data = meta_array(array.shape, array.dtype)
        for m, name, array in buffers:
            m._buffers[name] = meta_array(array.shape, array.dtype)
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


class Plan(list):
    """The rows of a network, as its ops run on meta arrays and tell the engine's state of it."""

    def __init__(self, events, known, learned):
        super().__init__()
        self.events, self.known, self.learned = events, known, learned
        self.made, self.gradients = events.made, events.gradients

    def apart(self):
        """Rows of a second run, which leave this plan as it is. `known` are the arrays that are kept already."""
        return Plan(Events(self.events.device == "gpu"), set(self.known), set())

    def run(self, op, inputs):
        """What `infer` gives, and a row of it."""
        y, kept = self.events.forward(op, inputs), 0
        saved = (
            op.saved_for_backward if any(op.needs) else ()
        )  # without a graph an op is gone as soon as it has computed
        for key in saved:
            array = getattr(op, key, None)
            if array is not None and id(root(array)) not in self.known:
                self.known.add(id(root(array)))
                kept += array.nbytes
        weights = {id(x): x.size for x in inputs if id(x) in self.learned}
        self.learned.difference_update(weights)
        self.append(
            Row(
                path=debugging.path().partition(".")[2],
                op=op.name,
                shape=y.shape,
                parameters=sum(weights.values()),
                multiply_adds=op.multiply_adds,
                kept=kept,
                made=y.nbytes,
                received=inputs[0].nbytes,
                again=tuple(getattr(op, "second", ())),
            )
        )
        return y


def _forward_peak(rows):
    """Worst moment without a graph: an op's input and output, and a copy of one of them at work (padded, centred)."""
    return max((row.received + row.made + max(row.received, row.made) for row in rows), default=0)


def table(summary: CostSummary, memory: float | None = None) -> str:
    """The cost summary as lines of text: a row an op, then sums, the peak, and the largest batch for `memory` bytes."""
    head = f"{'layer':<28} {'op':<18} {'output':<24} {'parameters':>11} {'multiply-adds':>15} {'kept for backward':>18}"
    lines = [head, "-" * len(head)]
    for row in summary.rows:
        lines.append(
            f"{row.path[-28:]:<28} {row.op:<18} {'x'.join(map(str, row.shape)):<24} {row.parameters or '':>11} "
            f"{row.multiply_adds or '':>15} {size(row.kept) if row.kept else '':>18}"
        )
    lines += [
        "-" * len(head),
        f"parameters {summary.parameters:,}; multiply-adds {summary.multiply_adds:,} a batch of {summary.batch}, "
        f"{summary.multiply_adds // summary.batch:,} a clip (forward)",
        f"kept for backward {size(summary.kept)}; estimated peak of a training step {size(summary.peak)}, "
        f"of an evaluation {size(summary.forward_peak)}",
    ]
    if memory is not None:
        lines.append(f"largest batch for {size(memory)}: {summary.largest_batch(memory)} clips in training")
    return "\n".join(lines)


def size(count):
    """Bytes for people: "3.2 MB" (powers of 1000)."""
    if count < 1000:
        return f"{count} B"
    power = min(int(math.log(count, 1000)), 4)
    return f"{count / 1000**power:.1f} {'kMGT'[power - 1]}B"
