"""Sums over very many positions in float32: engine/test_sums.py and gpu/test_sums.py hold them to one bound.

The numbers are from 1000.03 to 1000.031: a running sum of a few hundred thousand or more rounds all of them down, to
its spacing.
"""

import numpy as np

from minnl import Tensor
from minnl import functional as F

BOUND = 1e-6  # of the sum of the magnitudes


def numbers(*shape, seed=0):
    return (1000.03 + np.random.default_rng(seed).random(shape) / 1000).astype(np.float32)


def few(*shape):
    return np.linspace(0.5, 1.5, np.prod(shape, dtype=int)).astype(np.float32).reshape(shape)


def reduced(op, x, axis):
    return lambda x: getattr(F, op)(x, axis), [x], (0,)


def cases(n):
    """{name: (fn, inputs, which)} for about n positions; `which` of output (0) and gradients are sums over them.

    All terms are positive, so the sum of the magnitudes is the sum itself.
    """
    side = int(n**0.5)
    clip, rows, maps = numbers(2, 4, side // 4, side // 4, 3), numbers(n, 3), numbers(1, 1, side, side, 2)
    found = {f"mean over {axis}": reduced("mean", clip, axis) for axis in [(1, 2, 3), (0, 2, 3), (0, 1, 2, 3, 4), 3]}
    found |= {f"sum over {axis}": reduced("sum", rows, axis) for axis in [0, (0, 1)]}
    found |= {f"{op} along the first axis": reduced(op, rows - 1000, 0) for op in ("softmax", "log_softmax")}
    statistics = few(3), few(3)

    def normed(x, weight, bias, training):
        return F.batch_norm(x, *(a.astype(x.dtype) for a in device_of(x, statistics)), weight, bias, training, eps=0.0)

    return found | {
        "var": reduced("var", rows, 0),
        "adaptive_avg_pool3d": (lambda x: F.adaptive_avg_pool3d(x, 1), [clip], (0,)),
        "avg_pool3d": (lambda x: F.avg_pool3d(x, (1, 20, side)), [maps], (0,)),
        "broadcast addition": (lambda x, b: x + b, [rows, few(3)], (2,)),
        "linear": (F.linear, [rows, few(3, 3), few(3)], (3,)),
        "conv3d": (F.conv3d, [maps, few(1, 1, 1, 2, 2), few(2)], (3,)),
        "batch_norm": (lambda *inputs: normed(*inputs, True), [rows, few(3), few(3)], (3,)),
        "frozen_batch_norm": (lambda *inputs: normed(*inputs, False), [rows, few(3), few(3)], (2, 3)),
        "affine": (F.affine, [rows, few(3), few(3)], (2, 3)),
        "cross_entropy": (lambda x: F.cross_entropy(x, np.zeros(n, int)), [numbers(n, 2) - 1000], (0,)),
        "binary_cross_entropy": (
            lambda x: F.binary_cross_entropy_with_logits(x, np.full(x.shape, 0.5, x.dtype)), [rows - 1000], (0,),
        ),
    }  # fmt: skip


def device_of(x, arrays):
    return [Tensor(a, device=x.device).data for a in arrays]


def outcome(fn, inputs, dtype, device):
    """Output and gradients, as float64 arrays on the host."""
    leaves = [Tensor(a.astype(dtype), requires_grad=True, device=device) for a in inputs]
    y = fn(*leaves)
    gy = numbers(*y.shape, seed=1) if y.ndim else np.ones((), np.float32)
    y.backward(Tensor(gy.astype(dtype), device=device).data)
    return [Tensor(a).numpy().astype(np.float64) for a in (y.data, *(x.grad for x in leaves))]


def worst(fn, inputs, which, device=None):
    """The largest relative error in float32, beside float64 on the CPU."""
    found, right = outcome(fn, inputs, np.float32, device), outcome(fn, inputs, np.float64, None)
    return max(np.abs(found[i] / right[i] - 1).max() for i in which)
