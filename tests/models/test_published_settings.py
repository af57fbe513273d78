"""Settings beside the weights: each that changes the network is read, or refused by its name and value.

The texts are as SlowFast and mmaction2 write them; the networks that must come out are written anew in torch.
"""

import numpy as np
import pytest

import minnl
from models import published

torch = pytest.importorskip("torch")

from tests.models.torch_published import I3D, MMAction2, Network, PyTorchVideo, SlowFast  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.torch]

FIVE = {3: (1, 3), 4: (1, 3, 5)}
PROJECTS = {"slowfast": SlowFast, "mmaction2": MMAction2, "pytorchvideo": PyTorchVideo}

# As cfg.dump() writes the settings of I3D_NLN_8x8_R50.yaml over the defaults; training's own sections left out.
DUMP = """\
AVA:
  BGR: false
  TRAIN_LISTS:
  - train.csv
BN:
  NORM_TYPE: batchnorm
  NUM_BATCHES_PRECISE: 200
  NUM_SPLITS: 1
  USE_PRECISE_STATS: true
  WEIGHT_DECAY: 0.0
DATA:
  DECODING_BACKEND: pyav
  INPUT_CHANNEL_NUM:
  - 3
  MEAN:
  - 0.45
  - 0.45
  - 0.45
  NUM_FRAMES: 8
  PATH_TO_DATA_DIR: ''
  REVERSE_INPUT_CHANNEL: false
  SAMPLING_RATE: 8
  STD:
  - 0.225
  - 0.225
  - 0.225
  TRAIN_CROP_SIZE: 224
  TRAIN_PCA_EIGVEC:
  - - -0.5675
    - 0.7192
    - 0.4009
DETECTION:
  ALIGNED: true
  ENABLE: false
MODEL:
  ARCH: i3d
  DROPOUT_RATE: 0.5
  FC_INIT_STD: 0.01
  HEAD_ACT: softmax
  LOSS_FUNC: cross_entropy
  MODEL_NAME: ResNet
  NUM_CLASSES: 400
  SINGLE_PATHWAY_ARCH:
  - c2d
  - i3d
MULTIGRID:
  LONG_CYCLE_FACTORS:
  - - 0.25
    - 0.7071067811865476
  SHORT_CYCLE: false
NONLOCAL:
  GROUP:
  - - 1
  - - 1
  - - 1
  - - 1
  INSTANTIATION: softmax
  LOCATION:
  - - []
  - - - 1
      - 3
  - - - 1
      - 3
      - 5
  - - []
  POOL:
  - - - 1
      - 2
      - 2
    - - 1
      - 2
      - 2
  - - - 1
      - 2
      - 2
    - - 1
      - 2
      - 2
  - - - 1
      - 2
      - 2
    - - 1
      - 2
      - 2
  - - - 1
      - 2
      - 2
    - - 1
      - 2
      - 2
RESNET:
  DEPTH: 50
  INPLACE_RELU: true
  NUM_BLOCK_TEMP_KERNEL:
  - - 3
  - - 4
  - - 6
  - - 3
  NUM_GROUPS: 1
  SPATIAL_DILATIONS:
  - - 1
  - - 1
  - - 1
  - - 1
  SPATIAL_STRIDES:
  - - 1
  - - 2
  - - 2
  - - 2
  STRIDE_1X1: false
  TRANS_FUNC: bottleneck_transform
  WIDTH_PER_GROUP: 64
  ZERO_INIT_FINAL_BN: true
TENSORBOARD:
  MODEL_VIS:
    GRAD_CAM:
      ENABLE: true
"""
POOLS = DUMP[DUMP.index("  POOL:") : DUMP.index("RESNET:")]
DATA = """
img_norm_cfg = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_bgr=False)
train_pipeline = [
    dict(type='DecordInit'),
    dict(type='SampleFrames', clip_len=32, frame_interval=2, num_clips=1),
    dict(type='Normalize', **img_norm_cfg),
]
"""
PRETTY = (
    """model = dict(
    type='Recognizer3D',
    backbone=dict(
        type='ResNet3d', pretrained2d=True, pretrained='torchvision://resnet50', depth=50, conv1_kernel=(5, 7, 7),
        conv1_stride_t=2, pool1_stride_t=2, conv_cfg=dict(type='Conv3d'), norm_eval=False,
        inflate=((1, 1, 1), (1, 0, 1, 0), (1, 0, 1, 0, 1, 0), (0, 1, 0)), zero_init_residual=False,
        non_local=((0, 0, 0), (0, 1, 0, 1), (0, 1, 0, 1, 0, 1), (0, 0, 0)),
        non_local_cfg=dict(
            sub_sample=True, use_scale=False, norm_cfg=dict(type='BN3d', requires_grad=True),
            mode='embedded_gaussian')),
    cls_head=dict(
        type='I3DHead', num_classes=400, in_channels=2048, spatial_type='avg', dropout_ratio=0.5, init_std=0.01))
train_cfg = None
"""
    + DATA
)
# As mmcv keeps it: the files that a configuration is based on, one behind the other, each below its name.
HEAVY = (
    """/base/models/i3d_r50.py
# model settings
model = dict(
    type='Recognizer3D',
    backbone=dict(
        type='ResNet3d', depth=50, conv1_kernel=(5, 7, 7), conv1_stride_t=2, pool1_stride_t=2,
        inflate=((1, 1, 1), (1, 0, 1, 0), (1, 0, 1, 0, 1, 0), (0, 1, 0))),
    cls_head=dict(type='I3DHead', num_classes=400, in_channels=2048, dropout_ratio=0.5))
/configs/i3d_heavy.py
_base_ = ['./i3d.py']
model = dict(
    backbone=dict(
        inflate=(1, 1, 1, 1),
        conv1_stride_t=1,
        pool1_stride_t=1,
        with_pool2=True))
"""
    + DATA
)


class Grouped(Network):
    """With SlowFast's NONLOCAL.GROUP: stage -> number of groups that the frames are cut into."""

    groups = {}

    def non_local(self, s, i, x):
        g, (n, c, t, h, w) = self.groups.get(s, 1), x.shape
        parts = x.transpose(1, 2).reshape(n * g, t // g, c, h, w).transpose(1, 2)
        made = super().non_local(s, i, parts)
        return made.transpose(1, 2).reshape(n, t, c, h, w).transpose(1, 2)


def network(project, *arguments, groups=None, **options):
    torch.manual_seed(3)
    made = Grouped(PROJECTS[project](), *arguments, **options).eval()
    made.groups = groups or {}
    return made


def imported(folder, project, theirs, settings, **asked):
    if project == "mmaction2":
        torch.save({"state_dict": theirs.state_dict(), "meta": {"config": settings}}, folder / "net")
    else:
        torch.save({"model_state": theirs.state_dict(), "cfg": settings}, folder / "net")
    return published.import_file(folder / "net", **asked)


def difference(model, theirs, shape):
    """Largest difference of the logits, relative to the largest logit."""
    x = np.random.default_rng(0).standard_normal(shape)
    model.to(dtype=np.float64)
    with minnl.nn.evaluating(model):
        got = model(minnl.Tensor(x)).numpy()
    with torch.no_grad():
        expected = theirs.double()(torch.tensor(x.transpose(0, 4, 1, 2, 3).copy())).numpy()
    return abs(got - expected).max() / abs(expected).max()


def slowfast(**options):
    return network("slowfast", (5, 1, 1), inflated=I3D, places=FIVE, **options)


NO_POOL = POOLS.replace("2\n", "1\n")
ALL = {2: range(3), 3: range(4), 4: range(6), 5: range(3)}
READ = {
    # name -> (project, settings, the network that they mean, the one that they would mean if they were ignored, frames,
    #          fields that come out)
    "the dump itself": ("slowfast", DUMP, slowfast, None, 8, {"subsample": "before", "non_local": "embedded"}),
    "no subsampling": (
        "slowfast", DUMP.replace(POOLS, NO_POOL), lambda: slowfast(order=None), slowfast, 8, {"subsample": None},
    ),
    "no subsampling, as export prints it": (
        "slowfast", DUMP.replace(POOLS, f"  POOL: {[[[1, 1, 1]]] * 4}\n"), lambda: slowfast(order=None), slowfast, 8,
        {"subsample": None},
    ),
    "groups": (
        "slowfast", DUMP.replace("  GROUP:\n  - - 1\n  - - 1\n", "  GROUP:\n  - - 1\n  - - 2\n"),
        lambda: slowfast(groups={3: 2}), slowfast, 8, {"chunks": {"res3": 2}},
    ),
    "dot product": (
        "slowfast", DUMP.replace("softmax\n  LOCATION", "dot_product\n  LOCATION"), lambda: slowfast(kind="dot"),
        slowfast, 8, {"non_local": "dot"},
    ),
    "i3d_nopool": (
        "slowfast", DUMP.replace("ARCH: i3d", "ARCH: i3d_nopool"), lambda: slowfast(pool2=False), slowfast, 8,
        {"pool2_frames": 1},
    ),
    "crop and dropout": (
        "slowfast", DUMP.replace("SIZE: 224", "SIZE: 160").replace("RATE: 0.5", "RATE: 0.25"), slowfast, None, 8,
        {"size": (160, 160), "dropout": 0.25},
    ),
    "mmaction2": (
        "mmaction2", PRETTY,
        lambda: network("mmaction2", (5, 2, 2), inflated=I3D, places=FIVE, order="after", scale=False, out_bias=False),
        None, 32, {"conv1_stride": 2, "pool1_stride": 2, "pool2_frames": 2, "scale": False},
    ),
    "mmaction2 strides of 1": (
        "mmaction2", PRETTY.replace("stride_t=2", "stride_t=1"),
        lambda: network("mmaction2", (5, 1, 1), inflated=I3D, places=FIVE, order="after", scale=False, out_bias=False),
        lambda: network("mmaction2", (5, 2, 2), inflated=I3D, places=FIVE, order="after", scale=False, out_bias=False),
        32, {"conv1_stride": 1, "pool1_stride": 1, "pool2_frames": 2},
    ),
    "mmaction2 without pool2, scaled": (
        "mmaction2", PRETTY.replace("norm_eval=False", "with_pool2=False").replace("use_scale=False, ", ""),
        lambda: network("mmaction2", (5, 2, 2), inflated=I3D, places=FIVE, order="after", out_bias=False, pool2=False),
        lambda: network("mmaction2", (5, 2, 2), inflated=I3D, places=FIVE, order="after", out_bias=False),
        32, {"pool2_frames": 1, "scale": True},
    ),
    "mmaction2 i3d heavy": (
        "mmaction2", HEAVY,
        lambda: network("mmaction2", (5, 1, 1), inflated=ALL), lambda: network("mmaction2", (5, 2, 2), inflated=ALL),
        32, {"conv1_stride": 1, "pool1_stride": 1, "pool2_frames": 2},
    ),
    "mmaction2 c2d without pooling": (
        "mmaction2", "model = dict(type='Recognizer2D', backbone=dict(type='ResNet', depth=50), cls_head=dict(type="
        "'TSNHead', consensus=dict(type='AvgConsensus', dim=1)))" + DATA.replace("32", "8"),
        lambda: network("mmaction2", pool2=False, flat=True), lambda: network("mmaction2", padding=0, flat=True), 8,
        {"pool2_frames": 1, "pool1_padding": 1, "frames": 8},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", READ)
def test_a_setting_is_read(tmp_path, name):
    project, settings, meant, ignored, frames, fields = READ[name]
    model, report = imported(tmp_path, project, meant(), settings)
    for field, value in fields.items():
        assert getattr(model.config, field) == value, field
        assert report.hidden[field] == (value, "settings in the file") or field == "subsample"
    shape = (1, frames, 64, 64, 3)
    assert difference(model, meant(), shape) < 1e-9
    if ignored is not None:
        assert difference(model, ignored(), shape) > 1e-3, "the setting changes nothing, so the test proves nothing"


REFUSED = {
    "RESNET.STRIDE_1X1 is True; networks here have False": DUMP.replace("1X1: false", "1X1: true"),
    r"RESNET.SPATIAL_STRIDES is \[\[1\], \[2\], \[2\], \[1\]\]": DUMP.replace("- - 2\n  STRIDE", "- - 1\n  STRIDE"),
    r"RESNET.SPATIAL_DILATIONS is \[\[1\], \[1\], \[1\], \[2\]\]":
        DUMP.replace("- - 1\n  SPATIAL_S", "- - 2\n  SPATIAL_S"),
    "RESNET.NUM_GROUPS is 32; networks here have 1": DUMP.replace("NUM_GROUPS: 1", "NUM_GROUPS: 32"),
    "RESNET.TRANS_FUNC is 'x3d_transform'": DUMP.replace("bottleneck_transform", "x3d_transform"),
    r"NONLOCAL.POOL is \{'res3': \[2, 2, 2\], 'res4': \[2, 2, 2\]\}": DUMP.replace(POOLS, POOLS.replace("1\n", "2\n")),
    r"NONLOCAL.POOL is \{'res3': \[1, 2, 2\], 'res4': \[1, 1, 1\]\}":
        DUMP.replace(POOLS, "  POOL: [[[1, 2, 2]], [[1, 2, 2]], [[1, 1, 1]], [[1, 2, 2]]]\n"),
    r"NONLOCAL.POOL is \[\[1, 2, 2\]\]; a list of 4": DUMP.replace(POOLS, "  POOL: [[1, 2, 2]]\n"),
    "NONLOCAL.GROUP is 3 in res4, which must divide": DUMP.replace("- - 1\n  - - 1\n  INST", "- - 3\n  - - 1\n  INST"),
    "NONLOCAL.INSTANTIATION is 'gaussian'; one of": DUMP.replace("softmax\n  LOCATION", "gaussian\n  LOCATION"),
    "DATA.TRAIN_CROP_SIZE is 112, of which": DUMP.replace("SIZE: 224", "SIZE: 112"),
    "DATA.REVERSE_INPUT_CHANNEL is True": DUMP.replace("CHANNEL: false", "CHANNEL: true"),
    "MODEL.ARCH is 'x3d'; one of '2d', 'c2d'": DUMP.replace("ARCH: i3d", "ARCH: x3d"),
    "MODEL.ARCH is c2d, with 1 taps in conv1; it has 5": DUMP.replace("ARCH: i3d", "ARCH: c2d"),
    "MODEL.HEAD_ACT is 'sigmoid'": DUMP.replace("ACT: softmax", "ACT: sigmoid"),
    "MODEL.MODEL_NAME is 'SlowFast'": DUMP.replace("NAME: ResNet", "NAME: SlowFast"),
    "MODEL.SQUEEZE = True is not known here": DUMP.replace("MODEL:\n", "MODEL:\n  SQUEEZE: true\n"),
    r"NONLOCAL = '\\x1b\[2J: 1 GROUP: .* is not known here": DUMP.replace("  GROUP", "  \x1b[2J: 1\n  GROUP"),
    "BN.NORM_TYPE is 'sub_batchnorm'": DUMP.replace("TYPE: batchnorm", "TYPE: sub_batchnorm"),
    "DETECTION.ENABLE is True": DUMP.replace("ENABLE: false", "ENABLE: true"),
    "MULTIGRID.SHORT_CYCLE is True": DUMP.replace("CYCLE: false", "CYCLE: true"),
    "they have 200,003 letters": DUMP + "#" * (200_003 - len(DUMP)),
}  # fmt: skip
REFUSED_MMACTION2 = {
    "model.backbone.style is 'caffe'; networks here have 'pytorch'": ("norm_eval=False", "style='caffe'"),
    r"model.backbone.spatial_strides is \[1, 2, 2, 1\]": ("norm_eval=False", "spatial_strides=(1, 2, 2, 1)"),
    r"model.backbone.temporal_strides is \[1, 2, 1, 1\]": ("norm_eval=False", "temporal_strides=(1, 2, 1, 1)"),
    r"model.backbone.dilations is \[1, 1, 1, 2\]": ("norm_eval=False", "dilations=(1, 1, 1, 2)"),
    "model.backbone.conv1_stride_t is 0; an integer from 1": ("conv1_stride_t=2", "conv1_stride_t=0"),
    "model.backbone.conv1_stride_t is <an expression>": ("conv1_stride_t=2", "conv1_stride_t=1 + 1"),
    "model.backbone.act_cfg.type is 'SiLU'": ("norm_eval=False", "act_cfg=dict(type='SiLU')"),
    "model.backbone.norm_cfg.eps is 0.001": ("norm_eval=False", "norm_cfg=dict(type='BN3d', eps=1e-3)"),
    "model.backbone.squeeze = 4 is not known here": ("norm_eval=False", "squeeze=4"),
    r"model.backbone.\*\* = <an expression> is not known": ("norm_eval=False", "**other"),
    "model.backbone.non_local_cfg.mode is 'cosine'; one of": ("embedded_gaussian", "cosine"),
    "model.backbone.type is 'ResNet2Plus1d'": ("'ResNet3d'", "'ResNet2Plus1d'"),
    "model.backbone.type is C2D, whose kernels have 4 axes": ("'ResNet3d'", "'C2D'"),
    "model.cls_head.spatial_type is 'max'": ("'avg'", "'max'"),
    r"model.neck = \{'type': 'TPN'\} is not known": ("train_cfg = None", "model = dict(neck=dict(type='TPN'))"),
    "img_norm_cfg.to_bgr is True": ("to_bgr=False", "to_bgr=True"),
    r"img_norm_cfg.std\[0\] is 0; a number from": ("58.395", "0"),
}  # fmt: skip


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Project -> a network whose file is saved with other settings in each test."""
    mma = network("mmaction2", (5, 2, 2), inflated=I3D, places=FIVE, order="after", scale=False, out_bias=False)
    return {"slowfast": slowfast(), "mmaction2": mma}


@pytest.mark.parametrize("message", REFUSED)
def test_a_setting_of_slowfast_that_no_network_here_has_is_refused(tmp_path, files, message):
    assert REFUSED[message] != DUMP
    with pytest.raises(ValueError, match=f"(?s)^{tmp_path}/net: .*(?:{message})") as caught:
        imported(tmp_path, "slowfast", files["slowfast"], REFUSED[message])
    assert len(str(caught.value)) < 1000 and "\x1b" not in str(caught.value)


@pytest.mark.parametrize("message", REFUSED_MMACTION2)
def test_a_setting_of_mmaction2_that_no_network_here_has_is_refused(tmp_path, files, message):
    settings = PRETTY.replace(*REFUSED_MMACTION2[message])
    assert settings != PRETTY
    with pytest.raises(ValueError, match=f"^{tmp_path}/net: .*(?:{message})"):
        imported(tmp_path, "mmaction2", files["mmaction2"], settings)


@pytest.mark.parametrize(
    ("settings", "mean", "deviation"),
    [
        ("", [128.0], [128.0]),  # the networks of optical flow that are published
        ("img_norm_cfg = dict(mean=[100, 110], std=[50, 60])", [100.0, 110.0], [50.0, 60.0]),
        ("model = dict(data_preprocessor=dict(mean=[128, 127], std=[128, 1]))", [128.0, 127.0], [128.0, 1.0]),
    ],
)
def test_optical_flow_has_a_mean_of_its_own(tmp_path, settings, mean, deviation):
    theirs = network("mmaction2", inflated={4: range(6), 5: range(3)}, pool2=False)
    theirs.backbone.conv1.conv = torch.nn.Conv3d(2, 4, (1, 7, 7), bias=False)
    _, report = imported(tmp_path, "mmaction2", theirs, settings)
    assert (report.input["mean"], report.input["deviation"]) == (mean, deviation)
    assert "input: optical flow of 0 to 255, less 1" in report.text()
    with pytest.raises(ValueError, match=r"takes 2 channels; the mean .* is for 3: \[1.0, 2.0, 3.0\]"):
        imported(tmp_path, "mmaction2", theirs, "img_norm_cfg = dict(mean=[1, 2, 3], std=[1, 1, 1])")
    with pytest.raises(ValueError, match=r"the deviation .* is for 3: \[1.0, 1.0, 1.0\]"):
        imported(tmp_path, "mmaction2", theirs, "img_norm_cfg = dict(mean=[1, 2], std=[1, 1, 1])")


def test_without_settings_what_could_be_either_is_asked_for(tmp_path):
    theirs = network("mmaction2", (5, 1, 1), inflated=ALL)
    with pytest.raises(
        ValueError, match="(?s)more than one network.*I3D heavy: --set conv1_stride=1 --set pool1_stride=1"
    ):
        imported(tmp_path, "mmaction2", theirs, "")
    model, _ = imported(tmp_path, "mmaction2", theirs, "", changes={"conv1_stride": 1})
    assert difference(model, theirs, (1, 32, 64, 64, 3)) < 1e-9
    usual = network("mmaction2", (5, 1, 1), inflated=I3D)
    with pytest.raises(ValueError, match="no network of this source is as asked for"):
        imported(tmp_path, "mmaction2", usual, "", model="i3d_r50_8x8")
    model, _ = imported(tmp_path, "mmaction2", usual, "", changes={"conv1_stride": 1, "pool1_stride": 1})
    assert difference(model, usual, (1, 32, 64, 64, 3)) < 1e-9
    with pytest.raises(ValueError, match="conv1_stride is 2 in the file's settings, 1 in the preset"):
        imported(tmp_path, "mmaction2", usual, PRETTY, model="i3d_r50_8x8")
