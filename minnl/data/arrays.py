"""Datasets of clips stored as NumPy arrays: an .npz file, or a folder of .npy files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Literal

import numpy as np

from minnl import checks
from minnl.data import transforms
from minnl.data.clips import ClipDataset, numbered_classes


class ArrayClips(ClipDataset):
    """Clips from an array, with their labels.

    Read from ``name.npz`` or from a folder that holds ``clips.npy``, ``labels.npy`` and perhaps ``classes.npy``. In a
    folder the clips are mapped, not loaded, so that they may be larger than memory.

    ========  =================  ==========================================================================
    name      shape              dtype
    ========  =================  ==========================================================================
    clips     (N, T, H, W, C)    uint8 (0 to 255, normalized on the way out) or float32 (taken as it is)
    labels    (N,)               any integer, 0 to the number of classes less one
    classes   (K,)               strings; where absent, the numbers 0 to the largest label are the names
    ========  =================  ==========================================================================

    Parameters
    ----------
    path : str or path-like
    frames : int, optional
        Frames in a clip. By default as many as there are at that stride.
    stride : int or "whole"
        Step between them.
    size : int or (int, int), optional
        Height and width of a clip. By default those stored.
    classes : sequence of str, optional
        The classes, where another set decides on them (the training set's `classes`, for a validation set). By default
        those stored.
    short_side, resize, train, flip, differences, mean, deviation
        As in `ClipDataset`.

    Raises
    ------
    ValueError
        For files that are missing, damaged, pickled, of the wrong shape or type; for a label out of range, with its
        index; from `clip`, for a clip with NaN or infinity in it, with its index.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        frames: int | None = None,
        stride: int | Literal["whole"] = 1,
        size: int | Sequence[int] | None = None,
        classes: Sequence[str] | None = None,
        short_side: int | Sequence[int] | None = None,
        resize: Literal["crop", "squash"] = "crop",
        train: bool = False,
        flip: bool = True,
        differences: bool = False,
        mean: float | Sequence[float] = transforms.MEAN,
        deviation: float | Sequence[float] = transforms.DEVIATION,
    ):
        self.path = os.fspath(path)
        self.paths = [os.path.join(self.path, "clips.npy") if os.path.isdir(self.path) else self.path]
        stored = _load(self.path, ("clips", "labels"))
        self.clips, labels = stored["clips"], stored["labels"]
        shape = self.clips.shape
        if self.clips.dtype not in (np.uint8, np.float32) or len(shape) != 5 or 0 in shape:
            raise ValueError(
                f"ArrayClips: clips in {path} must be uint8 or float32 of shape (N, T, H, W, C), "
                f"none of them 0, got {self.clips.dtype} of shape {shape}"
                + ("; clips.astype(np.float32) would do" if self.clips.dtype in (np.float16, np.float64) else "")
            )
        order = _order(shape)
        if order:
            raise ValueError(
                f"ArrayClips: clips in {path} of shape {shape} can only have their channels in axis {order[-1]}; "
                f"wanted is (N, T, H, W, C), which clips.transpose{order} gives"
            )
        if _holds_bytes(self.clips[0]):
            raise ValueError(
                f"ArrayClips: clips in {path} are float32, which is taken as it is, but hold whole numbers from 0 to "
                f"255: store them as uint8, which is normalized (or, with mean=0 and deviation=1, is not)"
            )
        if len(labels) != shape[0]:
            raise ValueError(f"ArrayClips: {path} must have a label for each clip, got {len(labels)} for {shape[0]}")
        named = array_classes(path)
        if classes is not None and "classes" in stored and tuple(classes) != named:
            raise ValueError(
                f"ArrayClips: classes in {path} must be {checks.listed(classes)}, got {checks.listed(named)}"
            )
        classes = named if classes is None else tuple(classes)
        outside = np.flatnonzero((labels < 0) | (labels >= len(classes)))
        if outside.size:
            raise ValueError(
                f"ArrayClips: labels in {path} must be 0 to {len(classes) - 1}, "
                f"got {labels[outside[0]]} at index {outside[0]}"
            )
        if frames is None:
            step = 1 if stride == "whole" else checks.count("ArrayClips", "stride", stride, 1)
            frames = max(-(-shape[1] // step) - int(differences), 1)
        super().__init__(
            classes,
            labels.tolist(),
            frames=frames,
            stride=stride,
            size=shape[2:4] if size is None else size,
            short_side=short_side,
            resize=resize,
            train=train,
            flip=flip,
            differences=differences,
            channels=shape[4],
            mean=mean,
            deviation=deviation,
        )

    def name(self, index: int) -> str:
        return f"{self.path}[{index}]"

    def _length(self, index):
        return self.clips.shape[1]

    def _read(self, index, positions, keep=True):
        video = np.asarray(self.clips[index])[positions]
        if video.dtype == np.float32 and not np.isfinite(video).all():
            raise ValueError(f"ArrayClips: {self.name(index)} holds NaN or infinity")
        return video


def _order(shape):
    """The order of axes that makes clips (N, T, H, W, C), where these can be no such clips; else None.

    No picture has 16 channels and more, unless its sides, which are equal, say that it is a map of features.
    """
    _, frames, height, width, channels = shape
    if channels < 16 or height == width != channels:
        return None
    if frames <= 4:
        return 0, 2, 3, 4, 1
    return (0, 1, 3, 4, 2) if height <= 4 else None


def _holds_bytes(clip):
    """Whether float32 values are those of pictures that were stored as bytes once."""
    if clip.dtype == np.uint8 or not np.isfinite(clip).all():
        return False
    return 64 < clip.max() <= 255 and clip.min() >= 0 and bool((clip == np.rint(clip)).all())


def array_classes(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """Class names stored with arrays, as a tuple: ``classes``, or else the numbers from 0 to the largest label."""
    stored = _load(path, ("labels",))
    labels, classes = stored["labels"], stored.get("classes")
    if classes is None:
        return numbered_classes("ArrayClips", labels.tolist())
    if classes.ndim != 1 or classes.dtype.kind != "U":
        raise ValueError(
            f"ArrayClips: classes in {path} must be strings of shape (K,), got {classes.dtype} of shape {classes.shape}"
        )
    return tuple(classes.tolist())


def _load(path, wanted):
    """The arrays stored at a path, by name: those wanted, and classes where there are any."""
    names = (*wanted, "classes")
    try:
        if os.path.isdir(path):
            files = {name: os.path.join(path, name + ".npy") for name in names}
            stored = {
                name: np.load(file, mmap_mode="r" if name == "clips" else None, allow_pickle=False)
                for name, file in files.items()
                if os.path.exists(file)
            }
        else:
            # Opened here, since np.load leaves a damaged file open.
            with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
                stored = {name: archive[name] for name in names if name in archive}
    except Exception as error:  # whatever zipfile, zlib, ast and struct raise comes through from damaged files
        raise ValueError(
            f"ArrayClips: {path} cannot be read: {type(error).__name__}: {checks.clean(str(error))}"
        ) from error
    missing = [name for name in wanted if name not in stored]
    if missing:
        raise ValueError(
            f"ArrayClips: {path} lacks {' and '.join(missing)}; wanted: clips (N, T, H, W, C), "
            "labels (N,) and perhaps classes (K,)"
        )
    labels = stored["labels"]
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise ValueError(
            f"ArrayClips: labels in {path} must be integers of shape (N,), got {labels.dtype} of shape {labels.shape}"
        )
    return stored
