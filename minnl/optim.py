"""Optimisers, learning-rate schedules, and clipping. docs/training.md tells which recipe uses what."""

from __future__ import annotations

import math

import numpy as np

from minnl import backend, kernels
from minnl.checks import count, number
from minnl.engine import Tensor


def groups(params, weight_decay):
    """Split parameters into a group with weight decay and one without (batch norm's, as the paper's code has it).

    Every `Parameter` says by its `decay` where it belongs; plain tensors decay.
    """
    params = list(params)
    return [
        {"params": [p for p in params if getattr(p, "decay", True)], "weight_decay": weight_decay},
        {"params": [p for p in params if not getattr(p, "decay", True)], "weight_decay": 0.0},
    ]


class Optimizer:
    """Holds parameters in order, and one set of arrays for each.

    Parameters
    ----------
    params : list of Tensors, or list of groups {"params": [...], "weight_decay": ...}
        A list is split by :func:`groups`: no weight decay on batch norm unless a group says so.
    lr : float
        Learning rate; a schedule sets `self.lr` anew each step.
    """

    slots: tuple[str, ...] = ()  # names of the arrays kept for each parameter

    def __init__(self, params, lr, weight_decay):
        name = type(self).__name__
        self.lr = number(name, "lr", lr, 0)
        weight_decay = number(name, "weight_decay", weight_decay, 0)
        params = list(params)
        if not params:
            raise ValueError(f"{name}: no parameters to optimise")
        self.groups = params if isinstance(params[0], dict) else groups(params, weight_decay)
        self.params, self.decays = [], []
        for group in self.groups:
            for p in group["params"]:
                if not isinstance(p, Tensor) or not p.is_leaf:
                    raise TypeError(f"{name}: params must be leaf tensors, got {p!r:.80}")
                if any(p is q for q in self.params):
                    raise ValueError(f"{name}: a parameter of shape {p.shape} is listed twice")
                self.params.append(p)
                self.decays.append(number(name, "weight_decay", group.get("weight_decay", weight_decay), 0))
        self.steps = 0
        self.kept = {slot: [None] * len(self.params) for slot in self.slots}

    def zero_grad(self):
        for p in self.params:
            p.grad = None

    def step(self):
        """Update, in place, every parameter that has a gradient."""
        self.steps += 1
        updates = [
            (p.data, p.grad, decay, *(self.array(slot, i, p.data) for slot in self.slots))
            for i, (p, decay) in enumerate(zip(self.params, self.decays, strict=True))
            if p.grad is not None and p.requires_grad
        ]
        kernel = kernels.pick(self, [array for w, gw, _, *kept in updates for array in (w, gw, *kept)])
        if kernel:
            kernel.step(self, updates)
        else:
            for w, *others in updates:
                with backend.on(backend.device_of(w)):
                    self.update(w, *others)

    def array(self, slot, i, like):
        """The kept array of parameter i: zeros when first asked for, and moved along with its parameter."""
        kept = self.kept[slot][i]
        if kept is None:
            with backend.on(like):
                kept = backend.namespace("step", like).zeros_like(like)
        self.kept[slot][i] = backend.to_device(kept, backend.device_of(like))
        return self.kept[slot][i]

    def state_dict(self):
        """Arrays ("velocity.0" …) and numbers that make the next step what it would have been."""
        arrays = {f"{s}.{i}": a for s, kept in self.kept.items() for i, a in enumerate(kept) if a is not None}
        return arrays | {"steps": self.steps, "lr": self.lr}

    def load_state_dict(self, state):
        """Take over what :meth:`state_dict` gave; checked before anything is changed."""
        arrays = {k: v for k, v in state.items() if backend.is_array(v)}
        for key, array in arrays.items():
            slot, _, i = key.partition(".")
            if slot not in self.kept or not i.isdecimal() or int(i) >= len(self.params):
                raise ValueError(f"{type(self).__name__}: state has {key!r}, which belongs to another optimiser")
            p = self.params[int(i)]
            if (array.shape, array.dtype) != (p.shape, p.dtype):
                raise ValueError(
                    f"{type(self).__name__}: state {key!r} has shape {array.shape} {array.dtype}, "
                    f"parameter {i} has {p.shape} {p.dtype}"
                )
        kept = {slot: [arrays.get(f"{slot}.{i}") for i in range(len(self.params))] for slot in self.slots}
        self.kept = {slot: [None if a is None else backend.copied(a) for a in row] for slot, row in kept.items()}
        self.steps, self.lr = int(state["steps"]), float(state["lr"])


class SGD(Optimizer):
    r"""Stochastic gradient descent with momentum, as PyTorch writes it.

    .. math:: d = \bar w + \lambda w, \qquad v \leftarrow \mu v + d, \qquad
        w \leftarrow w - \eta\,(v \text{ or, with Nesterov, } d + \mu v)

    Equal to the paper's Caffe2 form, which keeps :math:`\eta v` and rescales it when :math:`\eta` changes.
    """

    def __init__(self, params, lr, momentum=0.0, nesterov=False, weight_decay=0.0):
        self.momentum, self.nesterov = number("SGD", "momentum", momentum, 0, 1), bool(nesterov)
        if nesterov and not momentum:
            raise ValueError("SGD: nesterov needs a momentum above 0")
        self.slots = ("velocity",) if momentum else ()
        super().__init__(params, lr, weight_decay)

    def update(self, w, gw, decay, v=None):
        d = gw + decay * w if decay else gw
        if v is not None:
            v *= self.momentum
            v += d
            d = d + self.momentum * v if self.nesterov else v
        w -= self.lr * d


class AdamW(Optimizer):
    r"""Adam with decoupled weight decay (Loshchilov and Hutter, 2019), as PyTorch writes it.

    .. math:: m \leftarrow \beta_1 m + (1-\beta_1)\bar w, \quad v \leftarrow \beta_2 v + (1-\beta_2)\bar w^2, \quad
        w \leftarrow (1-\eta\lambda)\,w - \eta\,\frac{m / (1-\beta_1^t)}{\sqrt{v / (1-\beta_2^t)} + \epsilon}
    """

    slots = ("first", "second")

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01):
        super().__init__(params, lr, weight_decay)
        self.betas = tuple(number("AdamW", "betas", b, 0, 1) for b in betas)
        self.eps = number("AdamW", "eps", eps, 0)

    def update(self, w, gw, decay, m, v):
        xp, (b1, b2) = backend.namespace("AdamW", w, gw), self.betas
        m += (1 - b1) * (gw - m)
        v += (1 - b2) * (gw * gw - v)
        rate = self.lr / (1 - b1**self.steps)
        w *= 1 - self.lr * decay
        w -= rate * m / (xp.sqrt(v / (1 - b2**self.steps)) + self.eps)


def clip_grad_norm(params, max_norm):
    """Scale all gradients down together so that their joint Euclidean norm is at most `max_norm`.

    Returns the norm before, in float64: NumPy's scalar, or on a GPU an array without axes that nobody has waited for
    (the host does not learn there whether the norm is too large, so small gradients are multiplied by 1). Gradients are
    replaced, not edited; with a NaN among them all stay as they are.
    """
    max_norm = number("clip_grad_norm", "max_norm", max_norm, 0)
    params = [p for p in params if p.grad is not None]
    if not params:
        return np.float64(0)
    xp = backend.namespace("clip_grad_norm", *(p.grad for p in params))
    with backend.on(params[0].device):
        norm = xp.sqrt(sum((p.grad.astype("float64") ** 2).sum() for p in params))
        if xp is np and not norm > max_norm:
            return norm
        scale = xp.fmin(max_norm / norm, 1)  # of 1 and NaN (0 / 0, or from a gradient) the smaller is 1
        for p in params:
            p.grad = p.grad * scale.astype(p.grad.dtype)
    return norm


def step_schedule(lr, milestones, gamma=0.1):
    """step -> rate: times `gamma` at each milestone. The paper: lr 0.01, milestones 150k and 300k of 400k."""
    milestones = sorted(count("step_schedule", "milestones", m, 0) for m in milestones)
    return lambda step: lr * gamma ** sum(step >= m for m in milestones)


def cosine_schedule(lr, total, final=0.0):
    """step -> rate: half a cosine from lr at step 0 to `final` at step `total` and after."""
    total = count("cosine_schedule", "total", total)
    return lambda step: final + (lr - final) * 0.5 * (1 + math.cos(math.pi * min(step / total, 1)))


def warm_up(schedule, steps, start=0.0):
    """A schedule whose first `steps` rise in a straight line from `start` times its own rate."""
    steps = count("warm_up", "steps", steps, 0)

    def rate(step):
        share = 1 if step >= steps else start + (1 - start) * (step + 1) / (steps + 1)
        return schedule(step) * share

    return rate
