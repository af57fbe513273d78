"""Video data: from files and arrays to batches.

A dataset is any object with

==========================  ==========================================================================
``len(dataset)``            number of videos
``dataset.classes``         tuple of class names
``dataset.shape``           (T, H, W, C) of a clip
``dataset.clip(i, rng)``    a C-contiguous float32 array of that shape, and the class as an int. All random
                            numbers come from `rng`, a `numpy.random.Generator`. Several threads may call it
                            at once. It raises ValueError for a sample that cannot be used
``dataset.name(i)``         the name of video i in reports
==========================  ==========================================================================

`VideoFolder`, `VideoCSV`, `ArrayClips` and `RelationClips` are datasets. `Loader` makes batches of any dataset. `Views`
takes many clips of one video. The user's page is docs/data.md.
"""

from __future__ import annotations

import os
import warnings
from typing import Any

from minnl.data import transforms
from minnl.data.arrays import ArrayClips, array_classes
from minnl.data.clips import ClipDataset
from minnl.data.files import VideoCSV, VideoFolder, one_video
from minnl.data.listing import repeated
from minnl.data.loader import Loader
from minnl.data.synthetic import RelationClips
from minnl.data.video import VideoError, VideoInfo, read_video, scan_video
from minnl.data.views import Views

__all__ = [
    "ArrayClips",
    "ClipDataset",
    "Loader",
    "RelationClips",
    "VideoCSV",
    "VideoError",
    "VideoFolder",
    "VideoInfo",
    "Views",
    "one_video",
    "open_dataset",
    "read_video",
    "scan_video",
    "transforms",
]


def open_dataset(
    path: str | os.PathLike[str], train: bool, split: str | None = None, **options: Any
) -> VideoFolder | VideoCSV | ArrayClips:
    """Open the dataset at a path.

    ==============================================  ==================================
    at the path                                     opened as
    ==============================================  ==================================
    a folder with ``split/class/clip.mp4``          `VideoFolder`
    a folder with ``split.npz``                     `ArrayClips`
    a folder with ``split/clips.npy``               `ArrayClips`
    a folder with ``split.csv``                     `VideoCSV`
    a file ``.csv`` with a column ``split``         `VideoCSV`
    ==============================================  ==================================

    The classes of "train" hold for every split. A warning names files of another split that are in "train" too. Data is
    always opened by split, since an undivided file would be its own validation set. Open such a file with its class.

    Parameters
    ----------
    path : str or path-like
    train : bool
        Whether to draw clips at random (training) or to take the middle of each video.
    split : str, optional
        By default "train" if `train` is true, else "val".
    **options
        Options of the dataset's class: frames, stride, size, and so on.

    Returns
    -------
    dataset : VideoFolder, VideoCSV or ArrayClips

    Raises
    ------
    ValueError
        If the path holds no such dataset, or the dataset cannot be used.
    """
    path, split = os.fspath(path), split or ("train" if train else "val")
    dataset = _opened(path, split, train, options)
    if split != "train":
        found = repeated(dataset.paths, _train_paths(path))
        if found:
            warnings.warn(
                f"open_dataset: {len(found)} of {len(dataset.paths)} files of {split} are in train too (same size, "
                f"first and last bytes), such as {found[0]!r}: they do not measure how well the network does on new "
                "videos",
                RuntimeWarning,
            )
    return dataset


def _train_paths(path):
    """The files of the training set at a path; an empty list if there is none."""
    train = os.path.join(path, "train")
    arrays = [file for file in (train + ".npz", os.path.join(train, "clips.npy")) if os.path.exists(file)]
    if arrays:
        return arrays
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # warnings about the training set belong to its own opening
        try:
            return _opened(path, "train", False, {}).paths
        except ValueError:
            return []  # and so does an error


def _opened(path, split, train, options):
    if os.path.isfile(path) and path.lower().endswith(".csv"):
        return VideoCSV(path, split=split, train=train, **options)
    if os.path.isfile(path):
        raise ValueError(
            f"open_dataset: {path} must be a folder or a .csv file with a column split. To divide arrays, "
            f"name the folder that holds train.npz and val.npz"
        )
    stem, train_stem = os.path.join(path, split), os.path.join(path, "train")
    endings = [ending for ending in ("", ".npz", ".csv") if os.path.exists(stem + ending)]
    if len(endings) > 1:
        names = [split + ending for ending in endings]
        warnings.warn(f"open_dataset: {path} has {' and '.join(names)}; {names[0]} is used", RuntimeWarning)
    if os.path.isdir(stem) and not os.path.exists(os.path.join(stem, "clips.npy")):
        return VideoFolder(path, split, train=train, **options)
    if endings:
        dataset_class, classes_of = (
            (VideoCSV, lambda file: VideoCSV(file).classes) if endings[0] == ".csv" else (ArrayClips, array_classes)
        )
        if os.path.exists(train_stem + endings[0]):
            options.setdefault("classes", classes_of(train_stem + endings[0]))
        return dataset_class(stem + endings[0], train=train, **options)
    found = ", ".join(sorted(os.listdir(path))[:10]) or "nothing" if os.path.isdir(path) else "no such folder"
    raise ValueError(
        f"open_dataset: no {split!r} data in {path}. Expected there: {split}/class/clip.mp4, {split}.npz, "
        f"{split}/clips.npy with labels.npy, or {split}.csv; found: {found}"
    )
