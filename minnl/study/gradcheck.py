"""Is a backward right? The error curve against central differences. Explained in docs/gradcheck.md.

Weight the output with random numbers w and consider the number L = sum(w * fn(inputs)). By backward, its slope along a
direction d is <g, d>; by central differences, it is (L(x + hd) - L(x - hd)) / 2h. The relative difference of the two
over h = 1e-1 ... 1e-7 (times the input's size) is the error curve. For a correct backward it falls like h^2, reaches a
floor near 1e-10 and rises again with the rounding of float64. For a wrong backward it stops falling at the size of the
mistake. So the floor is the verdict, and no tolerance is tuned to a function.

The entries of d are random, from 0.5 to 1.5 in magnitude, so every element counts and no two elements count the same. A
single wrong element, or two exchanged elements, show as surely as a wrong sign of the whole gradient.
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

PASS = 1e-8  # a lower floor passes: 100 times what rounding leaves, a 10,000th of a mistake of 0.01 %
RESOLVED = 1e-3  # rounding makes a slope at the best step uncertain by PASS times this part of the outputs' norm
DIRECTIONS = 3  # random directions per input
SCANNED = 4096  # elements per input that `_scan` checks singly, at most: each takes four function calls per step


@dataclass(frozen=True)
class Element:
    """One element of an input: its gradient by backward, and by differences."""

    index: tuple[int, ...]
    backward: float
    differences: float


@dataclass(frozen=True)
class InputCheck:
    """The result for one input.

    Attributes
    ----------
    curve : tuple of float
        The relative error at each of STEPS, along the worst of the random directions.
    unit : float
        The factor on the steps: a power of ten near the input's typical size, or FINER times that.
    floor : float
        The smallest error of `curve`, without steps at which rounding could make the error small by chance. A floor
        below 1e-8 passes.
    kinks : int
        The number of elements at which the slopes to the left and to the right differ. The directions leave these
        elements out; their gradient must lie between the two slopes.
    verdict : "pass", "FAIL", "kinks" or "unresolved"
        "kinks" if more than half of the scanned elements are kinks. "unresolved" if backward and differences disagree
        by no more than rounding explains. In both cases these inputs allow no judgement.
    worst : Element or None
        The element at which backward and differences disagree most, if the verdict is "FAIL".
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
    """An :class:`InputCheck` for each input. The result is true if all pass, and prints as a table."""

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
        A function of as many Tensors as there are inputs that returns one Tensor. It must return the same output for
        the same inputs: a function that draws random numbers (dropout) calls ``minnl.manual_seed`` first.
    inputs : list or tuple of float64 arrays or Tensors
        They are not modified. The check runs on their device.
    locate : bool
        Whether to find the worst element of an input that fails, which takes several calls of fn for each element.

    Returns
    -------
    GradcheckResult
        True if every gradient is right; prints as a table.

    Raises
    ------
    TypeError
        If inputs are not float64 arrays, or fn does not return a float64 Tensor.
    ValueError
        If inputs or outputs have NaN or infinity, if fn gives different outputs for the same inputs, or if TF32 is on.

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
    kinked: bool  # whether L has a kink along one of the directions
    resolved: bool  # whether the errors are larger than rounding explains


def _worst_curve(probe, i, g, allowed, unit):
    """The error curve of the worst of some random directions."""
    steps, worst, floor, kinked, resolved = [unit * h for h in STEPS], None, -1.0, False, True
    for k in range(DIRECTIONS):
        d = probe.random(g.shape)
        if k == 0:  # with the signs of g nothing cancels, and a wrong factor shows at its full size
            d = probe.xp.copysign(d, g)
        d *= allowed
        expected, typical = float((g * d).sum()), float(((g * d) ** 2).sum()) ** 0.5
        slopes = [probe.slopes(i, d, h) for h in steps]
        measured = [(right + left) / 2 for right, left in slopes]
        # The error is relative to the largest of three: the typical size of such a sum, since the rounding of a sum
        # that cancels would look large; the measured slope, since a gradient of 0 would make every error infinite; and
        # the smallest slope that differences can tell from 0.
        scale = max(typical, np.nan_to_num(abs(measured[1]), posinf=0.0), RESOLVED * probe.size / probe.unit(i))
        errors = tuple(_relative(abs(m - expected), scale) for m in measured)
        kinked = kinked or probe.kink(slopes[-3:], steps)
        # only steps at which rounding stays below PASS, and at least the first: at smaller steps a small error is luck
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
    outside: float  # the distance of a kink's gradient from the interval of its two slopes, relative to the slopes

    def mistake(self):
        if self.kink and not self.outside:
            return 0.0
        return abs(self.element.backward - self.element.differences)


def _scan(probe, i, g, unit):
    """Check the elements of input i singly; a random sample of SCANNED elements if there are more."""
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
        outside = beyond if beyond > 1e-5 else 0.0  # the error of a one-sided slope is about its step, 1e-7
    return _Scanned(Element(at, here, closest), kink, outside)


def names_of(fn, count):
    """The names of fn's arguments, or "input i" where fn has no signature."""
    try:
        parameters = inspect.signature(fn).parameters.values()
    except (TypeError, ValueError):
        parameters = ()
    named = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return [named[i] if i < len(named) else f"input {i}" for i in range(count)]


def _arrays(inputs):
    """Copies of the inputs as arrays; an error unless they are finite float64 arrays."""
    if not isinstance(inputs, (list, tuple)) or not inputs:
        raise TypeError(f"gradcheck: inputs must be a list of one array or more, got {type(inputs).__name__}")
    arrays = [x.data if isinstance(x, Tensor) else x for x in inputs]
    for i, a in enumerate(arrays):
        if not backend.is_array(a):
            raise TypeError(f"gradcheck: inputs[{i}] must be an array or a Tensor, got {type(a).__name__}")
        if a.dtype != np.float64:
            raise TypeError(
                f"gradcheck: inputs[{i}] is {a.dtype}; differences need the precision of float64: "
                "pass x.astype(numpy.float64)"
            )
    xp = backend.namespace("gradcheck", *arrays)
    for i, a in enumerate(arrays):
        if not np.isfinite(backend.to_host(a)).all():
            raise ValueError(f"gradcheck: inputs[{i}] holds NaN or infinity, where no slope exists")
    if xp is not np and backend.tf32():
        raise ValueError("gradcheck: TF32 is on in CuPy and too imprecise for the check; unset CUPY_TF32 and restart")
    return [backend.copied(a) for a in arrays]
