"""Whose array a gradient is, when what an op kept is let go, and memory that stays flat without the collector."""

import gc
import tracemalloc
import weakref

import numpy as np
import pytest

from minnl import Op, Tensor, functional
from tests.cases import CASES


def leaf(*values):
    return Tensor(np.array(values), requires_grad=True)


# Whose array a gradient is.


@pytest.mark.parametrize("name", CASES)
def test_gradients_share_no_memory(name):
    """Not with each other, nor with inputs, output, seed: editing one in place changes nothing else."""
    tensors = [Tensor(x, requires_grad=True) for x in CASES[name].inputs(np.random.default_rng(0))]
    y = CASES[name].fn(*tensors)
    seed = np.ones(y.shape, y.dtype)
    y.backward(seed)
    arrays = [seed, y.data, *(t.data for t in tensors)]
    for t in tensors:
        assert not any(np.may_share_memory(t.grad, a) for a in arrays)
        assert t.grad.flags.writeable
        arrays.append(t.grad)


def test_a_seed_stays_the_callers():
    x = leaf(1.0, 2.0)
    for seed in (np.ones(2), Tensor(np.ones(2)), np.ones((2, 2))[0]):
        x.zero_grad()
        (x + 0.0).backward(seed)
        assert not np.shares_memory(x.grad, seed.data if isinstance(seed, Tensor) else seed)


def test_accumulation_does_not_edit_the_gradient_that_was_handed_out():
    x = leaf(1.0, 2.0)
    (x * 2).sum().backward()
    first = x.grad
    (x * 2).sum().backward()
    np.testing.assert_array_equal(first, [2, 2])
    np.testing.assert_array_equal(x.grad, [4, 4])


# Memory.


def test_a_graph_is_freed_with_its_last_tensor(no_collector):
    x = leaf(1.0, 2.0, 3.0, 4.0)
    y = functional.exp(x * 2)
    z = y.sum()
    refs = [weakref.ref(o) for o in (y, y.op, y.data, z, z.op)]
    del y, z
    assert [r() for r in refs] == [None] * len(refs)


def test_a_sweep_frees_what_ops_kept_while_tensors_live(no_collector):
    class Kept:
        """Held by an op like an array would be."""

    class Keeps(Op):
        saved_for_backward = ("kept",)

        def forward(self, x):
            self.kept = Kept()
            alive.append(weakref.ref(self.kept))
            return x * 1

        def backward(self, gy):
            during.append([r() is not None for r in alive])
            return (gy,)

    alive, during = [], []
    x = leaf(1.0, 2.0)
    y = Keeps()(Keeps()(Keeps()(x)))
    y.sum().backward()
    assert during == [[True, True, True], [True, True, False], [True, False, False]]
    assert [r() for r in alive] == [None] * 3
    assert y.op is not None


def test_what_nobody_needs_is_freed_during_forward(no_collector):
    """An op holds arrays that its backward needs, not its inputs: of a sum, nothing."""
    x = leaf(1.0, 2.0, 3.0, 4.0)
    a = x + 1.0
    middle = weakref.ref(a)
    y = a + 2.0
    del a
    assert middle() is None
    y.sum().backward()
    np.testing.assert_array_equal(x.grad, np.ones(4))


@pytest.fixture
def no_collector():
    """Reference counting alone has to do."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def step(x, weight):
    """A little of everything, forward and backward."""
    h = functional.relu(functional.conv3d(x, weight, padding=1))
    h = functional.max_pool3d(h, 2) + functional.avg_pool3d(h, 2)
    h = functional.batch_norm(h, None, None, training=True)
    h = functional.non_local(h, h, h) + h
    loss = functional.cross_entropy(h.mean(axis=(1, 2, 3)), [0, 1])
    loss.backward()
    return loss.item()


def operands():
    rng = np.random.default_rng(0)
    x = Tensor(rng.normal(size=(2, 4, 4, 4, 3)), requires_grad=True)
    return x, Tensor(rng.normal(size=(3, 3, 3, 3, 4)), requires_grad=True)


def test_a_step_makes_no_reference_cycles(no_collector):
    x, weight = operands()
    step(x, weight)
    gc.collect()
    step(x, weight)
    assert gc.collect() == 0


@pytest.mark.slow
def test_memory_is_flat_over_100_steps_without_the_collector(no_collector):
    x, weight = operands()

    def run(steps):
        for _ in range(steps):
            step(x, weight)
        return tracemalloc.get_traced_memory()[0], len(gc.get_objects())

    step(x, weight)
    tracemalloc.start()
    try:
        bytes_before, objects_before = run(200)  # the interpreter fills its lists of free tuples
        bytes_after, objects_after = run(100)
    finally:
        tracemalloc.stop()
    assert objects_after - objects_before < 50
    assert bytes_after - bytes_before < 5_000  # one step keeps hundreds of times that


def test_a_forgotten_backward_leaks_nothing(no_collector):
    x, weight = operands()
    refs = []
    for _ in range(3):
        y = functional.conv3d(x, weight, padding=1)
        refs += [weakref.ref(y), weakref.ref(y.op), weakref.ref(y.data)]
        y = functional.relu(y)
    del y
    assert [r() for r in refs] == [None] * 9


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["embedded", "dot", "concat"])
def test_non_local_is_linear_in_positions(mode):
    """L = P = 25,088, I = 64: f alone would take 2.5 GB; what is taken beyond inputs and outputs is under 300 MB."""
    rng = np.random.default_rng(0)
    shape = (1, 8, 56, 56, 64)
    theta, phi, g = (Tensor(0.1 * rng.standard_normal(shape, np.float32), requires_grad=True) for _ in range(3))
    weight = Tensor(rng.standard_normal(128, np.float32), requires_grad=True) if mode == "concat" else None
    gy = np.ones(shape, np.float32)
    tracemalloc.start()
    try:
        y = functional.non_local(theta, phi, g, mode=mode, weight=weight)
        y.backward(gy)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    results = y.data.nbytes + sum(t.grad.nbytes for t in (theta, phi, g))
    assert peak - results < 300e6
