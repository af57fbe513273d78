"""Does float32, and whatever kernel runs there, compute what float64 does? Explained in docs/gradcheck.md.

The gradient check is for float64, where most kernels do not run. So the textbook body, checked in float64, becomes the
judge of what runs in float32: outputs and gradients of both, for the same numbers.
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

PASS = 1e-4  # of the largest value: 10 times what rounding leaves after long sums, no more than a mistake of 0.01 %
FACTOR = 4  # times the error of the textbook body in float32, where the inputs are such that it is large


@dataclass(frozen=True)
class Comparison:
    """The output, or the gradient of an input.

    Attributes
    ----------
    error, textbook : float
        The largest difference from float64, relative to the largest value: of what runs in float32, and of the textbook
        body in float32.
    verdict : "pass", or "FAIL" where `error` is above 1e-4, and above four times `textbook`
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
    """A :class:`Comparison` for the output and for each input; true if all pass. Print it for the table.

    `ran` names the kernels that ran in float32; without any the two errors are of the same code.
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
    """Compare what a function does in float32, with the fast kernels, with its textbook bodies in float64.

    Parameters
    ----------
    fn : callable
        Takes as many Tensors as there are inputs and returns one Tensor of their dtype. Must give the same for the same
        inputs: one that draws (dropout) calls ``minnl.manual_seed`` first.
    inputs : list or tuple of float arrays or Tensors
        Rounded to float32 first, so that both compute with the same numbers. Not modified. On a GPU, if that is where
        they are.

    Returns
    -------
    Float32Result
        True if the output and every gradient is right; prints as a table.

    Raises
    ------
    TypeError
        Inputs that are not float arrays; an fn that returns something else than a Tensor of its inputs' dtype.

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
            rng = np.random.default_rng(0)  # as in the gradient check: either sign, none near 0
            weight = (rng.uniform(0.5, 1.5, y.shape) * rng.choice((-1.0, 1.0), y.shape)).astype(np.float32)
            y.backward(backend.to_device(np.asarray(weight, dtype), y.device))
    gradients = [np.zeros_like(x.numpy()) if x.grad is None else x.grad for x in leaves]
    return [backend.to_host(a).astype(np.float64) for a in (y.data, *gradients)], ran


def _kernels(op):
    """The names of the kernels that ran for an op and for those before it."""
    found, waiting, seen = set(), [op], set()
    while waiting:
        op = waiting.pop()
        if isinstance(op, Op) and op not in seen:
            seen.add(op)
            waiting += op.sources
            if dispatch.is_kernel(type(op)):
                found.add(type(op).__name__)
    return tuple(sorted(found))


def _error(found, right):
    """The largest difference, relative to the largest value unless all are 0.

    What is not finite, or too large for float32, must be in `found` what it becomes in float32.
    """
    with np.errstate(over="ignore"):
        rounded = right.astype(np.float32)
    finite = np.isfinite(rounded)
    if not np.array_equal(found[~finite], rounded[~finite], equal_nan=True):
        return np.inf
    off, largest = (float(np.abs(a[finite]).max(initial=0)) for a in (found - right, right))
    return off / (largest or 1.0)
