"""What a layer is called in each of the published formats: one table, read in both directions.

``{s}`` is a stage (2 to 5), ``{i}`` a block in it, ``{l}`` one of its convolutions (a, b, c), ``{n}`` an array of a
batch norm, ``{e}`` one of theta, phi and g, ``{w}`` weight or bias. Formats that number them otherwise say how.
"""

import functools
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
    "s": {s: s for s in "2345"},
    "l": {x: x for x in "abc"},
    "n": {n: n for n in ("weight", "bias", "running_mean", "running_var")},
    "e": {e: e for e in ("theta", "phi", "g")},
    "w": {w: w for w in ("weight", "bias")},
}
FROM_ONE = {"2": "1", "3": "2", "4": "3", "5": "4"}
# Where a format has other words: ours -> theirs. `_riv` is the variance itself, not its inverse.
WORDS = {
    "video-nonlocal-net": {
        "n": {"weight": "s", "bias": "b", "running_mean": "rm", "running_var": "riv"},
        "w": {"weight": "w", "bias": "b"},
    },
    "slowfast": {},
    "pytorchvideo": {"s": FROM_ONE},
    "mmaction2": {"s": FROM_ONE, "l": {"a": "1", "b": "2", "c": "3"}},
}
POOLED = {"s": {"2": "1", "3": "3", "4": "4", "5": "5"}}  # pytorchvideo counts pool2 among its blocks
SUBSAMPLED = {"e": {"theta": "theta", "phi": "phi.0", "g": "g.0"}}  # mmaction2: a pair of convolution and pooling
EARLY = re.compile(r"(pathway0_nonlocal\d+)\.norm\.")  # what SlowFast first called the .bn. of a non-local block


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
        special = POOLED if format == "pytorchvideo" and pooled else {}
        special = SUBSAMPLED if format == "mmaction2" and subsampled else special
        self.words = PLAIN | WORDS[format] | special
        self.back = {key: {theirs: ours for ours, theirs in words.items()} for key, words in self.words.items()}
        column, head = TABLE[0].index(format), "6" if pooled else "5"
        self.rows = [(row[0], row[column].replace("{h}", head)) for row in TABLE[1:] if row[column] is not None]

    def ours(self, name):
        """Our name of an array of theirs, or None if the networks here have no such thing."""
        name = EARLY.sub(r"\1.bn.", name)
        return translated(name, [(theirs, ours) for ours, theirs in self.rows], self.back)

    def theirs(self, name):
        """The name that one of our arrays has there, or None if they have no such thing."""
        return translated(name, self.rows, self.words)


def translated(name, rows, words):
    """A name that fits the left side of a row, as its right side has it, each word in it replaced."""
    for left, right in rows:
        found = pattern(left, tuple((key, tuple(replaced)) for key, replaced in words.items())).fullmatch(name)
        if found:
            return right.format(**{key: words.get(key, {}).get(word, word) for key, word in found.groupdict().items()})
    return None


@functools.cache
def pattern(template, words):
    """The regular expression of a template: {i} is a number, the others are one of their words."""
    made = re.escape(template).replace(r"\{", "{").replace(r"\}", "}").replace("{i}", r"(?P<i>\d{1,2})")
    for key, allowed in words:
        made = made.replace(f"{{{key}}}", f"(?P<{key}>{'|'.join(map(re.escape, allowed))})")
    return re.compile(made)
