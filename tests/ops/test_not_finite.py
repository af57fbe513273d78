"""What becomes of NaN and infinity, in values and in gradients: the rule (docs/ops/README.md), in every body."""

import math

import numpy as np
import pytest

from minnl import Tensor, optim, use_kernels
from minnl import functional as F
from tests import strict_cupy
from tests.not_finite import EACH_PLACE, outcome, same

NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(("name", "place", "value"), EACH_PLACE)
def test_every_body_makes_of_them_what_the_textbook_makes(name, place, value):
    textbook = outcome(name, place, value, "textbook")
    same(name, outcome(name, place, value, "fast"), textbook)
    with strict_cupy.installed():
        same(name, outcome(name, place, value, "textbook", "gpu"), textbook)


def gradients(fn, gy, *inputs):
    leaves = [Tensor(x, requires_grad=True, dtype=np.float32) for x in inputs]
    y = fn(*leaves)
    y.backward(np.reshape(np.array(gy, np.float32), y.shape))
    return [x.grad.reshape(-1).tolist() for x in leaves]


def equal(got, *expected):
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("g", [NAN, INF, -INF, 3.0])
def test_what_was_not_chosen_gets_no_gradient_whatever_arrives(g):
    equal(gradients(F.relu, [g] * 4, [-1, 0, 2, NAN]), [0, 0, g, g])
    equal(gradients(lambda x: F.clip(x, -1, 1), [g] * 4, [-2, 1, 2, 0.5]), [0, g, 0, g])
    equal(gradients(F.maximum, [g] * 3, [1, 2, 2], [2, 1, 2]), [0, g, g / 2], [g, 0, g / 2])
    equal(gradients(F.minimum, [g] * 3, [1, 2, NAN], [2, 1, 3]), [g, 0, g], [0, g, 0])
    equal(gradients(F.max, [g], [1, 3, 2]), [0, g, 0])
    equal(gradients(F.min, [g], [1, 3, NAN]), [0, 0, g])
    line = np.reshape([1.0, 3, 2, 4], (1, 1, 1, 4, 1))
    equal(gradients(lambda x: F.max_pool3d(x, (1, 1, 2)), [g, 5], line), [0, g, 0, 5])
    equal(gradients(lambda x: F.adaptive_max_pool3d(x, (1, 1, 2)), [g, 5], line), [0, g, 0, 5])


@pytest.mark.parametrize("mode", ["textbook", "fast"])
@pytest.mark.parametrize("g", [NAN, INF])
@pytest.mark.parametrize("frozen", [True, False])
def test_a_rectified_norm_drops_what_arrives_where_it_gave_0(frozen, g, mode):
    """Not one number of the gradients is touched by them."""
    rng = np.random.default_rng(0)
    x, residual = rng.normal(size=(2, 2, 4, 64, 64, 4)).astype("f4")
    gy = rng.normal(size=x.shape).astype("f4")

    def grads(gy):
        leaves = [Tensor(a, requires_grad=True) for a in (x, np.ones(4, "f4"), np.zeros(4, "f4"), residual)]
        running = np.zeros(4, "f4"), np.ones(4, "f4")
        y = F.batch_norm(leaves[0], *running, *leaves[1:3], training=not frozen, relu=True, residual=leaves[3])
        y.backward(np.where(y.data > 0, gy, gy_of_dead))
        return y.data, [leaf.grad for leaf in leaves]

    with use_kernels(mode):
        gy_of_dead = np.float32(g)
        y, got = grads(gy)
        gy_of_dead = np.float32(0)
        equal(got, *grads(gy)[1])
        assert 0.4 < (y == 0).mean() < 0.6


def test_dropout_multiplies():
    """Its mask is a factor: 0 times NaN or infinity is NaN, forward and backward, as in PyTorch."""
    x = Tensor(np.full(100, INF, np.float32), requires_grad=True)
    with np.errstate(invalid="ignore"):
        y = F.dropout(x, 0.5)
        y.backward(np.full(100, NAN, np.float32))
    assert 20 < np.isnan(y.data).sum() < 80 and np.isinf(y.data[~np.isnan(y.data)]).all()
    assert np.isnan(x.grad).all()


@pytest.mark.parametrize("make", [lambda p: optim.AdamW(p, 0.1), lambda p: optim.SGD(p, 0.1, momentum=0.9)])
def test_optimisers_make_of_a_gradient_the_same_in_every_body(make):
    rng = np.random.default_rng(0)
    w, gw = rng.normal(size=(2, 1 << 19)).astype("f4")
    gw[:6] = NAN, INF, -INF, 0, 1e30, -1e-30
    results = []
    for mode in ("textbook", "fast"):
        with use_kernels(mode), np.errstate(all="ignore"):
            p = Tensor(w.copy(), requires_grad=True)
            optimizer = make([p])
            for _ in range(2):
                p.grad = gw
                optimizer.step()
        results.append([p.data, *(array for (array,) in optimizer.kept.values())])
    for a, b in zip(*results, strict=True):
        np.testing.assert_array_equal(a, b)
