"""The slopes of L = sum(w * fn(inputs)), with random weights w, by backward and by differences. See gradcheck.py."""

import math

import numpy as np

from minnl import backend
from minnl.engine import Tensor, no_grad

STEPS = tuple(10.0**-k for k in range(1, 8))  # the steps of differences, in multiples of Probe.unit
FINER = 1e-4  # a factor on the unit for functions that bend within it, such as log of an input that holds 1e-4 and 1
EPS = float(np.finfo(np.float64).eps)
ROUNDING = 1e-6  # a change of L above this part of the largest number is a jump, not rounding


class Probe:
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
        """The output array of fn on copies of the inputs, with `by` added to input number `moved`."""
        return self.call([a + by if i == moved else a.copy() for i, a in enumerate(self.arrays)]).data

    def call(self, arrays):
        y = self.fn(*(Tensor(a, requires_grad=True) for a in arrays))
        if not isinstance(y, Tensor):
            raise TypeError(f"gradcheck: fn must return one Tensor, got {type(y).__name__}")
        if y.dtype != np.float64:
            raise TypeError(f"gradcheck: fn turned float64 into {y.dtype}, too coarse for differences")
        return y

    def random(self, shape):
        """Random entries of both signs, from 0.5 to 1.5 in magnitude."""
        values = self.rng.uniform(0.5, 1.5, shape) * self.rng.choice((-1.0, 1.0), shape)
        return backend.to_device(np.asarray(values), self.device)

    def gradients(self):
        leaves = [Tensor(a.copy(), requires_grad=True) for a in self.arrays]
        with np.errstate(all="ignore"):  # a gradient that is not finite gets a verdict, not a warning
            y = self.fn(*leaves)
            if y.requires_grad:
                y.backward(self.weight)
        return [self.xp.zeros_like(x.data) if x.grad is None else x.grad for x in leaves]

    def unit(self, i):
        """The unit of the steps for input i: the power of ten next to its root mean square, or 1 if it is all 0."""
        size = float(self.xp.sqrt((self.arrays[i] ** 2).mean())) if self.arrays[i].size else 0.0
        return 10.0 ** round(math.log10(size)) if size else 1.0

    def resolves(self, expected, slopes, steps):
        """Whether the slopes differ from the `expected` slope by more than rounding explains.

        Rounding changes L by its own last digit, or by the last digit of a larger intermediate number that cancels in
        L. This shows at the smallest step: the slopes to the right and to the left differ, or L does not change at all.
        """
        measured = [(right + left) / 2 for right, left in slopes]
        largest = max(float(abs(a).max()) for a in (*self.arrays, self.y) if a.size)
        if not any(measured):
            return abs(expected) * steps[0] > EPS * largest
        if measured[-1]:
            digit = steps[-1] * max(abs(slopes[-1][0] - slopes[-1][1]), abs(measured[-1] - measured[-2]))
        else:
            digit = min(abs(m) * h for m, h in zip(measured, steps, strict=True) if m)
        errors = [abs(m - expected) for m in measured]
        best = next(k for k, e in enumerate(errors) if e <= 2 * np.nanmin(errors))
        return errors[best] > 100 * max(EPS * self.size, min(digit, ROUNDING * largest)) / steps[best]

    def slopes(self, i, direction, h):
        """The slopes of L to the right and to the left, along a direction in input i, by differences with step h."""
        with no_grad(), np.errstate(all="ignore"):  # a large step may leave the domain of fn, such as that of log
            after, before = self.output(i, h * direction), self.output(i, -h * direction)
            # the difference comes before the sum: an output that did not change adds exactly 0 and no rounding
            return tuple(float((self.weight * d).sum()) / h for d in (after - self.y, self.y - before))

    def kink(self, slopes, steps):
        """Whether the slopes to the right and to the left differ, and by the same at each of several steps.

        Where a function is smooth, the difference falls with the step; at a jump, which is not a kink, it grows.
        """
        gaps = [abs(right - left) for right, left in slopes]
        rounding = 1e-14 * self.size / steps[-1] + 1e-6 * max(map(abs, slopes[-1]))
        return gaps[-1] > rounding and max(gaps) < 1.1 * min(gaps)

    def between(self, i, direction, h):
        """The smallest and the largest slope of L if each output has its slope to the right or to the left."""
        with no_grad():
            after, before = self.output(i, h * direction), self.output(i, -h * direction)
            right, left = self.weight * (after - self.y) / h, self.weight * (self.y - before) / h
            return float(self.xp.minimum(right, left).sum()), float(self.xp.maximum(right, left).sum())
