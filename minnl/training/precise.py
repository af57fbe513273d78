"""Precise batch norm: running statistics from many batches, with the weights held."""

from __future__ import annotations

import contextlib

import numpy as np

from minnl import backend, random
from minnl.engine import Tensor, no_grad
from minnl.nn import BatchNorm3d
from minnl.nn.modes import keeping_modes


def precise_batch_norm(model, batches):
    r"""Give every batch norm the mean and variance over all values of some batches, for evaluation.

    In training the running statistics trail behind the weights. Here the weights are held, every batch is normalised by
    its own statistics as in training, and the running statistics become

    .. math:: m = \frac{1}{n} \sum_b n_b m_b, \qquad
        v = \frac{1}{n} \sum_b n_b \bigl(v_b + (m_b - m)^2\bigr)

    for batches of :math:`n_b` values a channel with mean :math:`m_b` and variance :math:`v_b` (divided by
    :math:`n_b`). For batches of equal size the authors' release computes the same, over 200 batches on each GPU.
    Nothing else changes, and frozen norms keep their statistics.

    Parameters
    ----------
    model : nn.Module
    batches : iterable of float32 arrays of shape (N, T, H, W, C), where the model is

    Raises
    ------
    ValueError
        If there is no batch. After this and any other error the model is as before.
    """
    norms = [_Precise(m) for m in model.modules() if isinstance(m, BatchNorm3d) and not m.frozen]
    rng_state, count = random.get_state(), 0
    try:
        with keeping_modes(model), no_grad(), contextlib.ExitStack() as stack:
            for norm in norms:
                stack.enter_context(norm)
            model.train()
            for x in batches:
                model(Tensor(x))
                count += 1
            if not count:
                raise ValueError("precise_batch_norm: no batch came, one or more are needed")
    finally:
        random.set_state(rng_state)  # dropout has drawn from it; training must not notice


class _Precise:
    """Context that adds up a norm's statistics of each batch in float64, and sets its running statistics at the end."""

    def __init__(self, norm):
        self.norm, self.count, self.mean, self.squares = norm, 0, 0.0, 0.0  # squares: of distances from the mean

    def __enter__(self):
        norm = self.norm
        self.before = norm.momentum, backend.copied(norm.running_mean), backend.copied(norm.running_var)
        norm.forward, norm.momentum = self.forward, 1.0  # the instance's forward shadows that of the class

    def __exit__(self, error, *_):
        norm = self.norm
        del norm.forward
        norm.momentum, mean, var = self.before
        with backend.on(mean):
            if error is None and self.count:  # the count is 0 for a norm that the model does not use
                mean, var = self.mean, self.squares / self.count
            norm.running_mean[...], norm.running_var[...] = mean, var

    def forward(self, x, *others, **options):
        norm = self.norm
        for running in (norm.running_mean, norm.running_var):
            backend.assign(running, 0)  # momentum 1 replaces them by those of the batch
        y = type(norm).forward(norm, x, *others, **options)
        n = x.size // x.shape[-1]
        with backend.on(norm.running_mean):
            mean, var = norm.running_mean.astype(np.float64), norm.running_var.astype(np.float64)
            before, self.count, off = self.count, self.count + n, mean - self.mean
            self.mean = self.mean + off * (n / self.count)
            # Running variances are divided by n - 1. This sum subtracts no large squares: Chan, Golub, LeVeque 1983.
            self.squares = self.squares + (n - 1) * var + off * off * (before * n / self.count)
        return y
