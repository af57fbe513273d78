"""The networks of minnl in plain torch.nn, with the same weights. Imported only where there is PyTorch."""

from __future__ import annotations

import numpy as np
import torch

from benchmarks.contest import Contender
from benchmarks.ops import CLIP, KERNEL, ours, theirs
from minnl import nn
from models import blocks, small, video_resnet


def step(model, x, labels, lr, memory_format, attention, place):
    """One training step with the twin of a model; returns the loss."""
    model, x = placed(model, x, memory_format, attention, place)
    labels = torch.from_numpy(labels)
    norms = [p for m in model.modules() if isinstance(m, torch.nn.BatchNorm3d) for p in m.parameters()]
    others = [p for p in model.parameters() if not any(p is q for q in norms)]
    optimizer = torch.optim.AdamW([{"params": others}, {"params": norms, "weight_decay": 0.0}], lr, weight_decay=0.01)

    def one():
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(x), labels.to(x.device))
        loss.backward()
        optimizer.step()
        return loss.detach()

    return Contender(one, lambda first: [np.array([first.item(), one().item()])])


def infer(model, x, memory_format, attention, place):
    """The logits of a batch in evaluation mode."""
    model, x = placed(model, x, memory_format, attention, place)
    model.eval()

    def one():
        with torch.no_grad():
            return model(x)

    return Contender(one, lambda logits: [logits.cpu().numpy()])


def differentiate(module, x, gy, backward, memory_format, attention, place):
    """A module's output, and with `backward` the gradients of its input and parameters."""
    module, x = placed(module, x, memory_format, attention, place)
    gy = theirs(torch.from_numpy(gy).to(x.device), CLIP, memory_format)
    wanting = [x, *module.parameters()]

    def forward():
        with torch.no_grad():
            return [module(x)]

    def both():
        x.requires_grad_()
        y = module(x)
        return [y, *torch.autograd.grad(y, wanting, gy)]

    orders = [CLIP, CLIP, *(KERNEL if p.ndim == 5 else None for p in module.parameters())]
    return Contender(
        both if backward else forward,
        lambda found: [ours(a.detach(), order).cpu().numpy() for a, order in zip(found, orders, strict=False)],
    )


def placed(module, x, memory_format, attention, place):
    """The twin of a module and its input, in a memory format."""
    module = twin(module).to(place.torch_device, memory_format=memory_format)
    for part in module.modules():
        if isinstance(part, NonLocal):
            part.attention, part.memory_format = attention, memory_format
    return module, theirs(torch.from_numpy(x).to(place.torch_device), CLIP, memory_format)


class Residual(torch.nn.Module):
    def __init__(self, module):
        super().__init__()
        self.branch = twin(module.branch)
        self.shortcut = torch.nn.Identity() if module.shortcut is None else twin(module.shortcut)

    def forward(self, x):
        y = self.branch(x)
        y += self.shortcut(x)
        return torch.relu_(y)


class NonLocal(torch.nn.Module):
    """The block in its default form, by the naive product or by PyTorch's own attention."""

    def __init__(self, module):
        super().__init__()
        if (module.mode, module.subsample, module.axes) != ("embedded", "before", "spacetime"):
            raise NotImplementedError(f"no twin for NonLocalBlock({module.describe()})")
        for name in ("theta", "phi", "g", "W_z", "norm"):
            setattr(self, name, twin(getattr(module, name)))
        self.fewer = torch.nn.MaxPool3d((1, 2, 2))
        self.scale, self.attention, self.memory_format = module.scale, "naive", torch.contiguous_format

    def forward(self, x):
        fewer = self.fewer(x)
        theta, phi, g = (a.flatten(2).mT for a in (self.theta(x), self.phi(fewer), self.g(fewer)))
        if self.attention == "naive":
            y = torch.softmax(theta @ phi.mT * self.scale, -1) @ g
        else:
            lists = (a[:, None] for a in (theta, phi, g))
            y = torch.nn.functional.scaled_dot_product_attention(*lists, scale=self.scale)[:, 0]
        y = y.mT.unflatten(2, x.shape[2:]).contiguous(memory_format=self.memory_format)
        return x + self.norm(self.W_z(y))


def conv(m):
    *kernel, c, k = m.weight.shape
    made = torch.nn.Conv3d(c * m.groups, k, kernel, m.stride, m.padding, m.dilation, m.groups, m.bias is not None)
    return filled(made, m.weight.data.transpose(4, 3, 0, 1, 2), m.bias)


def norm(m):
    return filled(torch.nn.BatchNorm3d(len(m.weight), m.eps, m.momentum), m.weight.data, m.bias)


def linear(m):
    return filled(torch.nn.Linear(*m.weight.shape), m.weight.data.T, m.bias)


def filled(made, weight, bias):
    with torch.no_grad():
        made.weight.copy_(torch.from_numpy(np.ascontiguousarray(weight)))
        if bias is not None:
            made.bias.copy_(torch.from_numpy(bias.data))
    return made


def chain(m):
    return torch.nn.Sequential(*(twin(child) for child in m._modules.values()))


def conv_norm(m):
    return torch.nn.Sequential(
        conv(m.conv), norm(m.norm), torch.nn.ReLU(inplace=True) if m.relu else torch.nn.Identity()
    )


def twin(module):
    """The same module in torch.nn."""
    return TWINS[type(module)](module)


TWINS = {
    nn.Conv3d: conv,
    nn.BatchNorm3d: norm,
    nn.Linear: linear,
    nn.ReLU: lambda m: torch.nn.ReLU(inplace=True),
    nn.Dropout: lambda m: torch.nn.Dropout(m.p),
    nn.MaxPool3d: lambda m: torch.nn.MaxPool3d(*m.arguments[:4], ceil_mode=m.arguments[4]),
    nn.GlobalAvgPool3d: lambda m: torch.nn.Sequential(torch.nn.AdaptiveAvgPool3d(1), torch.nn.Flatten()),
    nn.Sequential: chain,
    nn.NonLocalBlock: NonLocal,
    blocks.ConvNorm: conv_norm,
    blocks.Residual: Residual,
    small.Small: chain,  # these modules call their children in the order of assignment
    video_resnet.VideoResNet: chain,
}
