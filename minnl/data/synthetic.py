r"""A video task made from a seed: how do the motions of two objects relate?

What a clip shows. A small bright patch appears in one corner of a noisy
frame, moves in a straight line for a few frames, and is gone.  After a pause
a second patch, with a texture of its own, does the same in the opposite
corner.  Each moves right, down, left or up.  The class is how the second
direction relates to the first:

    ==============  ==================================
    same            both move the same way
    perpendicular   one moves along x, the other along y
    opposite        one moves against the other
    ==============  ==================================

    frame   0                4    5      ...     10   11              15
            [] [] [] [] []        (only noise)        [] [] [] [] []
            top left, to the right                    bottom right, upwards
                                                      class: perpendicular

Why one object tells nothing. Corner, place, time, texture and direction of
each object are drawn the same way in every class; only the pair is not.  Let
a network look at no more than 5 frames at once (the pause has 4), then average
over all positions and end in one linear layer.  Each of its features sees one
object at most, so a class score is a sum h(first) + h(second).  Turning both
objects by 90 degrees changes no class, and cross-entropy is convex in the
scores, so the mean of h over the four turns does at least as well as h: the
best h does not depend on direction, and such a network stays at chance, 1/3.
A non-local block lets each position look at all others and carries the second
object's motion to the first.

Why the relation is symmetric. The non-local operation is a weighted sum over
positions and knows no order, so "second turned left of the first" and "right
of the first" look alike to it (four classes by signed angle end at exactly
50 %).  None of the three classes here changes when the two objects swap.
"""

from __future__ import annotations

import operator
from typing import Literal

import numpy as np

from minnl import checks
from minnl.backend import Array

TEST_SEED = 711_971  # every test set is drawn from this, whatever the user's seed
CLASSES = ("same", "perpendicular", "opposite")
# One step (dy, dx) of each direction; a quarter turn is one row further.
DIRECTIONS = ((0, 1), (1, 0), (0, -1), (-1, 0))  # right, down, left, up
CORNERS = ((0, 0), (0, 1), (1, 1), (1, 0))  # (bottom?, right?); opposite is two further


class RelationClips:
    """Clips of two patches that move one after the other, labelled by relation.

    Parameters
    ----------
    split : "train" or "test"
        ``train`` draws each clip from the generator handed to :meth:`clip`,
        so a new generator an epoch means new clips an epoch.  ``test`` clips
        depend on their index alone and are the same for everyone.
    clips : int
        How many clips; index i has class i mod 3, so a multiple of 3 is balanced.
    frames : int
        Frames T of a clip, at least 8.  A patch is seen for 5/16 of them
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
        # Lengths in frames and pixels; (16, 24) gives 5 frames, patch 5, area 15, speed 2.
        self.seen = 5 * self.frames // 16
        self.patch = 5 * self.size // 24
        self.area = 15 * self.size // 24  # side of the square in its corner a patch stays in
        self.speed = min(self.size // 12, (self.area - self.patch) // (self.seen - 1))
        if self.speed < 1:
            raise ValueError(
                f"RelationClips: frames is {frames} and size is {size}: a patch seen for {self.seen} "
                f"frames at 1 pixel a frame leaves its corner of {self.area} pixels; "
                f"give fewer frames or a larger size"
            )

    def __len__(self) -> int:
        return self.clips

    def name(self, index: int) -> str:
        """What to call a clip in reports."""
        return f"{self.split} clip {index}"

    def clip(self, index: int, rng: np.random.Generator | None = None) -> tuple[Array, int]:
        """One clip and its class.

        Parameters
        ----------
        index : int in [0, len(self))
        rng : numpy.random.Generator, optional
            Where a train clip comes from; by default one seeded by (seed, index).
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
        late = rng.integers(0, 2, 2).tolist()  # a frame of play at each end of the clip
        self._draw(x, rng, late[0], first, corner)
        self._draw(x, rng, self.frames - self.seen - late[1], (first + quarter_turns) % 4, (corner + 2) % 4)
        return x[..., None], label

    def _draw(self, x, rng, start, direction, corner):
        """Move one patch of random texture through ``seen`` frames of x (T, H, W), in place."""
        texture = rng.random((self.patch, self.patch), dtype=np.float32)
        texture = np.float32(4) - np.float32(1.6) * texture
        place = []
        for step, far_side in zip(DIRECTIONS[direction], CORNERS[corner], strict=True):
            travel = self.speed * (self.seen - 1) * step
            low = rng.integers(0, self.area - self.patch - abs(travel) + 1)
            place.append(int(low) + far_side * (self.size - self.area) - min(travel, 0))
        (y, z), (dy, dx) = place, (self.speed * step for step in DIRECTIONS[direction])
        for t in range(start, start + self.seen):
            x[t, y : y + self.patch, z : z + self.patch] = texture
            y += dy
            z += dx
