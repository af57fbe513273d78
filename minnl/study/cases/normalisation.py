"""Cases of batch norm, the affine layer, softmax, the losses and dropout."""

import numpy as np

from minnl import functional as F
from minnl import random
from minnl.study.cases.case import beside, case, normal

MEAN, VAR = [0.5, -1.0, 2.0], [0.3, 1.7, 4.0]


def batch_norm(x, weight=None, bias=None, residual=None, mean=None, var=None, **arguments):
    """F.batch_norm with running statistics made anew for each call, since training edits them."""
    running = [None if values is None else beside(x, values) for values in (mean, var)]
    return F.batch_norm(x, *running, weight, bias, residual=residual, **arguments)


def frozen_batch_norm(x, weight=None, bias=None, residual=None, mean=None, var=None, **arguments):
    """F.frozen_batch_norm with its statistics as lists."""
    return F.frozen_batch_norm(x, beside(x, mean), beside(x, var), weight, bias, residual=residual, **arguments)


def dropout(x, seed=7, **arguments):
    """F.dropout with the same mask at each call."""
    before = random.get_state()
    random.manual_seed(seed)
    y = F.dropout(x, **arguments)
    random.set_state(before)
    return y


def _norm(name, *shapes, fn=batch_norm, smooth=True, **arguments):
    return case(name, normal(*shapes), fn, smooth, **arguments)


def dead_channels(rng):
    """Inputs of batch norm with ReLU: a channel that is not scaled, and one that is below 0 throughout."""
    return rng.normal(size=(5, 2, 3)), np.array([1.5, 0.0, 1.0]), np.array([0.1, 0.5, -9.0])


def off_centre(rng):
    """Inputs of batch norm with large means and small spreads, and as large scales."""
    return (rng.normal(size=(4, 3)) * 0.2 + MEAN, rng.uniform(2, 3, size=3), rng.normal(size=3))


C = (3,)
RESIDUAL = (3, 2, 1, 2, 3), C, C, (3, 2, 1, 2, 3)
FIXED = {"mean": MEAN, "var": VAR}
NORMS = [
    _norm("batch_norm/training", (2, 2, 3, 2, 3), C, C, training=True),
    _norm("batch_norm/training-edits-statistics", (2, 2, 3, 2, 3), C, C, training=True, **FIXED),
    _norm("batch_norm/training-without-weight", (5, 3), training=True),
    _norm("batch_norm/training-two-values", (2, 3), C, C, training=True, eps=0.1),
    _norm("batch_norm/training-one-channel", (3, 2, 1), (1,), (1,), training=True),
    _norm("batch_norm/training-momentum-eps", (2, 3, 3), C, C, training=True, momentum=0.7, eps=0.5, **FIXED),
    case("batch_norm/training-off-centre", off_centre, batch_norm, training=True),
    case(
        "batch_norm/training-non-contiguous", normal((3, 4, 2), C, C),
        lambda x, weight, bias: F.transpose(batch_norm(F.transpose(x), weight, bias, training=True)),
    ),
    _norm("batch_norm/training-relu", (2, 2, 3, 2, 3), C, C, training=True, relu=True, smooth=False),
    _norm("batch_norm/training-residual", (2, 2, 3, 2, 3), C, C, (2, 2, 3, 2, 3), training=True),
    _norm("batch_norm/training-residual-relu", *RESIDUAL, training=True, relu=True, smooth=False, **FIXED),
    case(
        "batch_norm/training-residual-is-input", normal((4, 3), C, C),
        lambda x, weight, bias: batch_norm(x, weight, bias, x, training=True, relu=True), smooth=False,
    ),
    case("batch_norm/training-relu-dead", dead_channels, batch_norm, smooth=False, training=True, relu=True, eps=0.1),
    _norm("batch_norm/evaluation", (2, 2, 1, 2, 3), C, C, **FIXED),
    _norm("batch_norm/evaluation-relu", (4, 2, 3), C, C, relu=True, smooth=False, **FIXED),
    _norm("batch_norm/evaluation-residual-relu", *RESIDUAL, relu=True, smooth=False, **FIXED),
    _norm("batch_norm/evaluation-without-weight", (2, 3), **FIXED),
    _norm("batch_norm/evaluation-empty-batch", (0, 2, 3), C, C, **FIXED),
    _norm("frozen_batch_norm/plain", (2, 2, 1, 2, 3), C, C, fn=frozen_batch_norm, **FIXED),
    _norm("frozen_batch_norm/without-weight", (4, 3), fn=frozen_batch_norm, **FIXED),
    _norm("frozen_batch_norm/eps", (4, 3), C, C, fn=frozen_batch_norm, eps=0.25, **FIXED),
    _norm("frozen_batch_norm/relu", (4, 3), C, C, fn=frozen_batch_norm, relu=True, smooth=False, **FIXED),
    _norm("frozen_batch_norm/residual", *RESIDUAL, fn=frozen_batch_norm, **FIXED),
    _norm("frozen_batch_norm/residual-relu", *RESIDUAL, fn=frozen_batch_norm, relu=True, smooth=False, **FIXED),
    _norm("frozen_batch_norm/empty-batch", (0, 3), C, C, fn=frozen_batch_norm, **FIXED),
    _norm("affine/plain", (2, 2, 1, 2, 3), C, C, fn=F.affine),
    _norm("affine/empty-batch", (0, 3), C, C, fn=F.affine),
]  # fmt: skip


def _softmaxes(op):
    def of_flipped(x, axis):
        return getattr(F, op)(F.flip(F.transpose(x), 0), axis)

    return [
        case(f"{op}/last-axis", normal((3, 5))),
        case(f"{op}/first-axis", normal((4, 3)), axis=0),
        case(f"{op}/middle-axis", normal((2, 4, 3)), axis=1),
        case(f"{op}/size-1-axis", normal((3, 1))),
        case(f"{op}/empty-batch", normal((0, 4))),
        case(f"{op}/large-logits", lambda rng: (rng.normal(size=(3, 4)) + 800,)),
        case(f"{op}/ties", lambda rng: (rng.normal(size=(3, 4)).round(),)),
        case(f"{op}/non-contiguous", normal((4, 3)), of_flipped, axis=1),
    ]


CLASS_WEIGHTS = [0.5, 2.0, 1.0, 3.0]
LABELS = [3, 0, 1, 3, 2]
IGNORED = [3, -100, 1, -100, 2]
TARGET = [[0.0, 1.0, 0.25], [1.0, 0.5, 0.0]]
POSITIVE = [3.0, 0.5, 1.5]

LOSSES = [
    case("cross_entropy/mean", normal((5, 4)), labels=LABELS),
    case("cross_entropy/sum", normal((5, 4)), labels=LABELS, reduction="sum"),
    case("cross_entropy/none", normal((5, 4)), labels=LABELS, reduction="none"),
    case("cross_entropy/weights", normal((5, 4)), labels=LABELS, weight=CLASS_WEIGHTS),
    case("cross_entropy/weights-sum", normal((5, 4)), labels=LABELS, weight=CLASS_WEIGHTS, reduction="sum"),
    case("cross_entropy/smoothing", normal((5, 4)), labels=LABELS, label_smoothing=0.1),
    case("cross_entropy/all-smoothed", normal((5, 4)), labels=LABELS, label_smoothing=1.0),
    case("cross_entropy/ignored", normal((5, 4)), labels=IGNORED),
    case("cross_entropy/ignored-none", normal((5, 4)), labels=IGNORED, reduction="none"),
    case("cross_entropy/ignore-a-class", normal((5, 4)), labels=LABELS, ignore_index=3),
    case(
        "cross_entropy/everything", normal((5, 4)),
        labels=IGNORED, weight=CLASS_WEIGHTS, label_smoothing=0.2, reduction="mean",
    ),
    case(
        "cross_entropy/everything-none", normal((5, 4)),
        labels=IGNORED, weight=CLASS_WEIGHTS, label_smoothing=0.2, reduction="none",
    ),
    case("cross_entropy/positions", normal((2, 2, 3)), labels=[[0, 2], [1, 1]]),
    case("cross_entropy/one-row", normal((4,)), labels=2),
    case("cross_entropy/one-class", normal((3, 1)), labels=[0, 0, 0]),
    case("cross_entropy/large-logits", lambda rng: (rng.normal(size=(5, 4)) * 20 + 800,), labels=LABELS),
    case("cross_entropy/empty-batch-sum", normal((0, 4)), labels=np.zeros(0, int), reduction="sum"),
    case("binary_cross_entropy_with_logits/mean", normal((2, 3)), target=TARGET),
    case("binary_cross_entropy_with_logits/sum", normal((2, 3)), target=TARGET, reduction="sum"),
    case("binary_cross_entropy_with_logits/none", normal((2, 3)), target=TARGET, reduction="none"),
    case("binary_cross_entropy_with_logits/weight", normal((2, 3)), target=TARGET, weight=[[2.0], [0.5]]),
    case("binary_cross_entropy_with_logits/pos-weight", normal((2, 3)), target=TARGET, pos_weight=POSITIVE),
    case(
        "binary_cross_entropy_with_logits/everything", normal((2, 3)),
        target=TARGET, weight=[[2.0], [0.5]], pos_weight=POSITIVE, reduction="sum",
    ),
    case(
        "binary_cross_entropy_with_logits/far-out", lambda rng: (rng.choice((-1.0, 1.0), size=(2, 3)) * 30,),
        target=TARGET,
    ),
]  # fmt: skip

DROPOUTS = [
    case("dropout/elements", normal((3, 4, 5)), dropout, p=0.4),
    case("dropout/channels", normal((3, 2, 4)), dropout, p=0.5, channels=True),
    case("dropout/evaluation", normal((3, 4)), dropout, training=False),
    case("dropout/probability-0", normal((3, 4)), dropout, p=0.0),
]

CASES = [*NORMS, *_softmaxes("softmax"), *_softmaxes("log_softmax"), *LOSSES, *DROPOUTS]
