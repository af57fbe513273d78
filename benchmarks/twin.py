"""The networks of models/ in plain torch.nn, with the same weights. Imported only where there is PyTorch."""

from __future__ import annotations

import numpy as np
import torch

from minnl import nn
from models import blocks, small


def step(model, x, labels, memory_format, rate):
    """A function that does one training step with the twin of a model and returns the loss."""
    model = twin(model).to(memory_format=memory_format)
    x = torch.from_numpy(x).permute(0, 4, 1, 2, 3).contiguous(memory_format=memory_format)
    labels = torch.from_numpy(labels)
    norms = [p for m in model.modules() if isinstance(m, torch.nn.BatchNorm3d) for p in m.parameters()]
    others = [p for p in model.parameters() if not any(p is q for q in norms)]
    optimizer = torch.optim.AdamW([{"params": others}, {"params": norms, "weight_decay": 0.0}], **rate)

    def one():
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(x), labels)
        loss.backward()
        optimizer.step()
        return loss.item()

    return one


class Residual(torch.nn.Module):
    def __init__(self, module):
        super().__init__()
        self.branch = twin(module.branch)
        self.shortcut = torch.nn.Identity() if module.shortcut is None else twin(module.shortcut)

    def forward(self, x):
        return torch.relu(self.branch(x) + self.shortcut(x))


class NonLocal(torch.nn.Module):
    """The block in its default form, by PyTorch's own attention, which is quicker than the naive product."""

    def __init__(self, module):
        super().__init__()
        if (module.mode, module.subsample, module.axes) != ("embedded", "before", "spacetime"):
            raise NotImplementedError(f"no twin for NonLocalBlock({module.describe()})")
        for name in ("theta", "phi", "g", "W_z", "norm"):
            setattr(self, name, twin(getattr(module, name)))
        self.fewer = torch.nn.MaxPool3d((1, 2, 2))
        self.scale = module.scale

    def forward(self, x):
        fewer = self.fewer(x)
        theta, phi, g = (a.flatten(2).mT[:, None] for a in (self.theta(x), self.phi(fewer), self.g(fewer)))
        y = torch.nn.functional.scaled_dot_product_attention(theta, phi, g, scale=self.scale)
        return x + self.norm(self.W_z(y[:, 0].mT.unflatten(2, x.shape[2:])))


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
    return torch.nn.Sequential(conv(m.conv), norm(m.norm), torch.nn.ReLU() if m.relu else torch.nn.Identity())


def twin(module):
    """The same module in torch.nn."""
    return TWINS[type(module)](module)


TWINS = {
    nn.Conv3d: conv,
    nn.BatchNorm3d: norm,
    nn.Linear: linear,
    nn.ReLU: lambda m: torch.nn.ReLU(),
    nn.Dropout: lambda m: torch.nn.Dropout(m.p),
    nn.MaxPool3d: lambda m: torch.nn.MaxPool3d(*m.arguments[:4], ceil_mode=m.arguments[4]),
    nn.GlobalAvgPool3d: lambda m: torch.nn.Sequential(torch.nn.AdaptiveAvgPool3d(1), torch.nn.Flatten()),
    nn.Sequential: chain,
    nn.NonLocalBlock: NonLocal,
    blocks.ConvNorm: conv_norm,
    blocks.Residual: Residual,
    small.Small: chain,  # its parts run in the order in which it holds them
}
