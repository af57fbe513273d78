"""The operations that are compared, at the sizes they have in the small network and around it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from benchmarks.optional import memory_formats, torch
from minnl import Tensor, no_grad
from minnl import functional as F

CLIP = (0, 4, 1, 2, 3)  # (N, T, H, W, C) -> (N, C, T, H, W)
UNCLIP = (0, 2, 3, 4, 1)
KERNEL = (4, 3, 0, 1, 2)  # (kT, kH, kW, C, K) -> (K, C, kT, kH, kW)


@dataclass(frozen=True)
class OpCase:
    """One operation in minnl and in PyTorch.

    `rivals` holds a function for each way in which PyTorch can compute it. `orders` gives for each input the order of
    axes that PyTorch wants, None for the same as minnl.
    """

    name: str
    shapes: tuple[tuple[int, ...], ...]
    minnl: Callable
    rivals: dict[str, Callable]
    orders: tuple[tuple[int, ...] | None, ...]

    def contenders(self, backward):
        """Functions to time, by name: minnl's, and PyTorch's ways in both memory formats."""
        rng = np.random.default_rng(0)
        arrays = [rng.standard_normal(shape, dtype=np.float32) for shape in self.shapes]
        with no_grad():
            y = self.minnl(*map(Tensor, arrays)).data
        gy = rng.standard_normal(y.shape, dtype=np.float32) if backward else None
        calls = {"minnl": self.ours(arrays, gy)}
        for layout, memory_format in memory_formats().items():
            if layout == "channels last" and CLIP not in self.orders:
                continue
            for way, function in self.rivals.items():
                inputs = self.inputs(arrays, memory_format)
                theirs = function(*inputs)
                self.agree((theirs.permute(UNCLIP) if CLIP in self.orders else theirs).numpy(), y)
                name = way if CLIP not in self.orders else layout
                calls[name] = self.theirs(function, inputs, gy, memory_format)
        return calls

    def ours(self, arrays, gy):
        def forward():
            with no_grad():
                self.minnl(*map(Tensor, arrays))

        def both():
            self.minnl(*(Tensor(a, requires_grad=True) for a in arrays)).backward(gy)

        return forward if gy is None else both

    def theirs(self, function, inputs, gy, memory_format):
        def forward():
            with torch.no_grad():
                function(*inputs)

        if gy is None:
            return forward
        gradient = torch.from_numpy(gy)
        if CLIP in self.orders:
            gradient = gradient.permute(CLIP).contiguous(memory_format=memory_format)
        gradient = gradient.reshape(function(*inputs).shape)  # non_local: clips there, lists of positions here
        wanting = [x.requires_grad_() for x in inputs]

        def both():
            torch.autograd.grad(function(*wanting), wanting, gradient)

        return both

    def inputs(self, arrays, memory_format):
        tensors = [torch.from_numpy(a.copy()) for a in arrays]
        return [
            t if order is None else t.permute(order).contiguous(memory_format=memory_format)
            for t, order in zip(tensors, self.orders, strict=True)
        ]

    def agree(self, theirs, ours):
        """Two programs that compute different things are not worth comparing."""
        error, size = abs(theirs.reshape(ours.shape) - ours).max(), abs(ours).max()
        if not error <= 1e-4 * size:
            raise RuntimeError(f"{self.name}: minnl and PyTorch differ by {error:.2g} of {size:.2g}")


def conv(x, weight, stride=1):
    *kernel, c, k = weight
    padding = tuple(n // 2 for n in kernel)
    return OpCase(
        f"conv3d {'x'.join(map(str, kernel))}, {c} to {k} channels, stride {stride}, x {x}",
        (x, weight, (k,)),
        lambda x, weight, bias: F.conv3d(x, weight, bias, stride, padding),
        {"default": lambda x, weight, bias: torch.nn.functional.conv3d(x, weight, bias, stride, padding)},
        (CLIP, KERNEL, None),
    )


def norm(x):
    zeros, ones = np.zeros(x[-1], np.float32), np.ones(x[-1], np.float32)
    return OpCase(
        f"batch_norm + relu, x {x}",
        (x, x[-1:], x[-1:]),
        lambda x, weight, bias: F.relu(F.batch_norm(x, zeros.copy(), ones.copy(), weight, bias, training=True)),
        {
            "default": lambda x, weight, bias: torch.relu(
                torch.nn.functional.batch_norm(x, torch.zeros_like(bias), torch.ones_like(bias), weight, bias, True)
            )
        },
        (CLIP, None, None),
    )


def pool(kind, x, kernel, stride, padding):
    size = "x".join(map(str, kernel))
    return OpCase(
        f"{kind}_pool3d {size}, stride {stride}, x {x}",
        (x,),
        lambda x: getattr(F, f"{kind}_pool3d")(x, kernel, stride, padding),
        {"default": lambda x: getattr(torch.nn.functional, f"{kind}_pool3d")(x, kernel, stride, padding)},
        (CLIP,),
    )


def non_local(n, queries, keys, channels):
    """Positions as lists on both sides: neither has to reorder anything. `queries` and `keys` are (T, H, W)."""
    scale = channels**-0.5

    def naive(theta, phi, g):
        theta, phi, g = (a.flatten(1, 3) for a in (theta, phi, g))
        return torch.softmax(theta @ phi.mT * scale, -1) @ g

    def fused(theta, phi, g):
        theta, phi, g = (a.flatten(1, 3)[:, None] for a in (theta, phi, g))
        return torch.nn.functional.scaled_dot_product_attention(theta, phi, g, scale=scale)

    theta, phi = (n, *queries, channels), (n, *keys, channels)
    return OpCase(
        f"non_local embedded, N={n} L={np.prod(queries)} P={np.prod(keys)} I={channels}",
        (theta, phi, phi),
        lambda theta, phi, g: F.non_local(theta, phi, g, "embedded", scale),
        {"naive": naive, "scaled_dot_product_attention": fused},
        (None, None, None),
    )


def loss(n, classes):
    labels = np.random.default_rng(1).integers(0, classes, n)
    return OpCase(
        f"cross_entropy, {n} clips, {classes} classes",
        ((n, classes),),
        lambda x: F.cross_entropy(x, labels),
        {"default": lambda x: torch.nn.functional.cross_entropy(x, torch.from_numpy(labels))},
        (None,),
    )


CASES = [
    conv((32, 16, 24, 24, 1), (5, 7, 7, 1, 16), (2, 2, 2)),  # the stem of the small network
    conv((32, 8, 6, 6, 32), (1, 3, 3, 32, 64), (1, 2, 2)),  # and two of its residual branches
    conv((32, 8, 3, 3, 64), (1, 3, 3, 64, 64)),
    conv((32, 16, 32, 32, 16), (3, 3, 3, 16, 16)),
    conv((32, 8, 16, 16, 32), (3, 3, 3, 32, 32)),
    conv((32, 8, 8, 8, 64), (3, 3, 3, 64, 64)),
    conv((32, 8, 8, 8, 32), (3, 1, 1, 32, 32)),
    conv((32, 8, 16, 16, 64), (1, 3, 3, 64, 64)),
    conv((32, 8, 16, 16, 32), (1, 1, 1, 32, 64)),
    norm((32, 8, 16, 16, 32)),
    pool("max", (32, 8, 16, 16, 32), (1, 2, 2), (1, 2, 2), 0),
    pool("max", (32, 8, 16, 16, 32), (3, 3, 3), (2, 2, 2), 1),
    pool("avg", (32, 8, 16, 16, 32), (1, 2, 2), (1, 2, 2), 0),
    non_local(32, (8, 8, 8), (8, 4, 4), 32),
    non_local(8, (8, 8, 8), (8, 8, 8), 64),
    non_local(8, (4, 14, 14), (4, 14, 14), 512),
    non_local(4, (4, 28, 28), (4, 14, 14), 256),
    loss(1024, 400),
]
