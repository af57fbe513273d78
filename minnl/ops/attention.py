"""The non-local operation as a function, and the weights that it gathers with. The ops: minnl/ops/non_local.py."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Literal, TypeAlias, get_args

from minnl import backend
from minnl.backend import Array
from minnl.checks import choice, number
from minnl.engine import Tensor
from minnl.ops.arguments import tensor
from minnl.ops.non_local import NonLocalConcat, NonLocalDot, NonLocalSoftmax

Mode: TypeAlias = Literal["gaussian", "embedded", "dot", "concat"]
Axes: TypeAlias = Literal["spacetime", "space", "time"]
MODES: tuple[Mode, ...] = get_args(Mode)
AXES: tuple[Axes, ...] = get_args(Axes)


def non_local(
    theta: Tensor | Array, phi: Tensor | Array, g: Tensor | Array, mode: Mode = "embedded", scale: float | None = None,
    axes: Axes = "spacetime", weight: Tensor | Array | None = None,
) -> Tensor:  # fmt: skip
    """The non-local operation: every query position gathers g from all key positions, weighted by affinity.

    Parameters
    ----------
    theta : Tensor of shape (N, T, H, W, I)
        Queries; the output has their positions.
    phi : Tensor of shape (N, T', H', W', I)
        Keys; fewer than queries if they were subsampled.
    g : Tensor of shape (N, T', H', W', D)
        What is gathered, at the keys' positions.
    mode : "embedded" or "gaussian" (softmax over keys), "dot" or "concat" (divided by the number of keys)
        "gaussian" is the same function as "embedded": the block passes x itself as theta and phi.
    scale : float or None
        Factor on the logits of the softmax (the released networks use I ** -0.5; the paper none, which is None).
    axes : "spacetime", "space" (keys of the query's frame) or "time" (keys of the query's pixel)
    weight : Tensor of shape (2I,), for "concat" only
        w_f, its first half for theta.

    Returns
    -------
    Tensor of shape (N, T, H, W, D)

    Raises
    ------
    ValueError
        Shapes that do not agree, an unknown mode, a scale or weight that the mode has no use for.

    Notes
    -----
    Equation 1 to 5 of the paper. Memory is linear in positions. Derivation: docs/ops/non_local.md.
    """
    op, tensors = _prepared("non_local", theta, phi, g, mode, scale, axes, weight)
    return op(*tensors)


def attention(
    theta: Tensor | Array, phi: Tensor | Array, positions: Sequence[Sequence[int]], mode: Mode = "embedded",
    scale: float | None = None, axes: Axes = "spacetime", weight: Tensor | Array | None = None,
) -> Array:  # fmt: skip
    """The weights with which chosen query positions look at the keys: rows of f / C(x).

    Parameters
    ----------
    theta, phi, mode, scale, axes, weight : as in :func:`non_local`
    positions : list of (t, h, w)
        Query positions.

    Returns
    -------
    ndarray of shape (N, Q, T', H', W')
        For "space" zero outside of the query's frame, for "time" zero outside of its pixel.
    """
    op, (theta, phi, _, *_) = _prepared("attention", theta, phi, phi, mode, scale, axes, weight)
    op.xp = backend.namespace("attention", theta.data, phi.data)
    if weight is not None:
        op.weight = tensor("attention", "weight", weight).data
    with backend.on(theta.device):
        return _rows(op, theta, phi, positions, axes)


def _rows(op, theta, phi, positions, axes):
    """The weights of :func:`attention`."""
    xp, (n, *sizes, _) = op.xp, phi.shape
    out = xp.zeros((n, len(positions), *sizes), dtype=theta.dtype)
    for q, position in enumerate(positions):
        t, h, w = _position(position, theta.shape[1:4])
        query = theta.data[:, t : t + 1, h : h + 1, w : w + 1].reshape(n, 1, -1)
        visible = (slice(None), slice(None), slice(None))
        if axes == "space":
            visible = (slice(t, t + 1), *visible[1:])
        elif axes == "time":
            visible = (visible[0], slice(h, h + 1), slice(w, w + 1))
        keys = phi.data[(slice(None), *visible)]
        row = op.weights(query, keys.reshape(n, -1, keys.shape[-1]), slice(None))
        out[(slice(None), q, *visible)] = row.reshape(keys.shape[:-1])
    return out


def _position(position, sizes):
    """A query position (t, h, w), within theta."""
    try:
        t, h, w = map(operator.index, position)
    except (TypeError, ValueError):
        raise TypeError(f"attention: positions must be a list of (t, h, w), got {position!r} in it") from None
    if not all(0 <= p < size for p, size in zip((t, h, w), sizes, strict=True)):
        raise ValueError(f"attention: position {(t, h, w)} lies outside of theta's {sizes}")
    return t, h, w


def _prepared(name, theta, phi, g, mode, scale, axes, weight):
    """The op for a mode and its checked tensors."""
    theta, phi, g = (
        tensor(name, label, value, 5, "(N, T, H, W, C)") for label, value in (("theta", theta), ("phi", phi), ("g", g))
    )
    choice(name, "mode", mode, MODES)
    choice(name, "axes", axes, AXES)
    if theta.shape[-1] != phi.shape[-1]:
        raise ValueError(
            f"{name}: theta has {theta.shape[-1]} channels, phi has {phi.shape[-1]}; theta of shape {theta.shape} and "
            f"phi of shape {phi.shape} are read as (N, T, H, W, C)"
        )
    if phi.shape[:4] != g.shape[:4]:
        raise ValueError(
            f"{name}: phi and g must have the same positions, got {phi.shape[:4]} and {g.shape[:4]} as (N, T, H, W); "
            "channels stand last"
        )
    if theta.shape[0] != phi.shape[0]:
        raise ValueError(f"{name}: theta has a batch of {theta.shape[0]}, phi of {phi.shape[0]}")
    if 0 in phi.shape[1:4]:
        raise ValueError(f"{name}: phi has no positions, shape {phi.shape}")
    if axes == "space" and theta.shape[1] != phi.shape[1]:
        raise ValueError(
            f'{name}: axes="space" needs as many frames in phi ({phi.shape[1]}) as in theta ({theta.shape[1]})'
        )
    if axes == "time" and theta.shape[2:4] != phi.shape[2:4]:
        raise ValueError(
            f'{name}: axes="time" needs one height and width in theta {theta.shape[2:4]} and phi {phi.shape[2:4]}; '
            "no spatial subsampling"
        )
    softmax = mode in ("gaussian", "embedded")
    if scale is not None and not softmax:
        raise ValueError(f"{name}: scale applies to the softmax modes, mode is {mode!r}")
    if (weight is not None) != (mode == "concat"):
        raise ValueError(f'{name}: weight (2I,) belongs to mode "concat", mode is {mode!r}')
    if softmax:
        return NonLocalSoftmax(axes, 1.0 if scale is None else number(name, "scale", scale)), (theta, phi, g)
    if mode == "dot":
        return NonLocalDot(axes), (theta, phi, g)
    weight = tensor(name, "weight", weight, 1, "(2I,)")
    if weight.shape[0] != 2 * theta.shape[-1]:
        raise ValueError(f"{name}: weight must have 2 * {theta.shape[-1]} elements, got {weight.shape[0]}")
    return NonLocalConcat(axes), (theta, phi, g, weight)
