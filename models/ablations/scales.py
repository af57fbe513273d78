"""What a row of the paper is at a scale: options of the small network, or fields of a published one's Config."""

from minnl.training import recipes
from models.config import BASIC, PUBLISHED_BLOCKS
from models.presets import PRESETS


class NotHere(ValueError):
    """A scale has no counterpart of a row; the message says why."""


class SmallScale:
    """The small network: its own depth stands for ResNet-50, 3 + 4 residual blocks for ResNet-101.

    ===========  ====================================  =====================================
    paper        1 + 2 residual blocks                 3 + 4 residual blocks
    ===========  ====================================  =====================================
    1 block      behind the last one of res2           the same
    5 blocks     2: behind the first of each stage     5: two in res2, three in res3
    10 blocks    none: there is no room                none: there is no room
    I3D          three taps in a 3 x 3 convolution     the same
    128 frames   twice as many                         the same
    ===========  ====================================  =====================================
    """

    model, recipe = "small", "adamw"
    clip = {"frames": 16, "stride": 2, "size": [24], "resize": "squash", "rgb": False}  # fmt: skip
    video_size = [64, 96]
    common = ("subsample", "scale")  # what may be set in all rows, for no row changes it (but 2d, subsample)
    deep = {"residuals": (3, 4)}
    five = {False: {"res2": (0,), "res3": (0,)}, True: {"res2": (1, 2), "res3": (0, 1, 2)}}

    def options(self, network):
        """Options of models.Small for a Network of paper.py."""
        made = dict(self.deep) if network.deep else {}
        if network.inflate == "3x1x1":
            raise NotHere("the small network has no 1×1 convolutions that 3×1×1 could inflate")
        if network.inflate:
            made["inflate"] = True
        if not network.blocks:
            return made
        if network.blocks == 10:
            raise NotHere("the small network has no room for 10 blocks")
        if network.stage not in (None, "res2", "res3"):
            raise NotHere("the small network ends with res3")
        made["non_local"] = network.mode
        if network.stage == "res3":
            made["blocks"] = "res3"
        if network.blocks == 5:
            made["blocks"] = self.five[network.deep]
        if network.axes:
            made |= {"axes": network.axes, "subsample": None}
        return made

    def clip_of(self, network, clip):
        """How clips are taken for a Network, from how they are otherwise."""
        return clip | {"frames": 2 * clip["frames"]} if network.longer else clip

    def describe(self, network):
        """The network in words, for the column that says what was run."""
        made = self.options(network)
        residuals = made.get("residuals", (1, 2))
        blocks = 0 if not network.blocks else len(sum(made["blocks"].values(), ())) if network.blocks == 5 else 1
        return _words(
            f"{residuals[0]} + {residuals[1]} residual blocks",
            "3×3×3" if network.inflate else "",
            _blocks(blocks, network, made.get("blocks", "res2") if network.blocks == 1 else ""),
            "twice the frames" if network.longer else "",
        )


class PublishedScale:
    """The published networks of one layout and width: depths 50 and 101, or 18 and 34 for small machines."""

    recipe, video_size = "paper", None
    common = (
        "width", "conv1_stride", "pool1_frames", "pool1_stride", "pool1_padding", "pool2_frames", "subsample", "scale",
    )  # fmt: skip

    def __init__(self, model):
        self.model, self.base = model, PRESETS[model]
        self.depths = (18, 34) if self.base.depth in BASIC else (50, 101)
        self.inflation = "3x3x3" if self.base.depth in BASIC else "3x1x1"  # as in models/presets.py
        self.clip = recipes.CLIPS | {"frames": self.base.frames, "size": [self.base.size[0]]}

    def options(self, network):
        """Fields of models.Config for a Network of paper.py, but for the sizes of the clip."""
        depth = self.depths[network.deep]
        made = {"depth": depth}
        inflate = self.inflation if network.inflate == "i3d" else network.inflate
        if inflate == "3x1x1" and depth in BASIC:
            raise NotHere(f"depth {depth} has no 1×1 convolutions that 3×1×1 could inflate")
        if inflate:
            made |= {"inflate": inflate, "conv1_frames": 5}
        if not network.blocks:
            return made
        made |= {"non_local": network.mode, "blocks": network.stage or network.blocks}
        if not network.stage and network.blocks not in PUBLISHED_BLOCKS[depth]:
            raise NotHere(f"depth {depth} has no room for {network.blocks} blocks")
        if network.axes:
            made |= {"axes": network.axes, "subsample": None}
        if network.longer:
            made["chunks"] = {"res3": 4}
        return made

    def clip_of(self, network, clip):
        """How clips are taken for a Network: 128 frames at step 1 where others have 32 at step 2."""
        if not network.longer:
            return clip
        stride = clip["stride"]
        return clip | {"frames": 4 * clip["frames"], "stride": stride if stride == "whole" else max(1, stride // 2)}

    def describe(self, network):
        """The network in words, for the column that says what was run."""
        made = self.options(network)
        inflate = made.get("inflate")
        return _words(
            f"ResNet-{made['depth']} {'I3D ' + inflate.replace('x', '×') if inflate else 'C2D'}",
            _blocks(network.blocks, network, network.stage or ""),
            "4 times the frames" if network.longer else "",
        )


def _words(*texts):
    return ", ".join(text for text in texts if text)


def _blocks(number, network, stage):
    """ "no non-local block", "2 non-local blocks (dot)", "1 non-local block (embedded, in res3, space)"."""
    if not number:
        return "no non-local block"
    about = _words(network.mode, stage and f"in {stage}", network.axes and f"{network.axes}, no subsampling")
    return f"{number} non-local block{'s' * (number > 1)} ({about})"


BASES = (
    "small",
    *(name for name, c in PRESETS.items() if (c.non_local, c.inflate, c.norm) == (None, None, "batch")),
)


def scale(model):
    """The scale that a network's name stands for: "small", or a published C2D."""
    if model not in BASES:
        raise ValueError(f"ablate: --model is the network without blocks, one of {', '.join(BASES)}; got {model!r}")
    return SmallScale() if model == "small" else PublishedScale(model)
