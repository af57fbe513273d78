"""Published networks: files as their projects write them come in, compute the same here, and go out again."""

import pickle
import re

import numpy as np
import pytest
import safetensors.numpy

import minnl
import models
from minnl.__main__ import main
from minnl.training import checkpoint
from models import published
from models.published import layout, names
from models.published.names import FORMATS, Names

torch = pytest.importorskip("torch")

from tests import ROOT  # noqa: E402
from tests.models import torch_published, torch_video_resnet  # noqa: E402
from tests.models.torch_published import I3D, SLOW, MMAction2, Network, PyTorchVideo, SlowFast  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.torch]

FIVE = {3: (1, 3), 4: (1, 3, 5)}
EVEN = {3: (0, 2), 4: (0, 2, 4)}
CLIP = (2, 8, 64, 64, 3)


def clips(shape=CLIP, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def same_logits(model, run, shape=CLIP, small=1e-9):
    """The model, in float64, computes what `run` does with clips (N, C, T, H, W)."""
    x = clips(shape)
    model.to(dtype=np.float64)
    with minnl.nn.evaluating(model):
        got = model(minnl.Tensor(x)).numpy()
    with torch.no_grad():
        expected = run(torch.tensor(x.transpose(0, 4, 1, 2, 3).copy())).numpy()
    assert np.ptp(expected) > 0.1, "logits that hardly differ prove nothing"
    assert abs(got - expected).max() < small * abs(expected).max()


def network(*arguments, **options):
    torch.manual_seed(3)
    return Network(*arguments, **options).eval()


# name of the case -> (the network as its project has it, what stands beside its weights, how it is asked for,
# (preset, fields in which it differs), frames of the clip)
MMACTION_TEXT = """
model = dict(backbone=dict(type='ResNet3d', non_local_cfg=dict(sub_sample=True, use_scale=False,
    norm_cfg=dict(type='BN3d', requires_grad=True), mode='dot_product')))
train_pipeline = [dict(type='SampleFrames', clip_len=32, frame_interval=2, num_clips=1)]
"""
REDUCED = {"width": 4, "classes": 7}
PAD = {"pool1_padding": 1}
MMA_I3D = {"pool1_frames": 1, "pool1_padding": 1}
SLOW_FIELDS = PAD | {"pool2_frames": 1, "inflate": "3x1x1", "inflated": {"res4": tuple(range(6)), "res5": (0, 1, 2)}}
CASES = {
    "slowfast i3d": (lambda: network(SlowFast(), (5, 1, 1), inflated=I3D), {}, {}, ("i3d_r50_8x8", PAD), 8),
    "slowfast i3d nln": (
        lambda: network(SlowFast(), (5, 1, 1), inflated=I3D, places=FIVE), {"cfg": "MODEL:\n  ARCH: i3d\n"}, {},
        ("nl_i3d_r50_5_8x8", PAD), 8,
    ),
    "slowfast dot": (
        lambda: network(SlowFast(), (5, 1, 1), inflated=I3D, places=FIVE, kind="dot"),
        {"cfg": "DATA:\n  MEAN: [0.5, 0.5, 0.5]\n  NUM_FRAMES: 16\n  SAMPLING_RATE: 4\n"
                "  STD:\n  - 0.25\n  - 0.25\n  - 0.25\nNONLOCAL:\n  INSTANTIATION: dot_product\n"}, {},
        ("nl_i3d_r50_5_8x8", PAD | {"non_local": "dot", "frames": 16}), 8,
    ),
    "slowfast c2d": (
        lambda: network(SlowFast()), {}, {"model": "c2d_r50_8x8"}, ("c2d_r50_8x8", PAD), 8,
    ),
    "slowfast c2d nopool": (
        lambda: network(SlowFast(), pool2=False), {"cfg": "MODEL:\n  ARCH: c2d_nopool\n"}, {},
        ("c2d_r50_8x8", PAD | {"pool2_frames": 1}), 8,
    ),
    "slowfast slow": (
        lambda: network(SlowFast(), inflated=SLOW, pool2=False), {}, {}, ("c2d_r50_8x8", SLOW_FIELDS), 8,
    ),
    "slowfast r101": (
        lambda: network(SlowFast(), (5, 1, 1), inflated=I3D | {4: range(0, 23, 2)}, places=FIVE, depth=101), {}, {},
        ("nl_i3d_r101_5", PAD | {"blocks": {"res3": (1, 3), "res4": (1, 3, 5)}, "frames": 8, "conv1_stride": 1,
                                 "pool1_frames": 1, "pool1_stride": 1}), 8,
    ),
    "pytorchvideo c2d": (lambda: network(PyTorchVideo(True)), {}, {}, ("c2d_r50_8x8", PAD), 8),
    "pytorchvideo i3d": (
        lambda: network(PyTorchVideo(True), (5, 1, 1), inflated=I3D), {}, {}, ("i3d_r50_8x8", PAD), 8,
    ),
    "pytorchvideo slow": (
        lambda: network(PyTorchVideo(False), inflated=SLOW, pool2=False), {}, {}, ("c2d_r50_8x8", SLOW_FIELDS), 8,
    ),
    "mmaction2 i3d": (
        lambda: network(MMAction2(), (5, 2, 2), inflated=I3D), {}, {}, ("i3d_r50", MMA_I3D), 32,
    ),
    "mmaction2 embedded": (
        lambda: network(MMAction2(), (5, 2, 2), inflated=I3D, places=FIVE, order="after", scale=False, out_bias=False),
        {}, {}, ("nl_i3d_r50_5", MMA_I3D | {"subsample": "after", "scale": False}), 32,
    ),
    "mmaction2 gaussian": (
        lambda: network(
            MMAction2(), (5, 2, 2), inflated=I3D, places=FIVE, kind="gaussian", order="after", out_bias=False),
        {}, {}, ("nl_i3d_r50_5", MMA_I3D | {"non_local": "gaussian", "subsample": "after", "scale": False}), 32,
    ),
    "mmaction2 dot": (
        lambda: network(MMAction2(), (5, 2, 2), inflated=I3D, places=FIVE, kind="dot", order="after", out_bias=False),
        {"meta": {"cfg": MMACTION_TEXT}}, {},
        ("nl_i3d_r50_5", MMA_I3D | {"non_local": "dot", "subsample": "after", "scale": False}), 32,
    ),
    "mmaction2 concat": (
        lambda: network(
            MMAction2(False), (5, 2, 2), inflated=I3D, places=FIVE, kind="concat", order=None, out_bias=False),
        {}, {}, ("nl_i3d_r50_5", MMA_I3D | {"non_local": "concat", "subsample": None, "scale": False}), 32,
    ),
    "mmaction2 slowonly": (
        lambda: network(MMAction2(), inflated=SLOW, places=EVEN, pool2=False, order="after", out_bias=False), {}, {},
        ("nl_c2d_r50_5_8x8", SLOW_FIELDS | {"blocks": {"res3": (0, 2), "res4": (0, 2, 4)}, "subsample": "after"}), 8,
    ),
    "mmaction2 c2d": (
        lambda: network(MMAction2(), padding=0, flat=True), {}, {"model": "c2d_r50_8x8"}, ("c2d_r50_8x8", {}), 8,
    ),
    "mmaction2 c2d nopool": (
        lambda: network(MMAction2(), pool2=False, flat=True), {}, {"changes": {"pool2_frames": 1}},
        ("c2d_r50_8x8", PAD | {"pool2_frames": 1}), 8,
    ),
}  # fmt: skip


def keyed(name, state, beside):
    """As a project saves it."""
    return {"state_dict" if name.startswith("mmaction2") else "model_state": state, "epoch": 3, **beside}


@pytest.mark.parametrize("name", CASES)
def test_a_file_of_pytorch_computes_the_same_here(tmp_path, name):
    make, beside, asked, (preset, differs), frames = CASES[name]
    theirs = make()
    torch.save(keyed(name, theirs.state_dict(), beside), tmp_path / "net.pth")
    model, report = published.import_file(tmp_path / "net.pth", tmp_path / "net.safetensors", **asked)
    assert model.config == models.preset(preset, **REDUCED | differs)
    shape = (1, frames, 48, 64, 3)
    same_logits(model, theirs.double(), shape)
    weights = [k for k in theirs.state_dict() if not k.endswith("num_batches_tracked")]
    assert [there for there, _, _ in report.matched] == weights
    assert report.source == name.split()[0] and report.preset in models.PRESETS
    assert {"epoch", *beside} <= {there for there, _ in report.left}
    arrays, meta = checkpoint.load(tmp_path / "net.safetensors")
    assert models.Config(**meta["config"]["network"]) == model.config
    assert meta["imported"]["source"] == report.source
    again = models.VideoResNet(model.config)
    again.load_state_dict({k.removeprefix("model/"): v for k, v in arrays.items()})


def test_settings_in_a_file_are_read(tmp_path):
    for name, mean, deviation, stride in (
        ("slowfast dot", [127.5] * 3, [63.75] * 3, 4), ("mmaction2 dot", [123.675, 116.28, 103.53], None, 2)
    ):  # fmt: skip
        make, beside, *_ = CASES[name]
        torch.save(keyed(name, make().state_dict(), beside), tmp_path / "net.pth")
        _, report = published.import_file(tmp_path / "net.pth")
        assert report.input["mean"] == mean and report.input["stride"] == stride
        assert deviation is None or report.input["deviation"] == deviation
        assert report.hidden["non_local"] == ("dot", "settings in the file")


@pytest.mark.parametrize(
    "change",
    [{"pool1_padding": 0}, {"subsample": "after"}, {"scale": False}, {"non_local": "dot"}, {"pool2_frames": 1},
     {"conv1_stride": 2}, {"pool1_frames": 2}],
)  # fmt: skip
def test_what_no_array_shows_changes_what_is_computed(tmp_path, state, change):
    torch.save(state, tmp_path / "net.pyth")
    model, report = published.import_file(tmp_path / "net.pyth", changes=change)
    ((name, value),) = change.items()
    assert report.hidden[name] == (value, "asked for")
    with pytest.raises(AssertionError, match="assert"):
        same_logits(model, CASES["slowfast i3d nln"][0]().double(), small=1e-4)


@pytest.fixture(scope="module")
def state():
    """SlowFast's I3D with five blocks."""
    return CASES["slowfast i3d nln"][0]().state_dict()


@pytest.fixture(scope="module")
def imported(state, tmp_path_factory):
    path = tmp_path_factory.mktemp("imported")
    torch.save({"model_state": state}, path / "net.pyth")
    published.import_file(path / "net.pyth", path / "net.safetensors")
    return checkpoint.load(path / "net.safetensors")[0]


def read(path, **asked):
    return published.import_file(path, **asked)[0].state_dict()


def equal(state, imported):
    assert state.keys() == {k.removeprefix("model/") for k in imported}
    for name, array in state.items():
        assert array.dtype == np.float32 and array.flags.c_contiguous
        assert array.tobytes() == imported[f"model/{name}"].tobytes(), name


def test_every_way_to_save_gives_the_same_arrays(tmp_path, state, imported):
    def packed(state):
        """All tensors as views of one storage, some of them transposed."""
        flat = torch.cat([t.flatten().float() for t in state.values()])
        parts = flat.split([t.numel() for t in state.values()])
        return {k: p.view(t.shape) for (k, t), p in zip(state.items(), parts, strict=True)}

    ways = {
        "old": lambda path: torch.save({"model_state": state}, path, _use_new_zipfile_serialization=False),
        "bare": lambda path: torch.save(state, path),
        "gpus": lambda path: torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}}, path),
        "parameters": lambda path: torch.save(
            {k: torch.nn.Parameter(v, v.is_floating_point()) for k, v in state.items()}, path),
        "shared": lambda path: torch.save(packed(state), path),
        "shared, old": lambda path: torch.save(packed(state), path, _use_new_zipfile_serialization=False),
        "strided": lambda path: torch.save(
            {k: v.T.contiguous().T if v.ndim == 2 else v for k, v in state.items()}, path),
        "last": lambda path: torch.save(
            {k: v.to(memory_format=torch.channels_last_3d) if v.ndim == 5 else v for k, v in state.items()}, path),
        "double": lambda path: torch.save({k: v.double() for k, v in state.items()}, path),
        "safetensors": lambda path: safetensors.numpy.save_file({k: v.numpy() for k, v in state.items()}, path),
    }  # fmt: skip
    for way, save in ways.items():
        save(tmp_path / way)
        equal(read(tmp_path / way), imported)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_becomes_float32(tmp_path, state, dtype):
    half = {k: v.to(getattr(torch, dtype)) for k, v in state.items() if not k.endswith("tracked")}
    torch.save(half, tmp_path / "net.pth")
    model, report = published.import_file(tmp_path / "net.pth")
    rounded = half["s3.pathway0_res0.branch2.b.weight"].float().numpy().transpose(2, 3, 4, 1, 0)
    np.testing.assert_array_equal(model.state_dict()["res3.res0.branch.b.conv.weight"], rounded)
    assert len(report.converted) == 327 and report.converted[0][1] == f"{dtype} to float32"


# The authors' own files.


def released(preset, **changes):
    """(Caffe2 blobs, model): a network with random weights, under the names of the release."""
    minnl.manual_seed(5)
    model = models.build(preset, **REDUCED | changes)
    rng = np.random.default_rng(6)
    for name, array in model.state_dict().items():
        if name.endswith(("running_var", "norm.weight")):
            array[...] = rng.uniform(0.3, 0.8, array.shape)
        elif array.ndim == 1:
            array[...] = rng.normal(0, 0.1, array.shape)
        else:
            fan = array.size / array.shape[-1]
            array[...] = rng.normal(0, (1.5 / fan) ** 0.5, array.shape)
    blobs = torch_video_resnet.released(model.state_dict())
    return {name: tensor.numpy() for name, tensor in blobs.items()}, model


RELEASED = {
    "c2d_r50": ({}, 16),
    "c2d_r50_8x8": ({"stem": (1, 1, 1)}, 8),
    "nl_c2d_r50_5": ({"number": 5}, 16),
    "i3d_r50_8x8": ({"stem": (1, 1, 1), "i3d": "3x1x1"}, 8),
    "nl_i3d_r50_5": ({"number": 5, "i3d": "3x1x1"}, 16),
    "nl_i3d_r50_5_8x8": ({"stem": (1, 1, 1), "number": 5, "i3d": "3x1x1"}, 8),
    "nl_i3d_r50_5_32x4": ({"stem": (1, 1, 1), "number": 5, "i3d": "3x1x1", "affine": True, "chunks": {3: 4}}, 16),
    "nl_i3d_r101_5": ({"number": 5, "i3d": "3x1x1", "depth": 101}, 16),
}


@pytest.mark.parametrize("preset", RELEASED)
def test_a_released_file_computes_the_same_here(tmp_path, preset):
    options, frames = RELEASED[preset]
    blobs, original = released(preset)
    beside = {"conv1_w_momentum": blobs["conv1_w"], "lr": 0.01, "model_iter": 400000}
    (tmp_path / "net.pkl").write_bytes(pickle.dumps({"blobs": blobs | beside}, protocol=2))
    model, report = published.import_file(tmp_path / "net.pkl", model=preset)
    equal(model.state_dict(), {f"model/{k}": v for k, v in original.state_dict().items()})
    assert model.config == original.config and report.differs == REDUCED
    assert {name for name, _ in report.left} == beside.keys()
    weights = {k: torch.tensor(v).double() for k, v in blobs.items()}
    same_logits(model, torch_video_resnet.Network(weights, **options).logits, (1, frames, 64, 64, 3))


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("wrapped", [True, False])
@pytest.mark.parametrize("numpy_1", [True, False])
def test_pickles_of_every_age(tmp_path, protocol, wrapped, numpy_1):
    blobs, original = released("c2d_r50")
    blobs["pred_w"] = np.asfortranarray(blobs["pred_w"])[..., None, None, None]  # as for testing by convolution
    blobs["conv1_w"] = blobs["conv1_w"][:, :, 0]  # as of ImageNet
    raw = pickle.dumps({"blobs": blobs, "x": np.float64(3)} if wrapped else blobs, protocol=protocol)
    if numpy_1:
        old, new = (
            (b"numpy._core", b"numpy.core")
            if protocol < 4
            else (b"\x16numpy._core.multiarray", b"\x15numpy.core.multiarray")
        )
        assert protocol == 5 or old in raw
        raw = raw.replace(old, new).replace(b"\x13numpy._core.numeric", b"\x12numpy.core.numeric")
    if numpy_1 and protocol >= 4:
        raw = unframed(raw)
    (tmp_path / "net.pkl").write_bytes(raw)
    equal(read(tmp_path / "net.pkl", model="c2d_r50"), {f"model/{k}": v for k, v in original.state_dict().items()})


def unframed(raw):
    """A pickle without its first frame's length, which no longer fits."""
    return raw[:2] + raw[11:] if raw[2:3] == b"\x95" else raw


def test_slowfast_networks_under_names_of_caffe2(tmp_path):
    blobs, _ = released("nl_i3d_r50_5_8x8", pool1_padding=1)
    (tmp_path / "net.pkl").write_bytes(pickle.dumps({"blobs": blobs}, protocol=2))
    model, report = published.import_file(tmp_path / "net.pkl", source="slowfast")
    assert model.config == models.preset("nl_i3d_r50_5_8x8", **REDUCED, pool1_padding=1)
    assert report.source == "slowfast"


# What must be asked for, and what is refused.


def test_what_arrays_do_not_tell_is_asked_for(tmp_path):
    blobs, _ = released("nl_i3d_r50_5")
    (tmp_path / "net.pkl").write_bytes(pickle.dumps({"blobs": blobs}, protocol=2))
    with pytest.raises(ValueError, match="(?s)more than one.*--model nl_i3d_r50_5\n.*--model nl_i3d_r50_5_8x8$"):
        published.import_file(tmp_path / "net.pkl", tmp_path / "out")
    torch.save(CASES["slowfast c2d"][0]().state_dict(), tmp_path / "net.pyth")
    with pytest.raises(ValueError, match="(?s)C2D: --model c2d_r50_8x8\n.*C2D_NOPOOL: --set pool2_frames=1$"):
        published.import_file(tmp_path / "net.pyth", tmp_path / "out")
    torch.save(CASES["mmaction2 c2d"][0]().state_dict(), tmp_path / "net.pth")
    with pytest.raises(ValueError, match="more than one"):
        published.import_file(tmp_path / "net.pth", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"model": "nl_i3d_r101_5"}, "depth is 50 in the file, 101 in the preset"),
        ({"model": "i3d_r50_8x8"}, r"non-local blocks of res3 are \(1, 3\) in the file, \(\) in the preset"),
        ({"model": "nl_c2d_r50_5_8x8"}, "conv1_frames is 5 in the file, 1 in the preset"),
        ({"model": "nl_i3d_r50_10"}, r"non-local blocks of res3 are \(1, 3\) in the file, \(0, 1, 2, 3\) in the"),
        ({"model": "nl_i3d_r50_5"}, "conv1_stride is 1 in networks of this source, 2 in the preset"),
        ({"model": "nl_i3d_r50_5_32x4"}, "norm is 'batch' in the file, 'affine' in the preset"),
        ({"model": "resnet"}, "no network 'resnet'"),
        ({"changes": {"depth": 101}}, "depth is 50 in the file, 101 was asked for"),
        ({"changes": {"non_local": "gaussian"}}, "can be embedded or dot, not 'gaussian'"),
        ({"changes": {"axis": "space"}}, "no field 'axis' of a network; there are depth, "),
        ({"changes": {"pool1_padding": 3}}, "pool1_padding must be one of"),
        ({"source": "mmaction2"}, "has names of slowfast, and cannot be a network of 'mmaction2'"),
        ({"classes": ["a"] * 7}, "classes: 7 are in the classifier, 7 names were given, 1 diff"),
        ({"classes": ["a", "b"]}, "classes: 7 are in the classifier, 2 names were given"),
    ],
)
def test_another_network_than_the_files_is_refused(tmp_path, state, asked, message):
    torch.save({"model_state": state}, tmp_path / "net.pyth")
    with pytest.raises(ValueError, match=message):
        published.import_file(tmp_path / "net.pyth", tmp_path / "out", **asked)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("s4.pathway0_res3.branch2.b.weight"), "missing: s4.pathway0_res3.branch2.b.weight"),
        (lambda s: s.pop("s4.pathway0_nonlocal3.bn.running_var"), "missing: s4.pathway0_nonlocal3.bn.running_var"),
        (lambda s: s.pop("s1.pathway0_stem.conv.weight"), "names of no known format: head.projection"),
        (lambda s: s.pop("head.projection.weight"), "not a whole C2D or I3D ResNet: it has no head.classify.weight"),
        (
            lambda s: [s.pop(k) for k in list(s) if "s5.pathway0_res2" in k],
            r"stages have \(3, 4, 6, 2\) residual blocks",
        ),
        (
            lambda s: s.update({"s1.pathway1_stem.conv.weight": torch.zeros(1)}),
            "belong to no C2D .*pathway1.*another network",
        ),
        (
            lambda s: s.update({"s3.pathway0_res1.branch1.weight": torch.zeros(8, 8, 1, 1, 1)}),
            "not in the network: s3.path",
        ),
        (lambda s: s.update({"head.projection.bias": torch.zeros(8)}), r"another shape: head.*is \(8,\) here, \(7,\)"),
        (lambda s: s.update({"s2.pathway0_res0.branch2.b.weight": torch.zeros(4, 4, 3, 3, 3)}), "some of its blocks"),
        (
            lambda s: s.update({"s2.pathway0_res0.branch2.b.weight": torch.zeros(4, 4, 1, 5, 5)}),
            "another shape: s2.path",
        ),
        (lambda s: s.update({"s5.pathway0_res2.branch2.c_bn.bias": torch.full((128,), torch.nan)}), "not finite"),
        (
            lambda s: s.update({"s5.pathway0_res2.branch2.c_bn.bias": torch.zeros(128).long()}),
            "dtype int64, weights are",
        ),
        (lambda s: s.update({"s5.pathway0_res2.branch2.c_bn.bias": 3}), "is of type int among the weights"),
        (lambda s: s.update({"conv1_w": torch.zeros(3)}), "names of more than one format"),
        (lambda s: s.clear(), "without weights in it"),
    ],
)
def test_a_wrong_network_is_refused(tmp_path, state, change, message):
    altered = dict(state)
    change(altered)
    torch.save({"model_state": altered}, tmp_path / "net.pyth")
    with pytest.raises(ValueError, match=f"(?s)net.pyth: .*{message}"):
        published.import_file(tmp_path / "net.pyth", tmp_path / "out")
    assert not (tmp_path / "out").exists()


# Out again.

GOES_OUT = {
    "slowfast": ("nl_i3d_r50_5_8x8", {"pool1_padding": 1, "non_local": "dot", "frames": 16}),
    "pytorchvideo": ("i3d_r50_8x8", {"pool1_padding": 1}),
    "mmaction2": ("nl_i3d_r50_5", {"pool1_frames": 1, "pool1_padding": 1, "subsample": "after", "scale": False}),
    "video-nonlocal-net": ("nl_c2d_r50_5", {"width": 64}),
}
AS_TORCH = {
    "slowfast": lambda: network(SlowFast(), (5, 1, 1), inflated=I3D, places=FIVE, kind="dot"),
    "pytorchvideo": lambda: network(PyTorchVideo(True), (5, 1, 1), inflated=I3D),
    "mmaction2": lambda: network(
        MMAction2(), (5, 2, 2), inflated=I3D, places=FIVE, order="after", scale=False, out_bias=False
    ),
}


def trained(path, format, bias=False, **changes):
    """A checkpoint as train.py leaves it, and its model."""
    preset, options = GOES_OUT[format]
    _, model = released(preset, **options | changes)
    for name, array in model.state_dict().items():
        if format == "mmaction2" and name.endswith("W_z.bias") and not bias:
            array[...] = 0
    config = published.described(model.config)
    checkpoint.save(path, {f"model/{k}": v for k, v in model.state_dict().items()}, {"config": config})
    return model


@pytest.mark.parametrize("format", FORMATS)
def test_what_goes_out_comes_in_again_bit_for_bit(tmp_path, format):
    model = trained(tmp_path / "net.safetensors", format)
    published.export_file(tmp_path / "net.safetensors", tmp_path / "out.safetensors", format)
    again, report = published.import_file(tmp_path / "out.safetensors", tmp_path / "again.safetensors")
    assert again.config == model.config and report.source == format
    equal(checkpointed(tmp_path / "again.safetensors"), {f"model/{k}": v for k, v in model.state_dict().items()})


def checkpointed(path):
    return {k.removeprefix("model/"): v for k, v in checkpoint.load(path)[0].items()}


@pytest.mark.parametrize("format", AS_TORCH)
def test_what_goes_out_runs_there(tmp_path, format):
    model = trained(tmp_path / "net.safetensors", format)
    settings = published.export_file(tmp_path / "net.safetensors", tmp_path / "out.safetensors", format)
    theirs = AS_TORCH[format]()
    arrays = safetensors.numpy.load_file(tmp_path / "out.safetensors")
    theirs.load_state_dict({k: torch.tensor(v) for k, v in arrays.items()}, strict=True)
    same_logits(model, theirs.double(), (1, 32, 48, 64, 3))
    if format == "slowfast":
        assert "MODEL.ARCH i3d" in settings and "NONLOCAL.INSTANTIATION dot_product" in settings
        assert "NONLOCAL.LOCATION [[[]], [[1, 3]], [[1, 3, 5]], [[]]]" in settings


@pytest.mark.parametrize(
    ("format", "changes", "message"),
    [
        ("slowfast", {"pool1_padding": 0}, "pool1_padding is 0, 1 there"),
        ("slowfast", {"subsample": "after"}, "subsample is 'after', 'before' or None there"),
        ("slowfast", {"non_local": "concat"}, "non_local is 'concat'"),
        ("slowfast", {"conv1_stride": 2}, "conv1_stride is 2, 1 there"),
        ("slowfast", {"inflated": {"res2": (0,)}}, "none of C2D, I3D and Slow"),
        ("pytorchvideo", {"non_local": "embedded"}, "non_local is 'embedded', None there"),
        ("mmaction2", {"subsample": "before"}, "subsample is 'before', 'after' or None there"),
        ("video-nonlocal-net", {"pool1_padding": 1}, "pool1_padding is 1, 0 there"),
    ],
)
def test_a_network_that_does_not_exist_there_is_not_written(tmp_path, format, changes, message):
    trained(tmp_path / "net.safetensors", format, **changes)
    with pytest.raises(ValueError, match=f"not written, for {format} has no such network: .*{message}"):
        published.export_file(tmp_path / "net.safetensors", tmp_path / "out", format)
    assert not (tmp_path / "out").exists()


def test_a_bias_that_mmaction2_does_not_have_goes_into_the_running_mean(tmp_path):
    model = trained(tmp_path / "net.safetensors", "mmaction2", bias=True)
    assert model.res4.nonlocal3.W_z.bias.data.all()
    published.export_file(tmp_path / "net.safetensors", tmp_path / "out.safetensors", "mmaction2")
    theirs = AS_TORCH["mmaction2"]()
    arrays = safetensors.numpy.load_file(tmp_path / "out.safetensors")
    theirs.load_state_dict({k: torch.tensor(v) for k, v in arrays.items()}, strict=True)
    same_logits(model, theirs.double(), (1, 32, 48, 64, 3), small=1e-6)  # m - b was rounded to float32


def test_no_file_is_written_over_itself(tmp_path, state):
    torch.save(state, tmp_path / "net.pyth")
    raw = (tmp_path / "net.pyth").read_bytes()
    with pytest.raises(ValueError, match="import: .*net.pyth is the file that is read"):
        published.import_file(tmp_path / "net.pyth", tmp_path / "net.pyth")
    assert (tmp_path / "net.pyth").read_bytes() == raw
    trained(tmp_path / "net", "slowfast")
    with pytest.raises(ValueError, match="export: .*net is the file that is read"):
        published.export_file(tmp_path / "net", tmp_path / "net", "slowfast")


def test_other_checkpoints_and_formats_do_not_go_out(tmp_path):
    checkpoint.save(tmp_path / "small", {"model/w": np.zeros(3)}, {"config": {"model": "small"}})
    with pytest.raises(ValueError, match="holds small, not a C2D or I3D ResNet"):
        published.export_file(tmp_path / "small", tmp_path / "out", "slowfast")
    with pytest.raises(ValueError, match="no format 'onnx'; there are video-nonlocal-net, slowfast"):
        published.export_file(tmp_path / "small", tmp_path / "out", "onnx")


# Names and layouts by themselves.


@pytest.mark.parametrize("format", FORMATS)
def test_names_of_a_whole_network_go_there_and_back(format):
    _, model = released("nl_i3d_r101_10")
    for pooled in (False, True):
        translate = Names(format, pooled, subsampled=pooled)
        mine = [k for k in model.state_dict() if format != "pytorchvideo" or "nonlocal" not in k]
        theirs = [translate.theirs(name) for name in mine]
        assert [translate.ours(name) for name in theirs] == mine and len(set(theirs)) == len(mine)


def test_names_of_caffe2_are_those_of_the_release():
    _, model = released("nl_i3d_r50_5")
    for name in model.state_dict():
        assert Names("video-nonlocal-net").theirs(name) == torch_video_resnet.blob(name)


def test_names_that_are_none():
    for name in ("", "conv1_w_momentum", "res6_0_branch2a_w", "xconv1_w", "conv1_wx", "res2_0_branch2d_w", "pred_x"):
        assert Names("video-nonlocal-net").ours(name) is None
    assert Names("slowfast").ours("s3.pathway0_nonlocal1.norm.weight") == "res3.nonlocal1.norm.weight"
    assert Names("pytorchvideo").theirs("res3.nonlocal1.g.weight") is None
    assert names.TABLE[0][1:] == FORMATS


def test_layouts_go_there_and_back():
    rng = np.random.default_rng(0)
    for name, shape in (
        ("head.classify.weight", (6, 4)),
        ("a.w_f", (6,)),
        ("a.conv.weight", (3, 1, 2, 5, 4)),
        ("b", (3,)),
    ):
        array = rng.standard_normal(shape)
        back = layout.here(name, layout.there(name, array))
        np.testing.assert_array_equal(back, array)
        assert layout.shape_here(name, layout.there(name, array).shape) == shape


def test_the_page_has_the_table_of_names():
    page = (ROOT / "docs/published.md").read_text("utf-8")
    for row in names.TABLE[1:]:
        assert "| " + " | ".join("" if cell is None else f"`{cell}`" for cell in row) + " |" in page


# Commands.


def test_commands(tmp_path, state, capsys):
    torch.save({"model_state": state}, tmp_path / "net.pyth")
    (tmp_path / "classes.txt").write_text("".join(f"class {i}\n" for i in range(7)))
    out, back = str(tmp_path / "net.safetensors"), str(tmp_path / "back.safetensors")
    arguments = ["import", str(tmp_path / "net.pyth"), "--to", out, "--model", "nl_i3d_r50_5_8x8"]
    assert (
        main([*arguments, "--set", "frames=16", "--set", "non_local=dot", "--classes", str(tmp_path / "classes.txt")])
        == 0
    )
    text = capsys.readouterr().out
    assert "matched    327 arrays" in text and "non_local='dot' (asked for)" in text
    meta = checkpoint.load(out)[1]
    assert meta["config"]["classes"][6] == "class 6" and meta["config"]["network"]["frames"] == 16
    assert main([*arguments, "--names"]) == 0
    text = capsys.readouterr().out
    assert "s1.pathway0_stem.conv.weight -> conv1.conv.weight (5, 7, 7, 3, 4)" in text
    assert main(["export", out, "--to", back, "--format", "slowfast"]) == 0
    assert "MODEL.ARCH i3d" in capsys.readouterr().out
    assert main(["import", back, "--to", out]) == 0
    for wrong, message in (
        (["import", str(tmp_path / "none"), "--to", out], "no such file"),
        (["import", back, "--to", out, "--set", "frames"], "--set takes FIELD=VALUE"),
        (["import", back, "--to", out, "--classes", str(tmp_path / "none")], "--classes: .*none cannot be read"),
        (["import", back, "--to", str(tmp_path / "no" / "where")], "not saved"),
        (["export", out, "--to", back, "--format", "pytorchvideo"], "has no such network"),
    ):
        capsys.readouterr()
        assert main(wrong) == 2
        assert re.search(message, capsys.readouterr().err)


def test_widths_and_classes_as_published(tmp_path):
    """One file of the real size: 35,401,936 parameters, 327 arrays."""
    theirs = network(SlowFast(), (5, 1, 1), inflated=I3D, places=FIVE, width=64, classes=400)
    torch.save({"model_state": theirs.state_dict()}, tmp_path / "net.pyth")
    _, report = published.import_file(tmp_path / "net.pyth")
    assert report.parameters == 35_401_936 and len(report.matched) == 327 and report.differs == {"pool1_padding": 1}
    assert torch_published.UNITS[50] == (3, 4, 6, 3)
