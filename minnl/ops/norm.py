"""Batch normalisation of the last axis: trained, with fixed statistics, folded. Derivation: docs/ops/batch_norm.md."""

from __future__ import annotations

from typing import Any

from minnl import backend
from minnl.backend import Array
from minnl.checks import number
from minnl.engine import Op, Tensor, meta_array
from minnl.ops.arguments import layout, tensor
from minnl.sums import chosen, mean, total


def positions(array):
    """All axes but that of channels."""
    return tuple(range(array.ndim - 1))


class _ChannelsLast(Op):
    def sums(self, array):
        """Sum over all positions, (..., C) -> (C,)."""
        return total(array, positions(array))

    def finish(self, y, residual=None):
        """Add the residual, then max(y, 0), where asked for; y is the op's own array."""
        if residual is not None:
            y += residual
        if self.relu:
            self.xp.maximum(y, 0, out=y)


class BatchNorm(_ChannelsLast):
    r"""Normalise each channel with the statistics of the batch, then scale and shift; add and rectify if asked to.

    With n positions, mean :math:`m = \tfrac1n\sum_i x_i`, variance :math:`v = \tfrac1n\sum_i (x_i - m)^2` and
    :math:`r = (v + \epsilon)^{-1/2}`:

    .. math::
        \hat x_i = (x_i - m)\,r, \qquad z_i = \gamma \hat x_i + \beta + s_i, \qquad
        y_i = \max(z_i, 0), \qquad \bar s_i = \bar z_i = \bar y_i\,[y_i > 0]

    .. math::
        \bar\beta = \sum_i \bar z_i, \qquad \bar\gamma = \sum_i \bar z_i \hat x_i, \qquad
        \bar x_i = \gamma r\,\bigl(\bar z_i - \tfrac1n\bar\beta - \tfrac1n\hat x_i\,\bar\gamma\bigr)

    The residual s is 0 if there is none; without `relu` y = z.
    Shapes: x (..., C), gamma and beta (C,), s as x -> y (..., C). Keeps x, gamma, m and r (and not x-hat: it is two
    operations away); with `relu` also y, which the next layer keeps anyway. Variance from deviations, not from squares,
    so a large mean costs no digits.
    """

    public_name = "batch_norm"
    saved_for_backward = ("x", "weight", "mean", "rstd", "y")

    def __init__(self, running, momentum, eps, relu=False):
        self.running, self.momentum, self.eps, self.relu = running, momentum, eps, relu

    def forward(self, x, weight, bias, *residual):
        self.x, self.weight = x, weight
        n = x.size // x.shape[-1]
        self.mean = mean(x, positions(x))
        y = self.centred(x)
        var = mean(y * y, positions(x))
        self.rstd = 1 / self.xp.sqrt(var + self.eps)
        self.track(self.mean, var * (n / (n - 1)))
        y *= self.rstd * weight
        y += bias
        self.finish(y, *residual)
        self.y = y if self.relu else None
        return y

    def backward(self, gy):
        n = self.x.size // self.x.shape[-1]
        normed = self.centred(self.x) * self.rstd
        if self.relu:
            gy = chosen(gy, self.y != 0)
        gbias, gweight = self.sums(gy), self.sums(gy * normed)
        gx = None
        if self.needs[0]:
            normed *= gweight / n
            gx = gy - gbias / n
            gx -= normed
            gx *= self.weight * self.rstd
        return (gx, gweight, gbias, gy)[: len(self.needs)]

    def centred(self, x):
        """x - m, in two steps: what a large mean lost when it was rounded is the mean of what is left."""
        d = x - self.mean
        d -= mean(d, positions(d))
        return d

    def track(self, *statistics):
        """Move the running mean and variance towards those of this batch, in place."""
        if self.running is not None:
            for kept, seen in zip(self.running, statistics, strict=True):
                kept *= 1 - self.momentum
                kept += self.momentum * seen

    def infer(self, x, weight, bias, *residual):
        self.x, self.weight = x, weight
        self.mean, self.rstd = meta_array(weight.shape, x.dtype), meta_array(weight.shape, x.dtype)
        y = meta_array(x.shape, x.dtype)
        self.y = y if self.relu else None
        return y


class FrozenBatchNorm(_ChannelsLast):
    r"""Batch normalisation with given statistics: evaluation, and frozen layers.

    .. math:: z_i = \gamma r (x_i - m) + \beta + s_i, \qquad y_i = \max(z_i, 0), \qquad
        \bar s_i = \bar z_i = \bar y_i\,[y_i > 0]

    .. math:: \bar x_i = \gamma r\, \bar z_i, \qquad
        \bar\gamma = \sum_i \bar z_i\, r (x_i - m), \qquad \bar\beta = \sum_i \bar z_i

    m and :math:`r = (v + \epsilon)^{-1/2}` are constants: no gradient flows through them. The residual s is 0 if there
    is none; without `relu` y = z.
    Shapes as in :class:`BatchNorm`. Keeps gamma, m and r, x only if gamma asks for a gradient, y only with `relu`.
    """

    public_name = "frozen_batch_norm"
    saved_for_backward = ("x", "weight", "mean", "rstd", "y")

    def __init__(self, mean, var, eps, relu=False):
        self.mean, self.var, self.eps, self.relu = mean, var, eps, relu

    def forward(self, x, weight, bias, *residual):
        self.rstd = 1 / self.xp.sqrt(self.var + self.eps)
        y = x - self.mean
        y *= self.rstd * weight
        y += bias
        self.finish(y, *residual)
        self.keep(x, weight, y)
        return y

    def backward(self, gy):
        if self.relu:
            gy = chosen(gy, self.y != 0)
        gweight = self.sums(gy * (self.x - self.mean)) * self.rstd if self.needs[1] else None
        gx = gy * (self.weight * self.rstd) if self.needs[0] else None
        return (gx, gweight, self.sums(gy) if self.needs[2] else None, gy)[: len(self.needs)]

    def keep(self, x, weight, y):
        self.weight, self.x, self.y = weight, x if self.needs[1] else None, y if self.relu else None

    def infer(self, x, weight, bias, *residual):
        y, self.rstd = meta_array(x.shape, x.dtype), meta_array(weight.shape, x.dtype)
        self.keep(x, weight, y)
        return y


class Affine(_ChannelsLast):
    r"""Scale and shift each channel: :math:`y_i = s x_i + b`, :math:`\bar x_i = s\,\bar y_i`,
    :math:`\bar s = \sum_i \bar y_i x_i`, :math:`\bar b = \sum_i \bar y_i`.

    What a frozen batch norm folds into: :math:`s = \gamma r`, :math:`b = \beta - m \gamma r`.
    Shapes: x (..., C), scale and shift (C,). Keeps the scale, and x only if the scale asks for a gradient.
    """

    public_name = "affine"
    saved_for_backward = ("x", "scale")

    def forward(self, x, scale, shift):
        self.scale, self.x = scale, x if self.needs[1] else None
        y = x * scale
        y += shift
        return y

    def backward(self, gy):
        gscale = self.sums(gy * self.x) if self.needs[1] else None
        gx = gy * self.scale if self.needs[0] else None
        return gx, gscale, self.sums(gy) if self.needs[2] else None

    def infer(self, x, scale, shift):
        self.scale, self.x = scale, x if self.needs[1] else None
        return meta_array(x.shape, x.dtype)


def batch_norm(
    x: Tensor | Array, running_mean: Array | None, running_var: Array | None, weight: Tensor | Array | None = None,
    bias: Tensor | Array | None = None, training: bool = False, momentum: float = 0.1, eps: float = 1e-5,
    relu: bool = False, residual: Tensor | Array | None = None,
) -> Tensor:  # fmt: skip
    """Batch normalisation of the last axis, for any rank: relu(norm(x) + residual).

    Parameters
    ----------
    x : Tensor of shape (..., C)
    running_mean, running_var : ndarray of shape (C,)
        Used if not training. In training they are edited in place: ``r = (1 - momentum) * r + momentum * batch's``,
        with the unbiased variance, as in PyTorch. Both may be None in training.
    weight, bias : Tensor of shape (C,) or None (1 and 0)
    training : bool
        Whether to use (and learn) the statistics of this batch.
    momentum, eps : float
    relu : bool
        Whether to take max(., 0) of the result, in the same pass over memory.
    residual : Tensor of x's shape or None
        Added before that.

    Raises
    ------
    ValueError
        Shapes that do not agree; training with fewer than two values a channel, which have no variance.

    Notes
    -----
    Formula and derivation: :class:`BatchNorm`, :class:`FrozenBatchNorm` and docs/ops/batch_norm.md.
    """
    x, *others = _checked("batch_norm", x, weight, bias, residual)
    running = _statistics("batch_norm", x, running_mean, running_var, optional=training)
    momentum, eps = number("batch_norm", "momentum", momentum, 0, 1), number("batch_norm", "eps", eps, 0)
    if not training:
        return FrozenBatchNorm(running[0], running[1], eps, relu)(x, *others)
    if x.size < 2 * x.shape[-1]:
        raise ValueError(f"batch_norm: training needs two values a channel or more, x has shape {x.shape}")
    return BatchNorm(running, momentum, eps, relu)(x, *others)


def frozen_batch_norm(
    x: Tensor | Array, running_mean: Array, running_var: Array, weight: Tensor | Array | None = None,
    bias: Tensor | Array | None = None, eps: float = 1e-5, relu: bool = False,
    residual: Tensor | Array | None = None,
) -> Tensor:  # fmt: skip
    """Batch normalisation with the running statistics, whatever the mode: :class:`FrozenBatchNorm`."""
    x, *others = _checked("frozen_batch_norm", x, weight, bias, residual)
    mean, var = _statistics("frozen_batch_norm", x, running_mean, running_var, optional=False)
    return FrozenBatchNorm(mean, var, number("frozen_batch_norm", "eps", eps, 0), relu)(x, *others)


def affine(x: Tensor | Array, scale: Tensor | Array, shift: Tensor | Array) -> Tensor:
    """Scale and shift of each channel, ``x * scale + shift`` with scale and shift of shape (C,): :class:`Affine`."""
    return Affine()(*_checked("affine", x, scale, shift, names=("scale", "shift")))


def _checked(
    op: str, x: Any, weight: Any, bias: Any, residual: Any = None, names: tuple[str, ...] = ("weight", "bias")
) -> tuple[Tensor, ...]:
    x = tensor(op, "x", x)
    if x.ndim < 2:
        raise ValueError(f"{op}: x must have two axes or more (..., C), got shape {x.shape}")
    xp, channels = backend.namespace(op, x.data), x.shape[-1:]
    out = []
    for name, value, make in zip(names, (weight, bias), (xp.ones, xp.zeros), strict=True):
        if value is None:
            with backend.on(x.device):
                value = Tensor(make(channels, dtype=x.dtype))
        value = tensor(op, name, value, 1, "(C,)")
        if value.shape != channels:
            raise ValueError(
                f"{op}: {name} has {value.shape[0]} channels, x has {channels[0]}" + layout(x, value.shape[0])
            )
        out.append(value)
    if residual is not None:
        residual = tensor(op, "residual", residual)
        out.append(residual)
        if residual.shape != x.shape:
            raise ValueError(f"{op}: residual has shape {residual.shape}, x has {x.shape}; they must agree")
    return x, *out


def _statistics(op: str, x: Tensor, mean: Any, var: Any, optional: bool) -> Any:
    if mean is None and var is None and optional:
        return None
    for name, value in (("running_mean", mean), ("running_var", var)):
        if isinstance(value, Tensor) or not backend.is_array(value):
            raise TypeError(f"{op}: {name} must be an array (a buffer, without gradient), got {type(value).__name__}")
        if value.shape != x.shape[-1:]:
            raise ValueError(
                f"{op}: {name} has shape {value.shape}, x has {x.shape[-1]} channels" + layout(x, value.size)
            )
        if value.dtype != x.dtype:
            raise TypeError(f"{op}: {name} is {value.dtype}, x is {x.dtype}")
        backend.namespace(op, x.data, value)
    return mean, var
