"""The non-local operation on hard inputs, all modes and axes: errors of either body beside PyTorch's in float32."""

import contextlib
import functools
import importlib.util
from unittest import mock

import numpy as np
import pytest

from minnl import functional as F
from minnl.kernels.non_local import cpu as non_local
from minnl.kernels.non_local import sorted as non_local_sorted
from minnl.ops.non_local import NonLocalDot, NonLocalSoftmax
from tests.hard_inputs import EPS, NORMAL, Subject, Trial, check, hard, magnitudes, pairs, plain
from tests.kernels.test_non_local import in_blocks

if importlib.util.find_spec("torch"):
    import torch

NEAR = 16 * EPS  # of the terms of a sum that may be positive or not


def shapes(rng):
    """Of theta, phi and g, and the axes: a few keys, or a row of up to 300."""
    axes = str(rng.choice(["spacetime", "space", "time"]))
    n, t, h, w, inner, depth = (int(rng.integers(1, most)) for most in (3, 4, 5, 5, 9, 6))
    long = rng.random() < 0.2
    frames, width = (int(rng.integers(50, 100)) if long else int(rng.integers(1, 5)) for _ in range(2))
    keys = {"spacetime": (int(rng.integers(1, 4)), 1, width), "space": (t, 3, width), "time": (frames, h, w)}[axes]
    return ((n, t, h, w, inner), (n, *keys, inner), (n, *keys, depth)), axes


def rows(x, axes):
    """As lists of positions, (B, L, C), of NumPy or PyTorch."""
    n, t, h, w, c = x.shape
    if axes == "time":
        return x.reshape(n, t, h * w, c).swapaxes(1, 2).reshape(n * h * w, t, c)
    return x.reshape(n * t, h * w, c) if axes == "space" else x.reshape(n, t * h * w, c)


def back(x, shape, axes):
    n, t, h, w, _ = shape
    if axes == "time":
        return x.reshape(n, h * w, t, -1).swapaxes(1, 2).reshape(n, t, h, w, -1)
    return x.reshape(n, t, h, w, -1)


def trial(rng, mode, scale=None, **more):
    """How a mode of the operation, and PyTorch's products, are called on hard inputs, and in which layout they are."""
    of, axes = shapes(rng)
    inputs = [(hard if rng.random() < 0.6 else plain)(rng, shape) for shape in of]

    def fn(*tensors):
        weight = {"weight": tensors[3]} if len(tensors) > 3 else {}
        return F.non_local(*tensors[:3], mode=mode, scale=scale, axes=axes, **weight)

    def lists(arrays):
        return [rows(a, axes) for a in arrays]

    return inputs, fn, lists, lambda x, like: back(x, like.shape, axes)


def softmax(rng):
    scale = float(rng.choice([0.03, 0.3, 1]))
    inputs, fn, lists, unfold = trial(rng, "embedded", scale)

    def twin(*tensors):
        theta, phi, g = lists(tensors)
        return unfold(torch.softmax(scale * (theta @ phi.swapaxes(1, 2)), -1) @ g, tensors[0])

    def units(inputs, gy, results):
        """A logit of size s is rounded to some EPS s: the relative error of its weight, or more where s is large.

        A logit's gradient is a sum of differences to the other keys, so it is as small as their weights. Exponentials
        may be MOST times as large as weights, and what they are multiplied with that much smaller.
        """
        (theta, phi, g), (gy,) = lists(inputs), lists([gy])
        s = scale * (theta @ phi.swapaxes(1, 2))
        s -= s.max(axis=-1, keepdims=True)
        s -= np.log(np.exp(s).sum(axis=-1, keepdims=True))
        theta, phi, g, gy = (np.abs(a) for a in (theta, phi, g, gy))
        off = NEAR * scale * (theta @ phi.swapaxes(1, 2)).max(axis=-1, keepdims=True)
        p, least, most = np.exp(s), np.exp(s - off), np.exp(np.minimum(s + off, 0))
        p_off = p + np.maximum(p - least, most - p) / NEAR + NORMAL
        r = gy @ g.swapaxes(1, 2)
        others = (most * r).sum(axis=-1, keepdims=True) - most * r
        s_off = scale * p_off * ((1 - least + NEAR) * r + others + non_local.MOST * NORMAL)
        of = p_off @ g, s_off @ phi, s_off.swapaxes(1, 2) @ theta, p_off.swapaxes(1, 2) @ gy
        order = max(1, np.sqrt(max(s.shape)) / 4)  # of the sums over keys and queries: their roundings go to and fro
        return [order * unfold(a, like) + NORMAL for a, like in zip(of, (inputs[0], *inputs), strict=True)]

    return Trial(inputs, fn, twin, units=units)


def dot(rng):
    inputs, fn, lists, unfold = trial(rng, "dot")

    def twin(*tensors):
        theta, phi, g = lists(tensors)
        return unfold(theta @ phi.swapaxes(1, 2) @ g / phi.shape[1], tensors[0])

    def units(inputs, gy, results):
        """Products of three numbers: one of two may be lost below the normal ones."""
        largest = 1 + max(np.abs(a).max() for a in (*inputs, gy))
        count = sum(a.size for a in inputs)
        return [a + NORMAL * largest * count for a in magnitudes(fn)(inputs, gy, results)]

    return Trial(inputs, fn, twin, units=units)


def concat(rng):
    inputs, fn, lists, unfold = trial(rng, "concat")
    inner = inputs[0].shape[-1]
    inputs.append(plain(rng, (2 * inner,)))

    def twin(*tensors):
        theta, phi, g = lists(tensors[:3])
        a, b = theta @ tensors[3][:inner], phi @ tensors[3][inner:]
        return unfold(torch.relu(a[:, :, None] + b[:, None]) @ g / phi.shape[1], tensors[0])

    def units(inputs, gy, results):
        """Whether a pair counts is a matter of rounding where its sum is nearly 0: then all of its gradient may go."""
        (theta, phi, g), (gy,), (w_theta, w_phi) = lists(inputs[:3]), lists([gy]), np.split(inputs[3], 2)
        s = (theta @ w_theta)[:, :, None] + (phi @ w_phi)[:, None]
        theta, phi, g, gy, w_theta, w_phi = (np.abs(a) for a in (theta, phi, g, gy, w_theta, w_phi))
        size = (theta @ w_theta)[:, :, None] + (phi @ w_phi)[:, None] + NORMAL * inner
        keys = phi.shape[1]
        f_off = size * (s > -NEAR * size) / keys
        s_off = ((s > 0) + (np.abs(s) <= NEAR * size) / EPS) * (gy @ g.swapaxes(1, 2) / keys + NORMAL)
        a_off, b_off = s_off.sum(axis=2), s_off.sum(axis=1)
        of_weight = [np.einsum("bp,bpc->c", off, x) for off, x in ((a_off, theta), (b_off, phi))]
        of = f_off @ g, a_off[..., None] * w_theta, b_off[..., None] * w_phi, f_off.swapaxes(1, 2) @ gy
        lists_of = [unfold(a, like) + NORMAL for a, like in zip(of, (inputs[0], *inputs[:3]), strict=True)]
        return [*lists_of, np.concatenate(of_weight) + NORMAL]

    return Trial(inputs, fn, twin, units=units)


@contextlib.contextmanager
def one_way(first):
    """Small blocks; exponentials kept or not, products in one order or the other, concatenation sorted or not."""
    with (
        in_blocks(200, 4),
        mock.patch.object(NonLocalSoftmax, "few_keys", lambda op: first),
        mock.patch.object(NonLocalDot, "few_pairs", lambda op: first),
        mock.patch.object(non_local_sorted, "FEW", 0 if first else 10**9),
    ):
        yield


KEPT, AGAIN = (functools.partial(one_way, first) for first in (True, False))
SUBJECTS = [
    Subject("non_local, exponentials kept", softmax, KEPT, ("fast",)),
    Subject("non_local, exponentials again", softmax, AGAIN, ("fast",)),
    Subject("non_local, softmax", softmax, modes=("textbook",)),
    Subject("non_local, dot of pairs", dot, KEPT, ("fast",)),
    Subject("non_local, dot of sums", dot, AGAIN, ("fast",)),
    Subject("non_local, dot", dot, modes=("textbook",)),
    Subject("non_local, concat sorted", concat, KEPT, ("fast",)),
    Subject("non_local, concat streamed", concat, AGAIN, ("fast",)),
    Subject("non_local, concat", concat, modes=("textbook",)),
]


@pytest.mark.slow
@pytest.mark.parametrize(("subject", "mode"), pairs(SUBJECTS))
def test_errors_beside_pytorchs(subject, mode):
    check(subject, mode)
