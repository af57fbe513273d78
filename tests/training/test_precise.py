"""Precise batch norm: the mean and variance of all that was seen, and nothing else changed."""

import numpy as np
import pytest

import minnl
import models
from minnl import Tensor, nn, random
from minnl.training.precise import precise_batch_norm
from tests import strict_cupy

RNG = np.random.default_rng(0)


def batch(n, scale=1.0):
    return (RNG.normal(size=(n, 2, 4, 4, 3)) * scale + scale).astype(np.float32)


def network():
    minnl.manual_seed(0)
    return nn.Sequential(
        first=nn.BatchNorm3d(3),
        conv=nn.Conv3d(3, 4, 3, padding=1, bias=False),
        drop=nn.Dropout(0.5),
        second=nn.BatchNorm3d(4),
        frozen=nn.BatchNorm3d(4, frozen=True),
    )


def state(model):
    return {k: a.tobytes() for k, a in model.state_dict().items()}


def test_it_is_the_mean_and_variance_of_all_values():
    model, seen = network(), [batch(3), batch(1, 5.0), batch(2, 0.1)]
    precise_batch_norm(model, seen)
    values = np.concatenate([x.reshape(-1, 3) for x in seen]).astype(np.float64)
    np.testing.assert_allclose(model.first.running_mean, values.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(model.first.running_var, values.var(axis=0), rtol=1e-6)


def test_a_large_mean_costs_the_variance_no_digits():
    """Mean of squares less square of mean would be as far off as 1e12 is rounded."""
    model, low, high = network(), np.float32(1e6), np.float32(1e6 + 0.0625)
    precise_batch_norm(model, [np.full((n, 2, 4, 4, 3), value) for n, value in ((2, low), (1, high))])
    np.testing.assert_allclose(model.first.running_var, 2 / 9 * 0.0625**2, rtol=1e-6)


def test_batches_of_one_size_as_the_release_computes_it():
    """mean = average of means, var = average of (var_b + mean_b^2) - mean^2, each batch normalised by its own."""
    model, seen = network(), [batch(2), batch(2, 3.0), batch(2, 0.3)]
    model.drop.p = 0.0
    means, variances = [], []
    for x in seen:
        x = x.astype(np.float64)
        x = (x - x.mean(axis=(0, 1, 2, 3))) / np.sqrt(x.var(axis=(0, 1, 2, 3)) + 1e-5)
        y = model.conv(Tensor(x.astype(np.float32))).data.astype(np.float64)
        means.append(y.mean(axis=(0, 1, 2, 3)))
        variances.append(y.var(axis=(0, 1, 2, 3)))
    precise_batch_norm(model, seen)
    mean = np.mean(means, axis=0)
    np.testing.assert_allclose(model.second.running_mean, mean, atol=1e-6)
    expected = np.mean(variances + np.square(means), axis=0) - mean**2
    np.testing.assert_allclose(model.second.running_var, expected, rtol=1e-5)


def test_a_constant_channel_has_no_variance():
    """As a difference of squares it would be below 0 for some of them, and evaluation NaN."""
    norm, constants = nn.BatchNorm3d(32), (1e6 / np.arange(3, 35)).astype(np.float32)
    seen = [np.broadcast_to(constants, (n, 7, 11, 13, 32)).copy() for n in (3, 1, 2, 5)]
    precise_batch_norm(norm, seen)
    np.testing.assert_allclose(norm.running_mean, constants, rtol=5e-7)  # the means of batches come in float32
    assert (norm.running_var >= 0).all() and (norm.running_var <= (5e-7 * constants) ** 2).all()
    assert np.isfinite(norm.eval()(Tensor(seen[0])).data).all()


def test_after_one_batch_evaluation_does_what_training_did():
    minnl.manual_seed(0)
    model = models.build("nl_c2d_r18_1", width=8, classes=3, frames=8, size=32, dropout=0.0).to(dtype=np.float64)
    for m in model.modules():
        if isinstance(m, nn.BatchNorm3d):
            m.weight.data[...] = 1  # those that start at 0 hide what is before them
    x = RNG.normal(size=(2, 8, 32, 32, 3))
    trained = model.train()(Tensor(x)).data
    assert np.abs(model.eval()(Tensor(x)).data - trained).max() > 1e-3 * np.abs(trained).max()
    precise_batch_norm(model, [x])
    np.testing.assert_allclose(model.eval()(Tensor(x)).data, trained, rtol=1e-6)


def test_nothing_else_changes():
    model = network().eval()
    model.second.momentum = 0.3
    before, rng_state = state(model), random.get_state()
    precise_batch_norm(model, [batch(2)])
    changed = {k for k, a in state(model).items() if a != before[k]}
    assert changed == {f"{m}.running_{what}" for m in ("first", "second") for what in ("mean", "var")}
    assert random.get_state() == rng_state
    assert not model.training and model.second.momentum == 0.3 and "forward" not in vars(model.second)
    again, x = state(model), batch(2)
    found = []
    for _ in range(2):
        precise_batch_norm(model, [x])
        found.append(state(model))
    assert found[0] == found[1] != again, "what was there before is forgotten, and the rng state is the same"


@pytest.mark.parametrize("wrong", [[], [batch(1), np.zeros((1, 2, 4, 4, 5), np.float32)]])
def test_an_error_leaves_everything_as_it_was(wrong):
    model = network()
    before = state(model)
    with pytest.raises(ValueError, match=r"no batch came|channels|shape"):
        precise_batch_norm(model, wrong)
    assert state(model) == before and model.first.momentum == 0.1 and "forward" not in vars(model.first)


def test_on_a_gpu_it_is_the_same():
    x = [batch(2), batch(1, 3.0)]
    with minnl.use_kernels("textbook"):
        here = network()
        precise_batch_norm(here, x)
        with strict_cupy.installed():
            there = network().to("gpu")
            precise_batch_norm(there, [minnl.backend.to_device(a, minnl.device("gpu")) for a in x])
            assert type(there.first.running_mean) is strict_cupy.ndarray
            found = {name: minnl.backend.to_host(array) for name, array in there.state_dict().items()}
    for name, array in here.state_dict().items():
        np.testing.assert_allclose(found[name], array, rtol=1e-5, atol=1e-6)
