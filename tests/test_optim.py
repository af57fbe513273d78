"""Optimisers and schedules against PyTorch's, and against their formulas where there is no PyTorch."""

import math
from unittest import mock

import numpy as np
import pytest

import minnl
from minnl import Tensor, nn, optim
from minnl.kernels.cpu.adamw import BlockedAdamW
from tests.fast import as_before  # noqa: F401 (a fixture: threads and kernels as they were)

SHAPES = ((3, 4), (5,), (2, 1, 3), ())
OPTIMISERS = {
    "sgd": ("SGD", {"lr": 0.1}),
    "sgd-decay": ("SGD", {"lr": 0.1, "weight_decay": 0.05}),
    "momentum": ("SGD", {"lr": 0.1, "momentum": 0.9}),
    "momentum-decay": ("SGD", {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.05}),
    "nesterov": ("SGD", {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.05}),
    "adamw": ("AdamW", {"lr": 0.02}),
    "adamw-options": ("AdamW", {"lr": 0.02, "betas": (0.7, 0.95), "eps": 1e-3, "weight_decay": 0.2}),
    "adamw-no-decay": ("AdamW", {"lr": 0.02, "weight_decay": 0.0}),
}


def start(dtype, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=shape).astype(dtype) for shape in SHAPES]


def gradient(step, i, shape, dtype):
    """The gradient of parameter i at a step: its size changes wildly from step to step."""
    rng = np.random.default_rng((step, i))
    return (rng.normal(size=shape) * 10.0 ** rng.integers(-3, 2)).astype(dtype)


def leaves(dtype=np.float64):
    return [Tensor(a.copy(), requires_grad=True) for a in start(dtype)]


def run(optimizer, params, steps, first=0):
    """Steps with given gradients at a learning rate that changes, as a schedule changes it."""
    base = optimizer.lr
    for step in range(first, first + steps):
        optimizer.lr = base * (1 + 0.1 * (step % 3))
        for i, p in enumerate(params):
            p.grad = gradient(step, i, p.shape, p.dtype)
        optimizer.step()
    optimizer.lr = base
    return [p.data for p in params]


@pytest.mark.parametrize("dtype, tolerance", [(np.float64, 1e-12), (np.float32, 1e-5)])
@pytest.mark.parametrize("name", OPTIMISERS)
def test_as_in_pytorch(name, dtype, tolerance):
    torch = pytest.importorskip("torch")
    kind, options = OPTIMISERS[name]
    params = leaves(dtype)
    got = run(getattr(optim, kind)(params, **options), params, 20)
    theirs = [torch.tensor(a, requires_grad=True) for a in start(dtype)]
    optimizer = getattr(torch.optim, kind)(theirs, **options)
    for step in range(20):
        optimizer.param_groups[0]["lr"] = options["lr"] * (1 + 0.1 * (step % 3))
        for i, p in enumerate(theirs):
            p.grad = torch.tensor(gradient(step, i, p.shape, dtype))
        optimizer.step()
    for ours, expected in zip(got, theirs, strict=True):
        assert ours.dtype == dtype
        np.testing.assert_allclose(ours, expected.detach().numpy(), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", OPTIMISERS)
def test_one_step_by_the_formula(name):
    kind, options = OPTIMISERS[name]
    params = leaves()
    for i, p in enumerate(params):
        p.grad = gradient(0, i, p.shape, p.dtype)
    grads = [p.grad.copy() for p in params]
    getattr(optim, kind)(params, **options).step()
    lr, decay = options["lr"], options.get("weight_decay", 0.01 if kind == "AdamW" else 0)
    for w, gw, p in zip(start(np.float64), grads, params, strict=True):
        np.testing.assert_array_equal(p.grad, gw)
        if kind == "AdamW":  # the first step's means are the gradient itself, whatever the betas
            expected = w * (1 - lr * decay) - lr * gw / (abs(gw) + options.get("eps", 1e-8))
        else:
            d = gw + decay * w
            expected = w - lr * d * (1 + (options["momentum"] if options.get("nesterov") else 0))
        np.testing.assert_allclose(p.data, expected, rtol=1e-12)


@pytest.mark.parametrize("name", OPTIMISERS)
def test_state_goes_round_with_the_same_bits(name):
    kind, options = OPTIMISERS[name]
    params = leaves(np.float32)
    whole = run(getattr(optim, kind)(params, **options), params, 9)
    first, params = None, leaves(np.float32)
    first = getattr(optim, kind)(params, **options)
    run(first, params, 4)
    second = getattr(optim, kind)(params, **options | {"lr": 77.0})
    state = first.state_dict()
    second.load_state_dict(state)
    assert second.lr == options["lr"] and second.steps == 4
    for a, b in zip(whole, run(second, params, 5, first=4), strict=True):
        np.testing.assert_array_equal(a, b)
    for key, array in first.state_dict().items():  # the second went on with copies
        np.testing.assert_array_equal(array, state[key])


def test_state_of_another_optimiser_is_refused():
    adam = optim.AdamW(leaves(), 0.1)
    run(adam, adam.params, 1)
    before = {k: v.copy() if isinstance(v, np.ndarray) else v for k, v in adam.state_dict().items()}
    for key, value, message in (
        ("velocity.0", np.zeros((3, 4)), "AdamW: state has 'velocity.0', which belongs to another optimiser"),
        ("first.9", np.zeros(1), "AdamW: state has 'first.9'"),
        ("first.1", np.zeros(4), r"state 'first.1' has shape \(4,\) float64, parameter 1 has \(5,\) float64"),
        ("first.1", np.zeros(5, "f"), r"state 'first.1' has shape \(5,\) float32, parameter 1 has \(5,\) float64"),
    ):
        with pytest.raises(ValueError, match=message):
            adam.load_state_dict(before | {key: value})
        for k, v in adam.state_dict().items():
            np.testing.assert_array_equal(v, before[k])


def test_weight_decay_leaves_batch_norm_alone():
    net = nn.Sequential(nn.Conv3d(2, 3, 1), nn.BatchNorm3d(3), nn.NonLocalBlock(3))
    decayed = optim.groups(net.parameters(), 0.1)
    names = {id(p): name for name, p in net.named_parameters()}
    assert [g["weight_decay"] for g in decayed] == [0.1, 0.0]
    assert [names[id(p)] for p in decayed[1]["params"]] == ["1.weight", "1.bias", "2.norm.weight", "2.norm.bias"]
    assert len(decayed[0]["params"]) == 2 + 8
    optimizer = optim.SGD(net.parameters(), lr=0.5, weight_decay=0.1)
    net[1].weight.data[...] = 3
    weight = net[0].weight.data.copy()
    for p in net.parameters():
        p.grad = np.zeros_like(p.data)
    optimizer.step()
    np.testing.assert_allclose(net[0].weight.data, weight * 0.95, rtol=1e-6)
    assert (net[1].weight.data == 3).all()


def test_groups_of_ones_own():
    slow, quick = Tensor(np.ones(1), requires_grad=True), Tensor(np.ones(1), requires_grad=True)
    optimizer = optim.SGD([{"params": [slow], "weight_decay": 0.5}, {"params": [quick]}], lr=0.1, weight_decay=0.2)
    assert optimizer.decays == [0.5, 0.2]
    slow.grad = quick.grad = np.zeros(1)
    optimizer.step()
    assert (slow.item(), quick.item()) == (0.95, 0.98)


def test_parameters_without_gradient_stay():
    a, b = leaves()[:2]
    before = b.data.copy()
    optimizer = optim.AdamW([a, b], 0.1, weight_decay=0.5)
    a.grad = np.ones_like(a.data)
    optimizer.step()
    np.testing.assert_array_equal(b.data, before)
    assert sorted(optimizer.state_dict()) == ["first.0", "lr", "second.0", "steps"]
    optimizer.zero_grad()
    assert a.grad is None


def test_updates_are_in_place():
    params = leaves()
    arrays = [p.data for p in params]
    run(optim.AdamW(params, 0.1), params, 2)
    assert all(p.data is array for p, array in zip(params, arrays, strict=True))


def test_adamw_in_blocks_has_the_textbook_bits():
    """For parameters of many sizes, and for any number of threads."""
    shapes = ((700, 500), (300_001,), (3,), (2, 5, 7))
    results = []
    for mode, count in (("textbook", 1), ("fast", 1), ("fast", 2), ("fast", 3)):
        rng = np.random.default_rng(0)
        params = [Tensor(rng.normal(size=shape).astype(np.float32), requires_grad=True) for shape in shapes]
        optimizer = optim.AdamW(params, 0.02, weight_decay=0.2)
        minnl.set_threads(count)
        with minnl.use_kernels(mode), mock.patch.object(BlockedAdamW, "step", wraps=BlockedAdamW.step) as blocked:
            arrays = run(optimizer, params, 3)
        assert blocked.call_count == (3 if mode == "fast" else 0)
        results.append([a.tobytes() for a in (*arrays, *optimizer.kept["first"], *optimizer.kept["second"])])
    assert all(r == results[0] for r in results)


@pytest.mark.parametrize("largest", [0.5, 1e3])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_clipping_by_norm(largest, dtype):
    params = leaves(dtype)
    for i, p in enumerate(params[:-1]):
        p.grad = gradient(3, i, p.shape, dtype)
    kept = [p.grad for p in params[:-1]]
    norm = math.sqrt(sum((g.astype(np.float64) ** 2).sum() for g in kept))
    copies = [g.copy() for g in kept]
    assert optim.clip_grad_norm(params, largest) == pytest.approx(norm, rel=1e-14)
    for p, g, copy in zip(params, kept, copies, strict=False):
        np.testing.assert_allclose(p.grad, copy * min(1, largest / norm), rtol=1e-6)
        np.testing.assert_array_equal(g, copy, "gradients are replaced, not edited")
        assert p.grad.dtype == dtype
    assert params[-1].grad is None
    assert optim.clip_grad_norm(params[-1:], 1.0) == 0


def test_clipping_as_in_pytorch():
    torch = pytest.importorskip("torch")
    params = leaves()
    theirs = [torch.tensor(a, requires_grad=True) for a in start(np.float64)]
    for i, (p, q) in enumerate(zip(params, theirs, strict=True)):
        p.grad = gradient(3, i, p.shape, np.float64)
        q.grad = torch.tensor(p.grad)
    assert optim.clip_grad_norm(params, 0.7) == pytest.approx(torch.nn.utils.clip_grad_norm_(theirs, 0.7).item())
    for p, q in zip(params, theirs, strict=True):
        np.testing.assert_allclose(p.grad, q.grad.numpy(), rtol=1e-5)  # PyTorch adds 1e-6 to the norm


def test_clipping_float32_gradients_whose_squares_overflow():
    p = Tensor(np.zeros(2, np.float32), requires_grad=True)
    p.grad = np.array([3e30, 4e30], np.float32)
    assert optim.clip_grad_norm([p], 1.0) == pytest.approx(5e30)
    np.testing.assert_allclose(p.grad, [0.6, 0.8], rtol=1e-6)


def test_step_schedule_of_the_paper():
    rate = optim.step_schedule(0.01, [150_000, 300_000])
    for step, expected in ((0, 0.01), (149_999, 0.01), (150_000, 0.001), (299_999, 0.001), (300_000, 1e-4)):
        assert rate(step) == pytest.approx(expected, rel=1e-12)
    assert rate(399_999) == pytest.approx(1e-4, rel=1e-12)
    assert optim.step_schedule(1.0, [], 0.5)(10) == 1


def test_cosine_schedule_and_warm_up():
    rate = optim.cosine_schedule(2.0, 10, final=0.5)
    assert rate(0) == 2 and rate(5) == pytest.approx(1.25) and rate(10) == 0.5 and rate(99) == 0.5
    assert all(rate(s) > rate(s + 1) for s in range(10))
    warm = optim.warm_up(lambda step: 3.0, 4)
    assert [warm(s) for s in range(6)] == pytest.approx([0.6, 1.2, 1.8, 2.4, 3.0, 3.0])
    warm = optim.warm_up(rate, 1, start=0.5)
    assert [warm(s) for s in (0, 1)] == pytest.approx([0.75 * rate(0), rate(1)])
    assert optim.warm_up(rate, 0)(0) == 2


def test_schedules_as_in_pytorch():
    torch = pytest.importorskip("torch")

    def theirs(make, steps):
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.3)
        schedule, rates = make(optimizer), []
        for _ in range(steps):
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            schedule.step()
        return rates

    schedulers = torch.optim.lr_scheduler
    ours = optim.cosine_schedule(0.3, 12, final=0.01)
    expected = theirs(lambda o: schedulers.CosineAnnealingLR(o, 12, 0.01), 13)
    np.testing.assert_allclose([ours(s) for s in range(13)], expected, rtol=1e-12)
    ours = optim.step_schedule(0.3, [3, 7], 0.2)
    expected = theirs(lambda o: schedulers.MultiStepLR(o, [3, 7], 0.2), 10)
    np.testing.assert_allclose([ours(s) for s in range(10)], expected, rtol=1e-12)


@pytest.mark.parametrize(
    "make, error, message",
    [
        (lambda: optim.SGD([], 0.1), ValueError, "SGD: no parameters to optimise"),
        (lambda: optim.SGD(leaves(), -1), ValueError, "SGD: lr must be 0 or more, got -1"),
        (lambda: optim.SGD(leaves(), "0.1"), TypeError, "SGD: lr must be a number, got str"),
        (lambda: optim.SGD(leaves(), 0.1, momentum=1.5), ValueError, "SGD: momentum must be from 0 to 1"),
        (lambda: optim.SGD(leaves(), 0.1, nesterov=True), ValueError, "SGD: nesterov needs a momentum above 0"),
        (lambda: optim.SGD([np.zeros(2)], 0.1), TypeError, "SGD: params must be leaf tensors"),
        (lambda: optim.SGD([leaves()[0] * 2], 0.1), TypeError, "SGD: params must be leaf tensors"),
        (lambda: optim.SGD(leaves()[:1] * 2, 0.1), ValueError, r"SGD: a parameter of shape \(3, 4\) is listed twice"),
        (lambda: optim.AdamW(leaves(), betas=(2, 0.9)), ValueError, "AdamW: betas must be from 0 to 1"),
        (lambda: optim.AdamW(leaves(), weight_decay=-1), ValueError, "AdamW: weight_decay must be 0 or more"),
        (lambda: optim.clip_grad_norm(leaves(), -1), ValueError, "clip_grad_norm: max_norm must be 0 or more"),
        (lambda: optim.cosine_schedule(0.1, 0), ValueError, "cosine_schedule: total must be 1 or more"),
        (lambda: optim.step_schedule(0.1, [2.5]), TypeError, "step_schedule: milestones must be an int"),
        (lambda: optim.warm_up(lambda s: 1, -1), ValueError, "warm_up: steps must be 0 or more"),
    ],
)
def test_wrong_input_is_named(make, error, message):
    with pytest.raises(error, match=message):
        make()
