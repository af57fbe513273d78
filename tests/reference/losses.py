"""Cross-entropy: over classes, and over independent yes/no labels."""

import math

import numpy as np

from tests.reference.elementwise import each, logistic
from tests.reference.softmaxes import log_probabilities, probabilities


def targets(x, labels, weight, ignore_index, label_smoothing):
    """For each row its target q, a weight for every class; and the sum of the labels' weights."""
    classes, total, rows = x.shape[-1], 0.0, {}
    for i in np.ndindex(x.shape[:-1]):
        label = int(np.asarray(labels)[i])
        rows[i] = [0.0] * classes
        if label != ignore_index:
            total += 1 if weight is None else weight[label]
            for k in range(classes):
                share = (1 - label_smoothing) * (k == label) + label_smoothing / classes
                rows[i][k] = share * (1 if weight is None else weight[k])
    return rows, total


def cross_entropy(x, labels, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0):
    """loss[i] = - the sum over classes of q[i, k] * ln p[i, k]."""
    loss = np.zeros(x.shape[:-1])
    rows, total = targets(x, labels, weight, ignore_index, label_smoothing)
    for i, q in rows.items():
        log_p = log_probabilities(x[i].tolist())
        loss[i] = -sum(q[k] * log_p[k] for k in range(x.shape[-1]))
    if reduction == "none":
        return loss
    return loss.sum() / (total if reduction == "mean" else 1)


def cross_entropy_backward(gy, x, labels, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0):
    """gx[k] = gy * the sum over j of -q[j] * d(ln p[j])/dx[k], and d(ln p[j])/dx[k] = [j = k] - p[k]."""
    gx = np.zeros(x.shape)
    rows, total = targets(x, labels, weight, ignore_index, label_smoothing)
    for i, q in rows.items():
        p = probabilities(x[i].tolist())
        g = {"none": lambda i: gy[i], "sum": lambda i: gy, "mean": lambda i: gy / total}[reduction](i)
        for k, j in np.ndindex(x.shape[-1], x.shape[-1]):
            gx[i][k] += g * -q[j] * ((j == k) - p[k])
    return (gx,)


def log_logistic(v):
    """ln sigmoid(v), without overflow."""
    return -math.log1p(math.exp(-v)) if v >= 0 else v - math.log1p(math.exp(v))


def binary_cross_entropy_with_logits(x, target, weight=None, reduction="mean", pos_weight=None):
    """loss = -w * (pi * t * ln sigmoid(x) + (1 - t) * ln(1 - sigmoid(x)))"""

    def of(v, t, w, pi):
        return -w * (pi * t * log_logistic(v) + (1 - t) * log_logistic(-v))

    loss = each(of, x, target, 1 if weight is None else weight, 1 if pos_weight is None else pos_weight)
    return {"none": loss, "sum": loss.sum(), "mean": loss.sum() / max(loss.size, 1)}[reduction]


def binary_cross_entropy_with_logits_backward(gy, x, target, weight=None, reduction="mean", pos_weight=None):
    """d ln sigmoid(x) / dx = 1 - sigmoid(x), and d ln(1 - sigmoid(x)) / dx = -sigmoid(x)."""

    def slope(g, v, t, w, pi):
        return g * w * ((1 - t) * logistic(v) - pi * t * logistic(-v))

    g = gy / x.size if reduction == "mean" else gy
    return (each(slope, g, x, target, 1 if weight is None else weight, 1 if pos_weight is None else pos_weight),)
