"""Every setting of SlowFast and mmaction2 that is saved beside weights, and what is done about it.

READ: it gives a field of models.Config, or how clips are taken. SHOWN: the arrays show it. FREE: a trained network
computes the same whatever it is. A tuple: it must have one of these values, for no network here is otherwise. The rule
of a key holds for the keys below it. Names and defaults are those of the sources' own code; docs/published.md has the
tables.
"""

from minnl.checks import clean, quoted

READ, SHOWN, FREE = "read", "the arrays show it", "does not matter"
ONES = ((1, 1, 1, 1),)

SLOWFAST = {
    "MODEL.ARCH": READ, "MODEL.MODEL_NAME": ("ResNet",), "MODEL.NUM_CLASSES": SHOWN, "MODEL.DROPOUT_RATE": READ,
    "MODEL.HEAD_ACT": ("softmax",), "MODEL.LOSS_FUNC": FREE, "MODEL.SINGLE_PATHWAY_ARCH": FREE,
    "MODEL.MULTI_PATHWAY_ARCH": FREE, "MODEL.FC_INIT_STD": FREE, "MODEL.DROPCONNECT_RATE": FREE,
    "MODEL.ACT_CHECKPOINT": FREE, "MODEL.DETACH_FINAL_FC": FREE, "MODEL.FROZEN_BN": FREE,
    "MODEL.FP16_ALLREDUCE": FREE,
    "RESNET.DEPTH": SHOWN, "RESNET.WIDTH_PER_GROUP": SHOWN, "RESNET.NUM_BLOCK_TEMP_KERNEL": SHOWN,
    "RESNET.NUM_GROUPS": (1,), "RESNET.STRIDE_1X1": (False,), "RESNET.TRANS_FUNC": ("bottleneck_transform",),
    "RESNET.SPATIAL_STRIDES": (((1,), (2,), (2,), (2,)),), "RESNET.SPATIAL_DILATIONS": (((1,), (1,), (1,), (1,)),),
    "RESNET.INPLACE_RELU": FREE, "RESNET.ZERO_INIT_FINAL_BN": FREE, "RESNET.ZERO_INIT_FINAL_CONV": FREE,
    "NONLOCAL.LOCATION": SHOWN, "NONLOCAL.GROUP": READ, "NONLOCAL.INSTANTIATION": READ, "NONLOCAL.POOL": READ,
    "BN.NORM_TYPE": ("batchnorm", "sync_batchnorm"), "BN.EPSILON": (1e-5,), "BN.MOMENTUM": FREE,
    "BN.USE_PRECISE_STATS": FREE, "BN.NUM_BATCHES_PRECISE": FREE, "BN.WEIGHT_DECAY": FREE, "BN.NUM_SPLITS": FREE,
    "BN.NUM_SYNC_DEVICES": FREE, "BN.GLOBAL_SYNC": FREE, "BN.FREEZE": FREE,
    "DETECTION.ENABLE": (False,), "DETECTION": FREE, "MULTIGRID.SHORT_CYCLE": (False,), "MULTIGRID": FREE,
    "DATA.NUM_FRAMES": READ, "DATA.SAMPLING_RATE": READ, "DATA.MEAN": READ, "DATA.STD": READ,
    "DATA.TRAIN_CROP_SIZE": READ, "DATA.INPUT_CHANNEL_NUM": SHOWN, "DATA.REVERSE_INPUT_CHANNEL": (False,), "DATA": FREE,
}  # fmt: skip
SLOWFAST_MODEL = ("MODEL", "RESNET", "NONLOCAL", "BN")  # Sections in which a key that is not in the table is refused.

MMACTION2 = {
    "model.type": ("Recognizer3D", "Recognizer2D"), "model.train_cfg": FREE, "model.test_cfg": FREE,
    "model.backbone.type": ("ResNet3d", "ResNet3dSlowOnly", "C2D", "C2D_R50", "ResNet"),
    "model.backbone.depth": SHOWN, "model.backbone.in_channels": SHOWN, "model.backbone.base_channels": SHOWN,
    "model.backbone.conv1_kernel": SHOWN, "model.backbone.inflate": SHOWN, "model.backbone.inflate_style": SHOWN,
    "model.backbone.non_local": SHOWN, "model.backbone.conv1_stride_t": READ, "model.backbone.pool1_stride_t": READ,
    "model.backbone.with_pool2": READ, "model.backbone.with_pool1": (True,), "model.backbone.conv1_stride_s": (2,),
    "model.backbone.pool1_stride_s": (2,), "model.backbone.num_stages": (4,), "model.backbone.out_indices": ((3,),),
    "model.backbone.strides": ((1, 2, 2, 2),), "model.backbone.spatial_strides": ((1, 2, 2, 2),),
    "model.backbone.temporal_strides": ONES, "model.backbone.dilations": ONES, "model.backbone.style": ("pytorch",),
    "model.backbone.lateral": (False,), "model.backbone.lateral_norm": FREE, "model.backbone.lateral_infl": FREE,
    "model.backbone.lateral_activate": FREE, "model.backbone.speed_ratio": FREE, "model.backbone.channel_ratio": FREE,
    "model.backbone.fusion_kernel": FREE, "model.backbone.conv_cfg.type": ("Conv3d", "Conv2d", "Conv"),
    "model.backbone.norm_cfg.type": ("BN3d", "BN2d", "BN", "SyncBN"), "model.backbone.norm_cfg.eps": (1e-5,),
    "model.backbone.norm_cfg.requires_grad": FREE, "model.backbone.norm_cfg.momentum": FREE,
    "model.backbone.act_cfg.type": ("ReLU",), "model.backbone.act_cfg.inplace": FREE,
    "model.backbone.frozen_stages": FREE, "model.backbone.norm_eval": FREE, "model.backbone.partial_bn": FREE,
    "model.backbone.with_cp": FREE, "model.backbone.zero_init_residual": FREE, "model.backbone.pretrained": FREE,
    "model.backbone.pretrained2d": FREE, "model.backbone.torchvision_pretrain": FREE, "model.backbone.init_cfg": FREE,
    "model.backbone.non_local_cfg.mode": READ, "model.backbone.non_local_cfg.use_scale": READ,
    "model.backbone.non_local_cfg.sub_sample": SHOWN, "model.backbone.non_local_cfg.reduction": (2,),
    "model.backbone.non_local_cfg.conv_cfg.type": ("Conv3d",),
    "model.backbone.non_local_cfg.norm_cfg.type": ("BN3d", "SyncBN"),
    "model.backbone.non_local_cfg.norm_cfg.eps": (1e-5,), "model.backbone.non_local_cfg.norm_cfg.requires_grad": FREE,
    "model.backbone.non_local_cfg.norm_cfg.momentum": FREE, "model.backbone.non_local_cfg.zeros_init": FREE,
    "model.backbone.non_local_cfg.std": FREE,
    "model.cls_head.type": ("I3DHead", "TSNHead"), "model.cls_head.num_classes": SHOWN,
    "model.cls_head.in_channels": SHOWN, "model.cls_head.spatial_type": ("avg",), "model.cls_head.dropout_ratio": READ,
    "model.cls_head.consensus": ({"type": "AvgConsensus", "dim": 1},), "model.cls_head.init_std": FREE,
    "model.cls_head.average_clips": FREE, "model.cls_head.loss_cls": FREE, "model.cls_head.topk": FREE,
    "model.cls_head.label_smooth_eps": FREE, "model.cls_head.multi_class": FREE, "model.cls_head.init_cfg": FREE,
    "model.data_preprocessor.mean": READ, "model.data_preprocessor.std": READ,
    "model.data_preprocessor.to_rgb": (False,), "model.data_preprocessor": FREE,
    "img_norm_cfg.mean": READ, "img_norm_cfg.std": READ, "img_norm_cfg.to_bgr": (False,), "train_pipeline": READ,
}  # fmt: skip
MMACTION2_MODEL = ("model", "img_norm_cfg")


def checked(settings, table, closed):
    """ "SECTION.KEY" -> value of the settings with the rule READ or a tuple.

    Raises ValueError for a key with another value than it must have, and for one under `closed` that is not in the
    table.
    """
    read = {}
    for key, value in flat(settings, table).items():
        rule = rule_of(key, table)
        if rule is None and key.partition(".")[0] in closed:
            raise ValueError(
                f"{clean(key)} = {quoted(value)} is not known here, and could make it another network; if it does not, "
                "save the weights without settings, and say with --model and --set what they would have said"
            )
        if isinstance(rule, tuple) and not any(same(value, allowed) for allowed in rule):
            raise ValueError(f"{key} is {quoted(value)}; networks here have {' or '.join(map(repr, rule))}")
        if rule == READ or isinstance(rule, tuple):
            read[key] = value
    return read


def flat(settings, table):
    """ "SECTION.KEY" -> value, of the sections in the table; a dict is opened where the table has keys under it."""
    found, left = {}, [(key, settings[key]) for key in {key.partition(".")[0] for key in table} & settings.keys()]
    while left:
        key, value = left.pop()
        if isinstance(value, dict) and any(other.startswith(f"{key}.") for other in table):
            left += [(f"{key}.{inner}", below) for inner, below in value.items()]
        else:
            found[key] = value
    return found


def rule_of(key, table):
    """The rule of a key: its own, or that of the key above it."""
    while key not in table and "." in key:
        key = key.rpartition(".")[0]
    return table.get(key)


def same(value, allowed):
    """Whether a value of a file, a list or not, is this one."""
    if isinstance(allowed, tuple):
        return isinstance(value, list) and len(value) == len(allowed) and all(map(same, value, allowed))
    if isinstance(allowed, dict):
        return isinstance(value, dict) and all(key in allowed and same(v, allowed[key]) for key, v in value.items())
    return isinstance(value, (str, int, float)) and value == allowed
