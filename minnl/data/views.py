"""Many views of one video, whose predictions are averaged: the evaluation of the paper. See docs/evaluation.md."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

import numpy as np

from minnl import checks
from minnl.backend import Array
from minnl.data import transforms
from minnl.data.clips import ClipDataset

CROPS = (1, 3, 6)


class Views(Sequence):
    """Views of one video: clips that start evenly over it, each cut into crops.

    Clip j of `clips` starts at frame ``int(j * n / clips)`` of n and wraps around at the video's end. The views of a
    clip follow each other:

    =====  ==============================================================================================
    crops  views of a clip
    =====  ==============================================================================================
    1      the centre crop of the dataset's `size`
    3      the squares at the start, in the middle and at the end of the longer side, with the side length
           of the shorter side. They may be larger than `size`, so the network has to accept any size
    6      these three squares, then their mirror images
    =====  ==============================================================================================

    The video is decoded once. Each frame that is in a view is kept once, scaled, as uint8, so memory depends on `clips`
    and the clip, not on the length of the video. Indexing makes a view from these frames.

    Parameters
    ----------
    dataset : data.ClipDataset
        The dataset of the video. Its options (frames, stride, size, short_side) define a clip.
    index : int
        The index of the video in the dataset.
    clips : int
    crops : 1, 3 or 6

    Yields
    ------
    view : float32 ndarray of shape (T, S, S, C)

    Raises
    ------
    ValueError
        If the video cannot be used (`VideoError`), values are not finite, or the views do not fit the dataset: more
        than one clip with stride="whole", or three crops of squashed frames, which show the whole width already.
    TypeError
        If the dataset is not a ClipDataset.
    """

    def __init__(self, dataset: ClipDataset, index: int, clips: int = 10, crops: Literal[1, 3, 6] = 3):
        check(dataset, clips, crops)
        self.dataset, self.crops = dataset, crops
        self.frames, self.rows = dataset.even_clips(index, clips)

    def __len__(self) -> int:
        return len(self.rows) * self.crops

    def __getitem__(self, k: int) -> Array:  # type: ignore[override]
        if not 0 <= k < len(self):
            raise IndexError(f"Views: there are {len(self)} views, asked for number {k}")
        clip, crop = divmod(k, self.crops)
        frames = self.frames[self.rows[clip]]
        if self.crops == 1:
            return self.dataset.finished(transforms.center_crop(frames, self.dataset.size))
        view = transforms.three_crops(frames)[crop % 3]
        return self.dataset.finished(transforms.horizontal_flip(view) if crop >= 3 else view)

    @property
    def shape(self) -> tuple[int, ...]:
        """(T, S, S, C) of a view."""
        height, width = self.frames.shape[1:3]
        size = self.dataset.size if self.crops == 1 else (min(height, width),) * 2
        return self.dataset.shape[0], *size, self.dataset.shape[3]


def check(dataset, clips, crops):
    """Refuse views that do not fit the options of a dataset."""
    if not isinstance(dataset, ClipDataset):
        raise TypeError(f"Views: dataset must be of videos or arrays, got {type(dataset).__name__}")
    checks.count("Views", "clips", clips, 1)
    checks.choice("Views", "crops", crops, CROPS)
    if dataset.stride == "whole" and clips != 1:
        raise ValueError(f'Views: stride="whole" makes one clip of a video, asked for clips={clips}')
    if dataset.resize == "squash" and crops != 1:
        raise ValueError(
            f"Views: crops={crops} needs resize='crop'; squashed frames show the whole width already, use crops=1"
        )


def parse(text):
    """(clips, crops) of a text such as "10x3"."""
    found = re.fullmatch(r"(\d+)x(\d+)", text)
    if not found:
        raise ValueError(f"views: expected clips x crops such as 10x3, got {text!r}")
    clips, crops = map(int, found.groups())
    return checks.count("views", "clips", clips, 1), checks.choice("views", "crops", crops, CROPS)


def batches(views, size):
    """Batches of views: float32 arrays of shape (size, T, S, S, C). The last batch may be smaller."""
    for first in range(0, len(views), size):
        x = np.empty((min(size, len(views) - first), *views.shape), np.float32)
        for place in range(len(x)):
            x[place] = views[first + place]
        yield x
