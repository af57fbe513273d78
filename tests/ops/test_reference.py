"""Every op, forward and backward, against the plain loops of tests/reference.

The loops have the names and arguments of minnl.functional, so a case of the table is run on them by putting them in
its place: the case's own function then computes with loops, on arrays.
"""

from functools import partial

import numpy as np
import pytest

from minnl import Tensor, functional, random
from minnl.study.cases import CASES
from tests import reference

ORIGINAL = {name: getattr(functional, name) for name in functional.__all__}
MOVES = {"reshape", "transpose", "broadcast_to", "concatenate", "stack", "pad", "flip", "index"}
WITHOUT_GRADIENT = {"attention", "to"}  # a picture, and no arithmetic
TOLERANCE = 1e-10


def loop_dropout(x, p=0.5, training=True, channels=False):
    """The reference takes the mask's seed, which the op draws."""
    if not training or p == 0:
        return x
    return reference.dropout(x, p, int(random.generator().integers(2**63)), channels)


@pytest.fixture
def calls(monkeypatch):
    """While this lasts minnl.functional is the loops; the list of (name, args, kwargs, result) called so far."""
    made = []

    def recorded(name, loop):
        def call(*args, **kwargs):
            result = loop(*args, **kwargs)
            made.append((name, args, kwargs, result))
            return result

        return call

    for name in set(functional.__all__) - WITHOUT_GRADIENT - {"dropout"}:
        monkeypatch.setattr(functional, name, recorded(name, getattr(reference, name)))
    monkeypatch.setattr(functional, "dropout", loop_dropout)
    return made


def on_loops(case):
    """The case's function, once minnl.functional is the loops."""
    name = next((name for name, function in ORIGINAL.items() if function is case.fn.func), None)
    return partial(getattr(functional, name), **case.fn.keywords) if name else case.fn


def loop_gradients(case, calls, gy, inputs, y):
    """Gradients by the loops; None where the case is a chain of ops, whose gradients the single ops vouch for."""
    names = [name for name, *_ in calls]
    if names and set(names) <= MOVES:
        return reference.moved_backward(gy, on_loops(case), inputs)
    if len(calls) != 1 or calls[0][3] is not y or names[0] == "split":
        return None
    name, args, kwargs, _ = calls[0]
    floats = [value for value in (*args, *kwargs.values()) if isinstance(value, np.ndarray) and value.dtype == float]
    used = [next((i for i, x in enumerate(inputs) if x is value), None) for value in floats]
    if used[0] is None:
        return None
    gradients = [np.zeros(x.shape) for x in inputs]
    by_loops = getattr(reference, f"{name}_backward")(gy, *args, **kwargs)
    for i, g in zip([i for i in used if i is not None], by_loops, strict=False):
        gradients[i] = gradients[i] + g  # an input may be used twice
    return gradients


def run(case):
    """Result and gradients by minnl."""
    rng = np.random.default_rng(0)
    inputs = case.inputs(rng)
    tensors = [Tensor(x.copy(), requires_grad=True) for x in inputs]
    y = case.fn(*tensors)
    gy = np.asarray(rng.normal(size=y.shape))
    if y.requires_grad:
        y.backward(gy)
    return inputs, y.numpy(), gy, [t.grad for t in tensors]


def near(got, wanted):
    assert got.shape == np.shape(wanted)
    np.testing.assert_allclose(got, wanted, rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize("name", CASES)
def test_case(name, calls, monkeypatch):
    with monkeypatch.context() as without_loops:
        for function, original in ORIGINAL.items():
            without_loops.setattr(functional, function, original)
        inputs, y, gy, gradients = run(CASES[name])
    wanted = on_loops(CASES[name])(*inputs)
    near(y, wanted)
    by_loops = loop_gradients(CASES[name], list(calls), gy, inputs, wanted)
    if by_loops is not None:
        for got, g in zip(gradients, by_loops, strict=True):
            near(got, g)


def test_every_op_has_its_backward_compared(calls):
    compared = set()
    for case in CASES.values():
        inputs = case.inputs(np.random.default_rng(0))
        calls.clear()
        y = np.asarray(on_loops(case)(*inputs))
        if calls and loop_gradients(case, list(calls), np.ones(y.shape), inputs, calls[-1][3]) is not None:
            compared |= {name for name, *_ in calls}
    # dropout has its own test below; split is a list of slices, which are `index`
    assert compared == set(functional.__all__) - WITHOUT_GRADIENT - {"dropout", "split"}


@pytest.mark.parametrize("channels", [False, True])
def test_dropout(channels):
    seeds = np.random.default_rng(3).integers(2**62, size=3)
    x = np.random.default_rng(0).normal(size=(4, 3, 5))
    for seed in seeds.tolist():
        random.manual_seed(seed)
        drawn = int(random.generator().integers(2**63))
        random.manual_seed(seed)
        t = Tensor(x, requires_grad=True)
        y = functional.dropout(t, 0.3, channels=channels)
        near(y.numpy(), reference.dropout(x, 0.3, drawn, channels))
        y.backward(x)
        near(t.grad, *reference.dropout_backward(x, x, 0.3, drawn, channels))


@pytest.mark.parametrize("axes", ["spacetime", "space", "time"])
@pytest.mark.parametrize("mode", ["gaussian", "embedded", "dot", "concat"])
def test_attention(mode, axes):
    rng = np.random.default_rng(0)
    theta, phi = rng.normal(size=(2, 2, 2, 3, 4)), rng.normal(size=(2, 2, 2, 3, 4))
    options = {"mode": mode, "axes": axes, "scale": 0.5 if mode == "embedded" else None}
    weight = rng.normal(size=8) if mode == "concat" else None
    positions = [(0, 1, 2), (1, 0, 0)]
    got = functional.attention(Tensor(theta), Tensor(phi), positions, weight=weight, **options)
    near(got, reference.attention(theta, phi, positions, weight=weight, **options))


def test_batch_norm_moves_the_running_statistics():
    rng = np.random.default_rng(0)
    x, mean, var = rng.normal(size=(3, 4, 2)), rng.normal(size=2), rng.uniform(1, 2, size=2)
    wanted = mean.copy(), var.copy()
    functional.batch_norm(Tensor(x), mean, var, training=True, momentum=0.3)
    reference.batch_norm(x, *wanted, training=True, momentum=0.3)
    near(mean, wanted[0])
    near(var, wanted[1])


@pytest.mark.parametrize("name", ["max_pool3d", "adaptive_max_pool3d", "max", "min"])
@pytest.mark.parametrize("odd", [np.nan, -np.inf])
def test_extremes_with_nan_and_infinity(name, odd):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1, 3, 4, 4, 2))
    x[0, :2, :3, :3, 0] = -np.inf  # whole windows of it
    x[0, 1, 2, 1, :] = odd
    options = {"max_pool3d": {"kernel_size": 2, "stride": 1}, "adaptive_max_pool3d": {"output_size": (2, 2, 3)}}
    arguments = options.get(name, {"axis": (1, 2)})
    t = Tensor(x, requires_grad=True)
    y = getattr(functional, name)(t, **arguments)
    near(y.numpy(), getattr(reference, name)(x, **arguments))
    gy = rng.normal(size=y.shape)
    y.backward(gy)
    near(t.grad, *getattr(reference, f"{name}_backward")(gy, x, **arguments))


def test_extremes_of_two_with_nan():
    a, b = np.array([np.nan, 1.0, np.nan, 2.0]), np.array([0.0, np.nan, np.nan, 2.0])
    for name in ("maximum", "minimum"):
        ta, tb = Tensor(a, requires_grad=True), Tensor(b, requires_grad=True)
        y = getattr(functional, name)(ta, tb)
        near(y.numpy(), getattr(reference, name)(a, b))
        y.backward(np.ones(4))
        for got, wanted in zip(
            (ta.grad, tb.grad), getattr(reference, f"{name}_backward")(np.ones(4), a, b), strict=True
        ):
            near(got, wanted)
