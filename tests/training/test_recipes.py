"""The paper's recipe, number for number."""

import numpy as np
import pytest

import minnl
import models
from minnl import optim
from minnl.training import recipes


def config(recipe="paper", **options):
    return {"recipe": recipe} | recipes.RECIPES[recipe] | options


def test_the_learning_rate_of_400000_steps():
    """Check O of the paper: 0.01 to step 149,999, then a tenth, from 300,000 on a hundredth; no warm-up."""
    rate = recipes.schedule(config(), 400_000)
    for step, expected in (
        (0, 0.01),
        (149_999, 0.01),
        (150_000, 1e-3),
        (299_999, 1e-3),
        (300_000, 1e-4),
        (399_999, 1e-4),
    ):
        assert rate(step) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 8])
def test_the_first_step_of_a_short_run_has_the_full_rate(steps):
    rates = [recipes.schedule(config(), steps)(step) for step in range(steps)]
    shares = [step / steps for step in range(steps)]
    assert rates == pytest.approx([0.01 if s < 3 / 8 else 1e-3 if s < 6 / 8 else 1e-4 for s in shares])


@pytest.mark.parametrize(
    "batch_size, accumulate, expected", [(8, 8, 0.01), (64, 1, 0.01), (8, 4, 0.005), (2, 8, 0.0025)]
)
def test_the_linear_rule_gives_the_released_rates(batch_size, accumulate, expected):
    made = config(batch_size=batch_size, accumulate=accumulate)
    assert recipes.learning_rate(made) == expected == recipes.schedule(made, 100)(0)
    assert recipes.learning_rate(made | {"lr": 0.3}) == 0.3


def test_an_epoch_of_the_release_makes_400000_steps():
    made = config()
    steps = made["epochs"] * 234_643 / (made["batch_size"] * made["accumulate"])
    assert steps == pytest.approx(400_000, rel=0.005)
    assert (made["dropout"], made["precise"] * made["batch_size"]) == (0.5, 200 * 64)


def test_nesterov_with_decay_on_all_but_batch_norm():
    minnl.manual_seed(0)
    model = models.build("nl_c2d_r18_1", width=8, classes=3, frames=8, size=32)
    made = recipes.optimizer(model.parameters(), config())
    assert isinstance(made, optim.SGD) and made.nesterov and made.momentum == 0.9 and made.lr == 0.01
    names = {id(p): name for name, p in model.named_parameters()}
    decays = {names[id(p)]: o["weight_decay"] for p, o in zip(made.params, made.settings(), strict=True)}
    assert len(decays) == len(names)
    assert all(decay == (0 if ".norm." in name else 1e-4) for name, decay in decays.items())
    assert decays["head.classify.bias"] == decays["res4.nonlocal0.theta.bias"] == 1e-4


def test_it_is_caffe2s_update():
    """V = mu V + lr g, p -= (1 + mu) V' - mu V, and V is rescaled when the learning rate changes."""
    p = minnl.nn.Parameter(np.array([1.0, -2.0], np.float32))
    made = recipes.optimizer([p], config())
    rate, rng = recipes.schedule(config(), 8), np.random.default_rng(0)
    w, velocity, before = p.data.astype(np.float64), 0.0, rate(0)
    for step in range(8):
        p.grad = rng.normal(size=2).astype(np.float32)
        lr = made.lr = rate(step)
        made.step()
        gradient = p.grad + 1e-4 * w
        velocity, before = velocity * lr / before, lr
        new = 0.9 * velocity + lr * gradient
        w, velocity = w - (1.9 * new - 0.9 * velocity), new
    assert rate(7) == pytest.approx(1e-4)
    np.testing.assert_allclose(p.data, w, rtol=1e-5)


def test_jitter_is_256_to_320_for_224():
    assert recipes.jitter((224, 224)) == (256, 320)
    assert recipes.jitter((56, 112)) == (128, 160)


def test_the_other_recipe_is_adamw_with_a_cosine():
    made = config("adamw")
    p = minnl.nn.Parameter(np.zeros(2, np.float32))
    assert isinstance(recipes.optimizer([p], made), optim.AdamW)
    rate = recipes.schedule(made, 100)
    assert max(map(rate, range(100))) == pytest.approx(3e-3, rel=0.02) and rate(99) < 1e-5 and rate(0) < rate(3)
