"""Is a backward right? The error curve against central differences. Explained in docs/gradcheck.md.

Give the output random weights w and look at the number L = sum(w * fn(inputs)). Backward says that along a direction
d it changes at the rate <g, d>; measured, it changes at the rate (L(x + hd) - L(x - hd)) / 2h. The relative
difference of the two over h = 1e-1 ... 1e-7 is the error curve. For a right backward it falls like h^2, reaches a
floor near 1e-10 and rises again with the rounding of float64; a wrong backward leaves a shelf as high as its mistake.
So the floor is the verdict, and no tolerance is tuned to a function.

The entries of d are random, from 0.5 to 1.5 in size: each element counts, and no two count the same, so a single wrong
element, or two that changed places, shows as surely as a wrong sign of all.
"""

from __future__ import annotations

import inspect
import os
from dataclasses import dataclass

import numpy as np

from minnl import backend
from minnl.engine import Tensor, no_grad

STEPS = tuple(10.0**-k for k in range(1, 8))
PASS = 1e-8  # a floor below is a right gradient: 100 times what rounding leaves, a 10,000th of a mistake of 0.01 %
RESOLVED = 1e-3  # of the outputs' norm: at the best step rounding makes a slope uncertain by PASS times this
DIRECTIONS = 3
SCANNED = 4096  # elements looked at one by one, at most: four function calls a step each


@dataclass(frozen=True)
class Element:
    """One element of an input: its gradient by backward, and by differences."""

    index: tuple[int, ...]
    backward: float
    differences: float


@dataclass(frozen=True)
class InputCheck:
    """What was found for one input.

    Attributes
    ----------
    curve : tuple of float
        The relative error at each of STEPS, along the worst direction tried.
    floor : float
        The smallest of `curve`: the verdict is "pass" where it is below 1e-8.
    kinks : int
        Elements at which the slopes to the left and to the right differ. They are left out of the directions; instead
        their gradient must lie between the two slopes.
    verdict : "pass", "FAIL", or "kinks" if more than half of the elements looked at are kinks: nothing to judge by
    worst : Element or None
        Where backward and differences disagree most, if the verdict is "FAIL".
    """

    name: str
    shape: tuple[int, ...]
    curve: tuple[float, ...]
    floor: float
    kinks: int
    verdict: str
    worst: Element | None

    def explain(self):
        """One line about a verdict that is not "pass"."""
        if self.verdict == "kinks":
            return f"{self.name}: {self.kinks} elements lie on a kink, too many to judge; move the input off them"
        if self.worst is None:
            return f"{self.name}: backward and differences disagree"
        e = self.worst
        where = "[" + ", ".join(map(str, e.index)) + "]" if e.index else ""
        return f"{self.name}{where} is the worst: backward {e.backward:.9g}, differences {e.differences:.9g}"


@dataclass(frozen=True)
class GradcheckResult:
    """An :class:`InputCheck` for each input; true if all pass. Print it for the table."""

    inputs: tuple[InputCheck, ...]

    def __bool__(self):
        return all(check.verdict == "pass" for check in self.inputs)

    def __str__(self):
        width = max([5, *(len(c.name) for c in self.inputs)])
        shape = max([5, *(len(str(c.shape)) for c in self.inputs)])
        head = f"{'input':{width}}  {'shape':{shape}}  " + " ".join(f"h={h:.0e}" for h in STEPS)
        lines = [f"{head}    floor  kinks  verdict"]
        for c in self.inputs:
            curve = " ".join(f"{e:7.0e}" for e in c.curve)
            lines.append(f"{c.name:{width}}  {c.shape!s:{shape}}  {curve}  {c.floor:7.1e}  {c.kinks:5d}  {c.verdict}")
        return "\n".join(lines + [c.explain() for c in self.inputs if c.verdict != "pass"])


def gradcheck(fn, inputs, locate=True):
    """Check the gradients of a function by the error curve, one input at a time.

    Parameters
    ----------
    fn : callable
        Takes as many Tensors as there are inputs and returns one Tensor. Must give the same for the same inputs: one
        that draws (dropout) calls ``minnl.manual_seed`` first.
    inputs : list or tuple of float64 arrays or Tensors
        Not modified. On a GPU, if that is where they are.
    locate : bool
        Find the worst element of an input that fails, which takes some calls of fn for each of its elements.

    Returns
    -------
    GradcheckResult
        True if every gradient is right; prints as a table.

    Raises
    ------
    TypeError
        Inputs that are not float64 arrays; an fn that returns something else than a float64 Tensor.
    ValueError
        Inputs with NaN or infinity, an fn that returns such, or that gives different outputs for the same inputs;
        TF32 switched on.

    Examples
    --------
    >>> x, weight = rng.normal(size=(2, 4, 5, 5, 3)), rng.normal(size=(3, 3, 3, 3, 4))
    >>> result = minnl.gradcheck(lambda x, weight: F.conv3d(x, weight, padding=1), [x, weight])
    >>> assert result, result
    """
    arrays = _arrays(inputs)
    probe = _Probe(fn, arrays)
    grads = probe.gradients()
    names = names_of(fn, len(arrays))
    return GradcheckResult(tuple(_check(probe, i, names[i], g, locate) for i, g in enumerate(grads)))


class _Probe:
    """L = sum(w * fn(inputs)): its gradients by backward, its slopes by differences."""

    def __init__(self, fn, arrays):
        self.fn, self.arrays = fn, arrays
        self.rng = np.random.default_rng(0)
        self.device = backend.device_of(arrays[0])
        self.xp = backend.namespace("gradcheck", *arrays)
        with no_grad():
            self.y = self.output()
            again = self.output()
        if not self.xp.isfinite(self.y).all():
            raise ValueError("gradcheck: fn returns NaN or infinity for these inputs")
        if not (self.y == again).all():
            raise ValueError(
                "gradcheck: fn gives different outputs for the same inputs; "
                "if it draws (dropout), call minnl.manual_seed inside it"
            )
        self.weight = self.random(self.y.shape)
        self.size = float(self.xp.sqrt((self.weight * self.y * self.weight * self.y).sum()))

    def output(self, moved=None, by=None):
        """fn's array, with one input moved by an array; always on copies."""
        return self.call([a + by if i == moved else a.copy() for i, a in enumerate(self.arrays)]).data

    def call(self, arrays):
        y = self.fn(*(Tensor(a, requires_grad=True) for a in arrays))
        if not isinstance(y, Tensor):
            raise TypeError(f"gradcheck: fn must return one Tensor, got {type(y).__name__}")
        if y.dtype != np.float64:
            raise TypeError(f"gradcheck: fn turned float64 into {y.dtype}, too coarse for differences")
        return y

    def random(self, shape):
        """Random entries of either sign, none near 0."""
        values = self.rng.uniform(0.5, 1.5, shape) * self.rng.choice((-1.0, 1.0), shape)
        return backend.to_device(np.asarray(values), self.device)

    def gradients(self):
        leaves = [Tensor(a.copy(), requires_grad=True) for a in self.arrays]
        with np.errstate(all="ignore"):  # a gradient that is not finite gets a verdict, not a warning
            y = self.fn(*leaves)
            if y.requires_grad:
                y.backward(self.weight)
        return [self.xp.zeros_like(x.data) if x.grad is None else x.grad for x in leaves]

    def slopes(self, i, direction, h):
        """Slope of L to the right and to the left of input i along a direction, measured with step h."""
        with no_grad(), np.errstate(all="ignore"):  # a large step may well leave the domain, as of log
            after, before = self.output(i, h * direction), self.output(i, -h * direction)
            # the difference first, the sum after: what did not move is exactly 0 and adds no rounding
            return tuple(float((self.weight * d).sum()) / h for d in (after - self.y, self.y - before))

    def kink(self, slopes):
        """Whether the slopes right and left differ, and by the same at each of several steps.

        Where a function is smooth the difference falls with the step; of a jump, which is no kink, it grows.
        """
        gaps = [abs(right - left) for right, left in slopes]
        rounding = 1e-7 * self.size + 1e-6 * max(map(abs, slopes[-1]))
        return gaps[-1] > rounding and max(gaps) < 1.1 * min(gaps)

    def between(self, i, direction):
        """The least and the greatest slope of L, if each output may choose its slope to the right or to the left."""
        h = STEPS[-1]
        with no_grad():
            after, before = self.output(i, h * direction), self.output(i, -h * direction)
            right, left = self.weight * (after - self.y) / h, self.weight * (self.y - before) / h
            return float(self.xp.minimum(right, left).sum()), float(self.xp.maximum(right, left).sum())


def _check(probe, i, name, g, locate):
    """The verdict on one input, whose gradient by backward is g."""
    if not probe.xp.isfinite(g).all():
        at = tuple(int(k) for k in np.argwhere(~np.isfinite(backend.to_host(g)))[0])
        return InputCheck(name, g.shape, (np.inf,) * len(STEPS), np.inf, 0, "FAIL", _look(probe, i, g, at).element)
    curve, kinked = _worst_curve(probe, i, g, probe.xp.ones_like(g))
    floor, kinks, elements = min(curve), 0, []
    if kinked or (floor >= PASS and locate):
        elements = _scan(probe, i, g)
        kinks = sum(e.kink for e in elements)
        if 2 * kinks > len(elements):
            return InputCheck(name, g.shape, curve, floor, kinks, "kinks", None)
    if kinks:
        smooth = probe.xp.zeros_like(g)
        for e in elements:
            smooth[e.element.index] = not e.kink
        curve, _ = _worst_curve(probe, i, g, smooth)
        floor = max(min(curve), *(e.outside for e in elements))
    if floor < PASS:
        return InputCheck(name, g.shape, curve, floor, kinks, "pass", None)
    worst = max(elements, key=_Scanned.mistake, default=None)
    return InputCheck(name, g.shape, curve, floor, kinks, "FAIL", worst and worst.element)


def _worst_curve(probe, i, g, allowed):
    """The error curve of the worst of some random directions, and whether a kink lay on any of them."""
    worst, kinked = None, False
    for k in range(DIRECTIONS):
        d = probe.random(g.shape)
        if k == 0:  # first along g, where nothing cancels and the shelf of a wrong factor is as high as its mistake
            d = probe.xp.copysign(d, g)
        d *= allowed
        expected, typical = float((g * d).sum()), float(((g * d) ** 2).sum()) ** 0.5
        slopes = [probe.slopes(i, d, h) for h in STEPS]
        measured = [(right + left) / 2 for right, left in slopes]
        # relative to what such a sum usually is, lest one that cancels by chance magnify its rounding; to what is
        # measured, lest a gradient of 0 make any error infinite; and to no less than differences can tell from 0
        scale = max(typical, np.nan_to_num(abs(measured[1]), posinf=0.0), RESOLVED * probe.size)
        curve = tuple(_relative(abs(m - expected), scale) for m in measured)
        kinked = kinked or probe.kink(slopes[-3:])
        if worst is None or min(curve) > min(worst):
            worst = curve
        if min(worst) >= PASS:
            break
    return worst, kinked


def _relative(error, scale):
    if error == 0:
        return 0.0
    return error / scale if scale and np.isfinite(error) else np.inf


@dataclass(frozen=True)
class _Scanned:
    element: Element
    kink: bool
    outside: float  # of a kink: how far the gradient lies outside of its two slopes, relative to them

    def mistake(self):
        if self.kink and not self.outside:
            return 0.0
        return abs(self.element.backward - self.element.differences)


def _scan(probe, i, g):
    """Look at the elements of input i one by one (at a random part of them if there are very many)."""
    chosen = probe.rng.permutation(g.size)[:SCANNED]
    return [_look(probe, i, g, tuple(int(k) for k in np.unravel_index(flat, g.shape))) for flat in chosen]


def _look(probe, i, g, at):
    unit, here = probe.xp.zeros_like(g), float(g[at])
    unit[at] = 1
    slopes = [probe.slopes(i, unit, h) for h in STEPS[3:]]
    closest = min(((right + left) / 2 for right, left in slopes), key=lambda m: abs(m - here))
    kink, outside = probe.kink(slopes[-3:]), 0.0
    if kink:
        low, high = probe.between(i, unit)
        beyond = max(low - here, here - high, 0.0) / max(-low, high, abs(here))
        outside = beyond if beyond > 1e-5 else 0.0  # a one-sided slope is good to about its step, 1e-7
    return _Scanned(Element(at, here, closest), kink, outside)


def names_of(fn, count):
    """The names of fn's arguments, where it tells them."""
    try:
        parameters = inspect.signature(fn).parameters.values()
    except (TypeError, ValueError):
        parameters = ()
    named = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return [named[i] if i < len(named) else f"input {i}" for i in range(count)]


def _arrays(inputs):
    """Copies of the inputs as arrays, if differences can be taken of them."""
    if not isinstance(inputs, (list, tuple)) or not inputs:
        raise TypeError(f"gradcheck: inputs must be a list of one array or more, got {type(inputs).__name__}")
    arrays = [x.data if isinstance(x, Tensor) else x for x in inputs]
    for i, a in enumerate(arrays):
        if not backend.is_array(a):
            raise TypeError(f"gradcheck: inputs[{i}] must be an array or a Tensor, got {type(a).__name__}")
        if a.dtype != np.float64:
            raise TypeError(
                f"gradcheck: inputs[{i}] is {a.dtype}; float64 is needed, whose digits differences can spare: "
                "pass x.astype(numpy.float64)"
            )
    xp = backend.namespace("gradcheck", *arrays)
    for i, a in enumerate(arrays):
        if not xp.isfinite(a).all():
            raise ValueError(f"gradcheck: inputs[{i}] holds NaN or infinity, where nothing has a slope")
    if xp is not np and os.environ.get("CUPY_TF32", "0") not in ("", "0"):
        raise ValueError("gradcheck: CUPY_TF32 is set, and TF32 is too coarse to check by; unset it and start anew")
    return [a.copy() for a in arrays]
