"""Time for memory: a module runs a second time in backward instead of keeping what its backward needs."""

from __future__ import annotations

import contextlib
import copy
import os
import threading
from typing import TYPE_CHECKING, Any

from minnl import backend, debugging, engine, random
from minnl.engine import Op, Tensor
from minnl.nn import modes
from minnl.nn.module import TABLES, Module

if TYPE_CHECKING:
    from typing_extensions import Self


class Recompute(Module):
    """A module that keeps only its inputs for backward, and runs again when backward comes.

    The first run records no graph: what lies between input and output is freed on the way. Backward runs the module
    once more, now with a graph, and sweeps through that. The gradients have the same bits as without.

    Parameters
    ----------
    module : Module
        Returns one Tensor. Whatever wants a gradient in it is a parameter, or a Tensor that it is called with.

    Notes
    -----
    The second run finds what the first one found: parameters, buffers, the mode of each part, and the random numbers of
    dropout. What it does to buffers is dropped, so that running statistics move once.

    Names of parameters and buffers are those of `module`: a checkpoint fits with and without Recompute. The module
    itself is `.module`, and its parts are found here too.

    It pays where much lies between input and output: around each block of a network one input a block is kept.
    Around the whole network it saves little, for the second run then keeps everything at once.

    Raises
    ------
    TypeError
        For a module that is none, or, when called, returns anything but one Tensor.
    RuntimeError
        In backward, if the second run's result has another shape than the first one's, or it used a tensor that wants a
        gradient and is neither input nor parameter.
    """

    module: Module

    def __init__(self, module: Module):
        if not isinstance(module, Module):
            raise TypeError(f"Recompute: module is {type(module).__name__}, a Module expected")
        super().__init__()
        tables = {table: module.__dict__[table] for table in TABLES}
        self.__dict__.update(tables, module=module)  # not as a part, which would lengthen every name

    @property  # type: ignore[misc]
    def training(self) -> bool:
        return self.module.training

    def __getattr__(self, name: str) -> Any:
        return getattr(self.module, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "module":
            raise AttributeError("Recompute: the module stays; make a new Recompute for another one")
        setattr(self.module, name, value)

    def __delattr__(self, name: str) -> None:
        delattr(self.module, name)

    def __reduce__(self):  # for deep copies and pickles: the tables stay the module's own
        return Recompute, (self.module,)

    def __copy__(self):
        return Recompute(copy.copy(self.module))

    def _walk(self, prefix, look=True):
        """(path, module) of the module and all below, as if it stood here alone."""
        yield from self.module._walk(prefix, look)

    def train(self, mode: bool = True) -> Self:
        self.module.train(mode)
        return self

    def forward(self, *inputs: Any, **options: Any) -> Tensor:
        tensors = [x for x in (*inputs, *options.values()) if isinstance(x, Tensor)]
        wanting = (x.requires_grad for x in (*tensors, *self.module.parameters()))
        if engine.state.recording and any(wanting):
            return TwoRuns(self.module, inputs, options)(*tensors, *self.module.parameters())
        return self.module.forward(*inputs, **options)

    def __repr__(self):
        return f"Recompute of {self.module!r}"


class TwoRuns(Op):
    """What :class:`Recompute` does, as an op: tensors that a module is called with, and its parameters -> its output.

    Keeps these (no copies), and copies of buffers, which the first run may move.
    """

    public_name = "recompute"
    _one_at_a_time = threading.RLock()  # a second run lends the module other buffers, and several threads may sweep

    def __init__(self, module, inputs, options):
        self.module, self.who = module, type(module).__name__
        given = [None if isinstance(x, Tensor) else (x,) for x in (*inputs, *options.values())]  # not their graphs too
        self.given, self.options, self.inputs = given, tuple(options), given.count(None)
        self.parameters = module.parameters()
        self.modes = [(part, part.training) for part in module.modules()]
        self.buffers = [(part, name) for part, _ in self.modes for name in part._buffers]
        self.chance, self.called_from = random.get_state(), debugging.modules()
        named = [*module.named_parameters(), *module.named_buffers()]
        self.saved_for_backward = (*(f"input{i}" for i in range(self.inputs)), *(f"module.{name}" for name, _ in named))

    def forward(self, *arrays):
        buffers = [backend.copied(part._buffers[name]) for part, name in self.buffers]
        self.__dict__.update(zip(self.saved_for_backward, (*arrays, *buffers), strict=True))
        with engine.no_grad():
            return self.run([Tensor(x) for x in arrays[: self.inputs]]).data

    def backward(self, gy):
        inputs, y = self.again()
        if y.shape != gy.shape:
            raise RuntimeError(
                f"recompute: {self.who} gave shape {gy.shape} at first and {y.shape} when it ran again; "
                "it has to compute the same both times"
            )
        leaves = (*inputs, *self.parameters)
        if not y.requires_grad:
            return (None,) * len(leaves)
        self.refuse_others(y, leaves)
        grads = engine.sweep(y, gy)
        return tuple(grads.get(x) for x in leaves)

    def infer(self, *arrays):
        """The first run, planned; and in `second` the ops of the second one, for the cost summary."""
        y = self.forward(*arrays)
        before, engine.state.plan = engine.state.plan, engine.state.plan.apart()
        try:
            self.again()
            self.second = engine.state.plan
        finally:
            engine.state.plan = before
        return y

    def run(self, tensors):
        tensors = iter(tensors)
        given = [next(tensors) if x is None else x[0] for x in self.given]
        positional = len(given) - len(self.options)
        y = self.module.forward(*given[:positional], **dict(zip(self.options, given[positional:], strict=True)))
        if not isinstance(y, Tensor):
            raise TypeError(f"recompute: {self.who} returned {type(y).__name__}, one Tensor expected")
        return y

    def again(self):
        """The second run, with a graph: (its inputs, its output)."""
        kept = [getattr(self, key) for key in self.saved_for_backward]
        inputs = [Tensor(x, requires_grad=need) for x, need in zip(kept[: self.inputs], self.needs, strict=False)]
        with self._one_at_a_time, self.as_before(kept[self.inputs :]), engine.recording(True):
            return inputs, self.run(inputs)

    @contextlib.contextmanager
    def as_before(self, kept):
        """Context in which the module is as the first run found it; after it, as this found it."""
        tensors = [(p, p.data, p.requires_grad) for p in self.parameters]
        buffers = [(part, name, part._buffers[name]) for part, name in self.buffers]
        with modes.keeping_modes(self.module), debugging.at(self.called_from), random.replay(self.chance):
            try:
                for part, mode in self.modes:
                    modes.switch(part, mode)
                for p, array, need in zip(self.parameters, kept, self.needs[self.inputs :], strict=False):
                    p.data, p.requires_grad = array, need
                for (part, name), array in zip(self.buffers, kept[len(self.parameters) :], strict=True):
                    part._buffers[name] = backend.copied(array)
                yield
            finally:
                for p, array, need in tensors:
                    p.data, p.requires_grad = array, need
                for part, name, array in buffers:
                    part._buffers[name] = array

    def refuse_others(self, y, leaves):
        """The sweep must end at the leaves: beyond lies the graph of someone else, whose sweep is yet to come."""
        seen, ahead = set(leaves), [y.op or y]
        while ahead:
            source = ahead.pop()
            if source in seen:
                continue
            if isinstance(source, Tensor) or source.age < self.age:
                raise RuntimeError(
                    f"recompute: {self.who} uses a tensor that wants a gradient and is neither input nor parameter of "
                    "it; pass it as an input"
                )
            seen.add(source)
            ahead += [s for s in source.sources if s is not None]


def _forked():
    """A forked child: the thread that was in a second run is not there to end it."""
    TwoRuns._one_at_a_time = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
