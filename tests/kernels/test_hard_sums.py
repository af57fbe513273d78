"""Softmax, losses, sums, batch norm and pooling on hard inputs: errors of either body beside PyTorch's in float32."""

import contextlib
import importlib.util
from unittest import mock

import numpy as np
import pytest

from minnl import Tensor
from minnl import functional as F
from minnl.kernels.batch_norm import cpu as norm
from tests.hard_inputs import NORMAL, Subject, Trial, check, hard, magnitudes, outcome, pairs, plain

if importlib.util.find_spec("torch"):
    import torch
    from torch.nn import functional as TF

LAST = [(-1,), (-1,)]
TEXTBOOK = ("textbook",)


def shape_of(rng, ndim, most=6):
    return tuple(int(n) for n in rng.integers(1, most, size=ndim))


def softmax(rng):
    def units(inputs, gy, results):
        return None, results[0] * np.abs(gy).max(axis=-1, keepdims=True)

    return Trial([hard(rng, (*shape_of(rng, 1), 9))], F.softmax, lambda x: torch.softmax(x, -1), LAST, units)


def log_softmax(rng):
    def units(inputs, gy, results):
        return None, np.abs(gy) + np.exp(results[0]) * np.abs(gy).sum(axis=-1, keepdims=True)

    return Trial([hard(rng, (*shape_of(rng, 1), 9))], F.log_softmax, lambda x: torch.log_softmax(x, -1), LAST, units)


def cross_entropy(rng):
    x = hard(rng, (int(rng.integers(1, 6)), 7))
    labels = rng.integers(0, 7, len(x))
    labels[1:][rng.random(len(x) - 1) < 0.2] = -100
    weight = rng.uniform(0.5, 2, 7).astype(np.float32) if rng.random() < 0.3 else None
    options = {"reduction": str(rng.choice(["mean", "sum", "none"])), "label_smoothing": float(rng.choice([0, 0.1]))}

    def fn(x):
        return F.cross_entropy(x, labels, None if weight is None else weight.astype(x.dtype), **options)

    def twin(x):
        return TF.cross_entropy(x, torch.tensor(labels), None if weight is None else torch.tensor(weight), **options)

    def units(inputs, gy, results):
        """The logarithm is of a sum of which 1 is a term; a gradient is the difference of two shares of a weight."""
        of_label = np.where(labels < 0, 0, 1 if weight is None else weight[np.maximum(labels, 0)])
        gradient = np.abs(gy) * of_label / (of_label.sum() if options["reduction"] == "mean" else 1)
        return np.ones_like(results[0]), gradient[:, None]

    return Trial([x], fn, twin, [(), (-1,)], units)


def binary_cross_entropy(rng):
    shape = shape_of(rng, 2)
    x, target = hard(rng, shape), rng.choice([0, 1, 0.01, 0.5, 0.99], size=shape).astype(np.float32)
    positive = rng.uniform(0.5, 4, shape).astype(np.float32) if rng.random() < 0.3 else None
    reduction = str(rng.choice(["mean", "sum", "none"]))

    def fn(x):
        weight = None if positive is None else positive.astype(x.dtype)
        return F.binary_cross_entropy_with_logits(x, target.astype(x.dtype), reduction=reduction, pos_weight=weight)

    def twin(x):
        weight = None if positive is None else torch.tensor(positive)
        return TF.binary_cross_entropy_with_logits(x, torch.tensor(target), reduction=reduction, pos_weight=weight)

    def units(inputs, gy, results):
        """The gradient is the difference of two terms, each of which is rounded."""
        yes, no = target * (1 if positive is None else positive), 1 - target
        terms = no / (1 + np.exp(-inputs[0])) + yes / (1 + np.exp(inputs[0]))
        return None, np.abs(gy) * terms / (x.size if reduction == "mean" else 1)

    return Trial([x], fn, twin, units=units)


def summed(name):
    """F.sum or F.mean over axes at random, of up to a thousand numbers."""

    def make(rng):
        shape = (int(rng.integers(1, 4)), int(rng.integers(1, 80)), *shape_of(rng, 2))
        axis = tuple(sorted(int(a) for a in rng.choice(4, size=rng.integers(1, 5), replace=False)))
        axis = (1, 2) if rng.random() < 0.3 else axis

        def fn(x):
            return getattr(F, name)(x, axis)

        return Trial([hard(rng, shape)], fn, lambda x: getattr(torch, name)(x, axis), units=magnitudes(fn))

    return make


def var(rng):
    shape, axis = (int(rng.integers(2, 80)), *shape_of(rng, 2)), [(0,), (0, 1), (0, 1, 2)][rng.integers(3)]

    def units(inputs, gy, results):
        """A deviation is rounded as the largest one is."""
        far = np.abs(inputs[0] - inputs[0].mean(axis=axis, keepdims=True)).max(axis=axis, keepdims=True)
        n = inputs[0].size // gy.size
        return None, far * np.abs(gy).reshape(far.shape) * 2 / (n - 1)

    return Trial(
        [hard(rng, shape)],
        lambda x: F.var(x, axis),
        lambda x: torch.var(x, axis),
        over=[(), axis],
        units=units,
    )


def broadcast_add(rng):
    """The gradient of what was broadcast is the sum over its uses."""
    a, b = (int(rng.integers(1, 80)), 3, 4), [(4,), (3, 1), (1, 1, 4), (1,)][rng.integers(4)]

    def fn(a, b):
        return a + b

    return Trial([hard(rng, a), hard(rng, b)], fn, fn, units=magnitudes(fn))


def linear(rng):
    x, inputs, outputs = hard(rng, (int(rng.integers(1, 90)), int(rng.integers(1, 9)))), None, int(rng.integers(1, 9))
    inputs = [x, plain(rng, (x.shape[1], outputs)), plain(rng, (outputs,))]
    return Trial(inputs, F.linear, lambda x, w, b: TF.linear(x, w.T, b), units=magnitudes(F.linear))


@contextlib.contextmanager
def small_blocks():
    """So that a few thousand numbers are several blocks of the fast batch norm."""
    norm.rows_of.cache_clear()
    with mock.patch.multiple(norm, SMALLEST=0, WIDTH=64, LANES=16, BLOCK=512):
        yield
    norm.rows_of.cache_clear()


def batch_norm(training):
    def make(rng):
        shape = (int(rng.integers(2, 40)), *shape_of(rng, 2), int(rng.integers(1, 8)))
        channels, over = shape[-1:], (0, 1, 2)
        x, weight, bias, mean = hard(rng, shape), plain(rng, channels), plain(rng, channels), hard(rng, channels)
        variance = np.abs(hard(rng, channels))

        def statistics(like):
            return [None, None] if training else [mean.astype(like), variance.astype(like)]

        def fn(x, weight, bias):
            given = [None if a is None else Tensor(a, device=x.device).data for a in statistics(x.dtype)]
            return F.batch_norm(x, *given, weight, bias, training)

        def twin(x, weight, bias):
            given = [None if a is None else torch.tensor(a) for a in statistics(np.float32)]
            return TF.batch_norm(x.movedim(-1, 1), *given, weight, bias, training).movedim(1, -1)

        def units(inputs, gy, results):
            """Of what each result is the sum; products below the normal numbers are rounded as these are."""
            x, weight, bias = inputs
            m, v = (x.mean(axis=over), x.var(axis=over)) if training else statistics(np.float64)
            r = 1 / np.sqrt(v + 1e-5)
            normed, g = np.abs(x - m) * r, np.abs(gy)
            n = x.size // x.shape[-1]
            gweight = (g * normed).sum(axis=over) + n * NORMAL * r
            gx = g + (g.sum(axis=over) / n + normed * gweight / n if training else 0)
            return np.abs(weight) * normed + np.abs(bias), np.abs(weight) * r * gx, gweight, g.sum(axis=over)

        return Trial([x, weight, bias], fn, twin, [over, over, (), ()], units)

    return make


def of_winners(fn):
    """Units of a largest value: what a position wins is added up."""
    return lambda inputs, gy, results: outcome(fn, inputs, np.float64, "textbook", lambda shape: np.abs(gy))


def pooled(fn, twin, units_of=magnitudes):
    """A pooling of windows at random."""

    def make(rng):
        kernel = tuple(int(n) for n in rng.integers(1, 4, size=3))
        options = {"kernel_size": kernel, "stride": tuple(int(n) for n in rng.integers(1, 4, size=3))}
        options["padding"] = tuple(int(rng.integers(0, k // 2 + 1)) for k in kernel)
        x = hard(rng, (2, *(int(n) for n in rng.integers(3, 8, size=3)), int(rng.integers(1, 5))))

        def ours(x):
            return fn(x, **options)

        return Trial([x], ours, lambda x: last(twin(first(x), **options)), units=units_of(ours))

    return make


def adaptive(fn, twin, units_of=magnitudes):
    def make(rng):
        size = (1, 1, 1) if rng.random() < 0.4 else shape_of(rng, 3, 4)
        x = hard(rng, (2, *(int(n) for n in rng.integers(1, 9, size=3)), int(rng.integers(1, 5))))

        def ours(x):
            return fn(x, size)

        return Trial([x], ours, lambda x: last(twin(first(x), size)), units=units_of(ours))

    return make


def first(x):
    return x.movedim(-1, 1)


def last(x):
    return x.movedim(1, -1)


def of_torch(name):
    """torch.nn.functional's function of that name, looked up when it is called: there may be no PyTorch."""
    return lambda *args, **options: getattr(TF, name)(*args, **options)


SUBJECTS = [
    Subject("softmax", softmax, modes=TEXTBOOK),
    Subject("log_softmax", log_softmax, modes=TEXTBOOK),
    Subject("cross_entropy", cross_entropy, modes=TEXTBOOK),
    Subject("binary_cross_entropy_with_logits", binary_cross_entropy, modes=TEXTBOOK),
    Subject("sum", summed("sum"), modes=TEXTBOOK),
    Subject("mean", summed("mean"), modes=TEXTBOOK),
    Subject("var", var, modes=TEXTBOOK),
    Subject("add", broadcast_add, modes=TEXTBOOK),
    Subject("linear", linear),
    Subject("batch_norm, training", batch_norm(True), small_blocks),
    Subject("batch_norm, evaluation", batch_norm(False), small_blocks),
    Subject("max_pool3d", pooled(F.max_pool3d, of_torch("max_pool3d"), of_winners)),
    Subject("avg_pool3d", pooled(F.avg_pool3d, of_torch("avg_pool3d")), modes=TEXTBOOK),
    Subject(
        "adaptive_max_pool3d",
        adaptive(F.adaptive_max_pool3d, of_torch("adaptive_max_pool3d"), of_winners),
        modes=TEXTBOOK,
    ),
    Subject("adaptive_avg_pool3d", adaptive(F.adaptive_avg_pool3d, of_torch("adaptive_avg_pool3d")), modes=TEXTBOOK),
]


@pytest.mark.slow
@pytest.mark.parametrize(("subject", "mode"), pairs(SUBJECTS))
def test_errors_beside_pytorchs(subject, mode):
    check(subject, mode)
