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

    The files are ``name.npz``, or a folder with ``clips.npy``, ``labels.npy`` and optionally ``classes.npy``. The clips
    of a folder are memory-mapped, so they may be larger than memory.

    ========  =================  ==========================================================================
    name      shape              dtype
    ========  =================  ==========================================================================
    clips     (N, T, H, W, C)    uint8 (0 to 255; `clip` normalizes it) or float32 (used unchanged)
    labels    (N,)               any integer type, values 0 to K - 1
    classes   (K,)               strings; if absent, the names are the numbers from 0 to the largest label
    ========  =================  ==========================================================================

    Parameters
    ----------
    path : str or path-like
    frames : int, optional
        Frames in a clip. By default all frames at that stride.
    stride : int or "whole"
        Step between the frames.
    size : int or (int, int), optional
        Height and width of a clip. By default the stored size.
    classes : sequence of str, optional
        The class names of another dataset: a validation set needs the `classes` of the training set. By default the
        stored classes.
    short_side, resize, train, flip, differences, mean, deviation
        As in `ClipDataset`.

    Raises
    ------
    ValueError
        If files are missing, damaged, pickled, or of the wrong shape or type, or a label is out of range. `clip` raises
        it for a clip with NaN or infinity. The message has the index of the label or the clip.
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
                f"without an axis of size 0, got {self.clips.dtype} of shape {shape}"
                + ("; write clips.astype(np.float32)" if self.clips.dtype in (np.float16, np.float64) else "")
            )
        order = _order(shape)
        if order:
            raise ValueError(
                f"ArrayClips: clips in {path} of shape {shape} must have their channels last, (N, T, H, W, C); the "
                f"channels seem to be axis {order[-1]}: write clips.transpose{order}"
            )
        if _holds_bytes(self.clips[0]):
            raise ValueError(
                f"ArrayClips: clips in {path} are float32, which is not normalized, but hold whole numbers from 0 to "
                f"255: store them as uint8, which is normalized (mean=0 and deviation=1 leave it as it is)"
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
    """The order of axes that makes clips (N, T, H, W, C), if `shape` must be channels-first; else None.

    Frames have fewer than 16 channels, except feature maps, whose height and width are equal.
    """
    _, frames, height, width, channels = shape
    if channels < 16 or height == width != channels:
        return None
    if frames <= 4:
        return 0, 2, 3, 4, 1
    return (0, 1, 3, 4, 2) if height <= 4 else None


def _holds_bytes(clip):
    """Whether a clip in float32 holds byte values: whole numbers from 0 to 255."""
    if clip.dtype == np.uint8 or not np.isfinite(clip).all():
        return False
    return 64 < clip.max() <= 255 and clip.min() >= 0 and bool((clip == np.rint(clip)).all())


def array_classes(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """The class names stored with arrays: ``classes``, or else the numbers from 0 to the largest label."""
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
    """The arrays stored at a path, by name: the `wanted` arrays, and "classes" if it is stored."""
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
            # `open` is called here because np.load leaves a damaged file open.
            with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
                stored = {name: archive[name] for name in names if name in archive}
    except Exception as error:  # damaged files raise any error of zipfile, zlib, ast and struct
        raise ValueError(
            f"ArrayClips: {path} cannot be read: {type(error).__name__}: {checks.clean(str(error))}"
        ) from error
    missing = [name for name in wanted if name not in stored]
    if missing:
        raise ValueError(
            f"ArrayClips: {path} lacks {' and '.join(missing)}; expected: clips (N, T, H, W, C), "
            "labels (N,) and optionally classes (K,)"
        )
    labels = stored["labels"]
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise ValueError(
            f"ArrayClips: labels in {path} must be integers of shape (N,), got {labels.dtype} of shape {labels.shape}"
        )
    return stored
