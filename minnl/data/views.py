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

    Clip j of `clips` starts at frame ``int(j * n / clips)`` of n and goes round at the video's end. The crops of a clip
    lie together:

    =====  ==============================================================================================
    crops  are
    =====  ==============================================================================================
    1      the middle, of the dataset's `size`
    3      the squares at the start, in the middle and at the end of the longer side, as high as the scaled frame: they
           may be larger than `size`, so the network has to take any size
    6      those three, then their mirror images
    =====  ==============================================================================================

    The video is decoded once, and of its frames only those in some view are kept, once each, scaled, as uint8: memory
    depends on `clips` and the clip, not on the length of the video. A view is made from them each time it is asked for.

    Parameters
    ----------
    dataset : data.ClipDataset
        What a clip is: frames, stride, size, short_side. All other videos of it are left alone.
    index : int
        Which of its videos.
    clips : int
    crops : 1, 3 or 6

    Yields
    ------
    view : float32 ndarray of shape (T, S, S, C)

    Raises
    ------
    ValueError
        For a video that cannot be used (`VideoError`), values that are not finite, or views that do not go with the
        dataset: more than one clip of stride="whole", or three crops of squashed frames, which hold everything already.
    TypeError
        For a dataset without videos or arrays behind it.
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
    """Refuse views that do not go with a dataset, whichever its videos."""
    if not isinstance(dataset, ClipDataset):
        raise TypeError(f"Views: dataset must be of videos or arrays, got {type(dataset).__name__}")
    checks.count("Views", "clips", clips, 1)
    checks.choice("Views", "crops", crops, CROPS)
    if dataset.stride == "whole" and clips != 1:
        raise ValueError(f'Views: stride="whole" makes one clip of a video, asked for clips={clips}')
    if dataset.resize == "squash" and crops != 1:
        raise ValueError(
            f"Views: crops={crops} needs resize='crop'; squashed frames hold the whole width already, use crops=1"
        )


def parse(text):
    """(clips, crops) of a text such as "10x3"."""
    found = re.fullmatch(r"(\d+)x(\d+)", text)
    if not found:
        raise ValueError(f"views: wanted are clips x crops such as 10x3, got {text!r}")
    clips, crops = map(int, found.groups())
    return checks.count("views", "clips", clips, 1), checks.choice("views", "crops", crops, CROPS)


def batches(views, size):
    """Views as float32 arrays of shape (size, T, S, S, C), the last one perhaps with fewer."""
    for first in range(0, len(views), size):
        x = np.empty((min(size, len(views) - first), *views.shape), np.float32)
        for place in range(len(x)):
            x[place] = views[first + place]
        yield x
