"""What a user writes, for a checker of types: it must know the results, and a line with an `ignore` must be an error.

``mypy --strict`` says of an `ignore` that it is not needed. So a hint that allows too much is found, too.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from typing_extensions import assert_type

import models
from minnl import (
    Op,
    Tensor,
    debug,
    device,
    float32check,
    gradcheck,
    manual_seed,
    nn,
    no_grad,
    optim,
    set_threads,
    use_kernels,
)
from minnl import functional as F
from minnl.backend import Array, Device
from minnl.data import ArrayClips, Loader, RelationClips

# Tensors, operators, methods.

manual_seed(0)
set_threads(1)
rng = np.random.default_rng(0)
array = rng.standard_normal((2, 3)).astype(np.float32)
t = Tensor(array, requires_grad=True)
u = Tensor([[1.0, 2.0, 3.0]], dtype=np.float64, device=device("cpu")).to(dtype=np.float32)

assert_type(t + 1, Tensor)
assert_type(2.0 * t / u - u, Tensor)
assert_type(array + t, Tensor)
assert_type(np.float32(1) + t, Tensor)
assert_type(-(abs(t) ** 2), Tensor)
assert_type(t @ u.T, Tensor)
assert_type(t[:, 0], Tensor)
assert_type(t[t > 0], Tensor)
assert_type(t == 0, Array)
assert_type(t.sum(axis=(0, 1), keepdims=True), Tensor)
assert_type(t.mean(0).std(), Tensor)
assert_type(t.reshape(3, 2).reshape((2, 3)).transpose(1, 0).flatten(), Tensor)
assert_type(t.split(3, axis=1), list[Tensor])
assert_type(t.argmax(axis=1), Array)
assert_type([row.item() for row in t[0]], list[float])
assert_type(float(t[0, 0]), float)
assert_type(len(t), int)
assert_type(t.shape, tuple[int, ...])
assert_type(t.device, Device)
assert_type(t.op, Op | None)
assert_type(t.numpy(), Array)
assert_type(t.detach(), Tensor)

total = Tensor(0.0)
total += t.sum()
assert_type(total, Tensor)
total.backward()
assert_type(t.grad, Array | None)
with no_grad():
    t -= 0.1
    t[0] = 1.0
with debug(), use_kernels("textbook"):
    t.exp()


# An op of one's own.


class Square(Op):
    saved: NDArray[np.floating[Any]]

    def forward(self, x: NDArray[np.floating[Any]]) -> NDArray[np.floating[Any]]:
        self.saved = x
        return x * x

    def backward(self, gradient: NDArray[np.floating[Any]]) -> tuple[NDArray[np.floating[Any]]]:
        return (2 * self.saved * gradient,)


assert_type(Square()(t), Tensor)


# A module of one's own.


class Net(nn.Module):
    def __init__(self, classes: int = 3):
        super().__init__()
        self.conv = nn.Conv3d(1, 4, kernel_size=(1, 3, 3), stride=2, padding="valid", bias=False)
        self.norm = nn.BatchNorm3d(4)
        self.block = nn.NonLocalBlock(4, mode="dot", subsample=None)
        self.tail = nn.Sequential(nn.ReLU(), nn.MaxPool3d((1, 2, 2)), nn.GlobalAvgPool3d())
        self.classify = nn.Linear(4, classes)

    def forward(self, x: Tensor, factor: float = 1.0) -> Tensor:
        x = self.norm(self.conv(x), relu=True)
        x = self.tail(self.block(x))
        return self.classify(x * factor)


net = Net().train()
assert_type(net, Net)
assert_type(net.conv.weight, nn.Parameter)
assert_type(net.classify.bias, nn.Parameter | None)
assert_type(net.norm.running_mean, Array)
assert_type(net.parameters(), list[nn.Parameter])
assert_type(net.training, bool)

x = Tensor(rng.standard_normal((2, 4, 12, 12, 1)).astype(np.float32))
assert_type(net(x), Tensor)
assert_type(net(x, factor=2.0), Tensor)
with nn.evaluating(net) as evaluated:
    assert_type(evaluated, Net)


# Functions, optimisers, data, checks, models.

logits = net(x)
loss = F.cross_entropy(logits, [0, 2], label_smoothing=0.1)
assert_type(loss, Tensor)
assert_type(F.where(logits > 0, logits, 0.0), Tensor)
assert_type(F.concatenate([logits, logits], axis=1), Tensor)
assert_type(F.max_pool3d(x, 2, stride=(1, 2, 2)), Tensor)
assert_type(F.attention(x, x, [(0, 0, 0)]), Array)

optimizer = optim.SGD(net.parameters(), lr=0.1, momentum=0.9, nesterov=True)
groups: list[dict[str, Any]] = [{"params": [net.classify.weight], "lr": 0.5}, {"params": net.conv.weight}]
adam = optim.AdamW(groups, betas=(0.9, 0.99))
schedule = optim.warm_up(optim.step_schedule(0.1, [10, 20]), 5)
assert_type(schedule(3), float)
loss.backward()
optim.clip_grad_norm(net.parameters(), 1.0)
optimizer.lr = schedule(0)
optimizer.step()
optimizer.zero_grad()

loader = Loader(RelationClips(clips=6, frames=8, size=12), batch_size=2, shuffle=True)
for clips, labels in loader:
    assert_type(clips, Array)
    assert_type(F.cross_entropy(net(Tensor(clips)), labels), Tensor)

result = gradcheck(lambda a: F.tanh(a), [rng.standard_normal(3)])
assert result, result.inputs[0].explain()
assert float32check(F.exp, [array])
assert_type(models.Small(classes=3)(x), Tensor)


def refused() -> None:
    """Each of these is an error at run time too."""
    t.sum(axis="rows")  # type: ignore[arg-type]
    t.sum(dim=0)  # type: ignore[call-arg]
    t.astype(np.float64)  # type: ignore[attr-defined]
    t.shape = (6,)  # type: ignore[misc]
    t + "1"  # type: ignore[arg-type]
    t + [1.0]  # type: ignore[arg-type]
    t.item().backward()  # type: ignore[attr-defined]
    t.grad * 2  # type: ignore[operator]
    Tensor(array, requires_grad="yes")  # type: ignore[arg-type]
    Tensor(array, device=0)  # type: ignore[arg-type]
    F.relu(1.0)  # type: ignore[arg-type]
    F.conv3d(x, net.conv.weight, padding="full")  # type: ignore[arg-type]
    F.cross_entropy(logits, [0, 2], reduction="average")  # type: ignore[arg-type]
    F.softmax(logits, axis=(0, 1))  # type: ignore[arg-type]
    F.clamp(logits, 0, 1)  # type: ignore[attr-defined]
    nn.Conv2d(1, 4, 3)  # type: ignore[attr-defined]
    nn.Conv3d(1, 4)  # type: ignore[call-arg]
    nn.Linear(3, "4")  # type: ignore[arg-type]
    nn.NonLocalBlock(4, mode="sum")  # type: ignore[arg-type]
    nn.Sequential([nn.ReLU()])  # type: ignore[arg-type]
    net.conv(x, x)  # type: ignore[call-arg]
    net([1.0])  # type: ignore[arg-type]
    net(x, scale=2.0)  # type: ignore[call-arg]
    optim.SGD(net.parameters())  # type: ignore[call-arg]
    optim.SGD("net", lr=0.1)  # type: ignore[arg-type]
    print(optimizer.param_groups)  # type: ignore[attr-defined]
    use_kernels("slow")  # type: ignore[arg-type]
    gradcheck(F.tanh, array)  # type: ignore[arg-type]
    ArrayClips("clips.npz", resize="stretch")  # type: ignore[arg-type]
    Loader(array, batch_size=2)  # type: ignore[arg-type]
