"""Is a backward right? The error curve against central differences. Explained in docs/gradcheck.md.

Give the output random weights w and look at the number L = sum(w * fn(inputs)). Backward says that along a direction
d it changes at the rate <g, d>; measured, it changes at the rate (L(x + hd) - L(x - hd)) / 2h. The relative
difference of the two over h = 1e-1 ... 1e-7 (of the input's size) is the error curve. For a right backward it falls
like h^2, reaches a floor near 1e-10 and rises again with the rounding of float64; a wrong backward leaves a shelf as
high as its mistake. So the floor is the verdict, and no tolerance is tuned to a function.

The entries of d are random, from 0.5 to 1.5 in size: each element counts, and no two count the same, so a single wrong
element, or two that changed places, shows as surely as a wrong sign of all.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from minnl import backend
from minnl.backend import Array
from minnl.engine import Tensor
from minnl.study.slopes import EPS, FINER, STEPS, Probe

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
    unit : float
        What the steps are multiplied by: a power of ten near the input's typical size, or FINER times that.
    floor : float
        The smallest of `curve`, but for steps at which it could be so by luck of rounding: below 1e-8 it passes.
    kinks : int
        Elements at which the slopes to the left and to the right differ. They are left out of the directions; instead
        their gradient must lie between the two slopes.
    verdict : "pass", "FAIL", or one of two that neither praise nor blame
        "kinks" if more than half of the elements looked at are kinks, "unresolved" if backward and differences disagree
        by no more than rounding explains: in both cases there is nothing to judge by at these inputs.
    worst : Element or None
        Where backward and differences disagree most, if the verdict is "FAIL".
    """

    name: str
    shape: tuple[int, ...]
    curve: tuple[float, ...]
    unit: float
    floor: float
    kinks: int
    verdict: str
    worst: Element | None

    def explain(self) -> str:
        """One line about a verdict that is not "pass"."""
        if self.verdict == "kinks":
            return f"{self.name}: {self.kinks} elements lie on a kink, too many to judge; move the input off them"
        if self.verdict == "unresolved":
            return f"{self.name}: rounding hides its slope from differences; choose inputs that move the output more"
        if self.worst is None:
            return f"{self.name}: backward and differences disagree"
        e = self.worst
        where = "[" + ", ".join(map(str, e.index)) + "]" if e.index else ""
        return f"{self.name}{where} is the worst: backward {e.backward:.9g}, differences {e.differences:.9g}"


@dataclass(frozen=True)
class GradcheckResult:
    """An :class:`InputCheck` for each input; true if all pass. Print it for the table."""

    inputs: tuple[InputCheck, ...]

    def __bool__(self) -> bool:
        return all(check.verdict == "pass" for check in self.inputs)

    def __str__(self) -> str:
        width = max([5, *(len(c.name) for c in self.inputs)])
        shape = max([5, *(len(str(c.shape)) for c in self.inputs)])
        head = f"{'input':{width}}  {'shape':{shape}}  {'unit':5}  " + " ".join(f"h={h:.0e}" for h in STEPS)
        lines = [f"{head}    floor  kinks  verdict"]
        for c in self.inputs:
            curve = " ".join(f"{e:7.0e}" for e in c.curve)
            steps = f"{c.unit:5.0e}  {curve}  {c.floor:7.1e}"
            lines.append(f"{c.name:{width}}  {c.shape!s:{shape}}  {steps}  {c.kinks:5d}  {c.verdict}")
        return "\n".join(lines + [c.explain() for c in self.inputs if c.verdict != "pass"])


def gradcheck(fn: Callable[..., Tensor], inputs: Sequence[Tensor | Array], locate: bool = True) -> GradcheckResult:
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
    with backend.on(arrays[0]):
        probe = Probe(fn, arrays)
        grads = probe.gradients()
        names = names_of(fn, len(arrays))
        return GradcheckResult(tuple(_check(probe, i, names[i], g, locate) for i, g in enumerate(grads)))


def _check(probe, i, name, g, locate):
    """The verdict on one input, whose gradient by backward is g."""
    unit = probe.unit(i)
    if not probe.xp.isfinite(g).all():
        at = tuple(int(k) for k in np.argwhere(~np.isfinite(backend.to_host(g)))[0])
        worst = _look(probe, i, g, at, unit).element
        return InputCheck(name, g.shape, (np.inf,) * len(STEPS), unit, np.inf, 0, "FAIL", worst)
    found = _worst_curve(probe, i, g, probe.xp.ones_like(g), unit)
    if found.floor > 0.1 * PASS:
        finer = _worst_curve(probe, i, g, probe.xp.ones_like(g), FINER * unit)
        sure = found.floor < PASS or found.resolved
        found = finer if finer.floor < min(found.floor, PASS) or (finer.resolved and not sure) else found
    unit, floor, kinks, elements = found.unit, found.floor, 0, []
    if found.kinked or (floor >= PASS and found.resolved and locate):
        elements = _scan(probe, i, g, unit)
        kinks = sum(e.kink for e in elements)
        if 2 * kinks > len(elements):
            return InputCheck(name, g.shape, found.errors, unit, floor, kinks, "kinks", None)
    if kinks:
        smooth = probe.xp.zeros_like(g)
        for e in elements:
            smooth[e.element.index] = not e.kink
        found = _worst_curve(probe, i, g, smooth, unit)
        floor = max(found.floor, *(e.outside for e in elements))
    verdict = "pass" if floor < PASS else "FAIL" if found.resolved or floor > found.floor else "unresolved"
    worst = max(elements, key=_Scanned.mistake, default=None) if verdict == "FAIL" else None
    return InputCheck(name, g.shape, found.errors, unit, floor, kinks, verdict, worst and worst.element)


@dataclass(frozen=True)
class _Curve:
    errors: tuple[float, ...]
    unit: float
    floor: float
    kinked: bool  # a kink lay on one of the directions
    resolved: bool  # rounding does not explain the errors


def _worst_curve(probe, i, g, allowed, unit):
    """The error curve of the worst of some random directions."""
    steps, worst, floor, kinked, resolved = [unit * h for h in STEPS], None, -1.0, False, True
    for k in range(DIRECTIONS):
        d = probe.random(g.shape)
        if k == 0:  # first along g, where nothing cancels and the shelf of a wrong factor is as high as its mistake
            d = probe.xp.copysign(d, g)
        d *= allowed
        expected, typical = float((g * d).sum()), float(((g * d) ** 2).sum()) ** 0.5
        slopes = [probe.slopes(i, d, h) for h in steps]
        measured = [(right + left) / 2 for right, left in slopes]
        # relative to what such a sum usually is, lest one that cancels by chance magnify its rounding; to what is
        # measured, lest a gradient of 0 make any error infinite; and to no less than differences can tell from 0
        scale = max(typical, np.nan_to_num(abs(measured[1]), posinf=0.0), RESOLVED * probe.size / probe.unit(i))
        errors = tuple(_relative(abs(m - expected), scale) for m in measured)
        kinked = kinked or probe.kink(slopes[-3:], steps)
        # at least the first step: beyond those at which rounding stays below what passes, a small error is luck
        count = max(1, sum(EPS * probe.size < PASS * scale * h for h in steps))
        lowest = min(errors[:count])
        if lowest > floor:
            worst, floor = errors, lowest
        if floor >= PASS:
            resolved = probe.resolves(expected, slopes, steps)
            break
    return _Curve(worst, unit, floor, kinked, resolved)


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


def _scan(probe, i, g, unit):
    """Look at the elements of input i one by one (at a random part of them if there are very many)."""
    chosen = probe.rng.permutation(g.size)[:SCANNED]
    return [_look(probe, i, g, tuple(int(k) for k in np.unravel_index(flat, g.shape)), unit) for flat in chosen]


def _look(probe, i, g, at, unit):
    one, here, steps = probe.xp.zeros_like(g), float(g[at]), [unit * h for h in STEPS[3:]]
    one[at] = 1
    slopes = [probe.slopes(i, one, h) for h in steps]
    closest = min(((right + left) / 2 for right, left in slopes), key=lambda m: abs(m - here))
    kink, outside = probe.kink(slopes[-3:], steps), 0.0
    if kink:
        low, high = probe.between(i, one, steps[-1])
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
        if not np.isfinite(backend.to_host(a)).all():
            raise ValueError(f"gradcheck: inputs[{i}] holds NaN or infinity, where nothing has a slope")
    if xp is not np and backend.tf32():
        raise ValueError("gradcheck: CuPy has TF32 on, which is too coarse to check by; unset CUPY_TF32 and start anew")
    return [backend.copied(a) for a in arrays]
