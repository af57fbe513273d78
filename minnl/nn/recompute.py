"""Gradient checkpointing: a module runs again in backward, which takes time, instead of saving arrays for backward."""

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
    """A module that saves only its inputs for backward, and runs again in backward.

    The first run records no graph, so its intermediate results are freed as it goes on. Backward runs the module a
    second time, now with a graph, and sweeps through that graph. The gradients have the same bits as without Recompute.

    Parameters
    ----------
    module : Module
        It returns one Tensor. Every tensor in it that requires a gradient must be a parameter or an argument.

    Notes
    -----
    The second run starts from the same state as the first run: parameters, buffers, the modes of all modules, and the
    rng state of dropout. Its changes to buffers are dropped, so that running statistics move once.

    Parameters and buffers have the same names as in `module`, so a checkpoint fits with and without Recompute. The
    module itself is `.module`, and its attributes can be read from the Recompute too.

    Recompute pays where the intermediate results are large. Around each block of a network, only one input per block is
    saved. Around the whole network it saves little, because the second run then saves everything at once.

    Raises
    ------
    TypeError
        If `module` is not a Module, or its call returns anything but one Tensor.
    RuntimeError
        In backward, if the result of the second run has another shape than that of the first run, or if the module used
        a tensor that requires a gradient and is neither input nor parameter.
    """

    module: Module

    def __init__(self, module: Module):
        if not isinstance(module, Module):
            raise TypeError(f"Recompute: module is {type(module).__name__}, a Module expected")
        super().__init__()
        tables = {table: module.__dict__[table] for table in TABLES}
        self.__dict__.update(tables, module=module)  # a child module would make every name longer

    @property  # type: ignore[misc]
    def training(self) -> bool:
        return self.module.training

    def __getattr__(self, name: str) -> Any:
        return getattr(self.module, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "module":
            raise AttributeError("Recompute: the module cannot be replaced; make a new Recompute for another module")
        setattr(self.module, name, value)

    def __delattr__(self, name: str) -> None:
        delattr(self.module, name)

    def __reduce__(self):  # deep copies and pickles get a new Recompute with the tables of the copied module
        return Recompute, (self.module,)

    def __copy__(self):
        return Recompute(copy.copy(self.module))

    def _walk(self, prefix, look=True):
        """(path, module) of the wrapped module and all modules below it; the Recompute itself is not among them."""
        yield from self.module._walk(prefix, look)

    def train(self, mode: bool = True) -> Self:
        self.module.train(mode)
        return self

    def forward(self, *inputs: Any, **options: Any) -> Tensor:
        tensors = [x for x in (*inputs, *options.values()) if isinstance(x, Tensor)]
        needs = (x.requires_grad for x in (*tensors, *self.module.parameters()))
        if engine.state.recording and any(needs):
            return TwoRuns(self.module, inputs, options)(*tensors, *self.module.parameters())
        return self.module.forward(*inputs, **options)

    def __repr__(self):
        return f"Recompute of {self.module!r}"


class TwoRuns(Op):
    """The op of :class:`Recompute`: the tensors of a module's call and its parameters -> its output.

    Keeps these arrays without copies, and copies of the buffers, which the first run may change.
    """

    public_name = "recompute"
    _lock = threading.RLock()  # the second run replaces the module's buffers for a while, and several threads may sweep

    def __init__(self, module, inputs, options):
        self.module, self.module_name = module, type(module).__name__
        # None stands for a Tensor: to keep the Tensor itself would keep its graph
        arguments = [None if isinstance(x, Tensor) else (x,) for x in (*inputs, *options.values())]
        self.arguments, self.options, self.inputs = arguments, tuple(options), arguments.count(None)
        self.parameters = module.parameters()
        self.modes = [(m, m.training) for m in module.modules()]
        self.buffers = [(m, name) for m, _ in self.modes for name in m._buffers]
        self.rng_state, self.called_from = random.get_state(), debugging.modules()
        named = [*module.named_parameters(), *module.named_buffers()]
        self.saved_for_backward = (*(f"input{i}" for i in range(self.inputs)), *(f"module.{name}" for name, _ in named))

    def forward(self, *arrays):
        buffers = [backend.copied(m._buffers[name]) for m, name in self.buffers]
        self.__dict__.update(zip(self.saved_for_backward, (*arrays, *buffers), strict=True))
        with engine.no_grad():
            return self.run([Tensor(x) for x in arrays[: self.inputs]]).data

    def backward(self, gy):
        inputs, y = self.again()
        if y.shape != gy.shape:
            raise RuntimeError(
                f"recompute: {self.module_name} returned shape {gy.shape} in its first run and {y.shape} in its second "
                "run; a module in Recompute must compute the same both times"
            )
        leaves = (*inputs, *self.parameters)
        if not y.requires_grad:
            return (None,) * len(leaves)
        self.check_leaves(y, leaves)
        grads = engine.sweep(y, gy)
        return tuple(grads.get(x) for x in leaves)

    def infer(self, *arrays):
        """Shape inference of both runs. The rows of the second run go to `second`, for the cost summary."""
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
        arguments = [next(tensors) if x is None else x[0] for x in self.arguments]
        positional = len(arguments) - len(self.options)
        y = self.module.forward(*arguments[:positional], **dict(zip(self.options, arguments[positional:], strict=True)))
        if not isinstance(y, Tensor):
            raise TypeError(f"recompute: {self.module_name} returned {type(y).__name__}, one Tensor expected")
        return y

    def again(self):
        """The second run, with a graph: (its inputs, its output)."""
        saved = [getattr(self, key) for key in self.saved_for_backward]
        inputs = [Tensor(x, requires_grad=need) for x, need in zip(saved[: self.inputs], self.needs, strict=False)]
        with self._lock, self.first_state(saved[self.inputs :]), engine.recording(True):
            return inputs, self.run(inputs)

    @contextlib.contextmanager
    def first_state(self, saved):
        """Context in which the module has the state of the first run; its present state is restored afterwards."""
        tensors = [(p, p.data, p.requires_grad) for p in self.parameters]
        buffers = [(m, name, m._buffers[name]) for m, name in self.buffers]
        with modes.keeping_modes(self.module), debugging.at(self.called_from), random.replay(self.rng_state):
            try:
                for m, mode in self.modes:
                    modes.switch(m, mode)
                for p, array, need in zip(self.parameters, saved, self.needs[self.inputs :], strict=False):
                    p.data, p.requires_grad = array, need
                for (m, name), array in zip(self.buffers, saved[len(self.parameters) :], strict=True):
                    m._buffers[name] = backend.copied(array)
                yield
            finally:
                for p, array, need in tensors:
                    p.data, p.requires_grad = array, need
                for m, name, array in buffers:
                    m._buffers[name] = array

    def check_leaves(self, y, leaves):
        """Refuse a graph that does not end at `leaves`: the sweep of backward would free ops of the outer graph."""
        visited, ahead = set(leaves), [y.op or y]
        while ahead:
            source = ahead.pop()
            if source in visited:
                continue
            if isinstance(source, Tensor) or source.age < self.age:
                raise RuntimeError(
                    f"recompute: {self.module_name} uses a tensor that requires a gradient and is neither an input nor "
                    "a parameter of the module; pass the tensor as an input"
                )
            visited.add(source)
            ahead += [s for s in source.sources if s is not None]


def _forked():
    """Renew the lock in a forked child, which does not have the thread that may hold it."""
    TwoRuns._lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
