"""Module: parameters, buffers and other modules, in the order in which they were assigned."""

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
        """A module as its call sees it, so that a call takes and returns what forward does."""

        def forward(self, *inputs: P.args, **options: P.kwargs) -> Y: ...


LISTED = 50  # names in a message
TABLES = ("_parameters", "_buffers", "_modules")
CONTAINERS = (list, tuple, dict, set, frozenset, collections.deque)
MAY_HOLD = (Tensor, *CONTAINERS)
ELSEWHERE = {  # names that PyTorch's modules have, and what to write here
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
    """A tensor that a module learns: assigned to a Module's attribute it is listed by `parameters`.

    `decay` says whether weight decay applies to it where no group of an optimiser says so (not to batch norm's).
    """

    __slots__ = ("decay",)

    def __init__(self, data: ArrayLike, requires_grad: bool = True, decay: bool = True):
        if isinstance(data, Tensor):
            raise TypeError("Parameter: data is a Tensor; write nn.Parameter(tensor.data), which shares its array")
        super().__init__(data, requires_grad=requires_grad)
        self.decay = decay


def _learners(value):
    """The modules, parameters and other leaves that require a gradient in a value: itself, or what containers hold."""
    ahead, seen = [value], set()
    while ahead:
        one = ahead.pop()
        if isinstance(one, (Module, Parameter)) or (isinstance(one, Tensor) and one.is_leaf and one.requires_grad):
            yield one
        elif isinstance(one, CONTAINERS) and id(one) not in seen:
            seen.add(id(one))
            ahead += one.values() if isinstance(one, dict) else one


class Module:
    """A piece of a network. Subclasses assign parameters, buffers and modules in ``__init__`` and write `forward`.

    Everything is kept in the order of assignment, so that optimisers, checkpoints and seeds see the same order in
    every run. Assigning a parameter or a module again, or None, replaces; buffers (arrays without gradient, such as
    running statistics) are declared with :meth:`buffer`.

    What would be neither trained nor saved is refused: plain containers with modules or parameters (nn.ModuleList and
    nn.ModuleDict are for these), and tensors that require a gradient but are no Parameter; where they are assigned, or
    where a list was filled later, when the module is next asked for its parts.
    """

    def __new__(cls, *_: Any, **__: Any) -> Self:
        self = super().__new__(cls)
        self.__dict__.update({table: {} for table in TABLES})
        return self

    def __init__(self) -> None:  # takes no arguments, and refuses those that a subclass without __init__ is given
        pass

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        for name, value in vars(cls).items():
            if next(_learners(value), None) is not None:
                raise TypeError(f"{cls.__name__}: {name} is of the class, so no instance has it; assign it in __init__")

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
        home = "_parameters" if isinstance(value, Parameter) else "_modules" if isinstance(value, Module) else None
        there = next((table for table in TABLES if name in self.__dict__[table]), None)
        if home is None and there == "_buffers" and backend.is_array(value):
            home = there
        if home is None and there and value is not None:
            self._refuse_unlike(name, value, there)
        if home is None:
            self._refuse_strays(name, value)
        else:
            self._check_name(name, value)
        if there not in (None, home):
            del self.__dict__[there][name]
        if home is None:
            object.__setattr__(self, name, value)
        else:
            self.__dict__.pop(name, None)
            self.__dict__[home][name] = value

    def _refuse_unlike(self, name, value, there):
        where, what = f"{type(self).__name__}: {name}", type(value).__name__
        if there == "_parameters":
            raise TypeError(
                f"{where} is a Parameter, {what} cannot replace it; write {name}.data[...] = array to change its "
                f"numbers, or assign nn.Parameter(array), or None"
            )
        kind = "an array" if there == "_buffers" else "a Module"
        raise TypeError(f"{where} is {kind}, {what} cannot replace it; assign {kind}, or None")

    def _check_name(self, name, value):
        """Refuses a name that would not lead back to what it is the name of."""
        where = f"{type(self).__name__}: {name!r}"
        if not name or "." in name:
            raise ValueError(f"{where} cannot be a name; names are not empty and have no dots")
        if hasattr(type(self), name):
            raise ValueError(f"{where} cannot be a name, the class has an attribute of it; choose another")
        if isinstance(value, Module) and any(m is self for m in value.modules()):
            raise ValueError(f"{where} would hold the module that it is part of")

    def _refuse_strays(self, name, value):
        """Refuses what learns and would be forgotten: in a plain container, or no Parameter."""
        for found in _learners(value):
            known = isinstance(found, (Module, Parameter)) and any(
                found is m or any(found is p for p in m._parameters.values()) for _, m in self._walk("", look=False)
            )
            if known:  # under a name of its own
                continue
            where, what = f"{type(self).__name__}: {name}", type(found).__name__
            if found is value:
                raise TypeError(
                    f"{where} is a Tensor that requires a gradient and no Parameter: nothing would train or save it; "
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
            return own.fget(self)  # once more: its own AttributeError brought us here, and says which name is missing
        instead = f"; write {ELSEWHERE[name]}" if name in ELSEWHERE else ""
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}{instead}")

    def __delattr__(self, name: str) -> None:
        home = next((table for table in TABLES if name in self.__dict__[table]), None)
        if home is None:
            object.__delattr__(self, name)
        else:
            del self.__dict__[home][name]

    def __getstate__(self):
        """For copies: tables of their own, and the mode that this thread sees. copy.copy shares what is in them."""
        state = {key: dict(value) if key in TABLES else value for key, value in self.__dict__.items()}
        state.pop("_evaluated", None)
        return state | {"_mode": modes.seen(self)}

    def buffer(self, name: str, array: Array) -> None:
        """Declare an array that is saved and moved with the module but not learned."""
        if not backend.is_array(array):
            raise TypeError(f"{type(self).__name__}: the buffer {name!r} is {type(array).__name__}, an array expected")
        if name in self._parameters or name in self._modules:
            raise ValueError(f"{type(self).__name__}: {name!r} is a parameter or a module already")
        self._check_name(name, array)
        self.__dict__.pop(name, None)
        self._buffers[name] = array

    def _walk(self, prefix, look=True):
        """(path, module) of this module and all below, however often they are there."""
        if look:
            for name, value in self.__dict__.items():
                if isinstance(value, MAY_HOLD) and name not in TABLES and type(value) is not Parameter:
                    self._refuse_strays(name, value)  # not a Parameter that was hidden on purpose, nor a module
        yield prefix, self
        for name, child in self._modules.items():
            yield from child._walk(f"{prefix}.{name}" if prefix else name, look)

    def named_modules(self, prefix: str = "") -> Iterator[tuple[str, Module]]:
        """(path, module) of this module ("") and all below, parents first; each once, where it was first assigned."""
        seen = set()
        for path, module in self._walk(prefix):
            if id(module) not in seen:
                seen.add(id(module))
                yield path, module

    def modules(self) -> list[Module]:
        """This module and all below, parents first, each once."""
        return [m for _, m in self.named_modules()]

    def children(self) -> list[Module]:
        """The modules right below this one."""
        return list(self._modules.values())

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """(path, parameter) pairs; one that is shared between modules is listed once, where it was first assigned."""
        seen = set()
        for path, module in self.named_modules():
            for name, parameter in module._parameters.items():
                if id(parameter) not in seen:
                    seen.add(id(parameter))
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
        self.modules()  # refuses forgotten ones before anything is switched
        modes.switch(self, bool(choice("train", "mode", mode, (True, False))))
        for child in self._modules.values():
            child.train(mode)  # which a class of its own may extend
        return self

    def eval(self) -> Self:
        """Switch to evaluation behaviour, here and below."""
        return self.train(False)

    @property
    def training(self) -> bool:
        """The mode; to set it is to call :meth:`train`."""
        return modes.of(self)

    @training.setter
    def training(self, mode: bool) -> None:
        self.train(mode)

    def to(self, device: str | Device | None = None, dtype: DTypeLike | None = None) -> Self:
        """Move parameters and buffers to a device and/or to another float type, in place; gradients are dropped."""
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
        """Copy arrays (or Tensors) into parameters and buffers; everything is checked before anything is changed.

        Raises
        ------
        ValueError
            Listing names that are missing, unexpected, or of another shape or dtype.
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
            if not getattr(mine[k].flags, "writeable", True):  # CuPy's arrays always are
                wrong.append(f"read-only: {k}")
            if any(theirs is array for name, array in mine.items() if name != k):
                state[k] = theirs.copy()  # parts that change places
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
