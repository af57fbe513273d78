"""Optimisers, learning-rate schedules, and gradient clipping. docs/training.md has the recipes that use them."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np

from minnl import backend, dispatch
from minnl.backend import Array
from minnl.checks import choice, count, number
from minnl.engine import Tensor
from minnl.params import groups, overlap, tensors

Params: TypeAlias = Tensor | Iterable[Tensor] | Iterable[dict[str, Any]]
Schedule: TypeAlias = Callable[[int], float]

ELSEWHERE = {  # an attribute of PyTorch's optimisers -> what to write here
    "param_groups": "set .lr, which groups with an lr of their own follow in proportion; .groups lists what was given",
    "add_param_group": "make a new optimiser with all groups",
    "state": ".kept holds the arrays of each parameter, .counts its steps",
}


class Update(NamedTuple):
    """The update of one parameter in a step: arrays of one shape, dtype and device, and the options."""

    w: Any  # the parameter's array, edited in place
    gw: Any  # its gradient
    kept: list  # the optimiser's arrays for the parameter, in the order of `slots`, edited in place
    options: dict  # the keyword arguments of `Optimizer.update`; "step" counts the steps of this parameter


class Optimizer:
    """The base class of optimisers: parameters in order, each with its own step count and set of arrays.

    Parameters
    ----------
    params : Tensors, or groups {"params": Tensors, "lr": ..., "weight_decay": ..., ...}
        Leaves that require a gradient, or Parameters, each once, in a list or another ordered iterable. A group may
        have any option of the optimiser; it takes the options that it lacks from the optimiser. The optimiser's weight
        decay does not apply to Parameters whose `decay` is False (those of batch norm), as in the paper's code; the
        weight decay of a group does.
    lr : float
        Learning rate. A schedule sets `self.lr` before each step. A group with its own lr keeps its ratio to the
        initial `self.lr`.

    Every option is an attribute, which each step reads and checks.
    """

    slots: tuple[str, ...] = ()  # names of the arrays kept for each parameter

    lr: float
    initial_lr: float
    weight_decay: float
    steps: int
    kept: dict[str, list[Any]]
    update: Callable[..., None]  # a subclass writes it: it updates a parameter and its arrays in place

    def __init__(self, params: Params, **options: Any):
        name, self.options = type(self).__name__, tuple(options)
        self.__dict__.update(options, initial_lr=number(name, "lr", options["lr"], 0), steps=0, kept={})
        self.groups = groups(name, params)
        self.params = [p for group in self.groups for p in group["params"]]
        self.counts = [0] * len(self.params)
        self.settings()

    if not TYPE_CHECKING:  # with this method a type checker would accept any name

        def __getattr__(self, name):
            instead = f"; {ELSEWHERE[name]}" if name in ELSEWHERE else ""
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}{instead}")

    def check(self, options: dict[str, Any]) -> dict[str, Any]:
        """The options with checked values; an error names the option that is wrong."""
        return options | {key: number(type(self).__name__, key, options[key], 0) for key in ("lr", "weight_decay")}

    def settings(self) -> list[dict[str, Any]]:
        """The options of each parameter in the next step, as a list of dicts."""
        name, common, found = type(self).__name__, {key: getattr(self, key) for key in self.options}, []
        lr, initial = self.check(common)["lr"], self.initial_lr
        for group in self.groups:
            own = {key: value for key, value in group.items() if key != "params"}
            for key in sorted(own.keys() - common.keys()):
                raise ValueError(f"{name}: a group has {key!r}; it may have params, {', '.join(common)}")
            options = self.check(common | own)
            if "lr" in own:
                if options["lr"] and not initial:
                    raise ValueError(
                        f"{name}: lr must be above 0 where a group has its own, {own['lr']}, in ratio to it"
                    )
                options["lr"] *= lr / (initial or 1)
            spared = options if "weight_decay" in own else options | {"weight_decay": 0.0}
            found += [options if getattr(p, "decay", True) else spared for p in group["params"]]
        return found

    def zero_grad(self) -> None:
        for p in self.params:
            p.grad = None

    def step(self) -> None:
        """Update, in place, every parameter that requires a gradient and has one.

        Raises ValueError or TypeError if an option is wrong, or if parameters are read-only or share memory. Then
        nothing has changed.
        """
        settings = self.settings()
        chosen = [i for i, p in enumerate(self.params) if p.grad is not None and p.requires_grad]
        self.check_parameters(chosen)
        kept = [[self.array(slot, i) for slot in self.slots] for i in chosen]
        self.steps += 1
        updates = []
        for i, arrays in zip(chosen, kept, strict=True):
            p, self.counts[i] = self.params[i], self.counts[i] + 1
            updates.append(Update(p.data, p.grad, arrays, settings[i] | {"step": self.counts[i]}))
        if updates:
            kernel = dispatch.kernel_of(self, updates, backend.device_of(updates[0].w).kind) or type(self)
            kernel.apply(self, updates)

    def apply(self, updates: list[Update]) -> None:
        """Update every parameter of a step, given as a list of :class:`Update`."""
        for w, gw, kept, options in updates:
            with backend.on(backend.device_of(w)):
                self.update(w, gw, *kept, **options)

    def check_parameters(self, chosen: list[int]) -> None:
        """Refuse parameters, given by their indices, that cannot be updated in place independently of each other."""
        for i in chosen:
            p, where = self.params[i], f"{type(self).__name__}: parameter {i}"
            if not getattr(p.data.flags, "writeable", True):  # CuPy's arrays have no such flag and are writeable
                raise ValueError(f"{where} of shape {p.shape} is read-only; give it a copy: p.data = p.data.copy()")
            for slot, row in self.kept.items():
                if row[i] is not None and row[i].shape != p.shape:
                    raise ValueError(f"{where} has shape {p.shape} now, its {slot} has {row[i].shape}")
        pair = overlap([self.params[i].data for i in chosen])
        if pair:
            a, b = (f"{chosen[i]} of shape {self.params[chosen[i]].shape}" for i in pair)
            raise ValueError(
                f"{type(self).__name__}: parameters {a} and {b} share memory; give one a copy, or tie weights by "
                "assigning one Parameter to both modules"
            )

    def array(self, slot: str, i: int) -> Array:
        """The optimiser's array for parameter i: zeros at first, and of the parameter's present device and dtype."""
        row, w = self.kept.setdefault(slot, [None] * len(self.params)), self.params[i].data
        home, kept = backend.device_of(w), row[i]
        if kept is None or (kept.dtype, backend.device_of(kept)) != (w.dtype, home):
            with backend.on(home):
                new = backend.namespace("step", w).zeros_like(w) if kept is None else backend.to_device(kept, home)
                row[i] = new.astype(w.dtype, copy=False)
        return row[i]

    def state_dict(self) -> dict[str, Any]:
        """The state of the optimiser: arrays ("velocity.0" …) and numbers, all that the next step depends on."""
        arrays = {f"{s}.{i}": a for s, kept in self.kept.items() for i, a in enumerate(kept) if a is not None}
        numbers = {"steps": self.steps, "lr": float(self.lr), "initial_lr": self.initial_lr}
        return arrays | numbers | {"counts": list(self.counts)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a :meth:`state_dict`. All checks come before the first change.

        Older states have a single count, which becomes the count of every parameter that has arrays.
        """
        name, size = type(self).__name__, len(self.params)
        arrays = {k: v for k, v in state.items() if backend.is_array(v)}
        for key, array in arrays.items():
            slot, _, i = key.partition(".")
            if slot not in self.slots or not i.isdecimal() or int(i) >= size:
                raise ValueError(f"{name}: state has {key!r}, which belongs to another optimiser")
            p = self.params[int(i)]
            if (array.shape, array.dtype) != (p.shape, p.dtype):
                raise ValueError(
                    f"{name}: state {key!r} has shape {array.shape} {array.dtype}, "
                    f"parameter {i} has {p.shape} {p.dtype}"
                )
        for key in sorted({"steps", "lr"} - state.keys()):
            raise ValueError(f"{name}: state has no {key!r}")
        steps, lr = count(name, "steps", state["steps"], 0), number(name, "lr", state["lr"], 0)
        initial_lr = number(name, "initial_lr", state.get("initial_lr", self.initial_lr), 0)
        started = [any(f"{slot}.{i}" in arrays for slot in self.slots) for i in range(size)]
        counts = state.get("counts", [steps * begun for begun in started])
        if not isinstance(counts, list) or len(counts) != size:
            raise ValueError(f"{name}: state has counts {counts!r:.80}, a list of {size} expected")
        counts = [count(name, "counts", n, 0) for n in counts]
        for slot, (i, n) in itertools.product(self.slots, enumerate(counts)):
            if (n or started[i]) and f"{slot}.{i}" not in arrays:
                raise ValueError(f"{name}: state has no '{slot}.{i}', of a parameter that has made {n} steps")
        self.kept = {slot: [None] * size for slot in self.slots}
        for key, array in arrays.items():
            slot, _, i = key.partition(".")
            with backend.on(backend.device_of(array)):
                self.kept[slot][int(i)] = array.copy()
        self.steps, self.counts, self.lr, self.initial_lr = steps, counts, lr, initial_lr


class SGD(Optimizer):
    r"""Stochastic gradient descent with momentum, as PyTorch writes it.

    .. math:: d = \bar w + \lambda w, \qquad v \leftarrow \mu v + d, \qquad
        w \leftarrow w - \eta\,(v \text{ or, with Nesterov, } d + \mu v)

    It is equal to the paper's Caffe2 form, which keeps :math:`\eta v` and rescales it when :math:`\eta` changes.
    """

    momentum: float
    nesterov: bool

    def __init__(
        self, params: Params, lr: float, momentum: float = 0.0, nesterov: bool = False, weight_decay: float = 0.0
    ):
        super().__init__(params, lr=lr, momentum=momentum, nesterov=nesterov, weight_decay=weight_decay)

    @property
    def slots(self) -> tuple[str, ...]:  # type: ignore[override]
        """The velocity, if any group has momentum."""
        return ("velocity",) if self.momentum or any(group.get("momentum") for group in self.groups) else ()

    def check(self, options: dict[str, Any]) -> dict[str, Any]:
        options = super().check(options) | {"momentum": number("SGD", "momentum", options["momentum"], 0, 1)}
        if choice("SGD", "nesterov", options["nesterov"], (True, False)) and not options["momentum"]:
            raise ValueError("SGD: nesterov needs a momentum above 0")
        return options

    def update(
        self, w: Array, gw: Array, v: Array | None = None, *, lr: float, momentum: float, nesterov: bool,
        weight_decay: float, step: int,
    ) -> None:  # fmt: skip
        d = gw + weight_decay * w if weight_decay else gw
        if v is not None:
            v *= momentum
            v += d
            d = d + momentum * v if nesterov else v
        w -= lr * d


class AdamW(Optimizer):
    r"""Adam with decoupled weight decay (Loshchilov and Hutter, 2019), as PyTorch writes it.

    .. math:: m \leftarrow \beta_1 m + (1-\beta_1)\bar w, \quad v \leftarrow \beta_2 v + (1-\beta_2)\bar w^2, \quad
        w \leftarrow (1-\eta\lambda)\,w - \eta\,\frac{m / (1-\beta_1^t)}{\sqrt{v} / \sqrt{1-\beta_2^t} + \epsilon}

    t counts the steps of the parameter, so the moments of a parameter start with its first gradient.
    """

    slots = ("first", "second")

    betas: tuple[float, float]
    eps: float

    def __init__(
        self, params: Params, lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8,
        weight_decay: float = 0.01,
    ):  # fmt: skip
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)

    def check(self, options: dict[str, Any]) -> dict[str, Any]:
        betas = options["betas"]
        if not isinstance(betas, (tuple, list)) or len(betas) != 2:
            raise TypeError(f"AdamW: betas must be two numbers, got {betas!r}")
        betas = tuple(number("AdamW", "betas", b, 0, 1) for b in betas)
        if 1 in betas:
            raise ValueError(f"AdamW: betas must be below 1, got {betas}")
        return super().check(options) | {"betas": betas, "eps": number("AdamW", "eps", options["eps"], 0)}

    def update(
        self, w: Array, gw: Array, m: Array, v: Array, *, lr: float, betas: tuple[float, float], eps: float,
        weight_decay: float, step: int,
    ) -> None:  # fmt: skip
        xp, (b1, b2) = backend.namespace("AdamW", w, gw), betas
        m *= b1
        m += (1 - b1) * gw
        v *= b2
        v += (1 - b2) * gw * gw  # in this order, because gw * gw of a large gradient would overflow
        w *= 1 - lr * weight_decay
        w -= lr / (1 - b1**step) * m / (xp.sqrt(v) / math.sqrt(1 - b2**step) + eps)


def clip_grad_norm(params: Tensor | Iterable[Tensor], max_norm: float) -> np.float64 | Array:
    """Scale all gradients by the same factor so that their joint Euclidean norm is at most `max_norm`.

    `params` is a Tensor, or Tensors as for an optimiser. Returns the norm before scaling in float64: a NumPy scalar, or
    on a GPU an array without axes. The host does not wait for a GPU to compute the norm, so gradients that are small
    enough are multiplied by 1 there. Gradients are replaced, not edited. If one has NaN or infinity, all stay as they
    are.
    """
    if not (isinstance(max_norm, float) and max_norm == math.inf):  # an infinite max_norm only measures the norm
        max_norm = number("clip_grad_norm", "max_norm", max_norm, 0)
    params = [p for p in tensors("clip_grad_norm", params) if p.grad is not None]
    if not params:
        return np.float64(0)
    grads: list[Any] = [p.grad for p in params]
    xp = backend.namespace("clip_grad_norm", *grads)
    with backend.on(params[0].device):
        norm = _norm(xp, grads)
        if xp is np and not max_norm < norm < math.inf:
            return norm
        scale = xp.fmin(max_norm / norm, 1)  # fmin of NaN (from 0 / 0, or from a gradient) and 1 is 1
        scale = xp.where(norm < math.inf, scale, 1)
        for p, g in zip(params, grads, strict=True):
            p.grad = xp.asarray(g * scale.astype(g.dtype))  # NumPy turns products of 0-d arrays into scalars
    return norm


def _norm(xp, grads):
    """The joint norm in float64. Gradients in float64 are divided by the largest first, as squares may overflow."""
    unit, largest = 1, [abs(g).max() for g in grads if g.dtype == np.float64 and g.size]
    if largest:
        unit = functools.reduce(xp.maximum, largest)
        unit = xp.where((unit > 0) & (unit < math.inf), unit, 1)
        grads = [g / unit for g in grads]
    return unit * xp.sqrt(sum((g.astype(np.float64) ** 2).sum() for g in grads))


def step_schedule(lr: float, milestones: Iterable[int], gamma: float = 0.1) -> Schedule:
    """step -> rate, multiplied by `gamma` at each milestone. The paper: lr 0.01, milestones 150k and 300k of 400k."""
    lr, gamma = number("step_schedule", "lr", lr, 0), number("step_schedule", "gamma", gamma, 0)
    milestones = sorted(count("step_schedule", "milestones", m, 0) for m in milestones)
    return lambda step: lr * gamma ** sum(step >= m for m in milestones)


def cosine_schedule(lr: float, total: int, final: float = 0.0) -> Schedule:
    """step -> rate, half a cosine from lr at step 0 to `final` at step `total`, and `final` after it."""
    lr, final = number("cosine_schedule", "lr", lr, 0), number("cosine_schedule", "final", final, 0)
    total = count("cosine_schedule", "total", total)
    return lambda step: final + (lr - final) * 0.5 * (1 + math.cos(math.pi * min(step / total, 1)))


def warm_up(schedule: Schedule, steps: int, start: float = 0.0) -> Schedule:
    """A schedule whose rate rises linearly, in its first `steps`, from `start` times its own rate."""
    if not callable(schedule):
        raise TypeError(f"warm_up: schedule must be a function of the step, got {type(schedule).__name__}")
    steps, start = count("warm_up", "steps", steps, 0), number("warm_up", "start", start, 0, 1)

    def rate(step):
        share = 1 if step >= steps else start + (1 - start) * (step + 1) / (steps + 1)
        return schedule(step) * share

    return rate
