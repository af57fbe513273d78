"""Optimisers and schedules against PyTorch's, and against their formulas where there is no PyTorch."""

import math
from unittest import mock

import numpy as np
import pytest

import minnl
from minnl import Tensor, nn, optim
from minnl.kernels.optim.cpu import CpuAdamW
from minnl.training import checkpoint
from tests.fast import as_before  # noqa: F401 (a fixture: threads and kernels as they were)
from tests.training.test_training import make, saved

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


@pytest.mark.slow
@pytest.mark.torch
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
        ("first.1", None, r"AdamW: state has no 'first.1', of a parameter that has made 1 steps"),
        ("counts", [1, 1], r"AdamW: state has counts \[1, 1\], a list of 4 expected"),
        ("counts", 1, "AdamW: state has counts 1, a list of 4 expected"),
        ("counts", [1, 1, 1, -1], r"AdamW: counts must be 0 or more, got -1"),
        ("lr", math.nan, "AdamW: lr must be 0 or more, got nan"),
        ("initial_lr", -1.0, "AdamW: initial_lr must be 0 or more, got -1.0"),
    ):
        with pytest.raises(ValueError, match=message):
            adam.load_state_dict(before | {key: value})
        for k, v in adam.state_dict().items():
            np.testing.assert_array_equal(v, before[k])


def test_weight_decay_leaves_batch_norm_alone():
    """In a list, and in a group that says nothing of it; a group that says something means all of its parameters."""
    for given, decay in ((lambda p: p, 0), (lambda p: [{"params": p}], 0), (decaying, 0.1)):
        net = nn.Sequential(nn.Conv3d(2, 3, 1), nn.BatchNorm3d(3), nn.NonLocalBlock(3))
        optimizer = optim.SGD(given(net.parameters()), lr=0.5, weight_decay=0.1)
        before = {}
        for name, p in net.named_parameters():
            p.data[...] = before[name] = 3
            p.grad = np.zeros_like(p.data)
        optimizer.step()
        norms = {"1.weight", "1.bias", "2.norm.weight", "2.norm.bias"}
        for name, p in net.named_parameters():
            np.testing.assert_allclose(p.data, 3 * (1 - 0.5 * (decay if name in norms else 0.1)), rtol=1e-6)


def decaying(params):
    return [{"params": params, "weight_decay": 0.1}]


GROUPS = {
    "lr": ("SGD", {"lr": 0.1, "momentum": 0.9}, {"lr": 0.003}),
    "lr-0": ("AdamW", {"lr": 0.02}, {"lr": 0.0}),
    "adamw-lr": ("AdamW", {"lr": 0.02}, {"lr": 0.05}),
    "momentum": ("SGD", {"lr": 0.1}, {"momentum": 0.5}),
    "no-momentum": ("SGD", {"lr": 0.1, "momentum": 0.9}, {"momentum": 0.0}),
    "nesterov": ("SGD", {"lr": 0.1, "momentum": 0.9}, {"nesterov": True, "momentum": 0.3}),
    "sgd-decay": ("SGD", {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1}, {"weight_decay": 0.4}),
    "betas": ("AdamW", {"lr": 0.02}, {"betas": (0.5, 0.9)}),
    "eps": ("AdamW", {"lr": 0.02}, {"eps": 0.1}),
    "adamw-decay": ("AdamW", {"lr": 0.02}, {"weight_decay": 0.5}),
}


@pytest.mark.parametrize("name", GROUPS)
def test_a_group_does_what_an_optimiser_with_its_options_does(name):
    """Also after lr has changed: the group's own follows in proportion."""
    kind, options, own = GROUPS[name]
    params, others, alone = leaves(), leaves(), leaves()
    both = getattr(optim, kind)([{"params": params[:2]}, {"params": iter(params[2:]), **own}], **options)
    run(both, params, 6)
    first, second = getattr(optim, kind)(others, **options), getattr(optim, kind)(alone, **options | own)
    run(first, others, 6)
    run(second, alone, 6)
    for p, expected in zip(params, others[:2] + alone[2:], strict=True):
        np.testing.assert_allclose(p.data, expected.data, rtol=1e-14)
    assert (own.get("lr") == 0) == all(
        (p.data == w).all() for p, w in zip(params[2:], start(np.float64)[2:], strict=True)
    )


@pytest.mark.torch
@pytest.mark.parametrize("name", GROUPS)
def test_groups_as_in_pytorch(name):
    torch = pytest.importorskip("torch")
    kind, options, own = GROUPS[name]
    params = leaves()
    run(getattr(optim, kind)([{"params": params[:2]}, {"params": params[2:], **own}], **options), params, 6)
    theirs = [torch.tensor(a, requires_grad=True) for a in start(np.float64)]
    optimizer = getattr(torch.optim, kind)([{"params": theirs[:2]}, {"params": theirs[2:], **own}], **options)
    rates = [group["lr"] for group in optimizer.param_groups]
    for step in range(6):
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * (1 + 0.1 * (step % 3))
        for i, p in enumerate(theirs):
            p.grad = torch.tensor(gradient(step, i, p.shape, np.float64))
        optimizer.step()
    for p, q in zip(params, theirs, strict=True):
        np.testing.assert_allclose(p.data, q.detach().numpy(), rtol=1e-12, atol=1e-12)


def test_a_group_keeps_its_ratio_in_a_state():
    """The rate that was first given goes into it: 0.3 to 0.1, whatever the optimiser that takes over was made with."""
    results = []
    for steps in (6, 3):
        params = leaves()
        optimizer = optim.SGD([{"params": params[:2]}, {"params": params[2:], "lr": 0.3}], lr=0.1)
        optimizer.lr = 0.05
        run(optimizer, params, steps)
        if steps == 3:
            state = optimizer.state_dict()
            optimizer = optim.SGD([{"params": params[:2]}, {"params": params[2:], "lr": 0.3}], lr=77.0)
            optimizer.load_state_dict(state)
            run(optimizer, params, 3, first=3)
        results.append([p.data.tobytes() for p in params])
    assert results[0] == results[1]


@pytest.mark.slow
@pytest.mark.torch
@pytest.mark.parametrize("dtype, tolerance", [(np.float64, 1e-12), (np.float32, 1e-5)])
@pytest.mark.parametrize("name", ["adamw", "nesterov"])
def test_parameters_that_come_late_as_in_pytorch(name, dtype, tolerance):
    """Parameter i gets its first gradient at step 300 i, and none at every seventh step after."""
    torch = pytest.importorskip("torch")
    kind, options = OPTIMISERS[name]
    params, theirs = leaves(dtype), [torch.tensor(a, requires_grad=True) for a in start(dtype)]
    ours, other = getattr(optim, kind)(params, **options), getattr(torch.optim, kind)(theirs, **options)
    for step in range(920):
        for i, (p, q) in enumerate(zip(params, theirs, strict=True)):
            p.grad, q.grad = None, None
            if step >= 300 * i and (step + i) % 7:
                p.grad = gradient(step, i, p.shape, dtype)
                q.grad = torch.tensor(p.grad)
        ours.step()
        other.step()
    assert ours.steps == 920
    assert ours.counts == [sum(s >= 300 * i and (s + i) % 7 > 0 for s in range(920)) for i in range(4)]
    for p, q in zip(params, theirs, strict=True):
        np.testing.assert_allclose(p.data, q.detach().numpy(), rtol=tolerance, atol=tolerance)


def test_the_first_step_of_a_late_parameter_is_lr():
    """m and v of one gradient are in proportion to it: by the formula the step is lr, whenever it comes."""
    early, late = (Tensor(np.zeros(3), requires_grad=True) for _ in range(2))
    optimizer = optim.AdamW([early, late], lr=0.01, weight_decay=0.0)
    for step in range(1000):
        early.grad = np.ones(3)
        if step == 999:
            late.grad = np.array([1.0, -20.0, 1e-3])
        optimizer.step()
    np.testing.assert_allclose(late.data, [-0.01, 0.01, -0.01], rtol=1e-4)
    assert optimizer.counts == [1000, 1]


def test_an_old_state_has_one_count():
    """It is that of every parameter for which there are arrays; the others have yet to begin."""
    params = leaves()
    old = optim.AdamW(params, 0.1)
    for step in range(5):
        for i, p in enumerate(params[:2]):
            p.grad = gradient(step, i, p.shape, p.dtype)
        old.step()
    state = {k: v for k, v in old.state_dict().items() if k not in ("counts", "initial_lr")}
    assert sorted(state) == ["first.0", "first.1", "lr", "second.0", "second.1", "steps"]
    copies = [Tensor(p.data.copy(), requires_grad=True) for p in params]
    new = optim.AdamW(copies, 77.0)
    new.load_state_dict(state)
    assert (new.steps, new.counts, new.lr) == (5, [5, 5, 0, 0], 0.1)
    for a, b in zip(run(old, params, 3, first=5), run(new, copies, 3, first=5), strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_checkpoint_of_an_old_run_goes_on_with_the_same_bits(tmp_path):
    assert make(tmp_path / "whole").fit(plain=True)
    assert not make(tmp_path / "old").fit(max_steps=3, plain=True)
    file = tmp_path / "old" / "last.safetensors"
    arrays, meta = checkpoint.load(file)
    assert set(meta["optimizer"].pop("counts")) == {3} and meta["optimizer"].pop("initial_lr") == 0.01
    checkpoint.save(file, arrays, meta)
    trainer = make(tmp_path / "old", seed=99)
    trainer.resume(file)
    assert trainer.fit(plain=True)
    assert saved(tmp_path / "old") == saved(tmp_path / "whole")


def test_a_group_at_rest_in_a_whole_run(tmp_path):
    """The Trainer sets lr at each step; 0 times anything stays 0."""
    trainer = make(tmp_path)
    model, before = trainer.model, {k: a.copy() for k, a in trainer.model.state_dict().items()}
    rest = [*model.conv.parameters(), *model.block.parameters()]
    trainer.optimizer = optim.AdamW([{"params": rest, "lr": 0.0}, {"params": model.classify.parameters()}], 0.01)
    trainer.fit(plain=True)
    for name, array in model.state_dict().items():
        moved = name.startswith(("classify", "norm.running", "block.norm.running"))
        assert (array != before[name]).any() == moved, name


@pytest.mark.torch
@pytest.mark.parametrize("size", [1e17, 1e19, 1e20, 5e20, 1e22, 3e38])
def test_large_gradients_as_in_pytorch(size):
    """Squares of float32 overflow from 1.8e19 on, a thousandth of them from 5.8e20 on; no moment becomes inf - inf."""
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    grads = [(size * rng.uniform(0.1, 1, 5)).astype(np.float32) for _ in range(3)] + [np.ones(5, np.float32)] * 3
    p, q = Tensor(np.ones(5, np.float32), requires_grad=True), torch.ones(5, requires_grad=True)
    ours, theirs = optim.AdamW([p], 0.1), torch.optim.AdamW([q], 0.1)
    with np.errstate(over="ignore"):
        for g in grads:
            p.grad, q.grad = g, torch.tensor(g)
            ours.step()
            theirs.step()
    assert np.isfinite(p.data).all()
    np.testing.assert_allclose(p.data, q.detach().numpy(), rtol=1e-5)


def test_large_gradients_by_the_formula():
    """With one gradient again and again every step is lr, however large it is."""
    p = Tensor(np.zeros(3, np.float32), requires_grad=True)
    optimizer = optim.AdamW([p], 0.01, weight_decay=0.0)
    for _ in range(4):
        p.grad = np.array([1e20, -2e20, 2e19], np.float32)
        optimizer.step()
    np.testing.assert_allclose(p.data, [-0.04, 0.04, -0.04], rtol=1e-5)
    for sign in (-1, 1):  # gradients of changing sign do not overflow the first moment
        p.grad = np.full(3, sign * 3.4e38, np.float32)
        with np.errstate(over="ignore"):
            optimizer.step()
    assert np.isfinite(p.data).all() and np.isfinite(optimizer.kept["first"][0]).all()


def test_parameters_without_gradient_stay():
    a, b = leaves()[:2]
    before = b.data.copy()
    optimizer = optim.AdamW([a, b], 0.1, weight_decay=0.5)
    a.grad = np.ones_like(a.data)
    optimizer.step()
    np.testing.assert_array_equal(b.data, before)
    assert sorted(optimizer.state_dict()) == ["counts", "first.0", "initial_lr", "lr", "second.0", "steps"]
    assert (optimizer.steps, optimizer.counts) == (1, [1, 0])
    optimizer.zero_grad()
    assert a.grad is None


def test_updates_are_in_place():
    params = leaves()
    arrays = [p.data for p in params]
    run(optim.AdamW(params, 0.1), params, 2)
    assert all(p.data is array for p, array in zip(params, arrays, strict=True))


def test_adamw_in_blocks_has_the_textbook_bits():
    """For parameters of many sizes, in two groups, of which all but one come late, and for any number of threads."""
    shapes = ((700, 500), (300_001,), (3,), (2, 5, 7))
    results = []
    for mode, count in (("textbook", 1), ("fast", 1), ("fast", 2), ("fast", 3)):
        rng = np.random.default_rng(0)
        params = [Tensor(rng.normal(size=shape).astype(np.float32), requires_grad=True) for shape in shapes]
        own = {"params": params[2:], "lr": 0.05, "betas": (0.7, 0.9), "eps": 1e-3, "weight_decay": 0.0}
        optimizer = optim.AdamW([{"params": params[:2]}, own], 0.02, weight_decay=0.2)
        minnl.set_threads(count)
        with (
            minnl.use_kernels(mode),
            mock.patch.object(CpuAdamW, "apply", autospec=True, side_effect=CpuAdamW.apply) as blocked,
        ):
            params[0].grad = np.ones(shapes[0], np.float32)
            optimizer.step()
            arrays = run(optimizer, params, 3)
        assert blocked.call_count == (4 if mode == "fast" else 0) and optimizer.counts == [4, 3, 3, 3]
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


@pytest.mark.parametrize(
    "dtype, size", [(np.float32, 1e-30), (np.float32, 3e38), (np.float64, 1e-200), (np.float64, 1e300)]
)
def test_norms_whose_squares_are_no_numbers(dtype, size):
    params = [Tensor(np.zeros(2, dtype), requires_grad=True) for _ in range(2)]
    params[0].grad, params[1].grad = (
        np.array([1, 2], dtype) * dtype(size / 5),
        np.array([2, 4], dtype) * dtype(size / 5),
    )
    assert optim.clip_grad_norm(params, size / 10) == pytest.approx(size, rel=1e-6)
    found = np.concatenate([p.grad for p in params])
    np.testing.assert_allclose(found, dtype(size / 50) * np.array([1, 2, 2, 4], dtype), rtol=1e-6)


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_clipping_what_has_no_norm_changes_nothing(value):
    for dtype in (np.float32, np.float64):
        params = [Tensor(np.zeros(2, dtype), requires_grad=True) for _ in range(2)]
        params[0].grad, params[1].grad = np.array([3, value], dtype), np.array([1, 1], dtype)
        assert not optim.clip_grad_norm(params, 0.5) < np.inf
        np.testing.assert_array_equal(params[0].grad, np.array([3, value], dtype))
        np.testing.assert_array_equal(params[1].grad, [1, 1])


def test_clipping_takes_what_optimisers_take():
    for given in (lambda p: p, lambda p: [p], lambda p: (p,), lambda p: iter([p])):
        p = Tensor(np.zeros(2), requires_grad=True)
        p.grad = np.array([3.0, 4.0])
        assert optim.clip_grad_norm(given(p), math.inf) == 5, "an infinite norm only measures"
        np.testing.assert_array_equal(p.grad, [3, 4])
        assert optim.clip_grad_norm(given(p), 1.0) == 5
        np.testing.assert_allclose(p.grad, [0.6, 0.8], rtol=1e-12)


@pytest.mark.torch
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


@pytest.mark.torch
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


def with_gradients():
    params = leaves(np.float32)[::-1] + leaves(np.float32)[1:2]
    for p in params:
        p.grad = np.ones_like(p.data)
    return params


def read_only(params):
    params[0].data.flags.writeable = False


def twice(params):
    params[4].data = params[2].data


def a_view(params):
    params[1].data = params[3].data.reshape(-1)[3:9].reshape(params[1].shape)


WRONG = [
    (read_only, ValueError, r"parameter 0 of shape \(\) is read-only; give it a copy"),
    (twice, ValueError, r"parameters 2 of shape \(5,\) and 4 of shape \(5,\) share memory; give one a copy, or tie"),
    (a_view, ValueError, r"parameters 1 of shape \(2, 1, 3\) and 3 of shape \(3, 4\) share memory"),
]


@pytest.mark.parametrize("kind", ["SGD", "AdamW"])
@pytest.mark.parametrize("spoil, error, message", WRONG, ids=lambda value: getattr(value, "__name__", None))
def test_a_step_that_cannot_be_made_changes_nothing(kind, spoil, error, message):
    params = with_gradients()
    optimizer = getattr(optim, kind)(params, 0.1)
    optimizer.step()
    spoil(params)
    before = [p.data.tobytes() for p in params], {k: str(v) for k, v in optimizer.state_dict().items()}
    with pytest.raises(error, match=rf"{kind}: {message}"):
        optimizer.step()
    assert ([p.data.tobytes() for p in params], {k: str(v) for k, v in optimizer.state_dict().items()}) == before


def test_views_that_share_nothing_are_fine():
    """The columns of one array, a flat one in pieces, an empty one."""
    whole, flat = np.zeros((4, 3)), np.zeros(9)
    params = [
        Tensor(a, requires_grad=True) for a in (*whole.T, flat[:4], flat[4:], flat[9:], flat[2:2], flat[::-1][9:])
    ]
    for p in params:
        p.grad = np.ones_like(p.data)
    optim.SGD(params, 0.5).step()
    assert (whole == -0.5).all() and (flat == -0.5).all()


@pytest.mark.parametrize("lr", [math.nan, math.inf, -1.0, "0.1", None, True, np.array(0.1)])
def test_a_rate_set_later_is_checked(lr):
    params = with_gradients()
    optimizer = optim.AdamW(params)
    optimizer.lr = lr
    with pytest.raises((ValueError, TypeError), match="AdamW: lr must be"):
        optimizer.step()
    assert optimizer.steps == 0 and [p.data.tobytes() for p in params] == [p.data.tobytes() for p in with_gradients()]


def test_options_are_read_at_each_step():
    params = leaves()
    optimizer = optim.SGD(params, 0.1)
    optimizer.momentum, optimizer.weight_decay = 0.9, 0.05
    other = leaves()
    expected = run(optim.SGD(other, 0.1, momentum=0.9, weight_decay=0.05), other, 5)
    for a, b in zip(run(optimizer, params, 5), expected, strict=True):
        np.testing.assert_array_equal(a, b)


def test_what_is_kept_follows_its_parameter():
    """To another float type; a parameter that got another shape is refused."""
    params = with_gradients()
    optimizer = optim.AdamW(params, 0.1)
    optimizer.step()
    p = params[2]
    p.grad = None
    p.data, p.grad = p.data.astype(np.float64), np.ones(5)
    optimizer.step()
    assert optimizer.kept["first"][2].dtype == optimizer.kept["second"][2].dtype == np.float64
    p.grad = None
    p.data, p.grad = np.ones(4), np.ones(4)
    with pytest.raises(ValueError, match=r"AdamW: parameter 2 has shape \(4,\) now, its first has \(5,\)"):
        optimizer.step()


def grouped(base=0.1, **own):
    return optim.SGD([{"params": leaves(), **own}], base, momentum=0.9, nesterov=True)


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
        (lambda: optim.SGD({"params": leaves()}, 0.1), TypeError, "SGD: params is dict, a list of Tensors expected"),
        (lambda: optim.SGD(set(leaves()), 0.1), TypeError, "SGD: params is set, a list of Tensors expected"),
        (lambda: optim.SGD(3, 0.1), TypeError, "SGD: params is int, a list of Tensors expected"),
        (lambda: optim.SGD(leaves(), math.inf), ValueError, "SGD: lr must be finite, got inf"),
        (lambda: optim.SGD(leaves(), math.nan), ValueError, "SGD: lr must be 0 or more, got nan"),
        (lambda: optim.SGD(leaves(), True), TypeError, "SGD: lr must be a number, got bool"),
        (lambda: optim.SGD(leaves(), 0.1, 0.9, "no"), ValueError, "SGD: nesterov must be one of True, False, got 'no'"),
        (lambda: optim.SGD([{"params": []}], 0.1), ValueError, "SGD: no parameters to optimise"),
        (lambda: optim.SGD([{"lr": 0.1}], 0.1), TypeError, 'SGD: group 0 must be a dict with "params", got'),
        (lambda: optim.SGD([{"params": leaves()}, *leaves()], 0.1), TypeError, 'SGD: group 1 must be a dict with "par'),
        (
            lambda: grouped(nonsense=1),
            ValueError,
            "SGD: a group has 'nonsense'; it may have params, lr, momentum, nest",
        ),
        (lambda: grouped(betas=(0.9, 0.9)), ValueError, "SGD: a group has 'betas'"),
        (lambda: grouped(lr=math.nan), ValueError, "SGD: lr must be 0 or more, got nan"),
        (lambda: grouped(momentum=0.0), ValueError, "SGD: nesterov needs a momentum above 0"),
        (
            lambda: grouped(0.0, lr=0.1),
            ValueError,
            "SGD: lr must be above 0 where a group has its own, 0.1, in ratio to it",
        ),
        (
            lambda: optim.SGD([Tensor(np.ones(2))], 0.1),
            ValueError,
            r"SGD: params\[0\] of shape \(2,\) has no requires_gr",
        ),
        (
            lambda: optim.AdamW(nn.Linear(2, 2)),
            TypeError,
            r"AdamW: params is Linear, a module; pass its .parameters\(\)",
        ),
        (
            lambda: optim.AdamW(nn.Linear(2, 2).named_parameters()),
            TypeError,
            r"AdamW: params must be leaf tensors, params\[0\] is tuple",
        ),
        (
            lambda: optim.AdamW(dict(nn.Linear(2, 2).named_parameters())),
            TypeError,
            "AdamW: params is dict, a list of Tensors expected",
        ),
        (
            lambda: optim.AdamW(leaves(), betas=(0.9, 1.0)),
            ValueError,
            r"AdamW: betas must be below 1, got \(0.9, 1.0\)",
        ),
        (lambda: optim.AdamW(leaves(), betas=0.9), TypeError, "AdamW: betas must be two numbers, got 0.9"),
        (lambda: optim.AdamW(leaves(), betas=(0.9,)), TypeError, "AdamW: betas must be two numbers"),
        (lambda: optim.AdamW(leaves(), eps=math.inf), ValueError, "AdamW: eps must be finite, got inf"),
        (lambda: optim.AdamW(leaves()).param_groups, AttributeError, "AdamW has no attribute 'param_groups'; set .lr"),
        (lambda: optim.AdamW(leaves(), betas=(2, 0.9)), ValueError, "AdamW: betas must be from 0 to 1"),
        (lambda: optim.AdamW(leaves(), weight_decay=-1), ValueError, "AdamW: weight_decay must be 0 or more"),
        (lambda: optim.clip_grad_norm(leaves(), -1), ValueError, "clip_grad_norm: max_norm must be 0 or more"),
        (lambda: optim.clip_grad_norm(leaves(), math.nan), ValueError, "clip_grad_norm: max_norm must be 0 or more"),
        (
            lambda: optim.clip_grad_norm(nn.Linear(2, 2), 1),
            TypeError,
            "clip_grad_norm: params is Linear, a module; pass",
        ),
        (
            lambda: optim.clip_grad_norm(leaves()[:1] * 2, 1),
            ValueError,
            "clip_grad_norm: a parameter .* is listed twice",
        ),
        (lambda: optim.cosine_schedule(0.1, 0), ValueError, "cosine_schedule: total must be 1 or more"),
        (lambda: optim.step_schedule(0.1, [2.5]), TypeError, "step_schedule: milestones must be an int"),
        (lambda: optim.cosine_schedule(math.nan, 9), ValueError, "cosine_schedule: lr must be 0 or more, got nan"),
        (lambda: optim.cosine_schedule(0.1, 9, -1), ValueError, "cosine_schedule: final must be 0 or more, got -1"),
        (lambda: optim.step_schedule("0.1", []), TypeError, "step_schedule: lr must be a number, got str"),
        (lambda: optim.step_schedule(0.1, [], math.inf), ValueError, "step_schedule: gamma must be finite"),
        (lambda: optim.warm_up(0.1, 5), TypeError, "warm_up: schedule must be a function of the step, got float"),
        (lambda: optim.warm_up(lambda s: 1, 5, 2), ValueError, "warm_up: start must be from 0 to 1, got 2"),
        (lambda: optim.warm_up(lambda s: 1, -1), ValueError, "warm_up: steps must be 0 or more"),
    ],
)
def test_wrong_input_is_named(make, error, message):
    with pytest.raises(error, match=message):
        make()
