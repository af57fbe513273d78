"""Module: parameters, buffers and child modules, in the order of assignment."""

from __future__ import annotations

import collections
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ParamSpec, Protocol, TypeVar

import numpy as np

from minnl import backend, contracts, debugging
from minnl.backend import Array, Device
from minnl.checks import choice, clean
from minnl.engine import Tensor
from minnl.nn import modes

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, DTypeLike
    from typing_extensions import Self

    P = ParamSpec("P")
    Y = TypeVar("Y", covariant=True)

    class Callee(Protocol[P, Y]):
        """The type of a module in `__call__`: a call has the arguments and the result of `forward`."""

        def forward(self, *inputs: P.args, **options: P.kwargs) -> Y: ...


LISTED = 50  # the largest number of names that an error of load_state_dict lists
TABLES = ("_parameters", "_buffers", "_modules")
CONTAINERS = (list, tuple, dict, set, frozenset, collections.deque)
MAY_HOLD = (Tensor, *CONTAINERS)
ELSEWHERE = {  # an attribute of PyTorch's modules -> what to write here
    "cuda": '.to("gpu")',
    "cpu": '.to("cpu")',
    "half": ".to(dtype=...), float32 or float64",
    "float": ".to(dtype=np.float32)",
    "double": ".to(dtype=np.float64)",
    "type": ".to(dtype=...)",
    "apply": "a loop over .modules()",
    "requires_grad_": "p.requires_grad = ... for every p of .parameters()",
    "register_buffer": ".buffer(name, array)",
    "register_parameter": "module.name = nn.Parameter(array)",
    "register_module": "module.name = ..., or setattr",
    "add_module": "module.name = ..., or setattr",
    "buffers": ".named_buffers()",
    "named_children": ".children()",
    "get_parameter": "dict(module.named_parameters())[name]",
    "get_submodule": "dict(module.named_modules())[name]",
}


class Parameter(Tensor):
    """A tensor that a module learns. A Parameter that is assigned to an attribute of a Module is in its `parameters()`.

    `decay` says whether an optimiser's weight decay applies to the parameter, unless its group sets a weight decay. It
    is False for the parameters of batch norm.
    """

    __slots__ = ("decay",)

    def __init__(self, data: ArrayLike, requires_grad: bool = True, decay: bool = True):
        if isinstance(data, Tensor):
            raise TypeError("Parameter: data is a Tensor; write nn.Parameter(tensor.data), which shares its array")
        super().__init__(data, requires_grad=requires_grad)
        self.decay = decay


def _learners(value):
    """The modules, parameters and other leaves that require a gradient: `value` itself, or in nested containers."""
    ahead, visited = [value], set()
    while ahead:
        item = ahead.pop()
        if isinstance(item, (Module, Parameter)) or (isinstance(item, Tensor) and item.is_leaf and item.requires_grad):
            yield item
        elif isinstance(item, CONTAINERS) and id(item) not in visited:
            visited.add(id(item))
            ahead += item.values() if isinstance(item, dict) else item


class Module:
    """The base class of layers and networks.

    A subclass assigns parameters and child modules in ``__init__`` and writes `forward`. The module keeps the order of
    assignment, so that optimisers, checkpoints and seeds have the same order in every run. A second assignment to a
    name replaces the parameter or module, and None removes it. :meth:`buffer` declares buffers: arrays without
    gradient, such as running statistics.

    A module refuses objects that it would neither train nor save: plain containers of modules or parameters (use
    nn.ModuleList or nn.ModuleDict), and tensors that require a gradient but are not Parameters. The assignment raises
    the error. If a list is filled later, the next call that lists modules or parameters raises it.
    """

    def __new__(cls, *_: Any, **__: Any) -> Self:
        self = super().__new__(cls)
        self.__dict__.update({table: {} for table in TABLES})
        return self

    def __init__(self) -> None:  # without this, a subclass without __init__ would accept any arguments
        pass

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        for name, value in vars(cls).items():
            if next(_learners(value), None) is not None:
                raise TypeError(f"{cls.__name__}: {name} is an attribute of the class; assign it in __init__ to self")

    def forward(self, *inputs: Any, **options: Any) -> Any:
        raise NotImplementedError(f"{type(self).__name__} has no forward")

    def __call__(self: Callee[P, Y], *inputs: P.args, **options: P.kwargs) -> Y:
        if debugging.tracking():
            with debugging.inside(self):
                y = self.forward(*inputs, **options)
        else:
            y = self.forward(*inputs, **options)
        if y is None:
            raise TypeError(f"{type(self).__name__}: forward returned None; does it end with return?")
        return y

    def __setattr__(self, name: str, value: Any) -> None:
        new = "_parameters" if isinstance(value, Parameter) else "_modules" if isinstance(value, Module) else None
        old = next((table for table in TABLES if name in self.__dict__[table]), None)
        if new is None and old == "_buffers" and backend.is_array(value):
            new = old
        if new is None and old and value is not None:
            self._refuse_unlike(name, value, old)
        if new is None:
            self._refuse_strays(name, value)
        else:
            self._check_name(name, value)
        if old not in (None, new):
            del self.__dict__[old][name]
        if new is None:
            object.__setattr__(self, name, value)
        else:
            self.__dict__.pop(name, None)
            self.__dict__[new][name] = value

    def _refuse_unlike(self, name, value, table):
        where, what = f"{type(self).__name__}: {name}", type(value).__name__
        if table == "_parameters":
            raise TypeError(
                f"{where} is a Parameter, {what} cannot replace it; write {name}.data[...] = array to change its "
                f"numbers, or assign nn.Parameter(array), or None"
            )
        expected = "an array" if table == "_buffers" else "a Module"
        raise TypeError(f"{where} is {expected}, {what} cannot replace it; assign {expected}, or None")

    def _check_name(self, name, value):
        """Refuse a name under which the value could not be found again."""
        where = f"{type(self).__name__}: {name!r}"
        if not name or "." in name:
            raise ValueError(f"{where} cannot be a name; names are not empty and have no dots")
        if hasattr(type(self), name):
            raise ValueError(f"{where} cannot be a name, the class has an attribute of that name; choose another")
        if isinstance(value, Module) and any(m is self for m in value.modules()):
            raise ValueError(f"{where} would hold the module that it is part of")

    def _refuse_strays(self, name, value):
        """Refuse modules, parameters and leaves that the module would neither train nor save."""
        for found in _learners(value):
            known = isinstance(found, (Module, Parameter)) and any(
                found is m or any(found is p for p in m._parameters.values()) for _, m in self._walk("", look=False)
            )
            if known:  # the module has it under another name too
                continue
            where, what = f"{type(self).__name__}: {name}", type(found).__name__
            if found is value:
                raise TypeError(
                    f"{where} is a Tensor that requires a gradient but no Parameter: nothing would train or save it; "
                    "write nn.Parameter(array), or tensor.detach() for its numbers only"
                )
            better = "ModuleDict" if isinstance(value, dict) else "ModuleList"
            raise TypeError(
                f"{where} is a {type(value).__name__} that holds {what}, which nothing would train or save; "
                f"write nn.{better}(...) for modules, and give parameters names of their own"
            )

    def __getattr__(self, name: str) -> Any:
        for table in TABLES:
            members = self.__dict__.get(table, {})
            if name in members:
                return members[name]
        own = getattr(type(self), name, None)
        if isinstance(own, property) and own.fget:
            return own.fget(self)  # the property raised AttributeError; calling it again raises it with its message
        instead = f"; write {ELSEWHERE[name]}" if name in ELSEWHERE else ""
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}{instead}")

    def __delattr__(self, name: str) -> None:
        home = next((table for table in TABLES if name in self.__dict__[table]), None)
        if home is None:
            object.__delattr__(self, name)
        else:
            del self.__dict__[home][name]

    def __getstate__(self):
        """The state of a copy: new tables with the same contents, and the mode of this thread."""
        state = {key: dict(value) if key in TABLES else value for key, value in self.__dict__.items()}
        state.pop("_evaluated", None)
        return state | {"_mode": modes.current(self)}

    def buffer(self, name: str, array: Array) -> None:
        """Declare a buffer: an array that is saved and moved with the module but not learned."""
        if not backend.is_array(array):
            raise TypeError(f"{type(self).__name__}: the buffer {name!r} is {type(array).__name__}, an array expected")
        if name in self._parameters or name in self._modules:
            raise ValueError(f"{type(self).__name__}: {name!r} is a parameter or a module already")
        self._check_name(name, array)
        self.__dict__.pop(name, None)
        self._buffers[name] = array

    def _walk(self, prefix, look=True):
        """(path, module) of this module and all modules below, once for every place of a shared module."""
        if look:
            for name, value in self.__dict__.items():
                if isinstance(value, MAY_HOLD) and name not in TABLES and type(value) is not Parameter:
                    self._refuse_strays(name, value)  # a single Parameter in __dict__ was hidden there on purpose
        yield prefix, self
        for name, child in self._modules.items():
            yield from child._walk(f"{prefix}.{name}" if prefix else name, look)

    def named_modules(self, prefix: str = "") -> Iterator[tuple[str, Module]]:
        """(path, module) of this module ("") and all below, parents first; a shared module only at its first path."""
        ids = set()
        for path, module in self._walk(prefix):
            if id(module) not in ids:
                ids.add(id(module))
                yield path, module

    def modules(self) -> list[Module]:
        """This module and all below, parents first, each once."""
        return [m for _, m in self.named_modules()]

    def children(self) -> list[Module]:
        """The modules directly below this module."""
        return list(self._modules.values())

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """(path, parameter) pairs; a parameter that modules share is listed only at its first path."""
        ids = set()
        for path, module in self.named_modules():
            for name, parameter in module._parameters.items():
                if id(parameter) not in ids:
                    ids.add(id(parameter))
                    yield f"{path}.{name}" if path else name, parameter

    def named_buffers(self) -> Iterator[tuple[str, Array]]:
        """(path, array) pairs."""
        for path, module in self.named_modules():
            for name, array in module._buffers.items():
                yield f"{path}.{name}" if path else name, array

    def parameters(self) -> list[Parameter]:
        """All parameters, in order, each once."""
        return [p for _, p in self.named_parameters()]

    def zero_grad(self) -> None:
        for p in self.parameters():
            p.grad = None

    def train(self, mode: bool = True) -> Self:
        """Switch to training behaviour (dropout, statistics of the batch), here and below."""
        self.modules()  # raises the error of a module in a plain container before any mode changes
        modes.switch(self, bool(choice("train", "mode", mode, (True, False))))
        for child in self._modules.values():
            child.train(mode)  # a subclass may override train
        return self

    def eval(self) -> Self:
        """Switch to evaluation behaviour, here and below."""
        return self.train(False)

    @property
    def training(self) -> bool:
        """Whether the module is in training mode. Setting it calls :meth:`train`."""
        return modes.of(self)

    @training.setter
    def training(self, mode: bool) -> None:
        self.train(mode)

    def to(self, device: str | Device | None = None, dtype: DTypeLike | None = None) -> Self:
        """Move parameters and buffers to a device or another float type, in place; `.grad` becomes None."""
        target = None if device is None else backend.device(device)
        dtype = None if dtype is None else contracts.float_dtype("Module.to", dtype)

        def moved(array):
            array = array if target is None else backend.to_device(array, target)
            with backend.on(array):
                return array if dtype is None or array.dtype.kind != "f" else array.astype(dtype, copy=False)

        for p in self.parameters():
            p.grad, p.data = None, moved(p.data)
        for module in self.modules():
            for name, array in module._buffers.items():
                module._buffers[name] = moved(array)
        return self

    def state_dict(self) -> dict[str, Array]:
        """Path -> array (not copied) of all parameters and buffers, in order."""
        return {path: p.data for path, p in self.named_parameters()} | dict(self.named_buffers())

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Copy arrays (or Tensors) into parameters and buffers. All checks come before the first change.

        Raises
        ------
        ValueError
            If names are missing or unexpected, or arrays have another shape or dtype. The message lists them.
        """
        if not isinstance(state, dict):
            raise TypeError(f"load_state_dict: state must be a dict of arrays, got {type(state).__name__}")
        mine, state = self.state_dict(), {k: v.data if isinstance(v, Tensor) else v for k, v in state.items()}
        wrong = [f"missing: {k} {mine[k].shape}" for k in mine if k not in state]
        wrong += [f"unexpected: {clean(k)} {np.shape(state[k])}" for k in state if k not in mine]
        for k in (k for k in mine if k in state):
            theirs = state[k]
            given = f"{theirs.shape} {theirs.dtype}" if backend.is_array(theirs) else type(theirs).__name__
            if given != f"{mine[k].shape} {mine[k].dtype}":
                wrong.append(f"different: {k} is {mine[k].shape} {mine[k].dtype}, given {given}")
            if not getattr(mine[k].flags, "writeable", True):  # CuPy's arrays have no such flag and are writeable
                wrong.append(f"read-only: {k}")
            if any(theirs is array for name, array in mine.items() if name != k):
                state[k] = theirs.copy()  # the array of another name would be overwritten before it is read
        if wrong:
            raise ValueError(
                f"load_state_dict: the state does not fit {type(self).__name__}, nothing was changed:\n  "
                + "\n  ".join(wrong[:LISTED])
                + (f"\n  … and {len(wrong) - LISTED} more" if len(wrong) > LISTED else "")
            )
        for k, array in mine.items():
            backend.assign(array, state[k])

    def __repr__(self) -> str:
        lines = [f"  {name}: {child!r}".replace("\n", "\n  ") for name, child in self._modules.items()]
        own = f"{type(self).__name__}({self.describe()})"
        return own if not lines else "\n".join([own, *lines])

    def describe(self) -> str:
        """The arguments worth showing in repr."""
        return ""
