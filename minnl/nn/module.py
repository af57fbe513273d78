"""Module: parameters, buffers and other modules, in the order in which they were assigned."""

from __future__ import annotations

import contextlib

import numpy as np

from minnl import backend, contracts, debugging, engine
from minnl.engine import Tensor


class Parameter(Tensor):
    """A tensor that a module learns: assigned to a Module's attribute it is listed by `parameters`.

    `decay` says whether weight decay applies to it by default (not to batch norm's: see optim.groups).
    """

    __slots__ = ("decay",)

    def __init__(self, data, requires_grad=True, decay=True):
        super().__init__(data, requires_grad=requires_grad)
        self.decay = decay


class Module:
    """A piece of a network. Subclasses assign parameters, buffers and modules in ``__init__`` and write `forward`.

    Everything is kept in the order of assignment, so that optimisers, checkpoints and seeds see the same order in
    every run. Assigning again replaces; buffers (arrays without gradient, such as running statistics) are declared
    with :meth:`buffer`.
    """

    training = True

    def __init__(self):
        self._parameters: dict[str, Parameter] = {}
        self._buffers: dict[str, np.ndarray] = {}
        self._modules: dict[str, Module] = {}

    def forward(self, *inputs):
        raise NotImplementedError(f"{type(self).__name__} has no forward")

    def __call__(self, *inputs, **options):
        if debugging.tracking():
            with debugging.inside(self):
                return self.forward(*inputs, **options)
        return self.forward(*inputs, **options)

    def __setattr__(self, name, value):
        kinds = {Parameter: "_parameters", Module: "_modules"}
        home = next((h for kind, h in kinds.items() if isinstance(value, kind)), None)
        if backend.is_array(value) and name in self.__dict__.get("_buffers", {}):
            home = "_buffers"
        for table in ("_parameters", "_buffers", "_modules"):
            members = self.__dict__.get(table, {})
            if name in members and table != home:
                del members[name]
        if home is None:
            object.__setattr__(self, name, value)
            return
        if home not in self.__dict__:
            raise TypeError(f"{type(self).__name__}: call super().__init__() before assigning {name!r}")
        self.__dict__.pop(name, None)
        self.__dict__[home][name] = value

    def __getattr__(self, name):
        for table in ("_parameters", "_buffers", "_modules"):
            members = self.__dict__.get(table, {})
            if name in members:
                return members[name]
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")

    def buffer(self, name, array):
        """Declare an array that is saved and moved with the module but not learned."""
        self.__dict__.pop(name, None)
        self._buffers[name] = array

    def modules(self, prefix=""):
        """(path, module) of this module ("") and all below, parents first."""
        yield prefix, self
        for name, child in self._modules.items():
            yield from child.modules(f"{prefix}.{name}" if prefix else name)

    def named_parameters(self):
        """(path, parameter) pairs; one that is shared between modules is listed once, where it was first assigned."""
        seen = set()
        for path, module in self.modules():
            for name, parameter in module._parameters.items():
                if id(parameter) not in seen:
                    seen.add(id(parameter))
                    yield f"{path}.{name}" if path else name, parameter

    def named_buffers(self):
        """(path, array) pairs."""
        for path, module in self.modules():
            for name, array in module._buffers.items():
                yield f"{path}.{name}" if path else name, array

    def parameters(self):
        """All parameters, in order, each once."""
        return [p for _, p in self.named_parameters()]

    def zero_grad(self):
        for p in self.parameters():
            p.grad = None

    def train(self, mode=True):
        """Switch to training behaviour (dropout, statistics of the batch), here and below."""
        for _, module in self.modules():
            module.training = bool(mode)
        return self

    def eval(self):
        """Switch to evaluation behaviour, here and below."""
        return self.train(False)

    def to(self, device=None, dtype=None):
        """Move parameters and buffers to a device and/or to another float type, in place; gradients are dropped."""
        target = None if device is None else backend.device(device)
        dtype = None if dtype is None else contracts.float_dtype("Module.to", dtype)

        def moved(array):
            array = array if target is None else backend.to_device(array, target)
            return array if dtype is None or array.dtype.kind != "f" else array.astype(dtype, copy=False)

        for p in self.parameters():
            p.grad, p.data = None, moved(p.data)
        for _, module in self.modules():
            for name, array in module._buffers.items():
                module._buffers[name] = moved(array)
        return self

    def state_dict(self):
        """Path -> array (not copied) of all parameters and buffers, in order."""
        return {path: p.data for path, p in self.named_parameters()} | dict(self.named_buffers())

    def load_state_dict(self, state):
        """Copy arrays into parameters and buffers; everything is checked before anything is changed.

        Raises
        ------
        ValueError
            Listing every name that is missing, unexpected, or of another shape or dtype.
        """
        mine = self.state_dict()
        wrong = [f"missing: {k} {mine[k].shape}" for k in mine if k not in state]
        wrong += [f"unexpected: {k} {np.shape(state[k])}" for k in state if k not in mine]
        for k in mine.keys() & state.keys():
            theirs = state[k]
            if mine[k].shape != theirs.shape or mine[k].dtype != theirs.dtype:
                wrong.append(f"different: {k} is {mine[k].shape} {mine[k].dtype}, given {theirs.shape} {theirs.dtype}")
        if wrong:
            raise ValueError(
                f"load_state_dict: the state does not fit {type(self).__name__}, nothing was changed:\n  "
                + "\n  ".join(wrong)
            )
        for k, array in mine.items():
            array[...] = backend.to_device(state[k], backend.device_of(array))

    def __repr__(self):
        lines = [f"  {name}: {child!r}".replace("\n", "\n  ") for name, child in self._modules.items()]
        own = f"{type(self).__name__}({self.describe()})"
        return own if not lines else "\n".join([own, *lines])

    def describe(self):
        """The arguments worth showing in repr."""
        return ""


class Sequential(Module):
    """Modules called one after another; named "0", "1", … or by keyword: ``Sequential(conv=…, norm=…)``.

    What it is given beside x goes to the last one, beside what that one is given.
    """

    def __init__(self, *modules, **named):
        super().__init__()
        for name, module in [*((str(i), m) for i, m in enumerate(modules)), *named.items()]:
            if not isinstance(module, Module):
                raise TypeError(f"Sequential: {name} is {type(module).__name__}, a Module expected")
            setattr(self, name, module)

    def forward(self, x, *others):
        modules = list(self)
        for module in modules[:-1]:
            x = module(x)
        return modules[-1](x, *others) if modules else x

    def __iter__(self):
        return iter(self._modules.values())

    def __len__(self):
        return len(self._modules)

    def __getitem__(self, i):
        return list(self._modules.values())[i]


@contextlib.contextmanager
def keeping_modes(module):
    """Context after which a module and each part of it are in the mode, training or not, that they were in before."""
    before = [(m, m.training) for _, m in module.modules()]
    try:
        yield module
    finally:
        for m, mode in before:
            m.training = mode


@contextlib.contextmanager
def evaluating(module):
    """Context in which a module is in eval mode and no graph is recorded; each part's own mode comes back after."""
    with keeping_modes(module), engine.no_grad():
        yield module.eval()
