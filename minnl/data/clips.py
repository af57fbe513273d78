"""From a whole video to one clip: what the datasets of video files and of arrays share."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Literal

import numpy as np

from minnl import checks
from minnl.backend import Array
from minnl.data import transforms
from minnl.data.decoder import MOST_PIXELS

# A number as large as this in the place of a label is a date or a key, not a class.
MOST_CLASSES = 100_000


class ClipDataset:
    """Videos with labels, of which clips are taken.

    A subclass says how long a video is (``_length``), how to get some of its frames (``_read``) and what it is called
    (``name``); it may scale frames down on the way, never below what ``_scaled_size`` asks for.

    The way of a clip, as in the authors' release: frames at a step, scaled, cropped, mirrored, normalized (uint8 only:
    float32 values are taken as they are). For training, start, scale, crop and mirroring are drawn from the generator
    handed to `clip`; otherwise the clip and the crop come from the middle, and the generator is not used.

    Parameters
    ----------
    classes : sequence of str
        Names of the classes.
    labels : sequence of int
        Class of each video.
    frames : int
        Frames in a clip.
    stride : int or "whole"
        Step between them. A video shorter than ``frames * stride`` starts anew at its end. "whole" spreads the frames
        evenly over each video instead, however long: for videos cut to one action.
    size : int or (int, int)
        Height and width of a clip.
    short_side : int or (int, int), optional
        Scale frames so that their shorter side is this; for training, drawn evenly from low to high. By default they
        are scaled so that they just cover `size`. Evaluation uses the low end.
    resize : "crop" or "squash"
        Cut `size` out of the scaled frames; or scale the whole frame to `size`, whatever its shape, which loses nobody
        at the edges of a narrow video.
    train : bool
        Draw at random, or take the middle.
    flip : bool
        Mirror half of the clips, for training. Off where left and right make the class.
    differences : bool
        Give each frame less the one before (one more frame is taken, so a clip still has `frames`).
    mean, deviation : float or sequence of float
        uint8 values v become ``(v - mean) / deviation``: one number, or one for each channel.

    Attributes
    ----------
    classes : tuple of str
    labels : list of int
    shape : (int, int, int, int)
        (T, H, W, C) of a clip.

    Raises
    ------
    TypeError, ValueError
        Naming the argument.
    """

    def __init__(
        self, classes: Sequence[str], labels: Sequence[int], *, frames: int, stride: int | Literal["whole"],
        size: int | Sequence[int], short_side: int | Sequence[int] | None, resize: Literal["crop", "squash"],
        train: bool, flip: bool, differences: bool, channels: int = 3, mean: float | Sequence[float] = transforms.MEAN,
        deviation: float | Sequence[float] = transforms.DEVIATION,
    ):  # fmt: skip
        where = type(self).__name__
        if isinstance(classes, str):
            raise TypeError(
                f"{where}: classes must be a sequence of names, got {classes!r}; one class is ({classes!r},)"
            )
        self.classes = tuple(classes)
        if len(set(self.classes)) != len(self.classes):
            raise ValueError(f"{where}: classes must have different names, got {', '.join(map(str, self.classes))}")
        self.labels = [checks.count(where, f"label {index}", label, 0) for index, label in enumerate(labels)]
        if self.labels and max(self.labels) >= len(self.classes):
            raise ValueError(
                f"{where}: labels must be 0 to {len(self.classes) - 1}, got {max(self.labels)} "
                f"at index {self.labels.index(max(self.labels))}"
            )
        self.frames = checks.count(where, "frames", frames, 1)
        self.stride = stride if stride == "whole" else checks.count(where, "stride", stride, 1)
        self.size = checks.pair(where, "size", size)
        self.resize = checks.choice(where, "resize", resize, ("crop", "squash"))
        self.short_side = None if short_side is None else checks.pair(where, "short_side", short_side)
        if self.short_side is not None and self.resize == "squash":
            raise ValueError(f"{where}: short_side is for resize='crop'; resize='squash' scales every frame to size")
        if self.short_side is not None and not max(self.size) <= self.short_side[0] <= self.short_side[1]:
            raise ValueError(
                f"{where}: short_side must be low, high with low at least the longer side of size "
                f"{self.size}, so that every crop fits; got {short_side!r}"
            )
        self.train, self.flip, self.differences = bool(train), bool(flip), bool(differences)
        self.shape = (self.frames, *self.size, channels)
        self.normalization = _each(where, "mean", mean, channels), _each(where, "deviation", deviation, channels, 1e-6)

    def __len__(self) -> int:
        return len(self.labels)

    def clip(self, index: int, rng: np.random.Generator) -> tuple[Array, int]:
        """One clip of video `index`.

        Parameters
        ----------
        index : int
        rng : numpy.random.Generator
            Used if the dataset is for training.

        Returns
        -------
        clip : C-contiguous float32 ndarray of shape ``self.shape``
        label : int

        Raises
        ------
        ValueError
            For a video that cannot be used (`VideoError`), or values that are not finite.
        """
        positions = self._positions(self._length(index), rng)
        short = None
        if self.short_side is not None:
            low, high = self.short_side
            short = int(rng.integers(low, high, endpoint=True)) if self.train else low
        video = self._scaled(self._read(index, positions), short)
        if not self.train:
            return self.finished(transforms.center_crop(video, self.size)), self.labels[index]
        video = transforms.random_crop(video, self.size, rng)
        if self.flip and rng.random() < 0.5:
            video = transforms.horizontal_flip(video)
        return self.finished(video), self.labels[index]

    def even_clips(self, index: int, clips: int) -> tuple[Array, Array]:
        """The frames of clips that start evenly over video `index`, for `data.Views`: scaled as for evaluation.

        Returns
        -------
        frames : ndarray of shape (F, H, W, C)
            Each frame that some clip has, once, in the order of the video.
        rows : int64 ndarray of shape (clips, T)
            Which of them make each clip.
        """
        length = self._length(index)
        if self.stride == "whole":
            positions = transforms.spread_indices(length, self._taken)[None]
        else:
            starts = transforms.even_starts(length, clips)
            positions = np.stack([transforms.clip_indices(length, self._taken, self.stride, s) for s in starts])
        needed, rows = np.unique(positions, return_inverse=True)
        frames = self._read(index, needed, keep=False)
        frames = self._scaled(frames, None if self.short_side is None else self.short_side[0])
        return frames, rows.reshape(positions.shape)

    def _positions(self, length, rng):
        """Positions of the frames of a clip in a video of `length` frames."""
        if self.stride == "whole":
            return transforms.spread_indices(length, self._taken)
        if self.train:
            start = transforms.random_start(length, self._taken, self.stride, rng)
        else:
            start = transforms.center_start(length, self._taken, self.stride)
        return transforms.clip_indices(length, self._taken, self.stride, start)

    @property
    def _taken(self):
        """Frames to read for a clip: two make one difference."""
        return self.frames + int(self.differences)

    def _scaled_size(self, height, width, short_side):
        """Height and width that frames have before they are cut. Raises ValueError for a strip too long to scale."""
        if self.resize == "squash":
            return self.size
        if short_side is None:
            scaled = transforms.cover_size(height, width, self.size)
        else:
            scaled = transforms.short_side_size(height, width, short_side)
        if scaled[0] * scaled[1] > MOST_PIXELS:
            raise ValueError(
                f"{type(self).__name__}: frames of {height} x {width} would be scaled to {scaled[0]} x {scaled[1]}, "
                f"no frame may have more than {MOST_PIXELS:,} pixels; resize='squash' takes frames of any shape"
            )
        return scaled

    def _scaled(self, video, short_side):
        return transforms.resize(video, self._scaled_size(*video.shape[1:3], short_side))

    def finished(self, video: Array) -> Array:
        """Cut frames as the network gets them: normalized, and differences taken if that is asked for."""
        video = transforms.normalize(video, *self.normalization) if video.dtype == np.uint8 else video
        video = transforms.differences(video) if self.differences else video
        return np.ascontiguousarray(video)

    def name(self, index: int) -> str:
        """What to call video `index` in reports."""
        raise NotImplementedError

    def _length(self, index: int) -> int:
        """Frames in video `index`."""
        raise NotImplementedError

    def _read(self, index: int, positions: Array, keep: bool = True) -> Array:
        """Frames at `positions`: uint8 or float32 of shape (len(positions), H, W, C).

        `keep` tells that the video will be asked for again, so that it may be worth the memory to have it at hand.
        """
        raise NotImplementedError


def _each(where, name, value, channels, low=None):
    """Numbers for all channels, or one for each, as a float32 array that broadcasts."""
    values = list(value) if isinstance(value, (list, tuple)) else [value]
    if len(values) not in (1, channels):
        raise ValueError(f"{where}: {name} must be one number, or {channels}, one for each channel; got {value!r}")
    return np.array([checks.number(where, name, v, low) for v in values], np.float32)


def numbered_classes(where, labels):
    """The names "0", "1", ... of classes that have none, up to the largest label."""
    largest = max(labels, default=0)
    if largest >= MOST_CLASSES:
        raise ValueError(f"{where}: labels must be numbers of classes, from 0, or names; got {largest}")
    if largest and min(labels) == 1:
        warnings.warn(f"{where}: no label is 0; labels are counted from 0, and class 0 has no video", RuntimeWarning)
    return tuple(str(k) for k in range(largest + 1))
