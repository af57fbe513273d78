"""Blocks and whole networks of minnl beside the same in torch.nn, from the same weights."""

from __future__ import annotations

import numpy as np

import minnl
from benchmarks import published
from benchmarks.contest import BACKWARD, FORWARD, Contender, Contest
from benchmarks.optional import memory_formats
from minnl import backend, no_grad, optim
from minnl import functional as F

ATTENTIONS = ("naive", "scaled_dot_product_attention")


def training(name, group, build, shape, classes, lr, attentions):
    """One training step: forward, loss, backward, AdamW. Steps are small, since rounding makes the networks diverge."""

    def data():
        rng = np.random.default_rng(0)
        return rng.standard_normal(shape, dtype=np.float32), rng.integers(0, classes, shape[0])

    return Contest(
        f"{name}, clips {'x'.join(map(str, shape))}",
        group,
        "training step",
        ways(
            lambda place: step(build(), *data(), lr, place),
            lambda twin, *way: twin.step(build(), *data(), lr, *way),
            attentions,
        ),
        tolerance=1e-3,
        network=True,
    )


def inference(name, group, build, shape, attentions):
    """The logits of a batch, in evaluation mode."""

    def data():
        return np.random.default_rng(0).standard_normal(shape, dtype=np.float32)

    return Contest(
        f"{name}, clips {'x'.join(map(str, shape))}",
        group,
        "inference",
        ways(
            lambda place: infer(build(), data(), place),
            lambda twin, *way: twin.infer(build(), data(), *way),
            attentions,
        ),
        tolerance=1e-3,
        network=True,
    )


def block(name, group, shape):
    """A non-local block on its own: forward, and forward with the gradients of its input and parameters."""

    def build():
        minnl.manual_seed(0)
        return published.block(shape[-1])

    def data():
        rng = np.random.default_rng(0)
        return [rng.standard_normal(shape, dtype=np.float32) for _ in range(2)]

    for work in (FORWARD, BACKWARD):
        backward = work == BACKWARD
        yield Contest(
            name,
            group,
            work,
            ways(
                lambda place, backward=backward: differentiate(build(), *data(), backward, place),
                lambda twin, *way, backward=backward: twin.differentiate(build(), *data(), backward, *way),
                ATTENTIONS,
            ),
        )


def ways(ours, theirs, attentions):
    """minnl's way, and PyTorch's in both memory formats and with each of the attentions."""
    found = {"minnl": ours}
    for layout, memory_format in memory_formats().items():
        for attention in attentions or ("",):

            def make(place, memory_format=memory_format, attention=attention):
                from benchmarks import twin  # only where there is PyTorch

                return theirs(twin, memory_format, attention, place)

            found[", ".join(filter(None, (layout, attention)))] = make
    return found


def step(model, x, labels, lr, place):
    model.to(place.device)
    optimizer, x = optim.AdamW(model.parameters(), lr), backend.to_device(x, place.device)

    def one():
        optimizer.zero_grad()
        loss = F.cross_entropy(model(minnl.Tensor(x)), labels)
        loss.backward()
        optimizer.step()
        return loss

    return Contender(one, lambda first: [np.array([first.item(), one().item()])])


def infer(model, x, place):
    model.to(place.device).eval()
    x = backend.to_device(x, place.device)

    def one():
        with no_grad():
            return model(minnl.Tensor(x)).data

    return Contender(one, lambda logits: [backend.to_host(logits)])


def differentiate(module, x, gy, backward, place):
    module.to(place.device)
    x, gy = (backend.to_device(a, place.device) for a in (x, gy))

    def forward():
        with no_grad():
            return [module(minnl.Tensor(x)).data]

    def both():
        given = minnl.Tensor(x, requires_grad=True)
        module.zero_grad()
        y = module(given)
        y.backward(gy)
        return [y.data, given.grad, *(p.grad for p in module.parameters())]

    return Contender(both if backward else forward, lambda found: [backend.to_host(a) for a in found])
