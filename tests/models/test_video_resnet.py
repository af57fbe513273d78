"""Every preset beside an independent network in PyTorch: outputs, gradients, running statistics, larger frames."""

import dataclasses
import re

import numpy as np
import pytest

import minnl
import models
from minnl import Tensor, nn
from models import transfer

torch = pytest.importorskip("torch")
from tests import ROOT  # noqa: E402
from tests.models.torch_video_resnet import Network, blob, released  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.torch]

SIZE = (56, 48)  # 13 x 11 behind pool1, then 7 x 6, 4 x 3, 2 x 2: odd and even
WIDTH = 4
NAME = re.compile(r"(nl_)?(c2d|i3d|i3d333)_r(\d+)(?:_(1|5|10))?(?:_(8x8|128x1|32x4))?")


@pytest.fixture(autouse=True)
def one_torch_thread():
    count = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(count)


def told(name):
    """What a preset's name promises, as arguments of the network in PyTorch; and few frames that suit its layout."""
    nl, kind, depth, number, layout = NAME.fullmatch(name).groups()
    depth, fast, long = int(depth), layout in ("8x8", "32x4"), layout in ("128x1", "32x4")
    assert bool(nl) == bool(number)
    i3d = {"c2d": None, "i3d": "3x1x1" if depth >= 50 else "3x3x3", "i3d333": "3x3x3"}[kind]
    frames = {None: 16, "8x8": 4, "128x1": 64, "32x4": 16}[layout]
    return frames, {
        "depth": depth, "i3d": i3d, "stem": (1, 1, 1) if fast else (2, 2, 2), "number": int(number or 0),
        "affine": long, "chunks": {3: 4} if long else {},
    }  # fmt: skip


def trained(name, dtype=np.float64, seed=0, **changes):
    """A narrow network such as training leaves it: no gamma is 0, statistics fit, and the blocks look somewhere.

    What is added to the shortcut is small, and so are theta and phi: else activations grow from block to block where
    statistics are not those of the batch, a softmax sees a single key, and its gradients are nothing but rounding.
    """
    changes = {"width": WIDTH, "classes": 7, "dropout": 0.0, "size": SIZE} | changes
    config = models.preset(name, **changes)
    with nn.init.skipped():
        model = models.VideoResNet(dataclasses.replace(config, norm="batch")).to(dtype=dtype)
    rng = np.random.default_rng(seed)
    for path, p in model.named_parameters():
        *_, module, last = path.split(".")
        if last == "bias":
            p.data[...] = rng.normal(size=p.shape) * 0.3
        elif module == "norm":
            p.data[...] = rng.uniform(0.5, 1.5, p.shape)
        else:
            p.data[...] = rng.normal(size=p.shape) * np.sqrt(2 / np.prod(p.shape[:-1] or p.shape))
        if module in ("theta", "phi"):
            p.data *= 0.7
        if re.search(r"(branch\.c|nonlocal\d+)\.norm\.weight", path):
            p.data *= 0.3
    learn_statistics(model, rng)
    if config.norm == "batch":
        return model
    folded = models.VideoResNet(config).to(dtype=dtype)
    folded.load_state_dict(transfer.fold(model.state_dict()))
    return folded


def learn_statistics(model, rng):
    """Running statistics near those of the clips, and not the same."""
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm3d)]
    for norm in norms:
        norm.momentum = 1.0
    with minnl.no_grad():
        model(Tensor(clips(model)))
    for norm in norms:
        norm.momentum = 0.1
        norm.running_mean += (rng.normal(size=norm.running_mean.shape) * 0.2 * np.sqrt(norm.running_var)).astype(
            norm.running_mean.dtype
        )
        norm.running_var *= rng.uniform(0.7, 1.4, norm.running_var.shape).astype(norm.running_var.dtype)


def clips(model, seed=1, batch=2):
    shape = (batch, *model.config.clip)
    return np.random.default_rng(seed).normal(size=shape).astype(model.head.classify.weight.dtype)


def channels_first(x):
    return torch.tensor(x).permute(0, 4, 1, 2, 3)


def agree(ours, theirs, tolerance, what):
    """Within `tolerance` of the largest element."""
    theirs = theirs.detach().numpy()
    assert ours.shape == theirs.shape, what
    error = np.abs(ours - theirs).max()
    assert error <= tolerance * np.abs(theirs).max(), f"{what}: {error} of {np.abs(theirs).max()}"


def side_by_side(model, options, training):
    """Logits, all gradients and the running statistics after the pass, in float64."""
    model.train(training)
    weights = released(model.state_dict(), requires_grad=True)
    x = clips(model)
    network = Network(weights, training=training, **options)
    theirs = network.logits(channels_first(x))
    ours = model(Tensor(x))
    agree(ours.data, theirs, 1e-9, "logits")
    upstream = np.random.default_rng(2).normal(size=ours.shape)
    ours.backward(upstream)
    theirs.backward(torch.tensor(upstream))
    layers = {}  # weight and bias together: what a bias gets may be 0 up to rounding, as of phi in front of a softmax
    for path, p in model.named_parameters():
        if p.requires_grad:
            ((name, gradient),) = released({path: p.grad}).items()
            pair = gradient.numpy().ravel(), weights[name].grad.ravel()
            layers.setdefault(path.rpartition(".")[0], []).append(pair)
    assert len(layers) > 15
    for path, pairs in layers.items():
        ours, theirs = zip(*pairs, strict=True)
        agree(np.concatenate(ours), torch.cat(theirs), 1e-9, path)
    for path, array in model.named_buffers():
        agree(array, network.moved[blob(path)], 1e-9, path)


@pytest.mark.parametrize("name", models.PRESETS)
def test_every_preset_beside_pytorch(name):
    frames, options = told(name)
    side_by_side(trained(name, frames=frames), options, training=True)


@pytest.mark.parametrize("name", ["nl_i3d_r50_5", "nl_c2d_r18_1"])
def test_with_running_statistics(name):
    frames, options = told(name)
    side_by_side(trained(name, frames=frames), options, training=False)


@pytest.mark.parametrize(
    "changes, options",
    [
        ({"non_local": "gaussian"}, {"kind": "gaussian"}),
        ({"non_local": "dot"}, {"kind": "dot"}),
        ({"non_local": "concat"}, {"kind": "concat"}),
        ({"subsample": "after"}, {"order": "after"}),
        ({"subsample": None}, {"order": None}),
        ({"scale": False}, {"scale": False}),
        ({"axes": "space"}, {"axes": "space"}),
        ({"axes": "time", "subsample": None}, {"axes": "time", "order": None}),
        ({"chunks": {"res3": 2, "res4": 1}}, {"chunks": {3: 2, 4: 1}}),
        ({"norm": "affine"}, {"affine": True}),
        ({"blocks": {"res2": (0,), "res3": (3, 0), "res5": (2,)}}, {"number": {(2, 0), (3, 0), (3, 3), (5, 2)}}),
        ({"pool1_padding": 1}, {"pool1_padding": 1}),
        ({"pool1_frames": 1, "pool1_padding": 1}, {"stem": (2, 1, 2), "pool1_padding": 1}),  # I3D of mmaction2
        ({"pool2_frames": 1}, {"pool2": False}),
        (
            {"conv1_frames": 1, "inflated": {"res4": range(6), "res5": (0, 1, 2)}},  # the slow pathway of SlowFast
            {"inflated": [[0] * 3, [0] * 4, [1] * 6, [1] * 3]},
        ),
    ],
    ids=str,
)
def test_every_option_beside_pytorch(changes, options):
    frames, told_by_name = told("nl_i3d_r50_5")
    side_by_side(trained("nl_i3d_r50_5", frames=frames, **changes), told_by_name | options, training=True)


@pytest.mark.parametrize("kernels", minnl.dispatch.MODES)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", ["c2d_r101", "nl_i3d_r50_5", "nl_i3d_r50_5_128x1", "nl_c2d_r34_5"])
def test_float32(name, training, kernels):
    frames, options = told(name)
    model = trained(name, np.float32, frames=frames).train(training)
    x = clips(model)
    theirs = Network(released(model.state_dict()), training=training, **options).logits(channels_first(x))
    with minnl.use_kernels(kernels), minnl.no_grad():
        agree(model(Tensor(x)).data, theirs, 1e-4, name)


def test_frames_larger_than_in_training():
    """Full frames, 256 x 300: the window of 7 x 7 slides over 8 x 10, softmax at each position, then the mean."""
    _, options = told("nl_c2d_r50_5")
    model = trained("nl_c2d_r50_5", frames=8, size=224).eval()
    x = np.random.default_rng(3).normal(size=(1, 8, 256, 300, 3))
    with minnl.no_grad():
        assert model.positions(Tensor(x)).shape == (1, 2, 4, 7)
        ours = model.probabilities(Tensor(x)).data
    agree(ours, Network(released(model.state_dict()), **options).fully_convolutional(channels_first(x)), 1e-9, "shares")
    assert ours.sum() == pytest.approx(1, abs=1e-12)


def test_at_the_size_of_training_there_is_one_position():
    model = trained("c2d_r50", frames=16).eval()
    x = Tensor(clips(model))
    with minnl.no_grad():
        np.testing.assert_allclose(model.positions(x).data[:, 0, 0], model(x).data, rtol=0, atol=1e-12)
        small = Tensor(x.data[:, :, :40, :36])  # smaller than in training: the window shrinks
        np.testing.assert_allclose(model.positions(small).data[:, 0, 0], model(small).data, rtol=0, atol=1e-12)


def test_the_page_tells_the_names_of_the_released_files():
    """Rows that name one array on each side; the network above ran under these names."""
    page = (ROOT / "docs/models.md").read_text()
    rows = [re.findall(r"`([\w.]+)`", row) for row in page.splitlines() if re.match(r"\| `[\w.]+\.weight`", row)]
    found = [row for row in rows if "norm.weight" not in row]
    assert len(found) == 6
    for row in found:
        ours, theirs = row[0], next(name for name in row if name.endswith("_w"))
        assert blob(ours) == theirs
