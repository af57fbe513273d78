"""The small network: its training beside a twin in PyTorch, any input size, memory, dtypes, and NaN found by name."""

import gc
import itertools
import tracemalloc
import weakref

import numpy as np
import pytest

import minnl
import models
from minnl import Tensor, dispatch, engine, nn, optim
from minnl import functional as F
from minnl.data import RelationClips
from minnl.study import cost_summary
from models import blocks

SHAPE = (4, 6, 16, 20, 1)


def build(non_local=None, seed=0, dtype=np.float32, **options):
    minnl.manual_seed(seed)
    return models.build("small", non_local=non_local, **options).to(dtype=dtype)


def batches(count, shape=SHAPE, dtype=np.float32):
    rng = np.random.default_rng(7)
    return [(rng.normal(size=shape).astype(dtype), rng.integers(0, 3, shape[0])) for _ in range(count)]


def losses(model, data, recipe):
    """Loss of each training step."""
    name, options = recipe
    optimizer = getattr(optim, name)(model.parameters(), **options)
    seen = []
    for x, labels in data:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(Tensor(x)), labels)
        loss.backward()
        optimizer.step()
        seen.append(loss.item())
    return np.array(seen)


class Twin:
    """A network of models/ in PyTorch's functions: weights and buffers are copied, every layer is written anew.

    Channels come first here, the non-local matrix f is made as a whole, and gradients are PyTorch's own.
    """

    def __init__(self, model):
        import torch

        self.torch, self.model = torch, model
        self.weights = {}
        for path, p in model.named_parameters():
            array = p.data
            if array.ndim == 5:  # (kT, kH, kW, C, K) -> (K, C, kT, kH, kW)
                array = array.transpose(4, 3, 0, 1, 2)
            self.weights[path] = torch.tensor(np.ascontiguousarray(array), requires_grad=p.requires_grad)
        self.buffers = {path: torch.tensor(array) for path, array in model.named_buffers()}

    def __call__(self, x):
        return self.run(self.model, "", self.torch.tensor(x).permute(0, 4, 1, 2, 3))

    def run(self, module, path, x):
        F = self.torch.nn.functional
        weight, bias = (self.weights.get(f"{path}.{name}") for name in ("weight", "bias"))
        if isinstance(module, nn.Conv3d):
            return F.conv3d(x, weight, bias, module.stride, module.padding, module.dilation, module.groups)
        if isinstance(module, nn.BatchNorm3d):
            running = (self.buffers[f"{path}.running_{name}"] for name in ("mean", "var"))
            return F.batch_norm(x, *running, weight, bias, True, module.momentum, module.eps)
        if isinstance(module, nn.Linear):
            return x @ weight + bias
        if isinstance(module, nn.MaxPool3d):
            return F.max_pool3d(x, *module.arguments[:3])
        if isinstance(module, nn.GlobalAvgPool3d):
            return x.mean((2, 3, 4))
        if isinstance(module, nn.Dropout):
            assert module.p == 0
            return x
        if isinstance(module, nn.NonLocalBlock):
            return x + self.non_local(module, path, x)
        if isinstance(module, blocks.Residual):
            shortcut = x if module.shortcut is None else self.run(module.shortcut, f"{path}.shortcut", x)
            return F.relu(self.run(module.branch, f"{path}.branch", x) + shortcut)
        if isinstance(module, blocks.ConvNorm):
            x = self.run(module.norm, f"{path}.norm", self.run(module.conv, f"{path}.conv", x))
            return F.relu(x) if module.relu else x
        assert isinstance(module, (nn.Sequential, models.small.Small)), f"no twin for {type(module).__name__}"
        for name, child in module._modules.items():
            x = self.run(child, f"{path}.{name}".lstrip("."), x)
        return x

    def non_local(self, block, path, x):
        """W_z y, with y by equations 1 to 5 of the paper."""
        torch, F = self.torch, self.torch.nn.functional

        def pointwise(name, x):
            return F.conv3d(x, self.weights[f"{path}.{name}.weight"], self.weights[f"{path}.{name}.bias"])

        assert (block.subsample, block.axes) == ("before", "spacetime")
        small = F.max_pool3d(x, (1, 2, 2))
        gaussian = block.mode == "gaussian"
        theta, phi = (x, small) if gaussian else (pointwise("theta", x), pointwise("phi", small))
        theta, phi, g = (a.flatten(2).transpose(1, 2) for a in (theta, phi, pointwise("g", small)))
        if block.mode == "concat":
            ones = torch.ones(theta.shape[0], theta.shape[1], phi.shape[1], 1, dtype=x.dtype)
            pairs = torch.cat([theta[:, :, None] * ones, phi[:, None] * ones], dim=-1)
            f = F.relu(pairs @ self.weights[f"{path}.w_f"]) / phi.shape[1]
        elif block.mode == "dot":
            f = theta @ phi.transpose(1, 2) / phi.shape[1]
        else:
            scale = phi.shape[-1] ** -0.5 if block.mode == "embedded" else 1
            f = torch.softmax(theta @ phi.transpose(1, 2) * scale, dim=-1)
        y = (f @ g).transpose(1, 2).unflatten(2, x.shape[2:])
        return self.run(block.norm, f"{path}.norm", pointwise("W_z", y))

    def losses(self, data, recipe):
        torch, (name, options) = self.torch, recipe
        norms = {
            f"{path}.{name}" for path, m in self.model.named_modules() for name in ("weight", "bias") if is_norm(m)
        }
        groups = [
            {"params": [w for path, w in self.weights.items() if (path in norms) == of_norm], "weight_decay": decay}
            for of_norm, decay in ((False, options["weight_decay"]), (True, 0.0))
        ]
        optimizer = getattr(torch.optim, name)(groups, **options)
        seen = []
        for x, labels in data:
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(self(x), torch.tensor(labels))
            loss.backward()
            optimizer.step()
            seen.append(loss.item())
        return np.array(seen)


def is_norm(module):
    return isinstance(module, nn.BatchNorm3d)


@pytest.fixture
def one_torch_thread():
    torch = pytest.importorskip("torch")
    count = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(count)


SGD = "SGD", {"lr": 0.01, "momentum": 0.9, "nesterov": True, "weight_decay": 1e-4}  # as the paper has it
GENTLE = "SGD", SGD[1] | {"lr": 0.003}
ADAMW = "AdamW", {"lr": 1e-3, "weight_decay": 0.01}


def task(count, clips, steps, dtype):
    """`steps` batches of the built-in task, going round `count` of them, so that there is something to learn."""
    made = RelationClips("train", clips=count * clips)
    pairs = [made.clip(i) for i in range(count * clips)]
    x = np.stack([clip for clip, _ in pairs]).astype(dtype).reshape(count, clips, *made.shape)
    labels = np.array([label for _, label in pairs]).reshape(count, clips)
    return [(x[i % count], labels[i % count]) for i in range(steps)]


@pytest.mark.slow
@pytest.mark.torch
@pytest.mark.parametrize("mode, steps", [(None, 50), ("embedded", 50), ("gaussian", 8), ("dot", 8), ("concat", 8)])
def test_losses_beside_pytorch(mode, steps, one_torch_thread):
    """In float32. At higher rates PyTorch in float32 leaves PyTorch in float64 by more than 1e-4 too: the next test."""
    data = task(2, 24, steps, np.float32)
    np.testing.assert_allclose(losses(build(mode), data, GENTLE), Twin(build(mode)).losses(data, GENTLE), rtol=1e-4)


@pytest.mark.slow
@pytest.mark.torch
@pytest.mark.parametrize("mode, recipe", [(None, SGD), ("embedded", ADAMW)])
def test_a_run_that_learns_beside_pytorch(mode, recipe, one_torch_thread):
    """In float64, where 50 steps at full rate do not drown the comparison in rounding."""
    data, model = task(2, 12, 50, np.float64), build(mode, dtype=np.float64)
    theirs = Twin(model).losses(data, recipe)
    assert theirs[0] - theirs[-1] > 0.2, "the loss should fall"
    np.testing.assert_allclose(losses(model, data, recipe), theirs, rtol=1e-7)


@pytest.mark.slow
@pytest.mark.torch
@pytest.mark.parametrize("recipe", [SGD, ADAMW])
@pytest.mark.parametrize("mode", [None, *nn.MODES])
def test_losses_beside_pytorch_in_float64(mode, recipe, one_torch_thread):
    data, model = batches(5, dtype=np.float64), build(mode, dtype=np.float64)
    twin = Twin(model)
    theirs = twin.losses(data, recipe)
    np.testing.assert_allclose(losses(model, data, recipe), theirs, rtol=1e-9)
    for path, array in model.named_buffers():
        np.testing.assert_allclose(array, twin.buffers[path].numpy(), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("mode", nn.MODES)
def test_a_fresh_non_local_network_gives_the_logits_of_its_base(mode, training):
    base, network = build(seed=1).train(training), build(mode, seed=2).train(training)
    state = network.state_dict()
    own = {name: a for name, a in state.items() if "nonlocal" in name}
    assert own and state.keys() - own.keys() == base.state_dict().keys()
    network.load_state_dict(base.state_dict() | own)
    x = Tensor(batches(1)[0][0])
    np.testing.assert_array_equal(network(x).data, base(x).data)


@pytest.mark.parametrize("shape", [(1, 16, 32, 32, 1), (2, 5, 17, 23, 1), (3, 1, 40, 12, 1), (1, 9, 64, 48, 1)])
@pytest.mark.parametrize("mode", [None, "embedded"])
def test_any_input_size(mode, shape):
    model = build(mode, classes=7)
    logits = model(Tensor(np.zeros(shape, np.float32)))
    assert logits.shape == (shape[0], 7)
    assert model.eval()(Tensor(np.zeros(shape, np.float32))).shape == (shape[0], 7)


def test_options_reach_the_blocks():
    network = build("embedded", subsample="after", scale=False, axes="space", in_channels=3, dropout=0.25)
    (block,) = (m for m in network.modules() if isinstance(m, nn.NonLocalBlock))
    assert (block.mode, block.subsample, block.scale, block.axes) == ("embedded", "after", None, "space")
    assert [m.p for m in network.modules() if isinstance(m, nn.Dropout)] == [0.25]
    assert network(Tensor(np.zeros((1, 4, 16, 16, 3), np.float32))).shape == (1, 3)
    assert not [m for _, m in build().named_modules() if isinstance(m, nn.NonLocalBlock)]
    minnl.manual_seed(0)
    by_name = models.build("nl_small")
    assert by_name.state_dict().keys() == build("embedded").state_dict().keys()


def test_residual_blocks_start_as_their_shortcut():
    x = np.abs(batches(1, (2, 4, 6, 6, 8))[0][0])
    for block in (blocks.bottleneck(8, 8, 4, frames=3), blocks.basic(8, 8)):
        assert block.shortcut is None
        np.testing.assert_array_equal(block(Tensor(x)).data, x)
    for block in (blocks.bottleneck(8, 12, 4, (1, 2, 2)), blocks.basic(8, 12, (1, 2, 2), frames=3)):
        y = block(Tensor(x))
        np.testing.assert_array_equal(y.data, F.relu(block.shortcut(Tensor(x))).data)
        assert y.shape == (2, 4, 3, 3, 12)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: models.build("resnet"), "build: no model 'resnet'; there are .*small"),
        (lambda: build("softmax"), "NonLocalBlock: mode must be one of"),
        (lambda: build("dot", blocks="stem"), "Small: blocks must be one of .* got 'stem'"),
        (lambda: build("dot", blocks=99), "Small: blocks must be one of 'res2', 'res3', got 99"),
        (lambda: build("dot", blocks={"res2": range(99)}), r"Small: blocks\['res2'\] must be different indices from 0"),
        (lambda: build(classes=0), "Small: classes must be 1 or more"),
        (lambda: build(in_channels=0), "Small: in_channels must be 1 or more"),
        (lambda: build()(Tensor(np.zeros((1, 4, 8, 8, 3), np.float32))), "conv3d: weight has 1 input channels"),
        (lambda: build()(Tensor(np.zeros((4, 8, 8, 1), np.float32))), r"conv3d: x must have 5 axes"),
    ],
)
def test_wrong_input_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def train_and_evaluate(model, optimizer, x, labels):
    """A step, an evaluation, and a graph that nobody runs backwards."""
    optimizer.zero_grad()
    F.cross_entropy(model(Tensor(x)), labels).backward()
    optimizer.step()
    with nn.evaluating(model):
        model(Tensor(x))
    model(Tensor(x))


@pytest.fixture
def no_garbage_collector():
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.parametrize("mode", dispatch.MODES)
def test_nothing_of_a_step_stays(mode, monkeypatch, no_garbage_collector):
    """Every op, its output and what it kept are gone after the step, without the garbage collector."""
    born, call = [], engine.Op.__call__

    def watched(op, *inputs):
        y = call(op, *inputs)
        kept = (getattr(op, key, None) for key in op.saved_for_backward)
        arrays = [a for a in (y.data, *kept) if isinstance(a, np.ndarray) and id(a) not in permanent]
        born.extend(weakref.ref(thing) for thing in (op, y, *arrays))
        return y

    monkeypatch.setattr(engine.Op, "__call__", watched)
    model = build("embedded")
    permanent = {id(a) for a in model.state_dict().values()}
    x, labels = batches(1, (2, 4, 16, 16, 1))[0]
    with minnl.use_kernels(mode):
        train_and_evaluate(model, optim.AdamW(model.parameters()), x.copy(), labels)
    assert len(born) > 300
    assert [type(ref()).__name__ for ref in born if ref() is not None] == []


@pytest.mark.slow
@pytest.mark.parametrize("mode", dispatch.MODES)
def test_memory_stays_flat(mode, no_garbage_collector):
    """A leak would be 6 graphs, one a step; the small pieces that Python and NumPy keep for reuse are less than 1."""
    model = build("embedded")
    optimizer = optim.AdamW(model.parameters())
    shape = (2, 4, 16, 16, 1)
    sizes = []
    tracemalloc.start()
    try:
        with minnl.use_kernels(mode):
            for x, labels in batches(10, shape):
                train_and_evaluate(model, optimizer, x, labels)
                sizes.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    assert max(sizes[4:]) - min(sizes[4:]) < cost_summary.summarize(model, shape).kept, sizes


@pytest.mark.parametrize("mode", dispatch.MODES)
def test_no_float64_in_a_float32_step(mode, monkeypatch):
    seen = []

    def watch(name, arrays):
        for array in arrays:
            if array is not None:
                seen.append((name, array.dtype))

    call, gradients = engine.Op.__call__, engine.Op.gradients

    def watched_call(op, *inputs):
        y = call(op, *inputs)
        kept = [
            a
            for a in (getattr(op, k, None) for k in op.saved_for_backward)
            if getattr(a, "dtype", None) not in (None, np.uint8)
        ]
        watch(op.name, [x.data for x in inputs if isinstance(x, Tensor)] + [y.data] + kept)
        return y

    def watched_gradients(op, gy):
        grads = gradients(op, gy)
        watch(op.name, [gy, *grads])
        return grads

    monkeypatch.setattr(engine.Op, "__call__", watched_call)
    monkeypatch.setattr(engine.Op, "gradients", watched_gradients)
    model = build("embedded", dropout=0.5)
    optimizer = optim.AdamW(model.parameters(), np.float64(1e-3))
    with minnl.use_kernels(mode):
        for x, labels in batches(2):
            optimizer.zero_grad()
            F.cross_entropy(model(Tensor(x)), labels, label_smoothing=0.1).backward()
            optim.clip_grad_norm(optimizer.params, 0.1)
            optimizer.step()
    watch("gradient", [p.grad for p in model.parameters()])
    watch("state", model.state_dict().values())
    watch("optimizer", itertools.chain(*optimizer.kept.values()))
    assert {"conv3d", "batch_norm", "non_local", "dropout", "cross_entropy"} <= {name for name, _ in seen}
    assert [name for name, dtype in seen if dtype not in (np.float32, bool)] == []


def test_nan_in_data_is_found_in_debug_mode():
    x = batches(1)[0][0]
    x[1, 2, 3, 4, 0] = np.nan
    with (
        minnl.debug(),
        pytest.raises(FloatingPointError, match=r"conv3d in Small\.stem\.conv: forward: input 0 .* NaN"),
    ):
        build("embedded")(Tensor(x))


def test_an_exploding_weight_is_found_in_debug_mode():
    model = build("embedded")
    (path,) = (path for path, m in model.named_modules() if isinstance(m, nn.NonLocalBlock))
    dict(model.named_modules())[path].theta.weight.data[...] = np.inf
    where = rf"conv3d in Small\.{path}\.theta: forward: input 1"
    with minnl.debug(), np.errstate(all="ignore"), pytest.raises(FloatingPointError, match=where):
        model(Tensor(batches(1)[0][0]))
