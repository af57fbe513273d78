"""Tables 2a to 2g of the paper: their rows, as networks of any scale, and the paper's figures.

Wang, Girshick, Gupta, He, Non-local Neural Networks, CVPR 2018 (arXiv 1711.07971v3), table 2: top-1 and top-5 in
percent on the validation set of Kinetics-400.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Network:
    """What a row of the paper changes, in the paper's terms.

    Parameters
    ----------
    deep : bool
        ResNet-101 instead of ResNet-50.
    blocks : int
        Non-local blocks: 0, 1, 5 or 10.
    mode : "gaussian", "embedded", "dot" or "concat"
    stage : None or "res2" to "res5"
        Where a single block stands, right before the last residual block; None for the usual place.
    axes : None, "space", "time" or "spacetime"
        None for spacetime with subsampled keys, as everywhere but in table 2d. There no row subsamples, for keys of a
        single pixel cannot be, and only the axes are to differ.
    inflate : None, "3x1x1", "3x3x3" or "i3d"
        None for C2D; "i3d" for whichever inflation the scale has, 3x1x1 in the paper.
    longer : bool
        Clips of 128 frames instead of 32.
    """

    deep: bool = False
    blocks: int = 0
    mode: str = "embedded"
    stage: str | None = None
    axes: str | None = None
    inflate: str | None = None
    longer: bool = False


@dataclass(frozen=True)
class Row:
    """A row: the paper's words for it, the network, and the paper's top-1 and top-5."""

    label: str
    network: Network
    top1: float
    top5: float
    cost: str = ""  # parameters and multiply-adds relative to C2D, table 2e


@dataclass(frozen=True)
class Table:
    title: str
    rows: tuple

    @property
    def relative(self):
        """Whether the paper gives costs, as multiples of those of its first row."""
        return any(row.cost for row in self.rows)


def _depths(rows):
    """Rows for both depths, from (label, options of Network, figures of ResNet-50, figures of ResNet-101)."""
    return tuple(
        Row(f"{depth}, {label}", Network(deep=deep, **options), *figures)
        for deep, depth in enumerate(("ResNet-50", "ResNet-101"))
        for label, options, *both in rows
        for figures in [both[deep]]
    )


C2D, C2D101 = (71.8, 89.7), (73.1, 91.0)
ONE = (72.7, 90.5)  # embedded Gaussian, one block in res4: in tables 2a, 2b and 2c
FIVE, FIVE101 = (73.8, 91.0), (75.1, 91.7)

TABLES = {
    "2a": Table(
        "Instantiations",
        (
            Row("baseline", Network(), *C2D),
            Row("Gaussian", Network(blocks=1, mode="gaussian"), 72.5, 90.2),
            Row("embedded Gaussian", Network(blocks=1), *ONE),
            Row("dot product", Network(blocks=1, mode="dot"), 72.9, 90.3),
            Row("concatenation", Network(blocks=1, mode="concat"), 72.8, 90.5),
        ),
    ),
    "2b": Table(
        "Stages",
        (
            Row("baseline", Network(), *C2D),
            Row("res2", Network(blocks=1, stage="res2"), 72.7, 90.3),
            Row("res3", Network(blocks=1, stage="res3"), 72.9, 90.4),
            Row("res4", Network(blocks=1, stage="res4"), *ONE),
            Row("res5", Network(blocks=1, stage="res5"), 72.3, 90.1),
        ),
    ),
    "2c": Table(
        "Number of blocks, and depth",
        _depths(
            [
                ("baseline", {}, C2D, C2D101),
                ("1 block", {"blocks": 1}, ONE, (74.3, 91.3)),
                ("5 blocks", {"blocks": 5}, FIVE, FIVE101),
                ("10 blocks", {"blocks": 10}, (74.3, 91.2), (75.1, 91.6)),
            ]
        ),
    ),
    "2d": Table(
        "Space, time and spacetime",
        _depths(
            [
                ("baseline", {}, C2D, C2D101),
                ("space only", {"blocks": 5, "axes": "space"}, (72.9, 90.8), (74.4, 91.3)),
                ("time only", {"blocks": 5, "axes": "time"}, (73.1, 90.5), (74.4, 90.5)),
                ("spacetime", {"blocks": 5, "axes": "spacetime"}, FIVE, FIVE101),
            ]
        ),
    ),
    "2e": Table(
        "Non-local blocks against 3D convolution",
        (
            Row("ResNet-101 C2D", Network(deep=True), *C2D101, "1×, 1×"),
            Row("ResNet-101 I3D 3×3×3", Network(deep=True, inflate="3x3x3"), 74.1, 91.2, "1.5×, 1.8×"),
            Row("ResNet-101 I3D 3×1×1", Network(deep=True, inflate="3x1x1"), 74.4, 91.1, "1.2×, 1.5×"),
            Row("ResNet-101 NL C2D, 5 blocks", Network(deep=True, blocks=5), *FIVE101, "1.2×, 1.2×"),
        ),
    ),
    "2f": Table(
        "Non-local blocks with 3D convolution",
        _depths(
            [
                ("C2D", {}, C2D, C2D101),
                ("I3D", {"inflate": "i3d"}, (73.3, 90.7), (74.4, 91.1)),
                ("NL I3D, 5 blocks", {"inflate": "i3d", "blocks": 5}, (74.9, 91.6), (76.0, 92.1)),
            ]
        ),
    ),
    "2g": Table(
        "Longer clips",
        _depths(
            [
                ("C2D", {"longer": True}, (73.8, 91.2), (75.3, 91.8)),
                ("I3D", {"longer": True, "inflate": "i3d"}, (74.9, 91.7), (76.4, 92.7)),
                ("NL I3D, 5 blocks", {"longer": True, "inflate": "i3d", "blocks": 5}, (76.5, 92.6), (77.7, 93.3)),
            ]
        ),
    ),
}


def tables(names):
    """The names of tables that were asked for, in the paper's order, each once; "all" for every one."""
    for name in names:
        if name != "all" and name not in TABLES:
            raise ValueError(f"ablate: no table {name!r}; there are {', '.join(TABLES)} and all")
    return [name for name in TABLES if name in names or "all" in names]
