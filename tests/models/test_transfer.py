"""From one trained network to the next: inflation (check M), folding (check N), other classes, frozen parts, chunks."""

import numpy as np
import pytest

import minnl
import models
from minnl import Tensor, nn, optim
from minnl import functional as F
from models import blocks, transfer

pytestmark = pytest.mark.slow

TINY = {"width": 4, "classes": 5, "frames": 16, "size": 48, "dropout": 0.0}


def trained(name, seed=0, dtype=np.float64, **options):
    """A small network in evaluation mode, with weights and statistics as training might leave them."""
    minnl.manual_seed(seed)
    model = models.build(name, **TINY | options).to(dtype=dtype).eval()
    rng = np.random.default_rng(seed)
    for path, array in model.state_dict().items():
        if path.endswith(("norm.weight", "running_var")):
            array[...] = rng.uniform(0.5, 1.5, array.shape)
        elif path.endswith(("bias", "running_mean")):
            array[...] = rng.normal(size=array.shape) * 0.2
    return model


def clips(frames=16, size=48, seed=1, batch=2):
    return np.random.default_rng(seed).normal(size=(batch, frames, size, size, 3))


def still(frames, size=48):
    return np.repeat(clips(1, size), frames, axis=1)


def close(a, b):
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-11 * np.abs(b).max())


def test_an_inflated_kernel_on_a_still_video():
    """Inside a clip as on a frame; 2/3 at both ends with 3 taps; 0.6, 1, 1, 0.8 with 5 taps and stride 2 over 8."""
    rng = np.random.default_rng(0)
    frame, weight = rng.normal(size=(1, 1, 9, 8, 3)), rng.normal(size=(1, 3, 3, 3, 4))
    flat = F.conv3d(Tensor(frame), Tensor(weight), padding=(0, 1, 1)).data
    video = Tensor(np.repeat(frame, 8, axis=1))
    for taps, stride, factors in ((3, 1, [2 / 3, *[1] * 6, 2 / 3]), (5, 2, [0.6, 1, 1, 0.8])):
        state = transfer.inflate({"w": weight}, {"w": np.empty((taps, 3, 3, 3, 4))})
        y = F.conv3d(video, Tensor(state["w"]), stride=(stride, 1, 1), padding=(taps // 2, 1, 1)).data
        close(y, flat * np.array(factors)[:, None, None, None])


@pytest.mark.parametrize("name", ["i3d_r50_8x8", "i3d333_r50", "i3d_r18"])
def test_an_inflated_network_on_a_still_video(name):
    """Far from both ends of a long clip the last map is that of the 2D network."""
    layout = {key: getattr(models.preset(name), key) for key in ("conv1_stride", "pool1_frames", "pool1_stride")}
    base = trained("c2d_r18" if "r18" in name else "c2d_r50", **layout)
    network = models.build(name, **TINY).to(dtype=np.float64).eval()
    network.load_state_dict(transfer.inflate(base.state_dict(), network.state_dict()))
    reach = 10  # frames of res5 that the zeros at an end can reach
    frames = (2 * reach + 4) * 2 * layout["pool1_stride"] * layout["conv1_stride"]
    with minnl.no_grad():
        y = network.features(Tensor(still(frames))).data
        expected = base.features(Tensor(still(16))).data[:, :1]
    close(y[:, reach:-reach], np.broadcast_to(expected, y[:, reach:-reach].shape))
    assert np.abs(y[:, :1] - expected).max() > 1e-3, "the ends are not the same"


def test_kernels_of_images_are_inflated():
    image = np.random.default_rng(0).normal(size=(7, 7, 3, 4)).astype(np.float32)
    state = transfer.inflate({"a": image, "b": image, "c": image[0, 0, 0]}, {"a": np.empty((5, 7, 7, 3, 4))})
    assert state["a"].shape == (5, 7, 7, 3, 4) and state["a"].dtype == np.float32
    np.testing.assert_array_equal(state["a"][3], image / 5)
    assert state["b"] is image, "a name that the target does not have passes as it is"
    flat = transfer.inflate({"a": image}, {"a": np.empty((1, 7, 7, 3, 4))})["a"]
    np.testing.assert_array_equal(flat, image[None])


@pytest.mark.parametrize("name", ["c2d_r18", "nl_i3d_r50_5"])
def test_folding_changes_no_output(name):
    base = trained(name)
    folded = models.build(name, **TINY, norm="affine").to(dtype=np.float64)
    before = {key: array.copy() for key, array in base.state_dict().items()}
    folded.load_state_dict(transfer.fold(base.state_dict()))
    x = Tensor(clips())
    with minnl.no_grad():
        close(folded.eval()(x).data, base(x).data)
        close(folded.train()(x).data, base(x).data)
    for key, array in base.state_dict().items():
        np.testing.assert_array_equal(array, before[key], err_msg=f"{key} of the state that was given")
    assert not dict(folded.named_buffers())


def test_folding_formula():
    """Check N."""
    rng = np.random.default_rng(0)
    x, gamma, beta, mean = rng.normal(size=(4, 7)), *rng.normal(size=(3, 7))
    var = rng.uniform(0.1, 2, 7)
    names = ("weight", "bias", "running_mean", "running_var")
    state = transfer.fold({f"norm.{n}": a for n, a in zip(names, (gamma, beta, mean, var), strict=True)})
    assert list(state) == ["norm.weight", "norm.bias"]
    y = F.batch_norm(Tensor(x), mean, var, Tensor(gamma), Tensor(beta)).data
    close(x * state["norm.weight"] + state["norm.bias"], y)


def test_start_of_a_long_clip_network():
    """The published way: a trained I3D is folded, fresh blocks without norm join it, and its output stays as it was."""
    base = trained("i3d_r50")
    long = models.build("nl_i3d_r50_5_128x1", **TINY | {"frames": 32}).to(dtype=np.float64).eval()
    fresh = transfer.start(long, base.state_dict())
    places = ("res3.nonlocal1", "res3.nonlocal3", "res4.nonlocal1", "res4.nonlocal3", "res4.nonlocal5")
    assert {name.rpartition(".")[0].rpartition(".")[0] for name in fresh} == set(places) and len(fresh) == 5 * 8
    x = Tensor(clips(32))
    with minnl.no_grad():
        close(long(x).data, base(x).data)


def test_start_from_a_2d_network_with_other_classes():
    base = trained("c2d_r50", classes=9)
    network = models.build("nl_i3d_r50_5", **TINY).to(dtype=np.float64)
    before = network.head.classify.weight.data.copy()
    fresh = transfer.start(network, base.state_dict())
    assert {name for name in fresh if "nonlocal" not in name} == {"head.classify.weight", "head.classify.bias"}
    np.testing.assert_array_equal(network.head.classify.weight.data, before)
    np.testing.assert_array_equal(network.conv1.conv.weight.data[2], base.conv1.conv.weight.data[0] / 5)
    without_head = {name: a for name, a in base.state_dict().items() if not name.startswith("head")}
    assert set(transfer.start(network, without_head)) == set(fresh)


def test_start_from_the_same_network_leaves_nothing_fresh():
    base = trained("nl_c2d_r50_5")
    network = models.build("nl_c2d_r50_5", **TINY).to(dtype=np.float64).eval()
    assert transfer.start(network, base.state_dict()) == []
    x = Tensor(clips())
    np.testing.assert_array_equal(network(x).data, base(x).data)


def test_what_does_not_fit_is_refused_and_nothing_changed():
    network = models.build("c2d_r18", **TINY)
    before = {name: array.copy() for name, array in network.state_dict().items()}
    deeper = models.build("c2d_r34", **TINY).state_dict()
    with pytest.raises(ValueError, match=r"nothing was changed:\n(.*\n)*  unexpected: res2\.res2\."):
        transfer.start(network, deeper)
    blocks_too_many = models.build("nl_c2d_r18_1", **TINY).state_dict()
    with pytest.raises(ValueError, match=r"unexpected: res4\.nonlocal0\.theta"):
        transfer.start(network, blocks_too_many)
    holes = {name: array for name, array in before.items() if name != "res3.res0.branch.a.conv.weight"}
    with pytest.raises(ValueError, match=r"missing: res3\.res0\.branch\.a\.conv\.weight"):
        transfer.start(network, holes)
    for name, array in network.state_dict().items():
        np.testing.assert_array_equal(array, before[name])


def step(model, lr=0.1):
    optimizer = optim.SGD(model.parameters(), lr, momentum=0.9, weight_decay=1e-2)
    F.cross_entropy(model.train()(Tensor(clips())), [1, 3]).backward()
    optimizer.step()


def test_frozen_parts_stay_as_they_are():
    model = trained("nl_c2d_r18_1")
    transfer.freeze(model, "conv1", "res2", "res3.res0")
    before = {name: array.copy() for name, array in model.state_dict().items()}
    step(model)
    for name, array in model.state_dict().items():
        frozen = name.startswith(("conv1", "res2", "res3.res0"))
        assert np.array_equal(array, before[name]) == frozen, name


def test_frozen_norms_stay_while_the_rest_learns():
    model = trained("c2d_r18")
    transfer.freeze_norms(model)
    before = {name: array.copy() for name, array in model.state_dict().items()}
    step(model)
    for name, array in model.state_dict().items():
        assert np.array_equal(array, before[name]) == (".norm." in name), name


def test_what_cannot_be_frozen_is_named():
    model = trained("nl_c2d_r18_1")
    with pytest.raises(ValueError, match="freeze: VideoResNet has no module 'stem'; there are conv1, pool1, res2, "):
        transfer.freeze(model, "conv1", "stem")
    assert model.conv1.conv.weight.requires_grad, "nothing was frozen"
    model.res4.nonlocal0.norm.weight.data[...] = 0
    with pytest.raises(ValueError, match=r"gamma of res4\.nonlocal0\.norm is 0 and would stay so"):
        transfer.freeze_norms(model)
    assert not any(m.frozen for m in model.modules() if isinstance(m, nn.BatchNorm3d))


@pytest.mark.parametrize("mode", nn.MODES)
def test_chunks_are_clips_of_their_own(mode):
    minnl.manual_seed(0)
    made = blocks.ChunkedNonLocalBlock(2, 8, mode=mode, std=None, norm=None).to(dtype=np.float64)
    made.W_z.weight.data[...] = np.random.default_rng(0).normal(size=made.W_z.weight.shape)
    whole = nn.NonLocalBlock(8, mode=mode, norm=None).to(dtype=np.float64)
    whole.load_state_dict(made.state_dict())
    x = np.random.default_rng(1).normal(size=(2, 6, 4, 5, 8))
    alone = np.concatenate([whole(Tensor(x[:, t : t + 2])).data for t in (0, 2, 4)], axis=1)
    close(made(Tensor(x)).data, alone)
    assert np.abs(whole(Tensor(x)).data - alone).max() > 1e-3
    rows = made.attention(Tensor(x), [(0, 0, 0), (3, 2, 1)])
    assert rows.shape == (2, 2, 6, 2, 2)
    assert not rows[:, 0, 2:].any() and not rows[:, 1, :2].any() and not rows[:, 1, 4:].any()
    np.testing.assert_array_equal(rows[:, 1:, 2:4], whole.attention(Tensor(x[:, 2:4]), [(1, 2, 1)]))
    with pytest.raises(ValueError, match="chunk=2 must divide the frames of x, 3"):
        made(Tensor(x[:, :3]))
    with pytest.raises(ValueError, match=r"position \(6, 0, 0\) lies outside of the 6 frames"):
        made.attention(Tensor(x), [(6, 0, 0)])


def test_weights_that_come_from_a_file_need_no_drawing():
    minnl.manual_seed(3)
    expected = nn.init.normal((4,), 1.0)
    minnl.manual_seed(3)
    with nn.init.skipped():
        model = models.build("nl_c2d_r18_1", **TINY)
    assert not model.conv1.conv.weight.data.any() and model.conv1.conv.weight.dtype == np.float32
    np.testing.assert_array_equal(nn.init.normal((4,), 1.0), expected)


def test_a_state_that_is_not_whole_is_not_folded():
    norm = {f"a.norm.{key}": np.ones(4) for key in ("weight", "bias", "running_mean", "running_var")}
    for wrong in ({"a.norm.running_var": np.ones(())}, {"a.norm.weight": np.ones((4, 4))}):
        with pytest.raises(ValueError, match="the state has a.norm.running_mean, but no a.norm.* of that shape"):
            transfer.fold(norm | wrong)
    del norm["a.norm.bias"]
    with pytest.raises(ValueError, match="but no a.norm.bias of that shape"):
        transfer.fold(norm)
    odd = {"w": np.ones(3)}
    assert transfer.inflate(odd, {"w": np.ones((3, 1, 1, 1, 1))})["w"] is odd["w"], (
        "not a kernel: load_state_dict refuses"
    )
