"""Containers of modules: ModuleList, ModuleDict and Sequential. Module refuses plain lists and dicts of modules."""

from __future__ import annotations

from collections.abc import ItemsView, Iterable, Iterator, KeysView, Mapping, ValuesView
from typing import TYPE_CHECKING, Any

from minnl.engine import Tensor
from minnl.nn.module import Module

if TYPE_CHECKING:
    from typing_extensions import Self


def _module(where, name, module):
    """`module`; an error if it is not a Module."""
    if isinstance(module, Module):
        return module
    what, instead = f"{type(module).__name__}, a Module expected", ""
    if isinstance(module, type) and issubclass(module, Module):
        what, instead = f"the class {module.__name__}", f"; write {module.__name__}(...)"
    elif isinstance(module, (list, tuple, dict)) and where == "Sequential":
        instead = f"; write Sequential({'*' * (1 + isinstance(module, dict))}modules)"
    raise TypeError(f"{where}: {name} is {what}{instead}")


class ModuleList(Module):
    """Modules by number, named "0", "1", …; the module that holds the list calls them.

    It has append, extend, len, iteration, `[i]` to get (also a slice, as a plain list) and to replace.
    """

    def __init__(self, modules: Iterable[Module] = ()):
        super().__init__()
        self.extend(modules)

    def append(self, module: Module) -> Self:
        """Add a module at the end."""
        name = str(len(self))
        if name in self._modules:
            raise ValueError(f"{type(self).__name__}: there is a module {name!r} already, at another place")
        setattr(self, name, _module(type(self).__name__, name, module))
        return self

    def extend(self, modules: Iterable[Module]) -> Self:
        """Add modules at the end: all of them, or none after an error."""
        if isinstance(modules, (Module, dict)) and not isinstance(modules, ModuleList):
            raise TypeError(f"{type(self).__name__}: modules is {type(modules).__name__}, a list of modules expected")
        modules = [_module(type(self).__name__, len(self) + i, module) for i, module in enumerate(modules)]
        for module in modules:
            self.append(module)
        return self

    def __iter__(self) -> Iterator[Module]:
        return iter(self._modules.values())

    def __len__(self) -> int:
        return len(self._modules)

    def __getitem__(self, i: int | slice) -> Any:
        return list(self)[i]

    def __setitem__(self, i: int, module: Module) -> None:
        setattr(self, list(self._modules)[i], _module(type(self).__name__, i, module))


class ModuleDict(Module):
    """Modules by name, from a dict; the module that holds the ModuleDict calls them.

    It has `[name]` to get, to set and to delete, len, `in`, iteration over names, keys, values and items.
    """

    def __init__(self, modules: Mapping[str, Module] | Iterable[tuple[str, Module]] = ()):
        super().__init__()
        for name, module in dict(modules).items():
            self[name] = module

    def __getitem__(self, name: str) -> Module:
        return self._modules[name]

    def __setitem__(self, name: str, module: Module) -> None:
        if not isinstance(name, str):
            raise TypeError(f"{type(self).__name__}: names are str, got {name!r:.80}")
        setattr(self, name, _module(type(self).__name__, name, module))

    def __delitem__(self, name: str) -> None:
        del self._modules[name]

    def __contains__(self, name: object) -> bool:
        return name in self._modules

    def __iter__(self) -> Iterator[str]:
        return iter(self._modules)

    def __len__(self) -> int:
        return len(self._modules)

    def keys(self) -> KeysView[str]:
        return self._modules.keys()

    def values(self) -> ValuesView[Module]:
        return self._modules.values()

    def items(self) -> ItemsView[str, Module]:
        return self._modules.items()


class Sequential(ModuleList):
    """Modules called one after another; named "0", "1", … or by keyword: ``Sequential(conv=…, norm=…)``.

    Further arguments go to the last module, after its input. In all other respects it is a ModuleList.
    """

    def __init__(self, *modules: Module, **named: Module):
        super().__init__(modules)
        for name, module in named.items():
            setattr(self, name, _module("Sequential", name, module))

    def forward(self, x: Any, *others: Any) -> Tensor:
        modules = list(self)
        for module in modules[:-1]:
            x = module(x)
        return modules[-1](x, *others) if modules else x
