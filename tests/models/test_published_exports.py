"""What export says to set elsewhere: names that the other side knows, and a file that it loads."""

import pickle
import pickletools

import numpy as np
import pytest

import minnl
import models
from minnl.training import checkpoint
from models import published
from models.published import keys, pickle_writer, settings_there

pytestmark = pytest.mark.slow

# The keys of video-nonlocal-net's lib/core/config.py that a network can need.
CAFFE2 = {
    "MODEL.MODEL_NAME", "MODEL.VIDEO_ARC_CHOICE", "MODEL.DEPTH", "MODEL.NUM_CLASSES", "MODEL.USE_AFFINE", "MODEL.MEAN",
    "MODEL.STD", "RESNETS.TRANS_FUNC", "TRAIN.DROPOUT_RATE", "TRAIN.CROP_SIZE", "TRAIN.VIDEO_LENGTH",
    "TRAIN.SAMPLE_RATE", "TEST.VIDEO_LENGTH", "TEST.SAMPLE_RATE", "NONLOCAL.CONV3_NONLOCAL", "NONLOCAL.CONV4_NONLOCAL",
    "NONLOCAL.LAYER_MOD", "NONLOCAL.USE_SOFTMAX", "NONLOCAL.USE_SCALE", "NONLOCAL.USE_MAXPOOL", "NONLOCAL.USE_BN",
    "NONLOCAL.USE_ZERO_INIT_CONV",
}  # fmt: skip
SINGLE_PATHWAY = {"2d", "c2d", "i3d", "slow"}  # that SlowFast's loader packs, by default


def exported(folder, format, preset, changes=None, **config):
    """(model, settings, path of the file) of a network that went out."""
    minnl.manual_seed(0)
    model = models.build(preset, **{"width": 2, "classes": 3} | (changes or {}))
    described = published.described(model.config) | config
    arrays = {f"model/{name}": array for name, array in model.state_dict().items()}
    checkpoint.save(folder / "net", arrays, {"config": described})
    return model, published.export_file(folder / "net", folder / "out", format), folder / "out"


PAD = {"pool1_padding": 1}
SLOW = {"inflate": "3x1x1", "pool2_frames": 1}
SLOWFAST = {
    "i3d": ("nl_i3d_r50_5_8x8", PAD),
    "dot, no subsampling": ("nl_i3d_r50_5_8x8", PAD | {"non_local": "dot", "subsample": None, "frames": 16}),
    "chunks": ("nl_i3d_r50_5_8x8", PAD | {"chunks": {"res3": 2}, "dropout": 0.25}),
    "c2d": ("c2d_r50_8x8", PAD | {"size": 160}),
    "c2d without pool2": ("nl_c2d_r50_5_8x8", PAD | {"pool2_frames": 1}),
    "i3d without pool2": ("i3d_r50_8x8", PAD | {"pool2_frames": 1, "in_channels": 2}),
    "slow": ("c2d_r50_8x8", PAD | SLOW | {"inflated": {"res4": tuple(range(6)), "res5": (0, 1, 2)}}),
    "slow, 101 layers": (
        "c2d_r101", PAD | SLOW | {"inflated": {"res4": tuple(range(23)), "res5": (0, 1, 2)}, "frames": 8,
                                  "conv1_stride": 1, "pool1_frames": 1, "pool1_stride": 1},
    ),
}  # fmt: skip


@pytest.mark.torch
@pytest.mark.parametrize("name", SLOWFAST)
def test_what_slowfast_is_told_is_known_there_and_means_the_network(tmp_path, name):
    """Read back as SlowFast would write it beside the weights."""
    model, settings, path = exported(tmp_path, "slowfast", *SLOWFAST[name], mean=[100.0], stride=5)
    given = dict(line.split(" ", 1) for line in settings)
    assert given.keys() <= keys.SLOWFAST.keys() and given["MODEL.MODEL_NAME"] == "ResNet"
    assert given["MODEL.ARCH"] in SINGLE_PATHWAY or f"'{given['MODEL.ARCH']}'" in given["MODEL.SINGLE_PATHWAY_ARCH"]
    sections = {}
    for key, value in given.items():
        section, _, inner = key.partition(".")
        sections.setdefault(section, []).append(f"  {inner}: {value}\n")
    text = "".join(f"{section}:\n{''.join(lines)}" for section, lines in sections.items())
    torch = pytest.importorskip("torch")
    from safetensors.numpy import load_file

    state = {name: torch.tensor(array) for name, array in load_file(path).items()}
    torch.save({"model_state": state, "cfg": text}, tmp_path / "there.pyth")
    again, report = published.import_file(tmp_path / "there.pyth")
    assert again.config == model.config
    assert report.input["mean"] == pytest.approx([100.0] * model.config.in_channels) and report.input["stride"] == 5


def test_what_slowfast_is_told_word_for_word(tmp_path):
    _, settings, _ = exported(tmp_path, "slowfast", "nl_i3d_r50_5_8x8", PAD | {"subsample": None, "width": 4})
    assert settings == [
        "MODEL.MODEL_NAME ResNet", "MODEL.ARCH i3d", "MODEL.NUM_CLASSES 3", "MODEL.DROPOUT_RATE 0.5",
        "RESNET.DEPTH 50", "RESNET.WIDTH_PER_GROUP 4", "RESNET.NUM_BLOCK_TEMP_KERNEL [[3], [4], [6], [3]]",
        "DATA.NUM_FRAMES 8", "DATA.SAMPLING_RATE 8", "DATA.TRAIN_CROP_SIZE 224", "DATA.INPUT_CHANNEL_NUM [3]",
        "DATA.MEAN [0.45, 0.45, 0.45]", "DATA.STD [0.225, 0.225, 0.225]",
        "NONLOCAL.LOCATION [[[]], [[1, 3]], [[1, 3, 5]], [[]]]", "NONLOCAL.GROUP [[1], [1], [1], [1]]",
        "NONLOCAL.POOL [[[1, 1, 1]], [[1, 1, 1]], [[1, 1, 1]], [[1, 1, 1]]]", "NONLOCAL.INSTANTIATION softmax",
    ]  # fmt: skip


MMA = {"pool1_frames": 1, "pool1_padding": 1}
MMACTION2 = {
    "i3d": ("nl_i3d_r50_5", MMA | {"subsample": "after", "scale": False}),
    "strides of 1": ("i3d_r50_8x8", MMA | {"pool2_frames": 1, "dropout": 0.25}),
    "gaussian, no subsampling": ("nl_i3d_r50_10", MMA | {"subsample": None, "non_local": "gaussian"}),
    "concatenation": ("nl_i3d_r101_5", MMA | {"subsample": "after", "non_local": "concat"}),
    "3x3x3": ("i3d333_r50", MMA | {"in_channels": 2}),
}


@pytest.mark.torch
@pytest.mark.parametrize("name", MMACTION2)
def test_what_mmaction2_is_told_means_the_network(tmp_path, name):
    """Read back as mmaction2 would keep it: the text of a configuration file."""
    torch = pytest.importorskip("torch")
    from safetensors.numpy import load_file

    model, settings, path = exported(tmp_path, "mmaction2", *MMACTION2[name], stride=3, mean=[9.0], deviation=[7.0])
    compile("\n".join(settings), "config.py", "exec")
    state = {name: torch.tensor(array) for name, array in load_file(path).items()}
    torch.save({"state_dict": state, "meta": {"config": "\n".join(settings)}}, tmp_path / "there.pth")
    again, report = published.import_file(tmp_path / "there.pth")
    assert again.config == model.config
    channels = model.config.in_channels
    assert report.input == {"mean": [9.0] * channels, "deviation": [7.0] * channels, "stride": 3}


def test_what_pytorchvideo_is_told(tmp_path):
    _, settings, _ = exported(tmp_path, "pytorchvideo", "i3d_r50_8x8", PAD)
    assert settings == [
        "create_resnet(",
        "    input_channel=3, model_depth=50,",
        "    model_num_class=3, dropout_rate=0.5, stem_dim_out=2,",
        "    stem_conv_kernel_size=(5, 7, 7), head_pool_kernel_size=(4, 7, 7),",
        "    stage1_pool=torch.nn.MaxPool3d, stage1_pool_kernel_size=(2, 1, 1),",
        "    stage_conv_a_kernel_size=[(3, 1, 1), [(3, 1, 1), (1, 1, 1), (3, 1, 1), (1, 1, 1)], "
        "[(3, 1, 1), (1, 1, 1), (3, 1, 1), (1, 1, 1), (3, 1, 1), (1, 1, 1)], [(1, 1, 1), (3, 1, 1), (1, 1, 1)]],",
        ")",
        "# input: RGB of 0 to 255, less [114.75, 114.75, 114.75], divided by [57.375, 57.375, 57.375]",
    ]


# The authors' own code.


@pytest.mark.torch
def test_the_authors_file_is_one_that_python_2_reads(tmp_path):
    """Str, not unicode; numpy's old module names; what their loader asks for: blobs, lr, float32 in their layout."""
    torch = pytest.importorskip("torch")
    from tests.models import torch_video_resnet

    changes = {"width": 64, "non_local": "dot", "subsample": None}
    model, settings, path = exported(tmp_path, "video-nonlocal-net", "nl_i3d_r50_5", changes)
    raw = path.read_bytes()
    names = {opcode.name for opcode, _, _ in pickletools.genops(raw)}
    assert not {name for name in names if "UNICODE" in name or name in ("FRAME", "MEMOIZE", "STACK_GLOBAL", "BINBYTES")}
    assert max(opcode.proto for opcode, _, _ in pickletools.genops(raw)) == 2 and b"numpy._core" not in raw
    there = pickle.loads(raw, encoding="latin1")
    blobs = dict(there["blobs"])
    assert blobs.pop("lr") == 0.01
    expected = torch_video_resnet.released(model.state_dict())
    assert blobs.keys() == expected.keys()
    for name, array in blobs.items():
        assert array.dtype == np.float32 and array.flags.c_contiguous
        np.testing.assert_array_equal(array, expected[name].numpy(), err_msg=name)
    assert blobs["conv1_w"].shape == (64, 3, 5, 7, 7) and blobs["pred_w"].shape == (3, 2048)
    given = dict(line.split(" ", 1) for line in settings)
    assert given.keys() <= CAFFE2
    asked = {
        "MODEL.MODEL_NAME": "resnet_video_org", "MODEL.VIDEO_ARC_CHOICE": "2", "NONLOCAL.USE_SOFTMAX": "False",
        "NONLOCAL.USE_MAXPOOL": "False", "NONLOCAL.LAYER_MOD": "2", "NONLOCAL.CONV3_NONLOCAL": "True",
        "TRAIN.VIDEO_LENGTH": "32", "MODEL.USE_AFFINE": "False", "MODEL.MEAN": "114.75",
    }  # fmt: skip
    assert asked.items() <= given.items()
    x = np.random.default_rng(0).standard_normal((1, 16, 64, 64, 3))
    run = torch_video_resnet.Network(
        {name: torch.tensor(array).double() for name, array in blobs.items()}, number=5, i3d="3x1x1", kind="dot",
        order=None,
    )  # fmt: skip
    model.to(dtype=np.float64)
    with minnl.nn.evaluating(model), torch.no_grad():
        logits = run.logits(torch.tensor(x.transpose(0, 4, 1, 2, 3).copy())).numpy()
        np.testing.assert_allclose(model(minnl.Tensor(x)).numpy(), logits, rtol=0, atol=1e-9 * abs(logits).max())


def test_the_writer_writes_what_python_reads():
    arrays = {
        "a": np.arange(24, dtype=np.float32).reshape(2, 3, 4).transpose(2, 0, 1), "empty": np.zeros((0, 3), "f4"),
        "long name " + "x" * 300: np.float32(3)[None], "scalar": np.array(2, "f4"), "big": np.ones(100, ">f4"),
    }  # fmt: skip
    raw = b"".join(pickle_writer.blobs(arrays, {"lr": 0.25}, {"x": "y" * 70_000}))
    read = pickle.loads(raw, encoding="latin1")
    assert read["x"] == "y" * 70_000 and read["blobs"].pop("lr") == 0.25 and read.keys() == {"blobs", "x"}
    assert list(read["blobs"]) == list(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(read["blobs"][name], array)
        assert read["blobs"][name].shape == array.shape


AUTHORS = {"width": 64}


@pytest.mark.parametrize(
    ("format", "preset", "changes", "message"),
    [
        ("slowfast", "c2d_r50_8x8", PAD | {"size": 112}, r"size is \(112, 112\), a square of a multiple of 32 there"),
        ("slowfast", "c2d_r50_8x8", PAD | {"size": (224, 256)}, r"size is \(224, 256\)"),
        ("slowfast", "c2d_r50_8x8", PAD | {"conv1_frames": 3}, "in none of C2D, I3D and Slow"),
        ("mmaction2", "nl_i3d_r50_5", MMA | {"subsample": "after", "chunks": {"res3": 2}}, "chunks is .* {} there"),
        ("video-nonlocal-net", "c2d_r50", {}, "width is 2, 64 there"),
        (
            "video-nonlocal-net",
            "c2d_r50",
            AUTHORS | {"conv1_stride": 1},
            r"are \(1, 2, 2\), \(2, 2, 2\) or",
        ),
        ("video-nonlocal-net", "c2d_r50", AUTHORS | {"conv1_frames": 5}, "in neither C2D nor I3D"),
        ("video-nonlocal-net", "c2d_r50", AUTHORS | {"size": 256}, r"the last map \(4, 8, 8\), with 7 x 7 there"),
        ("video-nonlocal-net", "nl_c2d_r50_5", AUTHORS | {"blocks": {"res4": (2, 4)}}, "where no LAYER_MOD puts them"),
        ("video-nonlocal-net", "nl_c2d_r50_5", AUTHORS | {"norm": "affine"}, r"chunks is {}, {'res3': 4} there"),
        ("video-nonlocal-net", "nl_c2d_r50_5", AUTHORS | {"chunks": {"res3": 4}}, r"chunks is {'res3': 4}, {} there"),
    ],
)
def test_what_cannot_be_set_there_is_not_written(tmp_path, format, preset, changes, message):
    with pytest.raises(ValueError, match=f"for {format} has no such network: .*(?:{message})"):
        exported(tmp_path, format, preset, changes)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("format", published.FORMATS)
def test_differences_of_frames_are_no_input_there(tmp_path, format):
    with pytest.raises(ValueError, match="its input is differences of frames, the frames themselves there"):
        exported(tmp_path, format, "c2d_r50_8x8", rgb=False)


def test_colours_that_differ_are_not_for_the_authors_code(tmp_path):
    with pytest.raises(ValueError, match=r"mean and deviation differ between channels: \[1.0, 2.0, 3.0\]"):
        exported(tmp_path, "video-nonlocal-net", "c2d_r50", AUTHORS, mean=[1.0, 2.0, 3.0])


def test_arrays_that_are_not_the_networks_do_not_go_out(tmp_path):
    model = models.build("c2d_r50_8x8", width=2, classes=3, pool1_padding=1)
    arrays = {f"model/{name}": array for name, array in model.state_dict().items()}
    config = published.described(model.config)
    for wrong, message in (
        (arrays | {"model/more\x1b": np.zeros(3, np.float32)}, r"unexpected: more\\x1b"),
        ({k: v for k, v in arrays.items() if k != "model/res3.res1.branch.a.norm.bias"}, "missing: res3.res1.branch.a"),
    ):
        checkpoint.save(tmp_path / "net", wrong, {"config": config})
        with pytest.raises(ValueError, match=message):
            published.export_file(tmp_path / "net", tmp_path / "out", "slowfast")
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("preset", "changes", "expected"),
    [
        ("nl_c2d_r50_5", {}, (2, True, True)),
        ("nl_i3d_r101_5", {}, (2, True, True)),
        ("nl_c2d_r50_10", {}, (1, True, True)),
        ("c2d_r50", {}, (1, False, False)),
        ("nl_c2d_r50_5", {"blocks": {"res4": (2, 5)}}, (3, False, True)),
        ("nl_c2d_r50_5", {"blocks": {"res3": (1, 3)}}, (2, True, False)),
        ("nl_c2d_r50_5", {"blocks": {"res4": (2, 4)}}, None),
        ("nl_c2d_r50_5", {"blocks": {"res2": (1,)}}, None),
        ("nl_c2d_r50_1", {}, (5, False, True)),
    ],
)
def test_placed(preset, changes, expected):
    assert settings_there.placed(models.preset(preset, **changes)) == expected
