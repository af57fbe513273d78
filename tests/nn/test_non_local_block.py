"""The non-local block: identity at the start, the checks F to L and R of the specification, counts, attention."""

import math

import numpy as np
import pytest

import minnl
from minnl import Tensor, nn
from minnl import functional as F
from minnl.kernels.non_local import cpu as fast
from minnl.ops import non_local as textbook

MODES = nn.MODES
SHAPE = (2, 3, 4, 5, 6)  # of x: the last column of an odd width is lost to subsampling


def clip(*shape, seed=0, dtype=np.float64):
    return np.random.default_rng(seed).normal(size=shape or SHAPE).astype(dtype)


def block(channels=6, seed=0, awake=True, **options):
    """A block in float64; awake with weights of ordinary size everywhere, else as it starts."""
    minnl.manual_seed(seed)
    made = nn.NonLocalBlock(channels, **options).to(dtype=np.float64)
    if awake:
        rng = np.random.default_rng(seed)
        for p in made.parameters():
            p.data[...] = rng.normal(size=p.shape) * 0.5
    return made


def gathered(made, x):
    """What the operation gives for x, before W_z."""
    theta, phi, g = made.embed(Tensor(x))
    return F.non_local(theta, phi, g, made.mode, made.scale, made.axes, weight=made.w_f).data


@pytest.mark.parametrize("kernels", ["textbook", "fast"])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("norm", ["batch", None])
@pytest.mark.parametrize("mode", MODES)
def test_identity_at_the_start_bit_for_bit(mode, norm, training, kernels):
    minnl.manual_seed(0)
    x = clip(dtype=np.float32)
    x[0, 0, 0, 0] = 0, 1e-40, 1e3, -1e3, 1e-7, 1
    made = nn.NonLocalBlock(6, mode=mode, norm=norm).train(training)
    with minnl.use_kernels(kernels):
        z = made(Tensor(x)).data
    np.testing.assert_array_equal(z.view(np.uint32), x.view(np.uint32))


@pytest.mark.parametrize("mode", MODES)
def test_first_gradients_of_a_block_with_norm(mode):
    made, leaf, gz = block(awake=False, mode=mode), Tensor(clip(), requires_grad=True), clip(seed=1)
    made(leaf).backward(gz)
    for name, p in made.named_parameters():
        if name.startswith("norm"):
            assert np.abs(p.grad).min() > 0, name
        else:
            assert not p.grad.any(), f"{name} must have no gradient while gamma is 0"
    np.testing.assert_array_equal(leaf.grad, gz)


def test_first_gradients_of_a_block_without_norm():
    made, leaf, gz = block(awake=False, norm=None), Tensor(clip(), requires_grad=True), clip(seed=1)
    made(leaf).backward(gz)
    for name, p in made.named_parameters():
        assert p.grad.any() == name.startswith("W_z"), name
    np.testing.assert_array_equal(leaf.grad, gz)


@pytest.mark.parametrize("mode", MODES)
def test_everything_learns_from_the_second_step_on(mode):
    made = block(awake=False, mode=mode)
    optimizer = minnl.optim.SGD(made.parameters(), 0.1)
    for _ in range(2):
        optimizer.zero_grad()
        made(Tensor(clip())).backward(clip(seed=1))
        optimizer.step()
    assert all(p.grad.any() for name, p in made.named_parameters() if not name.endswith("phi.bias"))


def test_weights_start_as_released():
    minnl.manual_seed(0)
    made = nn.NonLocalBlock(128, mode="concat")
    assert (made.theta.weight.shape, made.W_z.weight.shape) == ((1, 1, 1, 128, 64), (1, 1, 1, 64, 128))
    for name in ("theta", "phi", "g", "W_z"):
        layer = getattr(made, name)
        assert layer.weight.data.std() == pytest.approx(0.01, rel=0.04), name
        assert not layer.bias.data.any()
    assert made.w_f.data.std() == pytest.approx(0.01, rel=0.3)
    assert not made.norm.weight.data.any() and not made.norm.bias.data.any()
    plain = nn.NonLocalBlock(128, norm=None)
    assert not plain.W_z.weight.data.any() and plain.norm is None and plain.theta.weight.data.any()


@pytest.mark.parametrize("channels", [1, 2, 16, 64])
@pytest.mark.parametrize(
    "mode, count",
    [
        ("embedded", lambda c, i: 4 * c * i + 3 * i + 3 * c),
        ("dot", lambda c, i: 4 * c * i + 3 * i + 3 * c),
        ("gaussian", lambda c, i: 2 * c * i + i + 3 * c),
        ("concat", lambda c, i: 4 * c * i + 3 * i + 3 * c + 2 * i),
    ],
)
def test_number_of_parameters(mode, count, channels):
    made = nn.NonLocalBlock(channels, mode=mode)
    counted = sum(p.size for p in made.parameters())
    assert counted == count(channels, max(1, channels // 2))
    if channels % 2 == 0:  # section 1 of the specification
        square, line = {"embedded": (2, 4.5), "dot": (2, 4.5), "gaussian": (1, 3.5), "concat": (2, 5.5)}[mode]
        assert counted == square * channels**2 + line * channels
    assert sum(p.size for p in nn.NonLocalBlock(8, inner_channels=3, mode=mode).parameters()) == count(8, 3)


@pytest.mark.parametrize("subsample", ["before", "after", None])
def test_without_theta_all_keys_weigh_the_same(subsample):
    made, x = block(subsample=subsample), clip()
    made.theta.weight.data[...] = made.theta.bias.data[...] = 0
    _, _, g = made.embed(Tensor(x))
    mean = g.data.mean((1, 2, 3), keepdims=True)
    np.testing.assert_allclose(gathered(made, x), np.broadcast_to(mean, (*SHAPE[:4], 3)), rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("mode", MODES)
def test_permuting_positions_permutes_the_output(mode):
    made, x = block(mode=mode, subsample=None).eval(), clip()
    order = np.random.default_rng(2).permutation(60)

    def shuffled(a):
        return a.reshape(2, 60, 6)[:, order].reshape(SHAPE)

    np.testing.assert_allclose(made(Tensor(shuffled(x))).data, shuffled(made(Tensor(x)).data), rtol=0, atol=1e-13)


def test_with_subsampling_only_frames_may_be_permuted():
    made, x = block(subsample="before").eval(), clip()
    z = made(Tensor(x)).data
    frames = [2, 0, 1]
    np.testing.assert_allclose(made(Tensor(x[:, frames])).data, z[:, frames], rtol=0, atol=1e-13)
    columns = [4, 1, 3, 0, 2]
    assert np.abs(made(Tensor(x[:, :, :, columns])).data - z[:, :, :, columns]).max() > 1e-3


@pytest.mark.parametrize("subsample", ["before", "after", None])
@pytest.mark.parametrize("mode", MODES)
def test_space_only_is_each_frame_alone(mode, subsample):
    made, x = block(mode=mode, subsample=subsample, axes="space").eval(), clip()
    whole = block(mode=mode, subsample=subsample, axes="spacetime").eval()
    alone = np.concatenate([whole(Tensor(x[:, t : t + 1])).data for t in range(3)], axis=1)
    np.testing.assert_allclose(made(Tensor(x)).data, alone, rtol=0, atol=1e-13)
    assert np.abs(whole(Tensor(x)).data - alone).max() > 1e-3


@pytest.mark.parametrize("mode", MODES)
def test_time_only_is_each_pixel_alone(mode):
    made, x = block(mode=mode, subsample=None, axes="time").eval(), clip()
    whole = block(mode=mode, subsample=None).eval()
    z = made(Tensor(x)).data
    for h, w in np.ndindex(4, 5):
        alone = whole(Tensor(x[:, :, h : h + 1, w : w + 1])).data
        np.testing.assert_allclose(z[:, :, h : h + 1, w : w + 1], alone, rtol=0, atol=1e-13)


def test_one_frame_makes_spacetime_space():
    x = clip(2, 1, 4, 5, 6)
    z, space = (block(axes=axes).eval()(Tensor(x)).data for axes in ("spacetime", "space"))
    np.testing.assert_allclose(z, space, rtol=0, atol=1e-13)


def test_dot_product_is_linear_attention():
    made, x = block(mode="dot", subsample="before"), clip()
    theta, phi, g = (a.data.reshape(2, -1, 3) for a in made.embed(Tensor(x)))
    affinity = theta @ phi.swapaxes(1, 2) / phi.shape[1]  # L x P, which the op never makes
    assert phi.shape[1] == 3 * 2 * 2, "divided by the number of keys, after subsampling"
    np.testing.assert_allclose(gathered(made, x).reshape(2, -1, 3), affinity @ g, rtol=0, atol=1e-13)


@pytest.mark.parametrize("elements", [1, 13, 100, 1000])
@pytest.mark.parametrize("mode", ["embedded", "concat"])
def test_blocks_of_queries_do_not_change_the_numbers(mode, elements, monkeypatch):
    def run():
        leaf = Tensor(clip(), requires_grad=True)
        made = block(mode=mode)
        z = made(leaf)
        z.backward(clip(seed=1))
        return [z.data, leaf.grad, *(p.grad for p in made.parameters())]

    full = run()
    monkeypatch.setattr(textbook, "BLOCK_ELEMENTS", elements)
    for a, b in zip(full, run(), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-12)


def test_subsampling_before_is_not_after():
    x = clip()
    before, after = (block(subsample=order).eval()(Tensor(x)).data for order in ("before", "after"))
    assert before.shape == after.shape == SHAPE
    assert np.abs(before - after).max() > 1e-2


def test_scale_is_for_embedded_only():
    assert [nn.NonLocalBlock(8, mode=mode).scale for mode in MODES] == [
        0.5 if mode == "embedded" else None for mode in MODES
    ]
    assert nn.NonLocalBlock(8, scale=False).scale is None
    x = clip()
    scaled, plain = (gathered(block(scale=scale), x) for scale in (True, False))
    assert np.abs(scaled - plain).max() > 1e-3
    steeper = block(scale=True)
    steeper.theta.weight.data *= math.sqrt(3)
    steeper.theta.bias.data *= math.sqrt(3)
    np.testing.assert_allclose(gathered(steeper, x), plain, rtol=0, atol=1e-13)


@pytest.mark.parametrize("axes", nn.AXES)
@pytest.mark.parametrize("mode", MODES)
def test_attention_rows_are_what_the_operation_uses(mode, axes):
    made, x = block(mode=mode, axes=axes, subsample=None if axes == "time" else "before"), clip()
    _, _, g = made.embed(Tensor(x))
    positions = [(0, 0, 0), (2, 3, 4), (1, 2, 0)]
    rows = made.attention(Tensor(x), positions)
    assert rows.shape == (2, 3, *g.shape[1:4])
    y = gathered(made, x)
    for q, position in enumerate(positions):
        expected = np.einsum("nthw,nthwd->nd", rows[:, q], g.data)
        np.testing.assert_allclose(expected, y[(slice(None), *position)], rtol=0, atol=1e-13)
    if mode in ("gaussian", "embedded"):
        np.testing.assert_allclose(rows.sum((2, 3, 4)), 1, rtol=1e-14)
    with pytest.raises(ValueError, match=r"attention: position \(3, 0, 0\) lies outside"):
        made.attention(Tensor(x), [(3, 0, 0)])


@pytest.mark.parametrize("shape", [(1, 1, 2, 2, 4), (2, 5, 3, 7, 4), (1, 2, 9, 2, 4)])
def test_any_input_size_keeps_its_size(shape):
    assert block(4)(Tensor(clip(*shape))).shape == shape


def test_no_array_of_all_pairs_is_made(monkeypatch):
    """1,024 queries and 256 keys, too many to keep: 128 queries at a time, forward and backward."""
    sizes, empty = [], fast.empty

    def watched(shape, dtype):
        sizes.append(math.prod(shape))
        return empty(shape, dtype)

    monkeypatch.setattr(fast, "BLOCK_ELEMENTS", 128 * 256)
    monkeypatch.setattr(fast, "empty", watched)
    monkeypatch.setattr(textbook.NonLocalSoftmax, "few_keys", lambda op: False)
    leaf = Tensor(clip(1, 4, 16, 16, 4, dtype=np.float32), requires_grad=True)
    minnl.manual_seed(0)
    with minnl.use_kernels("fast"):
        nn.NonLocalBlock(4)(leaf).sum().backward()
    assert max(sizes) == 128 * 256
    assert sizes.count(128 * 256) == 8 + 2 * 8


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: nn.NonLocalBlock(0), "NonLocalBlock: channels must be 1 or more"),
        (lambda: nn.NonLocalBlock(4, 0), "NonLocalBlock: inner_channels must be 1 or more"),
        (lambda: nn.NonLocalBlock(4, mode="softmax"), "NonLocalBlock: mode must be one of 'gaussian', 'embedded'"),
        (lambda: nn.NonLocalBlock(4, subsample=True), "NonLocalBlock: subsample must be one of 'before', 'after'"),
        (lambda: nn.NonLocalBlock(4, axes="all"), "NonLocalBlock: axes must be one of 'spacetime'"),
        (lambda: nn.NonLocalBlock(4, axes="time"), 'axes="time" compares pixels with themselves; .* must be None'),
        (lambda: nn.NonLocalBlock(4, norm="layer"), "NonLocalBlock: norm must be one of 'batch', None"),
        (lambda: block(4)(Tensor(clip(2, 3, 4, 4, 3))), "NonLocalBlock: made for 4 channels, x has 3"),
        (lambda: block(4)(Tensor(clip(2, 3, 1, 4, 4))), "max_pool3d: the window spans 2 along H"),
        (lambda: block(4)(Tensor(clip(2, 3, 4, 4))), r"NonLocalBlock: x must have 5 axes"),
    ],
)
def test_wrong_input_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
