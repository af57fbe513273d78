"""Sliding windows as a kernel gets them: the struct Windows of common.cuh."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

AXIS = np.dtype([(name, np.int32) for name in ("size", "out", "taps", "stride", "before", "dilation")])
WINDOWS = np.dtype([(axis, AXIS) for axis in "thw"])
ONE = (1, 1, 1)
LARGEST = 2**31 - 1  # a coordinate has 32 bits; places in arrays have 64


@dataclass(frozen=True)
class Windows:
    """Windows over (T, H, W): how many taps, how far from one to the next, of windows and of taps, the padding before.

    What lies outside of the input is zero, so the padding after it is of no concern.
    """

    taps: tuple
    stride: tuple
    before: tuple
    dilation: tuple

    def record(self, x, y):
        """The struct, by value, for windows over x (N, T, H, W, ...) that make y (N, T', H', W', ...)."""
        axes = zip(x.shape[1:4], y.shape[1:4], self.taps, self.stride, self.before, self.dilation, strict=True)
        return np.array(tuple(axes), WINDOWS)[()]

    def see_one_position_each(self, x, y):
        """Whether each makes its output, of shape y, of the input at the same place, and nothing else."""
        return self.taps == self.stride == ONE and not any(self.before) and x[:4] == y[:4]


def fits(op, x):
    """Whether the coordinates of an op with pads, stride and dilation have 32 bits."""
    padded = [n + sum(pads) for n, pads in zip(x.shape[1:4], op.pads, strict=True)]
    return max(*padded, *op.stride, *op.dilation) <= LARGEST
