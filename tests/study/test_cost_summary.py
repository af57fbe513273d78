"""The cost summary before a run: its shapes, counts and bytes are those of a real run, and it touches nothing."""

import gc
import math
import os
import tracemalloc
from unittest import mock

import numpy as np
import pytest

import minnl
import models
import train
from minnl import Tensor, dispatch, engine, nn, optim, random
from minnl import functional as F
from minnl.kernels.conv3d import cpu as conv
from minnl.kernels.conv3d import im2col_blocks as columns
from minnl.kernels.conv3d import winograd as conv_winograd
from minnl.ops import non_local
from minnl.study import cost_summary

SHAPE = (2, 6, 16, 20, 1)


def build(mode="embedded", **options):
    minnl.manual_seed(0)
    return models.build("small", non_local=mode, **options)


def noise(shape=SHAPE):
    return Tensor(np.random.default_rng(0).normal(size=shape).astype(np.float32))


def recorded(model, shape):
    """Every op of a real forward in training, in order: (op, shapes of its inputs, its output)."""
    calls, call = [], engine.Op.__call__

    def watched(op, *inputs):
        y = call(op, *inputs)
        calls.append((op, [x.shape if isinstance(x, Tensor) else () for x in inputs], y))
        return y

    x = noise(shape)
    with mock.patch.object(engine.Op, "__call__", watched):
        y = model.train()(x)
    return calls, x.data, y


def kept_bytes(y, known):
    """Bytes that the recorded graph behind y keeps: the memory of all arrays in `saved_for_backward`, each once."""
    owners, seen, waiting = {}, set(), [y.op]
    while waiting:
        op = waiting.pop()
        if op in seen:
            continue
        seen.add(op)
        for array in (getattr(op, key, None) for key in op.saved_for_backward):
            if isinstance(array, np.ndarray) and id(cost_summary.root(array)) not in known:
                owners[id(cost_summary.root(array))] = cost_summary.root(array)
        waiting += [source for source in op.sources if isinstance(source, engine.Op)]
    return sum(array.nbytes for array in owners.values())


@pytest.mark.parametrize("mode", dispatch.MODES)
@pytest.mark.parametrize("non_local", [None, *nn.MODES])
def test_rows_are_those_of_a_real_run(non_local, mode):
    model = build(non_local, dropout=0.5)
    with minnl.use_kernels(mode):
        calls, x, y = recorded(model, SHAPE)
        plan = cost_summary.summarize(model, SHAPE)
    assert [(row.op, row.shape) for row in plan.rows] == [(op.name, out.shape) for op, _, out in calls]
    assert [row.made for row in plan.rows] == [out.data.nbytes for _, _, out in calls]
    assert [row.received for row in plan.rows] == [4 * math.prod(shapes[0]) for _, shapes, _ in calls]
    known = {id(cost_summary.root(a)) for a in (*model.state_dict().values(), x)}
    assert plan.kept == kept_bytes(y, known)
    assert plan.parameters == sum(p.size for p in model.parameters()) == sum(row.parameters for row in plan.rows)
    assert plan.batch == SHAPE[0]


def test_multiply_adds_from_the_shapes():
    """Counted here from the shapes of a real run: positions x taps x channels in x channels out."""
    model = build("embedded")
    calls, _, _ = recorded(model, SHAPE)
    expected = []
    for op, shapes, y in calls:
        if op.name == "conv3d":
            kt, kh, kw, c, k = shapes[1]
            expected.append(math.prod(y.shape[:4]) * kt * kh * kw * c * k)
        elif op.name == "linear":
            expected.append(math.prod(shapes[0][:-1]) * shapes[1][0] * shapes[1][1])
        elif op.name == "non_local":
            theta, phi, g = shapes
            queries, keys = math.prod(theta[1:4]), math.prod(phi[1:4])
            expected.append(theta[0] * queries * keys * (theta[4] + g[4]))
        else:
            expected.append(0)
    plan = cost_summary.summarize(model, SHAPE)
    assert [row.multiply_adds for row in plan.rows] == expected
    assert plan.multiply_adds == sum(expected)
    assert cost_summary.summarize(model, (4, *SHAPE[1:])).multiply_adds == 2 * sum(expected)


@pytest.mark.parametrize(
    "mode, axes, expected",
    [
        ("embedded", "spacetime", 2 * 60 * 60 * (3 + 3)),
        ("embedded", "space", 2 * 3 * 20 * 20 * (3 + 3)),
        ("embedded", "time", 2 * 20 * 3 * 3 * (3 + 3)),
        ("gaussian", "spacetime", 2 * 60 * 60 * (6 + 3)),
        ("dot", "spacetime", 2 * (60 + 60) * 3 * 3),
        ("concat", "spacetime", 2 * 60 * 60 * 3 + 2 * (60 + 60) * 3),
    ],
)
def test_multiply_adds_of_the_non_local_operation(mode, axes, expected):
    block = nn.NonLocalBlock(6, mode=mode, subsample=None, axes=axes)
    (row,) = (row for row in cost_summary.summarize(block, (2, 3, 4, 5, 6)).rows if row.op == "non_local")
    assert row.multiply_adds == expected


def test_a_network_counted_by_hand():
    net = nn.Sequential(
        conv=nn.Conv3d(3, 8, (1, 3, 3), stride=(1, 2, 2), padding=(0, 1, 1)),
        norm=nn.BatchNorm3d(8),
        relu=nn.ReLU(),
        pool=nn.GlobalAvgPool3d(),
        frozen=nn.Affine(8),
        classify=nn.Linear(8, 5),
    )
    plan = cost_summary.summarize(net, (2, 4, 6, 6, 3), optimizer_arrays=1)
    activation = 2 * 4 * 3 * 3 * 8 * 4
    # The convolution keeps its input, which is there anyway, batch norm its own, and mean and 1 / deviation.
    assert [(row.path, row.op, row.shape, row.parameters, row.multiply_adds, row.kept) for row in plan.rows] == [
        ("conv", "conv3d", (2, 4, 3, 3, 8), 9 * 3 * 8 + 8, 2 * 4 * 3 * 3 * 9 * 3 * 8, 0),
        ("norm", "batch_norm", (2, 4, 3, 3, 8), 16, 0, activation + 2 * 8 * 4),
        ("relu", "relu", (2, 4, 3, 3, 8), 0, 0, activation),
        ("pool", "mean", (2, 8), 0, 0, 0),
        ("frozen", "affine", (2, 8), 0, 0, 0),
        ("classify", "linear", (2, 5), 45, 2 * 8 * 5, 2 * 8 * 4),
    ]
    learned, rest = 9 * 3 * 8 + 8 + 16 + 45, 16 + 16  # the affine layer's, the running statistics
    assert plan.parameters == learned
    assert plan.fixed == 4 * (3 * learned + rest), "weight, gradient and momentum of each, and what is not learned"


@pytest.mark.parametrize("shape", [(4, 8, 64, 64, 1), (8, 8, 64, 64, 1)])
@pytest.mark.parametrize("mode", dispatch.MODES)
@pytest.mark.parametrize("which", [None, "embedded", "dot"])
def test_the_peak_is_within_a_factor_of_the_real_one(which, mode, shape, monkeypatch):
    """Between 0.8 and 1.3 of what tracemalloc sees, for activations of some MB and more.

    Not in the estimate: what kernels hold of their own, some MB a thread, for which their blocks are made small here;
    and, in textbook mode, the logits of a block of queries, twice in backward.
    """
    monkeypatch.setattr(columns, "BLOCK_ELEMENTS", 16 * 1024)
    columns.tasks.cache_clear()  # which keeps how other tests cut the same shapes
    monkeypatch.setattr(conv_winograd, "BLOCK_ELEMENTS", 1024)
    monkeypatch.setattr(conv, "winograd_time", lambda *shapes: math.inf)  # nor its weights, 3 MB
    conv.choose.cache_clear()
    threads = minnl.backend.threads()
    minnl.set_threads(1)

    def steps(count):
        model = build(which)
        optimizer = optim.AdamW(model.parameters())
        for _ in range(count):
            x = np.ones(shape, np.float32)
            tracemalloc.reset_peak()
            optimizer.zero_grad()
            F.cross_entropy(model(Tensor(x)), np.zeros(shape[0], int)).backward()
            optimizer.step()
        return model

    try:
        with minnl.use_kernels(mode):
            steps(1)  # what a thread holds from its first step on
            gc.collect()
            tracemalloc.start()
            model = steps(2)
        real = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
        minnl.set_threads(threads)
        conv.choose.cache_clear()
    with minnl.use_kernels(mode):
        plan = cost_summary.summarize(model, shape)
    estimate = plan.peak
    if (which, mode) == ("embedded", "textbook"):
        (row,) = (row for row in plan.rows if row.op == "non_local")
        pairs = row.multiply_adds // (2 * row.shape[-1])
        estimate += 2 * 4 * min(pairs, non_local.BLOCK_ELEMENTS)
    assert 0.8 < estimate / real < 1.3
    assert plan.forward_peak < plan.peak


def test_the_largest_batch_fits_and_two_in_a_hundred_more_do_not():
    model, memory = build(), 50e6
    batch = cost_summary.summarize(model, SHAPE).largest_batch(memory)
    assert batch > 10
    fits, more = (cost_summary.summarize(model, (n, *SHAPE[1:])).peak for n in (batch, batch + batch // 50))
    assert fits <= memory < more
    each = 4 * math.prod(SHAPE[1:])
    fewer = cost_summary.summarize(model, SHAPE).largest_batch(memory, beside=each)
    fits, more = (cost_summary.summarize(model, (n, *SHAPE[1:])).peak + n * each for n in (fewer, fewer + 1))
    assert fits <= memory < more
    assert cost_summary.summarize(model, SHAPE).largest_batch(1000) == 0


def test_planning_touches_nothing():
    model = build(dropout=0.5)
    model.res2.eval()
    modes = [m.training for m in model.modules()]
    before = {name: array.tobytes() for name, array in model.state_dict().items()}
    chance = random.get_state()
    cost_summary.summarize(model, SHAPE)
    assert {name: array.tobytes() for name, array in model.state_dict().items()} == before
    assert [m.training for m in model.modules()] == modes
    assert random.get_state() == chance
    assert all(p.grad is None for p in model.parameters())
    assert model(noise()).data.any(), "ops compute again"


def test_planning_takes_no_memory():
    model = build()
    tracemalloc.start()
    plan = cost_summary.summarize(model, (64, 32, 224, 224, 1))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1e6 < 1e9 < plan.peak


def test_planning_in_float64_doubles_the_bytes():
    with minnl.use_kernels("textbook"):  # kernels are for float32, and one keeps more than the textbook
        single, double = (
            cost_summary.summarize(build(), SHAPE),
            cost_summary.summarize(build().to(dtype=np.float64), SHAPE),
        )
    winners = sum(math.prod(row.shape) for row in single.rows if row.op == "max_pool3d")  # a byte each in both
    assert double.kept - winners == 2 * (single.kept - winners)
    assert double.fixed == 2 * single.fixed


def test_after_an_error_ops_compute_again():
    model = build()
    with pytest.raises(ValueError, match="conv3d: weight has 1 input channels"):
        cost_summary.summarize(model, (2, 6, 16, 20, 3))
    assert model(noise()).data.any()
    for shape in ((2, 6, 16, 1), (0, 6, 16, 16, 1)):
        with pytest.raises(ValueError, match=r"summarize: shape must be five sizes \(N, T, H, W, C\) of 1 or more"):
            cost_summary.summarize(model, shape)


def test_the_table():
    plan = cost_summary.summarize(build(), SHAPE)
    lines = cost_summary.table(plan, memory=2e9).splitlines()
    assert len(lines) == 2 + len(plan.rows) + 1 + 3
    assert len({len(line) for line in lines[: 3 + len(plan.rows)]}) == 1, "columns are straight"
    line = next(line for line in lines if "stem.conv" in line)
    assert f"{plan.rows[0].parameters}" in line and "x".join(map(str, plan.rows[0].shape)) in line
    assert f"parameters {plan.parameters:,}" in lines[-3] and cost_summary.size(plan.peak) in lines[-2]
    assert lines[-1] == f"largest batch for 2.0 GB: {plan.largest_batch(2e9)} clips in training"
    assert "largest batch" not in cost_summary.table(plan)


def test_a_system_that_does_not_tell_its_memory(monkeypatch, capsys):
    """As Windows: the plan is printed, and says what it does not know."""
    monkeypatch.delattr(os, "sysconf")
    assert train.main(["--plan"]) == 0
    out = capsys.readouterr().out
    assert "kept for backward" in out and "largest batch" not in out
    assert out.endswith(
        "this system does not report its memory; with --memory GB the cost summary says how many clips fit\n"
    )
    assert train.main(["--plan", "--memory", "2"]) == 0
    assert "largest batch for 2.0 GB" in capsys.readouterr().out


@pytest.mark.parametrize(
    "count, text", [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (3_210_000, "3.2 MB"), (2e15, "2000.0 TB")]
)
def test_sizes_for_people(count, text):
    assert cost_summary.size(count) == text
