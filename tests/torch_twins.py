"""The twin of every op in PyTorch, channels last in and out: what tests/ops/test_parity.py compares with.

An op's twin takes the arguments of the op. A case that composes several ops has a twin of its own, under its full name;
what is written with operators alone runs on PyTorch's tensors as it stands.
"""

from functools import partial

import torch
from torch.nn import functional as TF

NO_TWIN = {
    "dropout/elements": "PyTorch draws other masks",
    "dropout/channels": "PyTorch draws other masks",
}
NO_GRADIENT = {
    "maximum/nan": "the NaN gets the gradient, in PyTorch both do",
    "minimum/nan": "the NaN gets the gradient, in PyTorch both do",
    "abs/nan": "a NaN gets the gradient NaN, in PyTorch none",
    "max_pool3d/minus-infinity": "PyTorch sends the gradient to the first frame, though it lies outside",
}

AS_IT_STANDS = (
    "add/operator-number-left",
    "add/one-tensor-twice",
    "add/broadcast-with-itself",
    "sub/operator-number-left",
    "mul/operator-number-left",
    "mul/one-tensor-twice",
    "div/operator-number-left",
    "pow/operator-number-left",
    "neg/operator",
    "matmul/operator",
    "transpose/property-T",
)


def twin(case):
    """The function on PyTorch's tensors that a case is compared with, or None (the reason is in NO_TWIN)."""
    if case.name in NO_TWIN:
        return None
    if case.name in AS_IT_STANDS:
        return case.fn
    return partial(OF_CASES.get(case.name) or OF_OPS[case.op], **case.fn.keywords)


def first(x):
    """Channels last to channels first."""
    return x.movedim(-1, 1)


def last(x):
    """Channels first to channels last."""
    return x.movedim(1, -1)


def axes_of(x, axis):
    return tuple(range(x.ndim)) if axis is None else axis if isinstance(axis, tuple) else (axis,)


def reduction(function):
    def reduce(x, axis=None, keepdims=False, **arguments):
        axes = axes_of(x, axis)
        return function(x, axes, keepdim=keepdims, **arguments) if axes else x

    return reduce


def extreme(function):
    """max and min over several axes at once; torch's own over several share the gradient between ties."""

    def reduce(x, axis=None, keepdims=False):
        axes = sorted(a % x.ndim for a in axes_of(x, axis))
        rest = [a for a in range(x.ndim) if a not in axes]
        y = function(x.permute(*rest, *axes).flatten(len(rest)), -1).values
        return y.reshape([1 if a in axes else n for a, n in enumerate(x.shape)]) if keepdims else y

    return reduce


def number(function):
    """A function of two, one of which may be a number."""
    return lambda a, b: function(a, torch.as_tensor(b, dtype=a.dtype))


def split(x, parts, axis=0):
    sizes = parts if isinstance(parts, list) else x.shape[axis] // parts
    return torch.stack([(piece ** (i + 1.0)).sum() for i, piece in enumerate(torch.split(x, sizes, axis))])


def attended(x):
    a, b = torch.split(x.permute(1, 0, 2), [1, 2])
    return torch.cat([b.flip(0), a * 2]).reshape(-1)


def pad(x, widths, value=0.0):
    return TF.pad(x, [n for pair in reversed(widths) for n in pair], value=value)


def index(x, key):
    if not isinstance(key, tuple):
        key = (key,)
    turned = x
    for axis, k in enumerate(key):
        if isinstance(k, slice) and k.step is not None and k.step < 0:  # torch knows no negative steps
            picked = torch.arange(x.shape[axis])[torch.tensor(range(x.shape[axis])[k])]
            turned, key = turned.index_select(axis, picked), (*key[:axis], slice(None), *key[axis + 1 :])
    plain = (type(None), type(Ellipsis), int, slice)
    return turned[tuple(k if isinstance(k, plain) else torch.tensor(k) for k in key)]


def conv3d(x, weight, bias=None, padding=0, **arguments):
    if padding == "same":  # written out: torch warns that an even kernel makes it copy
        dilation = arguments.get("dilation", (1, 1, 1))
        totals = [d * (k - 1) for d, k in zip(dilation, weight.shape[:3], strict=True)]
        x = TF.pad(x, [0, 0, *(n for t in reversed(totals) for n in (t // 2, t - t // 2))])
        padding = 0
    return last(TF.conv3d(first(x), weight.permute(4, 3, 0, 1, 2), bias, padding=padding, **arguments))


def pool(function):
    return lambda x, *args, **arguments: last(function(first(x), *args, **arguments))


def batch_norm(x, weight=None, bias=None, residual=None, mean=None, var=None, relu=False, **arguments):
    running = [None if v is None else torch.tensor(v, dtype=x.dtype) for v in (mean, var)]
    y = last(TF.batch_norm(first(x), *running, weight, bias, **arguments))
    y = y if residual is None else y + residual
    return torch.relu(y) if relu else y


def cross_entropy(x, labels, weight=None, **arguments):
    weight = None if weight is None else torch.tensor(weight, dtype=x.dtype)
    labels = torch.as_tensor(labels)
    rows = TF.cross_entropy(x.reshape(-1, x.shape[-1]), labels.reshape(-1), weight, **arguments)
    return rows.reshape(labels.shape) if arguments.get("reduction") == "none" else rows


def binary_cross_entropy_with_logits(x, **arguments):
    constants = {k: arguments.pop(k) for k in ("target", "weight", "pos_weight") if k in arguments}
    constants = {k: torch.tensor(v, dtype=x.dtype) for k, v in constants.items()}
    return TF.binary_cross_entropy_with_logits(x, **constants, **arguments)


def affinity(theta, phi, mode, scale, weight):
    """f / C(x) for lists of positions: (B, L, I), (B, P, I) -> (B, L, P), as equations 2 to 5 of the paper read."""
    if weight is not None:
        pairs = [theta[:, :, None].expand(-1, -1, phi.shape[1], -1), phi[:, None].expand(-1, theta.shape[1], -1, -1)]
        return torch.relu(torch.cat(pairs, -1) @ weight) / phi.shape[1]
    f = theta @ phi.mT
    return f / phi.shape[1] if mode == "dot" else torch.softmax(f if scale is None else f * scale, -1)


def non_local(theta, phi, g, weight=None, mode="embedded", scale=None, axes="spacetime"):
    def fold(x):  # to (B, positions, channels)
        if axes == "space":
            return x.flatten(2, 3).flatten(0, 1)
        if axes == "time":
            return x.permute(0, 2, 3, 1, 4).flatten(0, 2)
        return x.flatten(1, 3)

    n, t, h, w, _ = theta.shape
    y = affinity(fold(theta), fold(phi), mode, scale, weight) @ fold(g)
    if axes == "time":
        return y.reshape(n, h, w, t, g.shape[-1]).permute(0, 3, 1, 2, 4)
    return y.reshape(n, t, h, w, g.shape[-1])


OF_OPS = {
    "add": number(torch.add),
    "sub": number(torch.sub),
    "mul": number(torch.mul),
    "div": number(torch.div),
    "pow": number(torch.pow),
    "maximum": number(torch.maximum),
    "minimum": number(torch.minimum),
    "where": lambda a, b, condition: torch.where(torch.tensor(condition), a, b),
    "neg": torch.neg,
    "exp": torch.exp,
    "log": torch.log,
    "sqrt": torch.sqrt,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "relu": torch.relu,
    "abs": torch.abs,
    "clip": lambda x, low=None, high=None: torch.clamp(x, low, high),
    "sum": reduction(torch.sum),
    "mean": reduction(torch.mean),
    "var": reduction(torch.var),
    "max": extreme(torch.max),
    "min": extreme(torch.min),
    "reshape": torch.reshape,
    "transpose": lambda x, axes=None: x.permute(*reversed(range(x.ndim)) if axes is None else axes),
    "broadcast_to": lambda x, new_shape: x.expand(new_shape),
    "concatenate": lambda *xs, axis=0: torch.cat(xs, axis),
    "stack": lambda *xs, axis=0: torch.stack(xs, axis),
    "split": split,
    "pad": pad,
    "flip": lambda x, axis=None: torch.flip(x, axes_of(x, axis)),
    "index": index,
    "matmul": torch.matmul,
    "linear": lambda x, weight, bias=None: TF.linear(x, weight.T, bias),
    "conv3d": conv3d,
    "max_pool3d": pool(TF.max_pool3d),
    "avg_pool3d": pool(TF.avg_pool3d),
    "adaptive_avg_pool3d": pool(TF.adaptive_avg_pool3d),
    "adaptive_max_pool3d": pool(TF.adaptive_max_pool3d),
    "batch_norm": batch_norm,
    "frozen_batch_norm": batch_norm,
    "affine": lambda x, scale, shift: x * scale + shift,
    "softmax": lambda x, axis=-1: torch.softmax(x, axis),
    "log_softmax": lambda x, axis=-1: torch.log_softmax(x, axis),
    "cross_entropy": cross_entropy,
    "binary_cross_entropy_with_logits": binary_cross_entropy_with_logits,
    "dropout": lambda x, **arguments: x,
    "non_local": non_local,
}


def exchanged(x):
    """Time and width exchanged."""
    return x.transpose(1, 3)


def pool_of_exchanged(op):
    return lambda x: exchanged(OF_OPS[op](exchanged(x), 2, 1))


def reduction_of_permuted(op):
    return lambda x, axis: OF_OPS[op](x.permute(1, 2, 0), axis)


OF_CASES = {
    "pow/base-zero": lambda b: torch.zeros_like(b) ** b,
    **{f"{op}/non-contiguous": reduction_of_permuted(op) for op in ("sum", "mean", "var", "max", "min")},
    "reshape/non-contiguous": lambda x: x.permute(2, 1, 0).reshape(4, 3),
    "broadcast_to/read-only-into-mul": lambda x: x.expand(2, 3) * x.expand(2, 3),
    "concatenate/one-tensor-twice": lambda x: torch.cat([x, x], 1),
    "split/chain-of-moves": attended,
    "matmul/transposed": lambda a, b: a.T @ b.T,
    "matmul/with-itself": lambda a: a @ a,
    "linear/non-contiguous": lambda x, weight: x.permute(2, 1, 0) @ weight.T,
    "linear/shared-weight": lambda x, weight: torch.tanh(x @ weight) @ weight,
    "conv3d/non-contiguous": lambda x, weight: exchanged(conv3d(exchanged(x), weight.flip(0), padding=1)),
    "conv3d/broadcast": lambda x, weight: conv3d(x.expand(3, *x.shape[1:]), weight).sum((0, 1, 2, 3)),
    "max_pool3d/non-contiguous": pool_of_exchanged("max_pool3d"),
    "avg_pool3d/non-contiguous": pool_of_exchanged("avg_pool3d"),
    "batch_norm/training-non-contiguous": lambda x, weight, bias: batch_norm(
        x.permute(2, 1, 0), weight, bias, training=True
    ).permute(2, 1, 0),
    "batch_norm/training-residual-is-input": lambda x, weight, bias: batch_norm(
        x, weight, bias, x, training=True, relu=True
    ),
    "softmax/non-contiguous": lambda x, axis: torch.softmax(x.T.flip(0), axis),
    "log_softmax/non-contiguous": lambda x, axis: torch.log_softmax(x.T.flip(0), axis),
    "non_local/gaussian-x-is-query-and-key": lambda x, g: non_local(x, x, g, mode="gaussian"),
    "non_local/non-contiguous": lambda *xs: exchanged(non_local(*map(exchanged, xs), axes="time")),
}
