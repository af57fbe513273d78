"""The compared operations in minnl and in PyTorch. Their sizes are in cases.py."""

from __future__ import annotations

import functools

import numpy as np

from benchmarks.contest import BACKWARD, FORWARD, Contender, Contest
from benchmarks.optional import memory_formats, torch
from minnl import Tensor, backend, no_grad
from minnl import functional as F

CLIP = (0, 4, 1, 2, 3)  # (N, T, H, W, C) -> (N, C, T, H, W)
KERNEL = (4, 3, 0, 1, 2)  # (kT, kH, kW, C, K) -> (K, C, kT, kH, kW)


class Operation:
    """One operation on arrays, in minnl and in PyTorch.

    Parameters
    ----------
    shapes : list of tuples
        Of its inputs.
    minnl : function of Tensors
    rivals : dict of str -> function of torch tensors
        The ways in which PyTorch can compute it.
    orders : list
        For each input the order of axes that PyTorch wants, None for the same as minnl.
    order : tuple or None
        The same for the output.
    wants : list of bool
        Which inputs want a gradient; all by default.
    """

    def __init__(self, shapes, minnl, rivals, orders, order=None, wants=None):
        self.shapes, self.minnl, self.rivals = shapes, minnl, rivals
        self.orders, self.order, self.wants = orders, order, wants or [True] * len(shapes)

    def contests(self, name, group):
        """Its forward alone, and its forward with all gradients."""
        return [Contest(name, group, work, self.ways(work == BACKWARD)) for work in (FORWARD, BACKWARD)]

    def ways(self, backward):
        ways = {"minnl": lambda place: self.ours(backward, place)}
        for layout, memory_format in memory_formats().items():
            if layout == "channels last" and CLIP not in self.orders:
                continue
            for way, function in self.rivals.items():
                name = layout if CLIP in self.orders else way
                ways[name] = lambda place, f=function, m=memory_format: self.theirs(f, m, backward, place)
        return ways

    def arrays(self):
        """The inputs, and the gradient of the output for an output of a shape."""
        rng = np.random.default_rng(0)
        arrays = [rng.standard_normal(shape, dtype=np.float32) for shape in self.shapes]
        return arrays, lambda shape: rng.standard_normal(shape, dtype=np.float32)

    def ours(self, backward, place):
        arrays, gradient = self.arrays()
        arrays = [backend.to_device(a, place.device) for a in arrays]

        def forward():
            with no_grad():
                return [self.minnl(*map(Tensor, arrays)).data]

        def both():
            inputs = [Tensor(a, requires_grad=want) for a, want in zip(arrays, self.wants, strict=True)]
            y = self.minnl(*inputs)
            y.backward(gy)
            return [y.data, *(x.grad for x in inputs if x.requires_grad)]

        gy = backend.to_device(gradient(forward()[0].shape), place.device) if backward else None
        return Contender(both if backward else forward, lambda found: [backend.to_host(a) for a in found])

    def theirs(self, function, memory_format, backward, place):
        arrays, gradient = self.arrays()
        inputs = [
            theirs(torch.from_numpy(a).to(place.torch_device), order, memory_format)
            for a, order in zip(arrays, self.orders, strict=True)
        ]
        wanting = [x for x, want in zip(inputs, self.wants, strict=True) if want]

        def forward():
            with torch.no_grad():
                return [function(*inputs)]

        def both():
            y = function(*inputs)
            return [y, *torch.autograd.grad(y, wanting, gy)]

        gy = None
        if backward:
            y = forward()[0]
            gy = torch.from_numpy(gradient(ours(y, self.order).shape)).to(place.torch_device)
            gy = theirs(gy, self.order, memory_format)
            for x in wanting:
                x.requires_grad_()
        orders = [self.order, *(order for order, want in zip(self.orders, self.wants, strict=True) if want)]
        return Contender(
            both if backward else forward,
            lambda found: [ours(a.detach(), order).cpu().numpy() for a, order in zip(found, orders, strict=False)],
        )


def theirs(tensor, order, memory_format):
    return tensor if order is None else tensor.permute(order).contiguous(memory_format=memory_format)


def ours(tensor, order):
    return tensor if order is None else tensor.permute(*np.argsort(order).tolist())


def conv(x, weight, stride=1, first=False):
    """A convolution without bias, as before a batch norm. The input of a stem requires no gradient."""
    padding = tuple(n // 2 for n in weight[:3])
    return Operation(
        (x, weight),
        lambda x, weight: F.conv3d(x, weight, None, stride, padding),
        {"": lambda x, weight: torch.nn.functional.conv3d(x, weight, None, stride, padding)},
        (CLIP, KERNEL),
        CLIP,
        (not first, True),
    )


def norm(x, residual=False):
    """Batch norm and ReLU, with what a residual block adds in between."""
    mean, var = np.zeros(x[-1], np.float32), np.ones(x[-1], np.float32)

    @functools.cache
    def running(device):
        return [backend.to_device(a.copy(), device) for a in (mean, var)]

    @functools.cache
    def rivals(device):
        return [torch.from_numpy(a.copy()).to(device) for a in (mean, var)]

    def minnl(x, weight, bias, added=None):
        return F.batch_norm(x, *running(x.device), weight, bias, training=True, relu=True, residual=added)

    def rival(x, weight, bias, added=None):
        y = torch.nn.functional.batch_norm(x, *rivals(x.device), weight, bias, True)
        if added is not None:
            y += added
        return torch.relu_(y)

    more = residual * 1
    return Operation((x, x[-1:], x[-1:], *(x,) * more), minnl, {"": rival}, (CLIP, None, None, *(CLIP,) * more), CLIP)


def pool(kind, x, kernel, stride, padding=0):
    return Operation(
        (x,),
        lambda x: getattr(F, f"{kind}_pool3d")(x, kernel, stride, padding),
        {"": lambda x: getattr(torch.nn.functional, f"{kind}_pool3d")(x, kernel, stride, padding)},
        (CLIP,),
        CLIP,
    )


def mean(x):
    """Global average pooling."""
    return Operation((x,), lambda x: F.mean(x, axis=(1, 2, 3)), {"": lambda x: x.mean((2, 3, 4))}, (CLIP,))


def non_local(n, queries, keys, channels):
    """Positions as one axis in both libraries, so neither has to reorder. `queries` and `keys` are (T, H, W)."""
    scale = channels**-0.5

    def naive(theta, phi, g):
        y = torch.softmax(theta.flatten(1, 3) @ phi.flatten(1, 3).mT * scale, -1) @ g.flatten(1, 3)
        return y.view(theta.shape)

    def fused(theta, phi, g):
        lists = (a.flatten(1, 3)[:, None] for a in (theta, phi, g))
        return torch.nn.functional.scaled_dot_product_attention(*lists, scale=scale).view(theta.shape)

    theta, phi = (n, *queries, channels), (n, *keys, channels)
    return Operation(
        (theta, phi, phi),
        lambda theta, phi, g: F.non_local(theta, phi, g, "embedded", scale),
        {"naive": naive, "scaled_dot_product_attention": fused},
        (None, None, None),
    )


def loss(n, classes):
    labels = np.random.default_rng(1).integers(0, classes, n)
    return Operation(
        ((n, classes),),
        lambda x: F.cross_entropy(x, labels),
        {"default": lambda x: torch.nn.functional.cross_entropy(x, torch.from_numpy(labels).to(x.device))},
        (None,),
    )
