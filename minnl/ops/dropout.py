"""Dropout, of elements or of whole channels. Derivation: docs/ops/dropout.md."""

from __future__ import annotations

import math

from minnl import random
from minnl.backend import Array
from minnl.checks import number
from minnl.engine import Op, Tensor, meta_array
from minnl.ops.arguments import tensor


def uniform_bits(xp, seed, count):
    """`count` uniform 32-bit integers from an integer seed: the same on the CPU and on a GPU.

    A counter, scrambled (two rounds of the "lowbias32" integer hash by C. Wellons, seeds mixed in between): element i
    depends on the seed and i alone, so there is no state to save and nothing to draw on the GPU.
    """
    x = xp.arange(count, dtype=xp.uint32)
    for word in (seed & 0xFFFFFFFF, seed >> 32):
        x ^= xp.uint32(word)
        for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B), (16, 1)):
            x ^= x >> xp.uint32(shift)
            x *= xp.uint32(factor)
    return x


class Dropout(Op):
    r"""Each element (or channel of a clip) set to 0 with probability p, the others scaled to keep the mean.

    .. math:: y_i = m_i x_i, \qquad \bar x_i = m_i \bar y_i, \qquad m_i \in \{0, \tfrac1{1-p}\}

    The mask comes from one integer drawn on the host. Keeps the mask, one byte an element (or channel).
    """

    public_name = "dropout"
    saved_for_backward = ("stays",)

    def __init__(self, p, channels, seed):
        self.p, self.channels, self.seed = p, channels, seed
        self.least = min(round(p * 2**32), 2**32 - 1)  # of 2**32 equally likely integers, the first that stays

    def mask_shape(self, x):
        return (x.shape[0], *(1,) * (x.ndim - 2), x.shape[-1]) if self.channels else x.shape

    def forward(self, x):
        shape = self.mask_shape(x)
        bits = uniform_bits(self.xp, self.seed, math.prod(shape)).reshape(shape)
        self.stays = bits >= self.xp.uint32(self.least)
        return self.masked(x)

    def backward(self, gy):
        return (self.masked(gy),)

    def masked(self, array):
        return array * self.stays * (1 / (1 - self.p))

    def infer(self, x):
        self.stays = meta_array(self.mask_shape(x), bool)
        return meta_array(x.shape, x.dtype)


def probability(where, p):
    """p as a float in [0, 1)."""
    p = number(where, "p", p, 0, 1)
    if p == 1:
        raise ValueError(f"{where}: p must be below 1 (p = 1 leaves nothing)")
    return p


def dropout(x: Tensor | Array, p: float = 0.5, training: bool = True, channels: bool = False) -> Tensor:
    """Set elements to 0 with probability p while training; x itself otherwise.

    Parameters
    ----------
    x : Tensor of shape (N, ..., C)
    p : float in [0, 1)
    channels : bool
        Drop whole channels of a clip instead of single elements.

    Notes
    -----
    The mask follows minnl.manual_seed and is the same on the CPU and on a GPU. Formula: :class:`Dropout`.
    """
    x, p = tensor("dropout", "x", x), probability("dropout", p)
    if channels and x.ndim < 2:
        raise ValueError(f"dropout: channels=True needs x of shape (N, ..., C), got {x.shape}")
    if not training or p == 0:
        return x
    return Dropout(p, bool(channels), int(random.generator().integers(2**63)))(x)
