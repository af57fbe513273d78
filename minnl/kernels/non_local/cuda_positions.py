"""What the non-local kernels share: positions as lists."""

from __future__ import annotations

from minnl import backend
from minnl.kernels.runtime.cuda import contiguous


def fold(op, theta, phi, g):
    """The inputs as lists of positions, which the op keeps; returns memory for y, such a list too."""
    op.shapes(theta, phi, g)
    op.theta, op.phi, op.g = contiguous(*(op.fold(x) for x in (theta, phi, g)))
    return backend.load_cupy().empty((*op.theta.shape[:2], g.shape[-1]), g.dtype)


def fold_gradient(op, gy):
    return contiguous(op.fold(gy))[0]


def unfold_gradients(op, *lists):
    """Gradients of theta, phi and g as the inputs lie; None stays None."""
    shapes = op.theta_shape, op.phi_shape, op.g_shape
    return [None if x is None else op.unfold(x, shape) for x, shape in zip(lists, shapes, strict=True)]
