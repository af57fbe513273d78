"""The float32 check: the fast kernels in float32 against the textbook bodies in float64. See docs/gradcheck.md.

The gradient check needs float64, where most kernels do not run. So the textbook body, checked in float64, is the
reference for float32: the check compares outputs and gradients for the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from minnl import backend, dispatch
from minnl.backend import Array
from minnl.contracts import FLOATS
from minnl.engine import Op, Tensor
from minnl.study.gradcheck import names_of

PASS = 1e-4  # an error of this part of the largest value passes: 10 times the rounding of long sums
FACTOR = 4  # an error of this many times the textbook body's error in float32 passes too, for inputs that cancel


@dataclass(frozen=True)
class Comparison:
    """The result for the output, or for the gradient of an input.

    Attributes
    ----------
    error, textbook : float
        The largest difference from float64, relative to the largest value: `error` of the fast mode, `textbook` of the
        textbook body, both in float32.
    verdict : "pass", or "FAIL" if `error` is above 1e-4 and above four times `textbook`
    """

    name: str
    shape: tuple[int, ...]
    error: float
    textbook: float

    @property
    def verdict(self) -> str:
        return "pass" if self.error <= max(PASS, FACTOR * self.textbook) else "FAIL"


@dataclass(frozen=True)
class Float32Result:
    """A :class:`Comparison` for the output and for each input. The result is true if all pass, and prints as a table.

    `ran` names the kernels that ran in float32. If none ran, both errors come from the same code.
    """

    results: tuple[Comparison, ...]
    ran: tuple[str, ...]

    def __bool__(self) -> bool:
        return all(c.verdict == "pass" for c in self.results)

    def __str__(self) -> str:
        width = max(len(c.name) for c in self.results)
        shape = max([5, *(len(str(c.shape)) for c in self.results)])
        lines = [f"{'':{width}}  {'shape':{shape}}    error  textbook  (kernels: {', '.join(self.ran) or 'none'})"]
        for c in self.results:
            lines.append(f"{c.name:{width}}  {c.shape!s:{shape}}  {c.error:7.1e}   {c.textbook:7.1e}  {c.verdict}")
        return "\n".join(lines)


def float32check(fn: Callable[..., Tensor], inputs: Sequence[Tensor | Array]) -> Float32Result:
    """Compare a function in float32 with the fast kernels to the same function in float64 with the textbook bodies.

    Parameters
    ----------
    fn : callable
        A function of as many Tensors as there are inputs that returns one Tensor of their dtype. It must return the
        same output for the same inputs: a function that draws random numbers (dropout) calls ``minnl.manual_seed``
        first.
    inputs : list or tuple of float arrays or Tensors
        They are rounded to float32 first, so that both runs use the same numbers, and are not modified. The check runs
        on their device.

    Returns
    -------
    Float32Result
        True if the output and every gradient pass; prints as a table.

    Raises
    ------
    TypeError
        If inputs are not float arrays, or fn does not return a Tensor of its inputs' dtype.

    Examples
    --------
    >>> result = minnl.float32check(lambda x: F.cross_entropy(x, labels), [1e5 + rng.normal(size=(8, 10))])
    >>> assert result, result
    """
    if not isinstance(inputs, (list, tuple)) or not inputs:
        raise TypeError(f"float32check: inputs must be a list of one array or more, got {type(inputs).__name__}")
    arrays = [x.data if isinstance(x, Tensor) else x for x in inputs]
    for i, a in enumerate(arrays):
        if not backend.is_array(a) or a.dtype not in FLOATS:
            what = a.dtype if backend.is_array(a) else type(a).__name__
            raise TypeError(f"float32check: inputs[{i}] must be a float32 or float64 array or a Tensor, got {what}")
    arrays = [a.astype(np.float32) for a in arrays]
    right, _ = _run(fn, arrays, np.float64, "textbook")
    textbook, _ = _run(fn, arrays, np.float32, "textbook")
    found, ran = _run(fn, arrays, np.float32, "fast")
    names = ["output", *names_of(fn, len(arrays))]
    return Float32Result(
        tuple(
            Comparison(name, exact.shape, _error(ours, exact), _error(plain, exact))
            for name, exact, plain, ours in zip(names, right, textbook, found, strict=True)
        ),
        ran,
    )


def _run(fn, arrays, dtype, mode):
    """Output and gradients, in float64 on the host, and the names of the kernels that ran."""
    leaves = [Tensor(a.astype(dtype), requires_grad=True) for a in arrays]
    with dispatch.use_kernels(mode), np.errstate(all="ignore"):
        y = fn(*leaves)
        if not isinstance(y, Tensor) or y.dtype != dtype:
            what = y.dtype if isinstance(y, Tensor) else type(y).__name__
            raise TypeError(f"float32check: fn must return one Tensor, of {np.dtype(dtype)} as its inputs, got {what}")
        ran = _kernels(y.op)
        if y.requires_grad:
            rng = np.random.default_rng(0)  # as in the gradient check: both signs, 0.5 to 1.5 in magnitude
            weight = (rng.uniform(0.5, 1.5, y.shape) * rng.choice((-1.0, 1.0), y.shape)).astype(np.float32)
            y.backward(backend.to_device(np.asarray(weight, dtype), y.device))
    gradients = [np.zeros_like(x.numpy()) if x.grad is None else x.grad for x in leaves]
    return [backend.to_host(a).astype(np.float64) for a in (y.data, *gradients)], ran


def _kernels(op):
    """The names of the kernels that ran in the graph of an op."""
    found, waiting, visited = set(), [op], set()
    while waiting:
        op = waiting.pop()
        if isinstance(op, Op) and op not in visited:
            visited.add(op)
            waiting += op.sources
            if dispatch.is_kernel(type(op)):
                found.add(type(op).__name__)
    return tuple(sorted(found))


def _error(found, right):
    """The largest difference, relative to the largest value unless all are 0.

    Where a value of `right`, rounded to float32, is not finite, `found` must have the same NaN or infinity.
    """
    with np.errstate(over="ignore"):
        rounded = right.astype(np.float32)
    finite = np.isfinite(rounded)
    if not np.array_equal(found[~finite], rounded[~finite], equal_nan=True):
        return np.inf
    off, largest = (float(np.abs(a[finite]).max(initial=0)) for a in (found - right, right))
    return off / (largest or 1.0)
