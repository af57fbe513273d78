"""The cost summary before a run: shapes, parameters, multiply-adds and memory of a network, from shapes alone.

The network runs once, forward and backward, on meta arrays, which have a shape but take no memory
(engine.meta_array). Instead of `forward`, every op runs `infer`, its shape inference, and computes nothing. The ops
inside nn.Recompute are listed once, with nothing saved for backward.
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

LARGEST = 2**20  # the largest batch, in clips, that `largest_batch` tries


@dataclass(frozen=True)
class Row:
    """One op of the network."""

    path: str  # of the module that called the op
    op: str
    shape: tuple[int, ...]  # of the output
    parameters: int
    multiply_adds: int
    kept: int  # bytes saved for backward, without arrays that an earlier op saved already
    made: int  # bytes of the output
    received: int  # bytes of the first input
    again: tuple[Row, ...] = ()  # the ops that run a second time in the backward of nn.Recompute


@dataclass(frozen=True)
class CostSummary:
    """The cost of one training step of a network.

    Attributes
    ----------
    rows : list of Row
    batch : int
    parameters : int
        The number of learned numbers.
    fixed : int
        Bytes that do not depend on the batch: parameters, their gradients, the optimiser's arrays, buffers.
    forward_peak, peak : int
        Estimated peak memory in bytes of an evaluation, and of a training step. On a GPU, `peak` is the size of CuPy's
        memory pool.
    peak_of : callable
        The `peak` for another number of clips.
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
        """The largest number of clips that fit into `memory` bytes; 0 if none fits.

        `beside` is the number of bytes that each clip takes in addition to the summary. The search makes cost summaries
        of several batches, because gradients, workspace and the gaps of a pool do not grow in proportion to the batch.
        """

        def fits(clips):
            try:
                return self.peak_of(clips) + clips * beside <= memory
            except ValueError:  # batch norm refuses a batch with fewer than two values per channel
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
        On any device. Its parameters stay as they are, and its mode is restored.
    shape : tuple
        (N, T, H, W, C) of a batch.
    optimizer_arrays : int
        The number of arrays that the optimiser keeps for each parameter: 1 for SGD with momentum, 2 for AdamW.
    """
    if len(shape) != 5 or min(shape) < 1:
        raise ValueError(f"summarize: shape must be five sizes (N, T, H, W, C) of 1 or more, got {tuple(shape)}")
    parameters = model.parameters()
    dtype = parameters[0].dtype if parameters else np.dtype(np.float32)
    x = Tensor(meta_array(tuple(shape), dtype), requires_grad=False)
    rng_state = random.get_state()  # dropout draws a seed in shape inference too
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
            random.set_state(rng_state)
        events = list(rows.events)
        del y, grads
        weights = [p.data.nbytes for p in parameters if p.requires_grad]
    fixed, trained = sum(a.nbytes for a in state), (1 + optimizer_arrays) * sum(weights)
    later = [w for w in weights for _ in range(optimizer_arrays)] + gpu * [x.data.nbytes]  # and the prefetched batch
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
    """Context in which the model's parameters and buffers are meta arrays on the host."""
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
    """The rows of a network. `engine.state.plan` holds it while ops run on meta arrays, and each op adds a row."""

    def __init__(self, events, known, learned):
        super().__init__()
        self.events, self.known, self.learned = events, known, learned
        self.made, self.gradients = events.made, events.gradients

    def apart(self):
        """A new plan for a second run. It starts with the arrays that this plan knows as saved."""
        return Plan(Events(self.events.device == "gpu"), set(self.known), set())

    def run(self, op, inputs):
        """Run the op's `infer`, add a row, and return the output."""
        y, kept = self.events.forward(op, inputs), 0
        for key in op.saved_for_backward if any(op.needs) else ():  # an op without a graph saves nothing
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
    """Peak without a graph: an op's input, its output, and scratch of the larger size (a padded or centred copy)."""
    return max((row.received + row.made + max(row.received, row.made) for row in rows), default=0)


def table(summary: CostSummary, memory: float | None = None) -> str:
    """The cost summary as text: a line per op, then sums, the peak, and the largest batch for `memory` bytes."""
    head = f"{'layer':<28} {'op':<18} {'output':<24} {'parameters':>11} {'multiply-adds':>15} {'kept for backward':>18}"
    lines = [head, "-" * len(head)]
    for row in summary.rows:
        lines.append(
            f"{row.path[-28:]:<28} {row.op:<18} {'x'.join(map(str, row.shape)):<24} {row.parameters or '':>11} "
            f"{row.multiply_adds or '':>15} {size(row.kept) if row.kept else '':>18}"
        )
    lines += [
        "-" * len(head),
        f"parameters {summary.parameters:,}; multiply-adds {summary.multiply_adds:,} per batch of {summary.batch}, "
        f"{summary.multiply_adds // summary.batch:,} per clip (forward)",
        f"kept for backward {size(summary.kept)}; estimated peak of a training step {size(summary.peak)}, "
        f"of an evaluation {size(summary.forward_peak)}",
    ]
    if memory is not None:
        lines.append(f"largest batch for {size(memory)}: {summary.largest_batch(memory)} clips in training")
    return "\n".join(lines)


def size(count):
    """A number of bytes as text, such as "3.2 MB" (powers of 1000)."""
    if count < 1000:
        return f"{count} B"
    power = min(int(math.log(count, 1000)), 4)
    return f"{count / 1000**power:.1f} {'kMGT'[power - 1]}B"
