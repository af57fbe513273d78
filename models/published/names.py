"""The name of each layer in each of the published formats: one table, read in both directions.

``{s}`` is a stage (2 to 5), ``{i}`` a block in it, ``{l}`` one of its convolutions (a, b, c), ``{n}`` an array of a
batch norm, ``{e}`` one of theta, phi and g, ``{w}`` weight or bias. WORDS has the formats that write them otherwise.
"""

import functools
import itertools
import re

OURS = "minnl"
FORMATS = ("video-nonlocal-net", "slowfast", "pytorchvideo", "mmaction2")
TABLE = (
    (OURS, *FORMATS),
    ("conv1.conv.weight", "conv1_w", "s1.pathway0_stem.conv.weight", "blocks.0.conv.weight",
     "backbone.conv1.conv.weight"),
    ("conv1.norm.{n}", "res_conv1_bn_{n}", "s1.pathway0_stem.bn.{n}", "blocks.0.norm.{n}", "backbone.conv1.bn.{n}"),
    ("res{s}.res{i}.branch.{l}.conv.weight", "res{s}_{i}_branch2{l}_w", "s{s}.pathway0_res{i}.branch2.{l}.weight",
     "blocks.{s}.res_blocks.{i}.branch2.conv_{l}.weight", "backbone.layer{s}.{i}.conv{l}.conv.weight"),
    ("res{s}.res{i}.branch.{l}.norm.{n}", "res{s}_{i}_branch2{l}_bn_{n}", "s{s}.pathway0_res{i}.branch2.{l}_bn.{n}",
     "blocks.{s}.res_blocks.{i}.branch2.norm_{l}.{n}", "backbone.layer{s}.{i}.conv{l}.bn.{n}"),
    ("res{s}.res{i}.shortcut.conv.weight", "res{s}_{i}_branch1_w", "s{s}.pathway0_res{i}.branch1.weight",
     "blocks.{s}.res_blocks.{i}.branch1_conv.weight", "backbone.layer{s}.{i}.downsample.conv.weight"),
    ("res{s}.res{i}.shortcut.norm.{n}", "res{s}_{i}_branch1_bn_{n}", "s{s}.pathway0_res{i}.branch1_bn.{n}",
     "blocks.{s}.res_blocks.{i}.branch1_norm.{n}", "backbone.layer{s}.{i}.downsample.bn.{n}"),
    ("res{s}.nonlocal{i}.{e}.{w}", "nonlocal_conv{s}_{i}_{e}_{w}", "s{s}.pathway0_nonlocal{i}.conv_{e}.{w}", None,
     "backbone.layer{s}.{i}.non_local_block.{e}.conv.{w}"),
    ("res{s}.nonlocal{i}.W_z.{w}", "nonlocal_conv{s}_{i}_out_{w}", "s{s}.pathway0_nonlocal{i}.conv_out.{w}", None,
     "backbone.layer{s}.{i}.non_local_block.conv_out.conv.{w}"),
    ("res{s}.nonlocal{i}.norm.{n}", "nonlocal_conv{s}_{i}_bn_{n}", "s{s}.pathway0_nonlocal{i}.bn.{n}", None,
     "backbone.layer{s}.{i}.non_local_block.conv_out.bn.{n}"),
    ("res{s}.nonlocal{i}.w_f", None, None, None,
     "backbone.layer{s}.{i}.non_local_block.concat_project.conv.weight"),
    ("head.classify.{w}", "pred_{w}", "head.projection.{w}", "blocks.{h}.proj.{w}", "cls_head.fc_cls.{w}"),
)  # fmt: skip

PLAIN = {
    field: {word: word for word in words.split()}
    for field, words in (
        ("s", "2 3 4 5"), ("l", "a b c"), ("n", "weight bias running_mean running_var"), ("e", "theta phi g"),
        ("w", "weight bias"), ("i", " ".join(map(str, range(100)))),
    )
}  # fmt: skip
FROM_ONE = {"2": "1", "3": "2", "4": "3", "5": "4"}
# Words of a format that are not ours: ours -> theirs. `_riv` is the variance itself, not its inverse.
WORDS = {
    "video-nonlocal-net": {
        "n": {"weight": "s", "bias": "b", "running_mean": "rm", "running_var": "riv"},
        "w": {"weight": "w", "bias": "b"},
    },
    "slowfast": {},
    "pytorchvideo": {"s": FROM_ONE},
    "mmaction2": {"s": FROM_ONE, "l": {"a": "1", "b": "2", "c": "3"}},
}
POOLED = {"s": {"2": "1", "3": "3", "4": "4", "5": "5"}}  # pytorchvideo counts pool2 among its blocks.
SUBSAMPLED = {"e": {"theta": "theta", "phi": "phi.0", "g": "g.0"}}  # mmaction2 has a pair of convolution and pooling.
EARLY = re.compile(r"(pathway0_nonlocal\d+)\.norm\.")  # The first name in SlowFast of the .bn. of a non-local block.


class Names:
    """The names of a format.

    Parameters
    ----------
    format : one of FORMATS
    pooled : bool
        pytorchvideo: with pool2, which moves the numbers of what follows.
    subsampled : bool
        mmaction2: with subsampling in non-local blocks, which renames phi and g.
    """

    def __init__(self, format, pooled=False, subsampled=False):
        self.format = format
        self.there, self.here = tables(format, pooled, subsampled)

    def ours(self, name):
        """Our name of an array of theirs, or None if the networks here have no such array."""
        return self.here.get(EARLY.sub(r"\1.bn.", name))

    def theirs(self, name):
        """The name that one of our arrays has there, or None if they have no such array."""
        return self.there.get(name)


@functools.cache
def tables(format, pooled, subsampled):
    """({our name: their name}, {their name: our name}) of all arrays that networks could have."""
    special = POOLED if format == "pytorchvideo" and pooled else {}
    words = PLAIN | WORDS[format] | (SUBSAMPLED if format == "mmaction2" and subsampled else special)
    column, there = TABLE[0].index(format), {}
    for row in TABLE[1:]:
        if row[column] is not None:
            fields = re.findall(r"{(\w)}", row[0])
            for pairs in itertools.product(*(words[field].items() for field in fields)):
                ours = {field: pair[0] for field, pair in zip(fields, pairs, strict=True)}
                theirs = {field: pair[1] for field, pair in zip(fields, pairs, strict=True)}
                there[row[0].format(**ours)] = row[column].format(h=6 if pooled else 5, **theirs)
    return there, {theirs: ours for ours, theirs in there.items()}
