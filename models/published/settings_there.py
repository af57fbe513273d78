"""What must be set in another project so that it builds the network of a Config, in that project's own words.

Each function of SETTINGS gives (lines, problems): lines that can be pasted there, and what of the network that project
cannot be set to. Names are those of keys.py, and for video-nonlocal-net of its lib/core/config.py.
"""

from minnl.data import transforms
from models.config import RESIDUAL_BLOCKS, STAGES
from models.presets import step

KNOWN = ["2d", "c2d", "i3d", "slow", "x3d", "mvit"]  # The default of SlowFast's MODEL.SINGLE_PATHWAY_ARCH.
NO_ARCHITECTURE = "its blocks are inflated as in none of C2D, I3D and Slow"


def clip_of(made, config):
    """(mean, deviation, step between frames) of a configuration; the first two as lists of a number a channel."""
    stride, found = config.get("stride"), []
    for key, usual in (("mean", transforms.MEAN), ("deviation", transforms.DEVIATION)):
        values = [float(v) for v in config.get(key) or [usual]]
        found.append(values * made.in_channels if len(values) == 1 else values)
    return *found, stride if isinstance(stride, int) else step(made)


def architecture(made):
    """SlowFast's name of the network's temporal kernels and of pool2, or None."""
    pooled = made.pool2_frames > 1
    if made.conv1_frames == 1 and made.inflate is None:
        return "c2d" if pooled else "2d"
    blocks, counts = [tuple(made.inflated_blocks(stage)) for stage in STAGES], RESIDUAL_BLOCKS[made.depth]
    every_other = [tuple(range(counts[0])), *(tuple(range(0, n, 2)) for n in counts[1:3]), (1,)]
    if made.conv1_frames == 5 and blocks == every_other:
        return "i3d" if pooled else "i3d_nopool"
    slow = made.conv1_frames == 1 and blocks == [(), (), *(tuple(range(n)) for n in counts[2:])]
    return "slow" if slow and not pooled else None


def slowfast(made, config):
    """Keys and values for SlowFast's command line."""
    mean, deviation, stride = clip_of(made, config)
    name = architecture(made)
    lines = [
        "MODEL.MODEL_NAME ResNet", f"MODEL.ARCH {name}", f"MODEL.NUM_CLASSES {made.classes}",
        f"MODEL.DROPOUT_RATE {made.dropout}", f"RESNET.DEPTH {made.depth}", f"RESNET.WIDTH_PER_GROUP {made.width}",
        f"RESNET.NUM_BLOCK_TEMP_KERNEL {[[n] for n in RESIDUAL_BLOCKS[made.depth]]}",
        f"DATA.NUM_FRAMES {made.frames}", f"DATA.SAMPLING_RATE {stride}", f"DATA.TRAIN_CROP_SIZE {made.size[0]}",
        f"DATA.INPUT_CHANNEL_NUM {[made.in_channels]}", f"DATA.MEAN {[round(v / 255, 9) for v in mean]}",
        f"DATA.STD {[round(v / 255, 9) for v in deviation]}",
    ]  # fmt: skip
    if name not in KNOWN:
        lines.append(f"MODEL.SINGLE_PATHWAY_ARCH {[*KNOWN, name]}")
    if made.non_local is not None:
        sizes = made.sizes()
        groups = [[sizes[stage][0] // made.chunks[stage] if stage in made.chunks else 1] for stage in STAGES]
        lines += [
            f"NONLOCAL.LOCATION {[[list(made.non_local_blocks(stage))] for stage in STAGES]}",
            f"NONLOCAL.GROUP {groups}", f"NONLOCAL.POOL {[[[1, 2, 2] if made.subsample else [1, 1, 1]]] * 4}",
            f"NONLOCAL.INSTANTIATION {'softmax' if made.non_local == 'embedded' else 'dot_product'}",
        ]  # fmt: skip
    problems = [] if name else [NO_ARCHITECTURE]
    if made.size[0] != made.size[1] or made.size[0] % 32:
        problems.append(f"size is {made.size}, a square of a multiple of 32 there")
    return lines, problems


def pytorchvideo(made, config):
    """Arguments of pytorchvideo.models.resnet.create_resnet."""
    taps = [[(1 + 2 * mark, 1, 1) for mark in stage] for stage in marks(made, made.inflated_blocks)]
    mean, deviation, _ = clip_of(made, config)
    lines = [
        "create_resnet(", f"    input_channel={made.in_channels}, model_depth={made.depth},",
        f"    model_num_class={made.classes}, dropout_rate={made.dropout}, stem_dim_out={made.width},",
        f"    stem_conv_kernel_size={(made.conv1_frames, 7, 7)}, head_pool_kernel_size={made.sizes()['res5']},",
        *(["    stage1_pool=torch.nn.MaxPool3d, stage1_pool_kernel_size=(2, 1, 1),"] if made.pool2_frames > 1 else []),
        f"    stage_conv_a_kernel_size={[found[0] if len(set(found)) == 1 else found for found in taps]},", ")",
        f"# input: RGB of 0 to 255, less {mean}, divided by {deviation}",
    ]  # fmt: skip
    return lines, [] if architecture(made) else [NO_ARCHITECTURE]


def marks(made, blocks):
    """Which blocks of each stage are among those that blocks(stage) gives: a tuple of 0 and 1 a stage."""
    counts = zip(STAGES, RESIDUAL_BLOCKS[made.depth], strict=True)
    return tuple(tuple(int(i in blocks(stage)) for i in range(count)) for stage, count in counts)


def mmaction2(made, config):
    """A model of a configuration file of mmaction2."""
    mean, deviation, stride = clip_of(made, config)
    lines = [
        "model = dict(", "    type='Recognizer3D',", "    backbone=dict(",
        f"        type='ResNet3d', depth={made.depth}, pretrained=None, in_channels={made.in_channels},",
        f"        base_channels={made.width}, conv1_kernel={(made.conv1_frames, 7, 7)},",
        f"        conv1_stride_t={made.conv1_stride}, pool1_stride_t={made.pool1_stride},",
        f"        with_pool2={made.pool2_frames > 1}, inflate={marks(made, made.inflated_blocks)},",
        f"        inflate_style={made.inflate or '3x1x1'!r},",
    ]  # fmt: skip
    if made.non_local is not None:
        modes = {"embedded": "embedded_gaussian", "dot": "dot_product", "concat": "concatenation"}
        lines += [
            f"        non_local={marks(made, made.non_local_blocks)},",
            f"        non_local_cfg=dict(sub_sample={made.subsample is not None}, use_scale={made.scale},",
            f"            norm_cfg=dict(type='BN3d'), mode={modes.get(made.non_local, made.non_local)!r}),",
        ]
    lines += [
        "    ),", f"    cls_head=dict(type='I3DHead', num_classes={made.classes},",
        f"        in_channels={32 * made.width}, spatial_type='avg', dropout_ratio={made.dropout}))",
        f"img_norm_cfg = dict(mean={mean}, std={deviation}, to_bgr=False)",
        f"train_pipeline = [dict(type='SampleFrames', clip_len={made.frames}, frame_interval={stride}, num_clips=1)]",
    ]  # fmt: skip
    return lines, []


def authors(made, config):
    """Keys and values for the command line of video-nonlocal-net."""
    mean, deviation, stride = clip_of(made, config)
    choice = 1 + (made.inflate is not None) + 2 * (made.depth == 101)
    mod, third, fourth = placed(made) or (None, None, None)
    lines = [
        f"MODEL.MODEL_NAME {'resnet_video' if made.conv1_stride == 1 else 'resnet_video_org'}",
        f"MODEL.VIDEO_ARC_CHOICE {choice}", f"MODEL.DEPTH {made.depth}", f"MODEL.NUM_CLASSES {made.classes}",
        f"MODEL.USE_AFFINE {made.norm == 'affine'}", f"MODEL.MEAN {mean[0]}", f"MODEL.STD {deviation[0]}",
        "RESNETS.TRANS_FUNC bottleneck_transformation_3d", f"TRAIN.DROPOUT_RATE {made.dropout}",
        f"TRAIN.CROP_SIZE {made.size[0]}", f"TRAIN.VIDEO_LENGTH {made.frames}", f"TRAIN.SAMPLE_RATE {stride}",
        f"TEST.VIDEO_LENGTH {made.frames}", f"TEST.SAMPLE_RATE {stride}",
        f"NONLOCAL.CONV3_NONLOCAL {third}", f"NONLOCAL.CONV4_NONLOCAL {fourth}",
    ]  # fmt: skip
    if made.non_local is not None:
        lines += [
            f"NONLOCAL.LAYER_MOD {mod}", f"NONLOCAL.USE_SOFTMAX {made.non_local == 'embedded'}",
            f"NONLOCAL.USE_SCALE {made.scale}", f"NONLOCAL.USE_MAXPOOL {made.subsample is not None}",
            f"NONLOCAL.USE_BN {made.norm == 'batch'}", f"NONLOCAL.USE_ZERO_INIT_CONV {made.norm == 'affine'}",
        ]  # fmt: skip
    layout, last, problems = (made.conv1_stride, made.pool1_frames, made.pool1_stride), made.sizes()["res5"], []
    times = {(2, 2, 2): 8, (1, 1, 1): 2}.get(layout)
    if times is None:
        problems.append(f"conv1_stride, pool1_frames, pool1_stride are {layout}, (2, 2, 2) or (1, 1, 1) there")
    if architecture(made) not in ("c2d", "i3d"):
        problems.append("its blocks are inflated as in neither C2D nor I3D")
    if last != (times and made.frames // times, 7, 7):
        problems.append(f"frames={made.frames} and size={made.size} make the last map {last}, with 7 x 7 there")
    if mod is None:
        problems.append("its non-local blocks stand where no LAYER_MOD puts them")
    grouped = {"res3": 4} if made.norm == "affine" and made.non_local_blocks("res3") else {}
    if made.non_local is not None and made.chunks != grouped:
        problems.append(f"chunks is {made.chunks}, {grouped} there")
    if len(set(mean)) > 1 or len(set(deviation)) > 1:
        problems.append(f"mean and deviation differ between channels: {mean}, {deviation}")
    return lines, problems


def placed(made):
    """(LAYER_MOD, CONV3_NONLOCAL, CONV4_NONLOCAL) that put the non-local blocks where they are, or None.

    They are behind every m-th block of res3 and res4. m is LAYER_MOD; with 101 layers it is 2 and 4 LAYER_MOD - 1.
    """
    res2, res3, res4, res5 = (made.non_local_blocks(stage) for stage in STAGES)
    _, third, fourth, _ = RESIDUAL_BLOCKS[made.depth]
    for mod in range(1, fourth + 2):
        steps = (mod, mod) if made.depth == 50 else (2, 4 * mod - 1)
        rows = [tuple(range(m - 1, n, m)) for m, n in zip(steps, (third, fourth), strict=True)]
        if res3 in ((), rows[0]) and res4 in ((), rows[1]) and not (res2 or res5):
            return mod, bool(res3), bool(res4)
    return None


SETTINGS = {"slowfast": slowfast, "pytorchvideo": pytorchvideo, "mmaction2": mmaction2, "video-nonlocal-net": authors}
