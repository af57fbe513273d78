"""Hard float32 inputs, and a judge who compares errors on them: of a body of minnl's, and of PyTorch's in float32.

How to use it: a module ``tests/kernels/test_hard_*.py`` has a list `SUBJECTS`, and a test that calls
``check(subject, mode)`` for each of them and of its modes::

    def softmax(rng):
        return Trial([hard(rng, (4, 9))], F.softmax, lambda x: torch.softmax(x, -1), over=[(-1,), (-1,)])

    SUBJECTS = [Subject("softmax", softmax)]

``hard(rng, shape)`` draws a kind of :data:`KINDS` and an array of it. The judge is the textbook body in float64, on the
same numbers. A result is judged in *lines*: all its numbers that differ only along the axes `over` are one line, and
``over=()`` judges each number alone. The error of a line is its largest, and may be at most `FACTOR` times

    the error of PyTorch's float32 in that line + EPS * the line's unit

The unit is the size of what is rounded on the way, where that is more than the line's largest result: for a mean the
mean of the magnitudes, for a gradient that cancels its terms. Without PyTorch the peer is the textbook body in float32.

``python -m tests.hard_inputs`` prints for all subjects the worst errors, ours beside PyTorch's.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest

import minnl
from minnl import Tensor, backend
from tests import ROOT

EPS = float(np.finfo(np.float32).eps)
TINY = float(np.finfo(np.float32).smallest_subnormal)
NORMAL = float(np.finfo(np.float32).smallest_normal)
FACTOR = 4  # times the peer's error: another order of the same roundings, no more
TRIALS = 500  # of each subject


def _power(rng, low, high):
    return 10 ** rng.uniform(low, high)


def _scale(rng, shape):
    return rng.normal(size=shape) * _power(rng, -6, 6)


def _offset(rng, shape):
    return rng.normal(size=shape) * _power(rng, -2, 2) + rng.choice([-1, 1]) * _power(rng, 3, 8)


def _denormal(rng, shape):
    return rng.normal(size=shape) * _power(rng, -44, -38)


def _outlier(rng, shape):
    x = rng.normal(size=shape) * _power(rng, -3, 0)
    x.reshape(-1)[rng.integers(x.size)] = rng.choice([-1, 1]) * _power(rng, 1, 6)
    return x


def _rows(rng, shape):
    """Each row, what differs only along the last axis, has a size of its own."""
    return rng.normal(size=shape) * _power(rng, -6, np.full((*shape[:-1], 1), 6))


def _levels(rng, shape):
    """Each row lies around a number of its own."""
    return rng.normal(size=shape) + rng.normal(size=(*shape[:-1], 1)) * _power(rng, 1, 6)


def _channels(rng, shape):
    """Each place of the last axis has a size and an offset of its own."""
    size = _power(rng, -4, np.full(shape[-1:], 4))
    return rng.normal(size=shape) * size + rng.normal(size=shape[-1:]) * _power(rng, 0, 4) * size


def _constant(rng, shape):
    """Each row is one number."""
    return np.broadcast_to(rng.normal(size=(*shape[:-1], 1)) * _power(rng, -3, 6), shape)


def _positive(rng, shape):
    """Sums grow with every number, and round in one direction."""
    return rng.uniform(size=shape) + _power(rng, 0, 4)


KINDS = (_scale, _offset, _denormal, _outlier, _rows, _levels, _channels, _constant, _positive)


def hard(rng, shape, kinds=KINDS):
    """A float32 array of one of the kinds, drawn from rng."""
    return np.ascontiguousarray(kinds[rng.integers(len(kinds))](rng, shape), dtype=np.float32)


def plain(rng, shape):
    """A float32 array from the normal distribution: for what is not the hard part, weights and gradients."""
    return rng.normal(size=shape).astype(np.float32)


@dataclass(frozen=True)
class Trial:
    """A function and its inputs.

    Attributes
    ----------
    inputs : list of float32 arrays
    fn : callable of as many Tensors, which returns one
    twin : callable of as many torch tensors, laid out as minnl's, which returns one
    over : list of tuples
        For the output and the gradient of each input: the axes that make a line. One tuple may stand for all.
    units : callable or None
        ``units(inputs, gy, results)``: for each result an array that broadcasts against it, or None where the line's
        largest result is the unit. All are float64, and `results` are the judge's.
    """

    inputs: list
    fn: Callable
    twin: Callable
    over: list | tuple = ()
    units: Callable | None = None


@dataclass(frozen=True)
class Subject:
    """``make(rng)`` gives a Trial. Minnl's bodies run within `context`, which may cut blocks smaller, for instance.

    `modes`: ("textbook",) for an op that has no kernel on the CPU.
    """

    name: str
    make: Callable
    context: Callable = contextlib.nullcontext
    modes: tuple = ("fast", "textbook")


@dataclass
class Worst:
    """What was found in all trials: errors in EPS of the unit, and how far one of ours goes beyond its bound of 1."""

    ours: float = 0.0
    peers: float = 0.0
    beyond: float = 0.0
    where: tuple = ()
    trials: int = field(default=0)


def outcome(fn, inputs, dtype, mode, gy, device=None):
    """Output and gradients of fn as float64 arrays, computed in `dtype`."""
    with minnl.use_kernels(mode):
        leaves = [Tensor(a.astype(dtype), requires_grad=True, device=device) for a in inputs]
        y = fn(*leaves)
        y.backward(Tensor(gy(y.shape).astype(dtype), device=device).data)
    return [backend.to_host(a).astype(np.float64) for a in (y.data, *(x.grad for x in leaves))]


def twins(twin, inputs, gy):
    """The same of PyTorch in float32."""
    import torch

    leaves, threads = [torch.from_numpy(a.copy()).requires_grad_() for a in inputs], torch.get_num_threads()
    torch.set_num_threads(1)  # to wake others takes longer than all there is to do
    y = twin(*leaves)
    y.backward(torch.from_numpy(gy(tuple(y.shape))))
    torch.set_num_threads(threads)
    return [a.detach().numpy().astype(np.float64) for a in (y, *(x.grad for x in leaves))]


def magnitudes(fn):
    """Units for an fn that adds up products of its inputs: the same sums, of the magnitudes of their terms."""

    def units(inputs, gy, results):
        return outcome(fn, [np.abs(a) for a in inputs], np.float64, "textbook", lambda shape: np.asarray(np.abs(gy)))

    return units


def largest(array, over):
    return np.abs(array).max(axis=tuple(over), keepdims=True, initial=0)


@functools.lru_cache(TRIALS)
def prepared(subject, number):
    """A trial, the gradient of its output, the judge's results, the peer's, and the units of each."""
    rng = np.random.default_rng(number)
    trial, drawn = subject.make(rng), []

    def gy(shape):
        drawn[:] = drawn or [plain(rng, shape)]
        return drawn[0]

    right = outcome(trial.fn, trial.inputs, np.float64, "textbook", gy)
    if importlib.util.find_spec("torch"):
        peer = twins(trial.twin, trial.inputs, gy)
    else:
        peer = outcome(trial.fn, trial.inputs, np.float32, "textbook", gy)
    units = [None] * len(right)
    if trial.units:
        units = trial.units([a.astype(np.float64) for a in trial.inputs], drawn[0].astype(np.float64), right)
    return trial, gy, right, peer, units


def judge(worst, number, over, found, right, peer, units):
    """Add what one trial shows to `worst`."""
    over = over if isinstance(over, list) else [over] * len(right)
    for i, (ours, theirs, exact, unit, axes) in enumerate(zip(found, peer, right, units, over, strict=True)):
        assert ours.shape == theirs.shape == exact.shape, f"shapes {ours.shape}, {theirs.shape}, {exact.shape}"
        lost = ~np.isfinite(exact.astype(np.float32)) | ~np.isfinite(theirs)  # beyond float32, for PyTorch too
        assert (np.isfinite(ours) | lost).all(), f"trial {number}, result {i}: not finite, PyTorch's is"
        off, of_peer = (largest(np.where(lost, 0, a - exact), axes) for a in (ours, theirs))
        size = largest(np.where(lost, 0, exact), axes)
        if unit is not None:
            size = np.maximum(size, largest(np.broadcast_to(unit, exact.shape), axes))
        grain = EPS * size + TINY
        beyond = off / (of_peer + grain) / FACTOR
        if beyond.max(initial=0) > worst.beyond:
            worst.beyond, worst.where = float(beyond.max()), (number, i)
        seen = np.maximum(grain, EPS * NORMAL)  # what lies below the normal numbers has no digits to lose
        worst.ours = max(worst.ours, float((off / seen).max(initial=0)))
        worst.peers = max(worst.peers, float((of_peer / seen).max(initial=0)))


def run(subject, mode, trials=TRIALS, device=None):
    """The :class:`Worst` of a subject's trials under "fast" or "textbook" kernels."""
    worst = Worst(trials=trials)
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        for number in range(trials):
            trial, gy, *others = prepared(subject, number)
            with subject.context():
                found = outcome(trial.fn, trial.inputs, np.float32, mode, gy, device)
            judge(worst, number, trial.over, found, *others)
    return worst


def check(subject, mode, trials=TRIALS, device=None):
    """No error of a subject is beyond its bound."""
    if mode == "textbook" and device is None and not importlib.util.find_spec("torch"):
        pytest.skip("needs PyTorch: the textbook body would be its own peer")
    worst = run(subject, mode, trials, device)
    number, result = worst.where or (None, None)
    assert worst.beyond <= 1, (
        f"{subject.name}: trial {number}, {f'gradient {result - 1}' if result else 'output'}: "
        f"{worst.beyond * FACTOR:.1f} times (PyTorch's error + EPS * unit), {FACTOR} allowed"
    )


def pairs(subjects):
    """Each subject with each of its modes, for parametrize."""
    return [
        pytest.param(s, mode, id=f"{s.name}-{mode}", marks=[pytest.mark.torch] if mode == "textbook" else [])
        for s in subjects
        for mode in s.modes
    ]


def subjects():
    """Those of all test modules."""
    names = sorted(path.stem for path in (ROOT / "tests/kernels").glob("test_hard_*.py"))
    return [subject for name in names for subject in importlib.import_module(f"tests.kernels.{name}").SUBJECTS]


def main():
    print("| op | kernels | worst error | PyTorch's | of what is allowed |\n|---|---|---|---|---|")
    for subject in subjects():
        for mode in subject.modes:
            w = run(subject, mode)
            errors = (f"{e:.3g}" if e < 1 / EPS else "no digit is right" for e in (w.ours, w.peers))
            print(f"| {subject.name} | {mode} | {' | '.join(errors)} | {w.beyond:.2f} |", flush=True)


if __name__ == "__main__":
    main()
