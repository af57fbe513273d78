"""From a whole video to one clip: what the datasets of video files and of arrays share."""

import numpy as np

from minnl import checks
from minnl.data import transforms

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
        self, classes, labels, *, frames, stride, size, short_side, resize, train, flip, differences, channels=3
    ):
        where = type(self).__name__
        self.classes = tuple(classes)
        self.labels = list(labels)
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

    def __len__(self):
        return len(self.labels)

    def clip(self, index, rng):
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
            return self._finished(transforms.center_crop(video, self.size)), self.labels[index]
        video = transforms.random_crop(video, self.size, rng)
        if self.flip and rng.random() < 0.5:
            video = transforms.horizontal_flip(video)
        return self._finished(video), self.labels[index]

    def views(self, index, clips=10, crops=3):
        """Several clips of one video, whose predictions are to be averaged.

        Clips start evenly over the whole video. With three crops each is cut into squares that cover it along its
        longer side, as high as the scaled frame: larger than `size`, so the network has to take any size. With one,
        it is the middle of shape `size`.

        Parameters
        ----------
        index : int
        clips : int
        crops : 1 or 3

        Returns
        -------
        views : float32 ndarray of shape (clips * crops, T, H, W, C)
            Crops of one clip lie together.
        label : int

        Raises
        ------
        ValueError
            As `clip`; and for three crops of squashed frames, which hold everything already.
        """
        checks.choice("views", "crops", crops, (1, 3))
        if crops == 3 and self.resize == "squash":
            raise ValueError("views: crops=3 needs resize='crop'; squashed frames are whole, use crops=1")
        if self.stride == "whole" and clips != 1:
            raise ValueError(f'views: stride="whole" makes one clip of a video, asked for clips={clips}')
        length = self._length(index)
        starts = transforms.even_starts(length, clips)
        positions = (
            [transforms.spread_indices(length, self._taken)]
            if self.stride == "whole"
            else [transforms.clip_indices(length, self._taken, self.stride, start) for start in starts]
        )
        video = self._read(index, np.concatenate(positions))
        video = self._scaled(video, None if self.short_side is None else self.short_side[0])
        views = []
        for part in np.split(video, clips):
            cuts = transforms.three_crops(part) if crops == 3 else [transforms.center_crop(part, self.size)]
            views += [self._finished(cut) for cut in cuts]
        return np.stack(views), self.labels[index]

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
        """Height and width that frames have before they are cut."""
        if self.resize == "squash":
            return self.size
        if short_side is None:
            return transforms.cover_size(height, width, self.size)
        return transforms.short_side_size(height, width, short_side)

    def _scaled(self, video, short_side):
        return transforms.resize(video, self._scaled_size(*video.shape[1:3], short_side))

    def _finished(self, video):
        video = transforms.normalize(video) if video.dtype == np.uint8 else video
        video = transforms.differences(video) if self.differences else video
        return np.ascontiguousarray(video)

    def name(self, index):
        """What to call video `index` in reports."""
        raise NotImplementedError

    def _length(self, index):
        """Frames in video `index`."""
        raise NotImplementedError

    def _read(self, index, positions):
        """Frames at `positions`: uint8 or float32 of shape (len(positions), H, W, C)."""
        raise NotImplementedError


def numbered_classes(where, largest):
    """The names "0", "1", ... of classes that have none, up to the largest label."""
    if largest >= MOST_CLASSES:
        raise ValueError(f"{where}: labels must be numbers of classes, from 0, or names; got {largest}")
    return tuple(str(k) for k in range(largest + 1))
