"""ClipDataset: clips from videos, the base class of the datasets of video files and of arrays."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Literal

import numpy as np

from minnl import checks
from minnl.backend import Array
from minnl.data import transforms
from minnl.data.decoder import MOST_PIXELS

MOST_CLASSES = 100_000  # a numeric label from here on is an error, since it is a date or a key rather than a class


class ClipDataset:
    """Clips from labelled videos.

    A subclass gives the length of a video (``_length``), its frames (``_read``) and its name (``name``). ``_read`` may
    return frames scaled down, but not below ``_scaled_size``.

    A clip is made as in the authors' release: frames at a step, scaled, cropped, mirrored, and normalized (only uint8;
    float32 values stay as they are). In training, the generator passed to `clip` draws start, scale, crop and
    mirroring. Otherwise the clip and the crop come from the middle, and the generator is not used.

    Parameters
    ----------
    classes : sequence of str
        Names of the classes.
    labels : sequence of int
        Class of each video.
    frames : int
        Frames in a clip.
    stride : int or "whole"
        Step between the frames. A video shorter than ``frames * stride`` wraps around at its end. "whole" spreads the
        frames evenly over each video of any length, which suits videos cut to one action.
    size : int or (int, int)
        Height and width of a clip.
    short_side : int or (int, int), optional
        Length of the shorter side of the scaled frames. With (low, high), training draws it uniformly and evaluation
        uses low. By default frames are scaled so that they just cover `size`.
    resize : "crop" or "squash"
        "crop" cuts `size` out of the scaled frames. "squash" scales the whole frame to `size` without keeping its
        aspect ratio, which keeps the edges of a narrow video.
    train : bool
        Whether to draw clips at random or to take the middle.
    flip : bool
        Whether to mirror half of the clips in training. Switch it off if classes differ in left and right.
    differences : bool
        Whether to return differences of consecutive frames. One more frame is read, so a clip still has `frames`.
    mean, deviation : float or sequence of float
        uint8 values v become ``(v - mean) / deviation``; each is one number, or one for each channel.

    Attributes
    ----------
    classes : tuple of str
    labels : list of int
    shape : (int, int, int, int)
        (T, H, W, C) of a clip.

    Raises
    ------
    TypeError, ValueError
        If an argument is wrong; the message names it.
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
            Used only in training.

        Returns
        -------
        clip : C-contiguous float32 ndarray of shape ``self.shape``
        label : int

        Raises
        ------
        ValueError
            If the video cannot be used (`VideoError`), or values are not finite.
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
        """The frames of evenly spaced clips of video `index`, scaled as for evaluation; for `data.Views`.

        Returns
        -------
        frames : ndarray of shape (F, H, W, C)
            The frames that are in a clip, each once, in the order of the video.
        rows : int64 ndarray of shape (clips, T)
            The indices into `frames` of each clip.
        """
        length = self._length(index)
        if self.stride == "whole":
            positions = transforms.spread_indices(length, self._frames_read)[None]
        else:
            starts = transforms.even_starts(length, clips)
            positions = np.stack([transforms.clip_indices(length, self._frames_read, self.stride, s) for s in starts])
        needed, rows = np.unique(positions, return_inverse=True)
        frames = self._read(index, needed, keep=False)
        frames = self._scaled(frames, None if self.short_side is None else self.short_side[0])
        return frames, rows.reshape(positions.shape)

    def _positions(self, length, rng):
        """Positions of the frames of a clip in a video of `length` frames."""
        if self.stride == "whole":
            return transforms.spread_indices(length, self._frames_read)
        if self.train:
            start = transforms.random_start(length, self._frames_read, self.stride, rng)
        else:
            start = transforms.center_start(length, self._frames_read, self.stride)
        return transforms.clip_indices(length, self._frames_read, self.stride, start)

    @property
    def _frames_read(self):
        """The number of frames to read for a clip: one more than `frames` with differences."""
        return self.frames + int(self.differences)

    def _scaled_size(self, height, width, short_side):
        """Height and width of the scaled frames before the crop. Raises ValueError above MOST_PIXELS."""
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
        """Cropped frames as input of the network: normalized, and as differences if `differences` is set."""
        video = transforms.normalize(video, *self.normalization) if video.dtype == np.uint8 else video
        video = transforms.differences(video) if self.differences else video
        return np.ascontiguousarray(video)

    def name(self, index: int) -> str:
        """The name of video `index` in reports."""
        raise NotImplementedError

    def _length(self, index: int) -> int:
        """The number of frames of video `index`."""
        raise NotImplementedError

    def _read(self, index: int, positions: Array, keep: bool = True) -> Array:
        """Frames at `positions`: uint8 or float32 of shape (len(positions), H, W, C).

        `keep` says whether the video will be read again, so that a subclass may keep it in memory.
        """
        raise NotImplementedError


def _each(where, name, value, channels, low=None):
    """One number for all channels, or one for each channel, as a float32 array that broadcasts."""
    values = list(value) if isinstance(value, (list, tuple)) else [value]
    if len(values) not in (1, channels):
        raise ValueError(f"{where}: {name} must be one number, or {channels}, one for each channel; got {value!r}")
    return np.array([checks.number(where, name, v, low) for v in values], np.float32)


def numbered_classes(where, labels):
    """The class names "0", "1", ... up to the largest label, for labels without names."""
    largest = max(labels, default=0)
    if largest >= MOST_CLASSES:
        raise ValueError(f"{where}: labels must be numbers of classes, from 0, or names; got {largest}")
    if largest and min(labels) == 1:
        warnings.warn(f"{where}: no label is 0; labels are counted from 0, and class 0 has no video", RuntimeWarning)
    return tuple(str(k) for k in range(largest + 1))
