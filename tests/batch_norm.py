"""Batch norm as a function, and inputs for it, for the tests of kernels on either device."""

import numpy as np

from minnl import backend
from minnl import functional as F


def normalise(training=True, relu=False):
    """Batch norm as a function of x, weight, bias, and of a residual if it is given one."""

    def fn(x, weight, bias, *residual):
        channels = np.arange(x.shape[-1])
        statistics = (channels % 3 - 1).astype(x.dtype), (0.5 + channels % 2).astype(x.dtype)
        running = [backend.to_device(a, x.device) for a in statistics]
        y = F.batch_norm(x, *running, weight, bias, training, relu=relu, residual=residual[0] if residual else None)
        # Near 0 two bodies may differ over the sign; the square's slope is 0 where ReLU's jumps.
        return y * y if relu else y

    return fn


def spread(x):
    """Two values a channel may lie so near to each other that their difference has lost its digits in float32."""
    x.reshape(-1, x.shape[-1])[0] = 3
    x.reshape(-1, x.shape[-1])[1] = -3
    return x
