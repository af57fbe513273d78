"""Habits of PyTorch's users, with modules and optimisers: each does what they expect, or an error says what to write.

tests/training/test_optim.py and tests/nn/test_nn.py hold the numbers; here is what must not happen in silence.
"""

import copy
import dataclasses
import math
import pickle
import threading

import numpy as np
import pytest

from minnl import Tensor, backend, nn, optim
from minnl import functional as F


def array(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


class Net(nn.Module):
    """A few of each: parameters, a buffer, modules."""

    def __init__(self):
        super().__init__()
        self.norm, self.linear = nn.BatchNorm3d(3), nn.Linear(3, 4)
        self.scale = nn.Parameter(np.ones(4, np.float32))

    def forward(self, x):
        return self.linear(self.norm(x)) * self.scale


def bytes_of(module):
    return {name: a.tobytes() for name, a in module.state_dict().items()}


def learn(module, x):
    """Whether a step moves what learns in it."""
    before, optimizer = bytes_of(module), optim.SGD(module.parameters(), 0.1)
    F.sum(module(Tensor(x)) ** 2).backward()
    optimizer.step()
    return bytes_of(module) != before


# What works: each habit does what is expected, not nothing and not something else.


def test_layers_in_a_module_list():
    class Stack(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList([nn.Linear(3, 3), nn.Dropout()])
            self.layers.append(nn.Linear(3, 2))

        def forward(self, x):
            for layer in self.layers:
                x = layer(x)
            return x

    net = Stack()
    assert [name for name, _ in net.named_parameters()] == [
        f"layers.{i}.{n}" for i in (0, 2) for n in ("weight", "bias")
    ]
    assert list(net.state_dict()) == [name for name, _ in net.named_parameters()]
    assert learn(net, array(2, 3)) and not net.eval().layers[1].training


def test_layers_in_a_module_dict():
    class Heads(nn.Module):
        def __init__(self):
            super().__init__()
            self.heads = nn.ModuleDict({"a": nn.Linear(3, 2)})
            self.heads["b"] = nn.Linear(3, 2)

        def forward(self, x):
            return F.concatenate([head(x) for head in self.heads.values()], axis=1)

    net = Heads()
    assert list(net.state_dict()) == ["heads.a.weight", "heads.a.bias", "heads.b.weight", "heads.b.bias"]
    assert learn(net, array(2, 3)) and "a" in net.heads and list(net.heads) == ["a", "b"] and len(net.heads) == 2


def test_a_list_of_layers_that_have_names_of_their_own():
    net = Net()
    net.parts = [net.norm, net.linear]
    assert len(net.parameters()) == 5 and copy.deepcopy(net).parameters()


def test_a_module_without_super_init():
    class Forgetful(nn.Module):
        def __init__(self):
            self.layer = nn.Linear(3, 2)

        def forward(self, x):
            return self.layer(x)

    net = Forgetful()
    assert list(net.state_dict()) == ["layer.weight", "layer.bias"] and learn(net, array(2, 3))


def test_load_parameters_of_another():
    one, other = nn.Linear(2, 3), nn.Linear(2, 3)
    one.load_state_dict(dict(other.named_parameters()))
    assert bytes_of(one) == bytes_of(other) and one.weight is not other.weight
    other.weight.data[...] = 7
    assert not (one.weight.data == 7).any()


def test_load_what_changed_places():
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    state = net.state_dict()
    a, b = (state[f"{i}.weight"].copy() for i in (0, 1))
    net.load_state_dict(state | {"0.weight": state["1.weight"], "1.weight": state["0.weight"]})
    assert (net[0].weight.data == b).all() and (net[1].weight.data == a).all()


def test_delete_a_child():
    net = Net()
    del net.norm
    del net.scale
    assert list(net.state_dict()) == ["linear.weight", "linear.bias"] and len(net.modules()) == 2
    with pytest.raises(AttributeError, match="Net has no attribute 'norm'"):
        net.norm  # noqa: B018


def test_a_shallow_copy():
    """It has the same layers, and assigning to it leaves the original as it is."""
    net = Net()
    before, other = bytes_of(net), copy.copy(net)
    assert other.linear is net.linear and bytes_of(other) == before
    other.linear = nn.Linear(3, 9)
    other.norm = None
    other.eval()
    assert bytes_of(net) == before and net.training and net.linear.weight.shape == (3, 4)


def test_deep_copies_and_pickles():
    net = Net()
    net.norm.eval()
    net.norm.bias.requires_grad = False
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert bytes_of(other) == bytes_of(net) and not other.norm.training and other.training
        for p, q in zip(net.parameters(), other.parameters(), strict=True):
            assert type(q) is nn.Parameter and (q.decay, q.requires_grad) == (p.decay, p.requires_grad)
            assert not np.shares_memory(p.data, q.data)
        assert learn(other, array(2, 1, 1, 1, 3)) and bytes_of(other) != bytes_of(net)


def test_copies_of_recompute():
    net = nn.Sequential(nn.Recompute(nn.Linear(3, 2)))
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert bytes_of(other) == bytes_of(net) and learn(other, array(2, 3)) and bytes_of(other) != bytes_of(net)
        other[0].weight = nn.Parameter(np.zeros((3, 2), np.float32))
        assert not other[0].module.weight.data.any() and net[0].weight.data.any()
    other = copy.copy(net[0])
    other.bias = None
    assert net[0].bias is not None and other.module.bias is None


def test_attributes_of_a_recomputed_module():
    """What is read and set is the module's."""
    outer = nn.Recompute(nn.Dropout(0.5))
    outer.p = 0.0
    assert outer.module.p == outer.p == 0.0
    x = Tensor(array(4, 4), requires_grad=True)
    assert (outer(x).data == x.data).all()
    outer.training = False
    assert not outer.module.training


def test_set_training():
    """It reaches all parts, as train and eval do."""
    net = nn.Sequential(nn.Dropout(), nn.Sequential(nn.Dropout()))
    net.training = False
    assert not net[1][0].training
    net.training = True
    assert net[1][0].training


def test_override_train_in_a_part():
    """A part that keeps its norm in eval mode is asked, when the whole is switched."""

    class Frozen(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm3d(3)

        def train(self, mode=True):
            super().train(mode)
            self.norm.eval()
            return self

    for net in (nn.Sequential(Frozen()), nn.Sequential(nn.Recompute(Frozen()))):
        net.train()
        assert net[0].training and not net[0].norm.training


def test_a_dataclass():
    """Its fields are assigned before anything else, and it has no hash."""

    @dataclasses.dataclass
    class Scaled(nn.Module):
        layer: nn.Module
        factor: float = 2.0

        def forward(self, x):
            return self.layer(x) * self.factor

    net = Scaled(nn.Linear(3, 2))
    with nn.evaluating(net):
        assert not net.training and not net.layer.training
    assert net.training and list(net.state_dict()) == ["layer.weight", "layer.bias"] and learn(net, array(2, 3))


def test_one_module_twice():
    """Listed, saved and measured once, under its first name."""
    norm = nn.BatchNorm3d(3)
    net = nn.Sequential(norm, nn.ReLU(), norm)
    assert list(net.state_dict()) == ["0.weight", "0.bias", "0.running_mean", "0.running_var"]
    assert [path for path, _ in net.named_modules()] == ["", "0", "1"] and len(net) == 3
    other = nn.Sequential(nn.BatchNorm3d(3))
    other.load_state_dict(net.state_dict())


def test_modules_as_in_a_loop_over_them():
    """PyTorch's `modules` gives modules, not pairs: a loop that looks for its own kind must find it."""
    net = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2)))
    for m in net.modules():
        if isinstance(m, nn.Linear):
            m.bias.data[...] = 5
    assert (net[0].bias.data == 5).all() and (net[1][0].bias.data == 5).all()
    assert net.children() == [net[0], net[1]] and dict(net.named_modules())["1.0"] is net[1][0]


def test_a_layer_given_an_array():
    layer = nn.Linear(3, 2)
    np.testing.assert_allclose(layer(array(4, 3)).data, array(4, 3) @ layer.weight.data, rtol=1e-6)


def test_no_bias_by_none():
    assert nn.Conv3d(2, 3, 3, padding="same", bias=None).bias is None and nn.Linear(2, 3, bias=None).bias is None


def test_move_the_module_after_the_optimiser_was_made():
    """`to` edits parameters in place, so an optimiser goes on with them."""
    net = nn.Linear(3, 2)
    optimizer = optim.AdamW(net.parameters())
    for dtype in (np.float32, np.float64, np.float32):
        net.to(dtype=dtype)
        before = net.weight.data.copy()
        F.sum(net(Tensor(np.ones((2, 3), dtype)))).backward()
        optimizer.step()
        assert (net.weight.data != before).all()


def test_freeze_by_requires_grad():
    net = Net()
    optimizer = optim.AdamW(net.parameters(), weight_decay=0.5)
    for p in net.linear.parameters():
        p.requires_grad = False
    before = bytes_of(net.linear)
    F.sum(net(Tensor(array(2, 1, 1, 1, 3))) ** 2).backward()
    optimizer.step()
    assert bytes_of(net.linear) == before and (net.scale.data != 1).all()


def test_evaluate_in_several_threads():
    """Nothing that one of them does changes what another computes, the statistics, or the mode afterwards."""
    net = nn.Sequential(nn.BatchNorm3d(3), nn.Dropout(), nn.Linear(3, 4, std=1.0))
    net[0].running_mean[:] = 5
    before, x, wrong = bytes_of(net), array(2, 2, 2, 2, 3), []
    expected = net.eval()(x).data
    net.train()
    together = threading.Barrier(4)

    def evaluate():
        for _ in range(20):
            together.wait()
            with nn.evaluating(net):
                for _ in range(3):
                    y = net(x)
                    wrong.extend([1] * bool((y.data != expected).any() or y.requires_grad))

    threads = [threading.Thread(target=evaluate) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and net.training and net[1].training and bytes_of(net) == before


def test_a_worker_of_an_evaluation():
    """One that does not say so itself is refused: it would compute in training mode."""
    net, x, found = nn.Sequential(nn.Dropout(), nn.ReLU()), array(2, 3), []

    def work():
        try:
            found.append(net(x))
        except RuntimeError as error:
            found.append(str(error))

    with nn.evaluating(net):
        worker = threading.Thread(target=work)
        worker.start()
        worker.join()
    assert "Dropout: used in training mode while another thread is in nn.evaluating with it" in found[0]
    assert "enter nn.evaluating in this thread too" in found[0]
    net.eval()
    with nn.evaluating(net):  # in eval mode there is nothing to mistake
        worker = threading.Thread(target=work)
        worker.start()
        worker.join()
    assert (found[1].data == np.maximum(x, 0)).all()


def test_switch_within_an_evaluation():
    """As in one thread ever since: it holds until the end. A copy is in the mode that was seen."""
    net = nn.Sequential(nn.Dropout(), nn.ReLU())
    with nn.evaluating(net):
        assert not copy.deepcopy(net)[0].training and not copy.copy(net).training
        net[0].train()
        assert net[0].training and not net.training
        with nn.evaluating(net):
            assert not net[0].training
        assert net[0].training
    assert net[0].training and net.training


def test_networks_made_in_another_thread():
    """While this one makes networks without drawing weights, for a file to fill, another draws its own."""
    found = []
    with nn.init.skipped():
        maker = threading.Thread(target=lambda: found.append(nn.Linear(4, 4)))
        maker.start()
        maker.join()
        assert not nn.Linear(4, 4).weight.data.any()
    assert found[0].weight.data.any() and nn.Linear(4, 4).weight.data.any()


def test_an_optimiser_with_an_empty_group():
    net = nn.Linear(2, 2)
    optimizer = optim.SGD([{"params": []}, {"params": (p for p in net.parameters())}], 0.1)
    F.sum(net(array(3, 2))).backward()
    optimizer.step()
    assert net.bias.data.any() and len(optimizer.params) == 2


def test_hide_a_module_on_purpose():
    net = Net()
    object.__setattr__(net, "teacher", nn.Linear(2, 2))
    assert len(net.parameters()) == 5 and net.teacher.weight.shape == (2, 2)


def test_keep_what_was_computed():
    """A result that is kept for a look is no parameter that was forgotten."""
    net, x = Net(), Tensor(array(2, 1, 1, 1, 3))
    net.last, net.all = net(x), [net(x)]
    assert len(net.parameters()) == 5


# What is refused: habit -> what is done to a Net, the error, and what it says.


def filled_later(net):
    net.layers = []
    net.layers.append(nn.ReLU())


def filled_deep_down(net):
    net.linear.options = {"heads": [(1, [])]}
    net.linear.options["heads"][0][1].append(nn.Linear(2, 2))


def in_a_class(net):
    type("Shared", (nn.Module,), {"layer": nn.ReLU()})


def returns_nothing(net):
    net.forward = lambda x: None
    net(array(2, 3))


def a_property_with_a_mistake(net):
    kind = type("Wide", (Net,), {"width": property(lambda self: self.linear.wieght.shape[1])})
    kind().width  # noqa: B018


def in_two_groups(net):
    optim.SGD([{"params": net.parameters()}, {"params": net.scale}], 0.1)


def read_only(net):
    net.scale.data.flags.writeable = False
    net.load_state_dict({name: np.zeros_like(a) for name, a in net.state_dict().items()})


def a_gradient_asked_for_later(net):
    net.shift = Tensor(array(4))
    net.shift.requires_grad = True
    net.parameters()


def put(name, value):
    return lambda net: setattr(net, name, value)


def cycle(module):
    around = [module]
    around[:0] = [around, {"again": around}]
    return around


T, V, A = TypeError, ValueError, AttributeError
FORGOTTEN = "which nothing would train or save; write nn.{}"
REFUSED = {
    "layers in a list": (
        put("a", [nn.ReLU()]),
        T,
        "Net: a is a list that holds ReLU, " + FORGOTTEN.format("ModuleList"),
    ),
    "in a tuple": (put("a", (1, nn.ReLU())), T, "Net: a is a tuple that holds ReLU"),
    "in a dict": (put("a", {"x": nn.ReLU()}), T, "a dict that holds ReLU, " + FORGOTTEN.format("ModuleDict")),
    "in a list in a dict": (put("a", {"x": [[nn.ReLU()]]}), T, "Net: a is a dict that holds ReLU"),
    "in a set": (put("a", {nn.ReLU()}), T, "Net: a is a set that holds ReLU"),
    "in a list that holds itself": (put("a", cycle(nn.ReLU())), T, "Net: a is a list that holds ReLU"),
    "another module for Recompute": (
        lambda n: setattr(nn.Recompute(n), "module", nn.ReLU()),
        A,
        "Recompute: the module cannot be replaced; make a new Recompute for another module",
    ),
    "parameters in a list": (put("a", [nn.Parameter([1.0])]), T, "Net: a is a list that holds Parameter"),
    "tensors that learn in a list": (put("a", [Tensor(1.0, requires_grad=True)]), T, "a list that holds Tensor"),
    "a tensor that learns": (
        put("a", Tensor(1.0, requires_grad=True)),
        T,
        r"Net: a is a Tensor that requires a gradient .* write nn.Parameter\(array\)",
    ),
    "a tensor that is to learn later": (
        a_gradient_asked_for_later,
        T,
        "Net: shift is a Tensor that requires a gradient",
    ),
    "a list that is filled later": (
        lambda n: (filled_later(n), n.parameters()),
        T,
        "Net: layers is a list that holds ReLU",
    ),
    "the same, seen by state_dict": (
        lambda n: (filled_later(n), n.state_dict()),
        T,
        "Net: layers is a list that holds ReLU",
    ),
    "the same, seen by train": (lambda n: (filled_later(n), n.eval()), T, "Net: layers is a list that holds ReLU"),
    "the same, seen by to": (
        lambda n: (filled_later(n), n.to(dtype=np.float64)),
        T,
        "Net: layers is a list that holds ReLU",
    ),
    "a list within, filled later": (
        lambda n: (filled_deep_down(n), n.parameters()),
        T,
        "Linear: options is a dict that holds Linear",
    ),
    "a layer of the class": (
        in_a_class,
        T,
        "Shared: layer is an attribute of the class; assign it in __init__ to self",
    ),
    "an array over a parameter": (
        put("scale", array(4)),
        T,
        r"Net: scale is a Parameter, ndarray cannot replace it; write scale.data\[...\] = array",
    ),
    "a tensor over a parameter": (put("scale", Tensor(array(4))), T, r"or assign nn.Parameter\(array\)"),
    "a number over a parameter": (put("scale", 3.0), T, "Net: scale is a Parameter, float cannot replace it"),
    "in-place arithmetic on a parameter": (
        lambda n: exec("n.scale = n.scale * 2", {"n": n}),
        T,
        "Net: scale is a Parameter, Tensor cannot replace it",
    ),
    "a function over a module": (
        put("norm", F.relu),
        T,
        "Net: norm is a Module, function cannot replace it; assign a Module, or None",
    ),
    "a tensor over a buffer": (
        lambda n: setattr(n.norm, "running_var", Tensor(array(3))),
        T,
        "running_var is an array, Tensor cannot replace it",
    ),
    "a buffer that is no array": (lambda n: n.buffer("b", [1.0]), T, "Net: the buffer 'b' is list, an array expected"),
    "a buffer over a parameter": (
        lambda n: n.buffer("scale", array(4)),
        V,
        "Net: 'scale' is a parameter or a module already",
    ),
    "a name with a dot": (
        put("a.b", nn.ReLU()),
        V,
        "Net: 'a.b' cannot be a name; names are not empty and have no dots",
    ),
    "no name": (lambda n: nn.ModuleDict({"": nn.ReLU()}), V, "ModuleDict: '' cannot be a name"),
    "a module called modules": (
        put("modules", nn.ReLU()),
        V,
        "Net: 'modules' cannot be a name, the class has an attribute of that name",
    ),
    "a parameter called training": (put("training", nn.Parameter([1.0])), V, "Net: 'training' cannot be a name"),
    "itself as a part": (
        lambda n: setattr(n.linear, "parent", n),
        V,
        "Linear: 'parent' would hold the module that it is part of",
    ),
    "a class for an instance": (
        lambda n: nn.Sequential(nn.ReLU),
        T,
        r"Sequential: 0 is the class ReLU; write ReLU\(...\)",
    ),
    "a list for Sequential": (
        lambda n: nn.Sequential([nn.ReLU()]),
        T,
        r"Sequential: 0 is list, a Module expected; write Sequential\(\*modules\)",
    ),
    "a dict for Sequential": (lambda n: nn.Sequential({"a": nn.ReLU()}), T, r"write Sequential\(\*\*modules\)"),
    "a module for ModuleList": (
        lambda n: nn.ModuleList(nn.ReLU()),
        T,
        "ModuleList: modules is ReLU, a list of modules expected",
    ),
    "ModuleList of functions": (
        lambda n: nn.ModuleList([nn.ReLU(), F.relu]),
        T,
        "ModuleList: 1 is function, a Module expected",
    ),
    "ModuleList called": (
        lambda n: nn.ModuleList([nn.ReLU()])(array(2)),
        NotImplementedError,
        "ModuleList has no forward",
    ),
    "ModuleDict with numbers for names": (
        lambda n: nn.ModuleDict({1: nn.ReLU()}),
        T,
        "ModuleDict: names are str, got 1",
    ),
    "forward without return": (returns_nothing, T, "Net: forward returned None; does it end with return"),
    "a Parameter of a Tensor": (
        lambda n: nn.Parameter(Tensor(1.0)),
        T,
        r"Parameter: data is a Tensor; write nn.Parameter\(tensor.data\)",
    ),
    "load a path": (
        lambda n: n.load_state_dict("last.safetensors"),
        T,
        "load_state_dict: state must be a dict of arrays, got str",
    ),
    "load parameters without buffers": (
        lambda n: n.load_state_dict(dict(Net().named_parameters())),
        V,
        r"missing: norm.running_mean \(3,\)",
    ),
    "load lists": (
        lambda n: n.load_state_dict(n.state_dict() | {"scale": [1.0] * 4}),
        V,
        r"different: scale is \(4,\) float32, given list",
    ),
    "load into what is read-only": (read_only, V, "read-only: scale"),
    "train with a word": (lambda n: n.train("eval"), V, "train: mode must be one of True, False, got 'eval'"),
    "a group with a misspelt option": (
        lambda n: optim.SGD([{"params": n.parameters(), "learning_rate": 1}], 0.1),
        V,
        "SGD: a group has 'learning_rate'",
    ),
    "AdamW of a module": (lambda n: optim.AdamW(n), T, r"AdamW: params is Net, a module; pass its .parameters\(\)"),
    "AdamW of names and parameters": (
        lambda n: optim.AdamW(n.named_parameters()),
        T,
        r"AdamW: params must be leaf tensors, params\[0\] is tuple",
    ),
    "clip_grad_norm of a module": (
        lambda n: optim.clip_grad_norm(n, 1.0),
        T,
        r"clip_grad_norm: params is Net, a module; pass its .parameters\(\)",
    ),
    "a parameter in two groups": (in_two_groups, V, r"SGD: a parameter of shape \(4,\) is listed twice"),
    "a property with a mistake in it": (a_property_with_a_mistake, A, "Linear has no attribute 'wieght'"),
    "a flag in words": (
        lambda n: nn.Linear(2, 2, bias="no"),
        V,
        "Linear: bias must be one of True, False, None, got 'no'",
    ),
    "frozen in words": (
        lambda n: nn.BatchNorm3d(2, frozen="False"),
        V,
        "BatchNorm3d: frozen must be one of True, False",
    ),
    "channels in words": (lambda n: nn.Dropout(channels="no"), V, "Dropout: channels must be one of True, False"),
    "scale in words": (lambda n: nn.NonLocalBlock(4, scale="no"), V, "NonLocalBlock: scale must be one of True, False"),
    "gamma of NaN": (lambda n: nn.BatchNorm3d(2, gamma=math.nan), V, "BatchNorm3d: gamma must be 0 or more, got nan"),
    "a bias in the place of the stride": (
        lambda n: nn.Conv3d(2, 3, 1, True),
        T,
        "Conv3d: stride must be an int or three",
    ),
    "nn.Conv2d": (
        lambda n: nn.Conv2d,
        A,
        r"minnl.nn has no attribute 'Conv2d'; write nn.Conv3d with kernels \(1, k, k\)",
    ),
    "nn.Softmax": (lambda n: nn.Softmax, A, "write functional.softmax"),
    "nn.Linaer": (lambda n: nn.Linaer, A, "minnl.nn has no attribute 'Linaer'$"),
    "optimizer.param_groups": (
        lambda n: optim.SGD(n.parameters(), 0.1).param_groups,
        A,
        "SGD has no attribute 'param_groups'; set .lr",
    ),
    "optimizer.add_param_group": (
        lambda n: optim.SGD(n.parameters(), 0.1).add_param_group,
        A,
        "make a new optimiser with all groups",
    ),
    "optimizer.zero_grad(set_to_none=True)": (
        lambda n: optim.SGD(n.parameters(), 0.1).zero_grad(set_to_none=True),
        T,
        "set_to_none",
    ),
    "optimizer.step(closure)": (lambda n: optim.SGD(n.parameters(), 0.1).step(lambda: 0), T, "step"),
    "lr of NaN, later": (lambda n: later(n, lr=math.nan), V, "SGD: lr must be 0 or more, got nan"),
    "momentum of 2, later": (lambda n: later(n, momentum=2.0), V, "SGD: momentum must be from 0 to 1, got 2.0"),
    "model.cuda()": (lambda n: n.cuda(), A, r"Net has no attribute 'cuda'; write .to\(\"gpu\"\)"),
    "model.half()": (lambda n: n.half(), A, "write .to.dtype=...., float32 or float64"),
    "model.to('cuda:0')": (lambda n: n.to("cuda:0"), V, 'device: expected "cpu", "gpu" or "gpu:N", got \'cuda:0\''),
    "model.to(np.float64)": (lambda n: n.to(np.float64), T, 'device: expected "cpu", "gpu" or "gpu:N"'),
    "model.apply(f)": (lambda n: n.apply(print), A, r"Net has no attribute 'apply'; write a loop over .modules\(\)"),
    "model.requires_grad_(False)": (lambda n: n.requires_grad_(False), A, "write p.requires_grad = ... for every p of"),
    "model.register_buffer": (lambda n: n.register_buffer("a", array(2)), A, r"write .buffer\(name, array\)"),
    "nn.ReLU(inplace=True)": (lambda n: nn.ReLU(inplace=True), T, "unexpected keyword argument 'inplace'"),
    "nn.BatchNorm3d(num_features=3)": (
        lambda n: nn.BatchNorm3d(num_features=3),
        T,
        "unexpected keyword argument 'num_features'",
    ),
    "nn.Conv3d(padding_mode=...)": (
        lambda n: nn.Conv3d(1, 1, 1, padding_mode="zeros"),
        T,
        "unexpected keyword argument 'padding_mode'",
    ),
}


def later(net, **options):
    optimizer = optim.SGD(net.parameters(), 0.1)
    for p in net.parameters():
        p.grad = np.ones_like(p.data)
    for name, value in options.items():
        setattr(optimizer, name, value)
    optimizer.step()


@pytest.mark.parametrize("habit", REFUSED)
def test_it_is_refused_and_nothing_changes(habit):
    act, error, message = REFUSED[habit]
    net = Net()
    before, modes = bytes_of(net), [m.training for m in net.modules()]
    with pytest.raises(error, match=message):
        act(net)
    net.__dict__.pop("layers", None), net.__dict__.pop("shift", None), net.linear.__dict__.pop("options", None)
    assert bytes_of(net) == before and [m.training for m in net.modules()] == modes


def test_on_a_gpu_a_state_of_either_side_goes_in():
    strict_cupy = pytest.importorskip("tests.strict_cupy")
    with strict_cupy.installed():
        net, host = Net().to("gpu"), Net()
        net.load_state_dict(dict(host.state_dict()))
        found = {name: backend.to_host(a).tobytes() for name, a in net.state_dict().items()}
        assert found == bytes_of(host)
