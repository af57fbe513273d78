"""Losses: cross-entropy over classes, and over independent yes/no labels. Derivations: docs/ops/losses.md."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias, get_args

import numpy as np

from minnl import backend
from minnl.backend import Array
from minnl.checks import choice, number
from minnl.engine import Op, Tensor, meta_array
from minnl.ops.arguments import broadcast_shape, tensor
from minnl.ops.pointwise import sigmoid_of
from minnl.sums import chosen, mean, total

Reduction: TypeAlias = Literal["mean", "sum", "none"]
REDUCTIONS = get_args(Reduction)


class CrossEntropy(Op):
    r"""Cross-entropy of the softmax of x with labels.

    With :math:`p = \mathrm{softmax}(x)`, class weights w, label t and smoothing s over K classes, the target is
    :math:`q_k = w_k\bigl((1-s)[k=t] + s/K\bigr)` and

    .. math:: \ell = -\sum_k q_k \ln p_k, \qquad \bar x_k = \bar\ell\,\Bigl(p_k \sum_j q_j - q_k\Bigr)

    "mean" divides the sum by :math:`\sum w_t` over the rows that count, as PyTorch does. A class that is not in the
    target adds nothing, even if its logit is -infinity.

    Shapes: x (..., K), labels (...) -> loss () or (...). Keeps the exponentials, of x's shape, and their sums: together
    they are p.
    """

    public_name = "cross_entropy"
    saved_for_backward = ("e", "total")

    def __init__(self, labels, ignored, weight, smoothing, reduction):
        self.labels, self.ignored, self.weight = labels, ignored, weight
        self.smoothing, self.reduction = smoothing, reduction

    def target(self, x):
        """q (..., K), rows of zeros where the label is ignored; and what "mean" divides by."""
        classes, counts = x.shape[-1], (~self.ignored).astype(x.dtype)[..., None]
        weight = counts if self.weight is None else counts * self.weight
        hit = weight * (self.labels[..., None] == self.xp.arange(classes))
        q = (1 - self.smoothing) * hit + weight * (self.smoothing / classes) if self.smoothing else hit
        return q, total(hit)

    def forward(self, x):
        x = x - x.max(axis=-1, keepdims=True)
        self.e = self.xp.exp(x)
        self.total = total(self.e, -1, keepdims=True)
        log_p = x - self.xp.log(self.total)
        q, self.divisor = self.target(x)
        loss = -total(q * self.xp.where(q == 0, self.xp.zeros_like(q), log_p), -1)
        if self.reduction == "none":
            return self.xp.asarray(loss)
        return self.xp.asarray(total(loss) / self.divisor if self.reduction == "mean" else total(loss))

    def backward(self, gy):
        q, _ = self.target(self.e)
        gx = self.e / self.total * total(q, -1, keepdims=True) - q
        gx *= gy[..., None] if self.reduction == "none" else gy / self.divisor if self.reduction == "mean" else gy
        return (chosen(gx, ~self.ignored[..., None]),)  # also where the divisor is 0

    def infer(self, x):
        self.e, self.total = meta_array(x.shape, x.dtype), meta_array((*x.shape[:-1], 1), x.dtype)
        return meta_array(x.shape[:-1] if self.reduction == "none" else (), x.dtype)


class BinaryCrossEntropyWithLogits(Op):
    r"""Cross-entropy of sigmoid(x) with targets t in [0, 1], each element on its own.

    With a weight w for each element and :math:`\pi` for the positive part of the target,

    .. math::
        \ell = w\bigl(\pi t\, s(-x) + (1-t)\, s(x)\bigr), \qquad
        \bar x = \bar\ell\, w\,\bigl((1-t)\, \sigma(x) - \pi t\, \sigma(-x)\bigr)

    where :math:`s(x) = \ln(1+e^x) = \max(x,0) + \ln(1+e^{-|x|})` does not overflow, and nothing cancels. Keeps x.
    """

    public_name = "binary_cross_entropy_with_logits"
    saved_for_backward = ("x",)

    def __init__(self, target, weight, pos_weight, reduction):
        self.target, self.weight, self.pos_weight, self.reduction = target, weight, pos_weight, reduction

    def shares(self):
        """What yes and no count for: pi t w and (1 - t) w."""
        yes, no = self.target, 1 - self.target
        if self.pos_weight is not None:
            yes = yes * self.pos_weight
        return (yes, no) if self.weight is None else (yes * self.weight, no * self.weight)

    def forward(self, x):
        xp, (yes, no) = self.xp, self.shares()
        self.x = x
        near = xp.log1p(xp.exp(-xp.abs(x)))
        loss = yes * (xp.maximum(-x, 0) + near) + no * (xp.maximum(x, 0) + near)
        if self.reduction == "none":
            return xp.asarray(loss)
        return xp.asarray(mean(loss) if self.reduction == "mean" else total(loss))

    def backward(self, gy):
        yes, no = self.shares()
        gx = gy * (no * sigmoid_of(self.xp, self.x) - yes * sigmoid_of(self.xp, -self.x))
        return (gx / self.x.size if self.reduction == "mean" else gx,)

    def infer(self, x):
        self.x = x
        return meta_array(x.shape if self.reduction == "none" else (), x.dtype)


def cross_entropy(
    x: Tensor | Array, labels: Array | Sequence[Any], weight: Tensor | Array | Sequence[float] | None = None,
    ignore_index: int = -100, reduction: Reduction = "mean", label_smoothing: float = 0.0,
) -> Tensor:  # fmt: skip
    """Cross-entropy between the softmax of x over its last axis, and labels.

    Parameters
    ----------
    x : Tensor of shape (..., K)
        Logits, classes last.
    labels : integer ndarray of shape (...), or a list
        Classes 0 to K-1, or `ignore_index`. Checked on the host, where an index out of range cannot slip through.
    weight : ndarray of shape (K,) or None
        A weight for each class.
    reduction : "mean" (weighted by the labels' weights), "sum" or "none"
    label_smoothing : float in [0, 1]

    Raises
    ------
    ValueError
        Labels out of range or of another shape; a reduction or smoothing that does not exist.
    TypeError
        Labels that are not integers.

    Notes
    -----
    Formula and derivation: :class:`CrossEntropy` and docs/ops/losses.md.
    """
    x = tensor("cross_entropy", "x", x)
    if x.ndim < 1 or x.shape[-1] == 0:
        raise ValueError(f"cross_entropy: x must have shape (..., classes), got {x.shape}")
    if isinstance(labels, Tensor):
        raise TypeError("cross_entropy: labels must be an integer array, got a Tensor (those are float)")
    labels = backend.to_host(labels) if backend.is_array(labels) else np.asarray(labels)
    if labels.dtype.kind not in "iu":
        raise TypeError(f"cross_entropy: labels must be integers, got {labels.dtype}")
    if labels.shape != x.shape[:-1]:
        raise ValueError(f"cross_entropy: labels have shape {labels.shape}, x of shape {x.shape} needs {x.shape[:-1]}")
    labels = labels.astype(np.int64)
    ignored = labels == ignore_index
    wrong = ~ignored & ((labels < 0) | (labels >= x.shape[-1]))
    if wrong.any():
        raise ValueError(
            f"cross_entropy: label {labels[wrong][0]} is out of range, x has {x.shape[-1]} classes "
            f"(0 to {x.shape[-1] - 1}; ignore_index is {ignore_index})"
        )
    labels = _moved(x, labels)
    with backend.on(x.device):
        ignored = labels == ignore_index  # once more where x is: one array less to copy
    weight = _moved(x, _like("cross_entropy", "weight", weight, x, x.shape[-1:]))
    smoothing = number("cross_entropy", "label_smoothing", label_smoothing, 0, 1)
    reduction = choice("cross_entropy", "reduction", reduction, REDUCTIONS)
    return CrossEntropy(labels, ignored, weight, smoothing, reduction)(x)


def binary_cross_entropy_with_logits(
    x: Tensor | Array, target: Tensor | Array | Sequence[Any], weight: Tensor | Array | float | None = None,
    reduction: Reduction = "mean", pos_weight: Tensor | Array | float | None = None,
) -> Tensor:  # fmt: skip
    """Cross-entropy between sigmoid(x) and targets, element by element.

    Parameters
    ----------
    x : Tensor of any shape
    target : float ndarray of x's shape, values in [0, 1]
    weight : ndarray that broadcasts to x's shape, or None
    pos_weight : ndarray that broadcasts to x's shape, or None
        Weight of the positive part; above 1 it favours recall.
    reduction : "mean", "sum" or "none"

    Notes
    -----
    Formula and derivation: :class:`BinaryCrossEntropyWithLogits` and docs/ops/losses.md.
    """
    op = "binary_cross_entropy_with_logits"
    x = tensor(op, "x", x)
    target = _like(op, "target", target, x, x.shape)
    if target is None:
        raise TypeError(f"{op}: target must be a float array of shape {x.shape}, got None")
    host = backend.to_host(target)
    if not ((host >= 0) & (host <= 1)).all():
        raise ValueError(f"{op}: target must be within [0, 1], got {host.min()} to {host.max()}")
    target, weight, pos_weight = (
        _moved(x, a) for a in (target, _like(op, "weight", weight, x), _like(op, "pos_weight", pos_weight, x))
    )
    return BinaryCrossEntropyWithLogits(target, weight, pos_weight, choice(op, "reduction", reduction, REDUCTIONS))(x)


def _moved(x, array):
    return None if array is None else backend.to_device(array, x.device)


def _like(op, name, value, x, shape=None):
    """A constant beside x, as an array of its dtype and of a shape that fits, wherever it is."""
    if value is None:
        return None
    if isinstance(value, Tensor):
        value = value.data
    if not backend.is_array(value):
        value = np.asarray(value, dtype=x.dtype)
    if value.dtype != x.dtype:
        raise TypeError(f"{op}: {name} is {value.dtype}, x is {x.dtype}")
    if shape is not None and value.shape != shape:
        raise ValueError(f"{op}: {name} has shape {value.shape}, x of shape {x.shape} needs {shape}")
    if broadcast_shape(op, value.shape, x.shape) != x.shape:
        raise ValueError(f"{op}: {name} of shape {value.shape} does not broadcast to x's {x.shape}")
    return value
