r"""A synthetic video task: the relation between the motions of two objects.

The clip. A small bright patch appears in one corner of a noisy frame, moves
in a straight line for a few frames, and disappears.  After a pause a second
patch with another texture does the same in the opposite corner.  Each patch
moves right, down, left or up.  The class is the relation of the second
direction to the first:

    ==============  ==================================
    same            both move the same way
    perpendicular   one moves along x, the other along y
    opposite        one moves against the other
    ==============  ==================================

    frame   0                4    5      ...     10   11              15
            [] [] [] [] []        (only noise)        [] [] [] [] []
            top left, to the right                    bottom right, upwards
                                                      class: perpendicular

Why a single object does not tell the class. Corner, place, time, texture and
direction of each object have the same distribution in every class; only the
pair differs.  Consider a network whose receptive field has at most 5 frames
(the pause has 4), with an average over all positions and one linear layer at
its end.  Each feature depends on one object at most, so a class score is a sum
h(first) + h(second).  Turning both objects by 90 degrees changes no class, and
cross-entropy is convex in the scores, so the mean of h over the four turns is
at least as good as h.  So the best h does not depend on direction, and the
accuracy of such a network stays at that of a guess, 1/3.  A non-local block
relates each position to all others, and so the two motions to each other.

Why the relation is symmetric. The non-local operation is a weighted sum over
positions, which has no order.  So it cannot distinguish "second turned left of
the first" from "right of the first" (with four classes by signed angle the
accuracy ends at exactly 50 %).  The three classes here do not change when the
two objects are exchanged.
"""

from __future__ import annotations

import operator
from typing import Literal

import numpy as np

from minnl import checks
from minnl.backend import Array

TEST_SEED = 711_971  # the seed of every test set, independent of the user's seed
CLASSES = ("same", "perpendicular", "opposite")
# The steps (dy, dx) of the directions right, down, left and up; a quarter turn is the next entry.
DIRECTIONS = ((0, 1), (1, 0), (0, -1), (-1, 0))
CORNERS = ((0, 0), (0, 1), (1, 1), (1, 0))  # (whether bottom, whether right); the opposite corner is two entries on


class RelationClips:
    """Clips of two patches that move one after the other, labelled by their relation.

    Parameters
    ----------
    split : "train" or "test"
        In ``train``, the generator passed to :meth:`clip` draws the clip, so
        a new generator in each epoch means new clips in each epoch.  ``test``
        clips depend only on their index and are always the same.
    clips : int
        Number of clips; index i has class i mod 3, so a multiple of 3 is balanced.
    frames : int
        Frames T of a clip, at least 8.  A patch is visible in 5/16 of them
        and the pause takes at least T - 2 (5 T // 16) - 2 (4 frames of 16).
    size : int
        Height and width in pixels, at least 12.
    seed : int
        For ``clip(index)`` without a generator in the train split.

    Attributes
    ----------
    classes : tuple of str
    shape : (T, H, W, C) of one clip; C = 1, brightness
    """

    classes = CLASSES

    def __init__(
        self, split: Literal["train", "test"] = "train", clips: int = 2048, frames: int = 16, size: int = 24,
        seed: int = 0,
    ):  # fmt: skip
        if split not in ("train", "test"):
            raise ValueError(f"RelationClips: split is {split!r}, give 'train' or 'test'")
        self.split = split
        self.clips = checks.count("RelationClips", "clips", clips, 1)
        self.frames = checks.count("RelationClips", "frames", frames, 8)
        self.size = checks.count("RelationClips", "size", size, 12)
        self.seed = checks.count("RelationClips", "seed", seed, 0)
        self.shape = (self.frames, self.size, self.size, 1)
        # In frames and pixels: 16 frames of size 24 give 5 visible frames, patch 5, area 15 and speed 2.
        self.visible = 5 * self.frames // 16
        self.patch = 5 * self.size // 24
        self.area = 15 * self.size // 24  # side of the square, in its corner, that a patch does not leave
        self.speed = min(self.size // 12, (self.area - self.patch) // (self.visible - 1))
        if self.speed < 1:
            raise ValueError(
                f"RelationClips: frames is {frames} and size is {size}: a patch visible for {self.visible} "
                f"frames at 1 pixel per frame leaves its corner of {self.area} pixels; "
                f"give fewer frames or a larger size"
            )

    def __len__(self) -> int:
        return self.clips

    def name(self, index: int) -> str:
        """The name of a clip in reports."""
        return f"{self.split} clip {index}"

    def clip(self, index: int, rng: np.random.Generator | None = None) -> tuple[Array, int]:
        """One clip and its class.

        Parameters
        ----------
        index : int in [0, len(self))
        rng : numpy.random.Generator, optional
            The generator of a train clip; by default one seeded by (seed, index).
            Not used in the test split.

        Returns
        -------
        x : float32 ndarray of shape (T, H, W, 1)
            Background noise uniform in [-0.5, 0.5), patches between 2.4 and 4:
            mean about 0.1, standard deviation about 0.6.
        label : int
            Index into ``classes``.
        """
        index = operator.index(index)
        if not 0 <= index < self.clips:
            raise ValueError(f"RelationClips: index is {index}, give 0 to {self.clips - 1}")
        if self.split == "test":
            rng = np.random.default_rng((TEST_SEED, index))
        elif rng is None:
            rng = np.random.default_rng((self.seed, index))
        elif not isinstance(rng, np.random.Generator):
            raise ValueError(
                f"RelationClips: rng is a {type(rng).__name__}, "
                f"give a numpy.random.Generator, as from numpy.random.default_rng(0)"
            )
        label = index % 3
        x = rng.random((self.frames, self.size, self.size), dtype=np.float32)
        x -= np.float32(0.5)

        first, corner, sign = rng.integers(0, 4, 3).tolist()
        quarter_turns = (0, 1 if sign < 2 else 3, 2)[label]
        late = rng.integers(0, 2, 2).tolist()  # each patch may start or end one frame off the end of the clip
        self._draw(x, rng, late[0], first, corner)
        self._draw(x, rng, self.frames - self.visible - late[1], (first + quarter_turns) % 4, (corner + 2) % 4)
        return x[..., None], label

    def _draw(self, x, rng, start, direction, corner):
        """Move one patch of random texture through ``visible`` frames of x (T, H, W), in place."""
        texture = rng.random((self.patch, self.patch), dtype=np.float32)
        texture = np.float32(4) - np.float32(1.6) * texture
        place = []
        for step, far_side in zip(DIRECTIONS[direction], CORNERS[corner], strict=True):
            travel = self.speed * (self.visible - 1) * step
            low = rng.integers(0, self.area - self.patch - abs(travel) + 1)
            place.append(int(low) + far_side * (self.size - self.area) - min(travel, 0))
        (y, z), (dy, dx) = place, (self.speed * step for step in DIRECTIONS[direction])
        for t in range(start, start + self.visible):
            x[t, y : y + self.patch, z : z + self.patch] = texture
            y += dy
            z += dx
