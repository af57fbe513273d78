"""Datasets of video files, from a folder per class or from a CSV file."""

from __future__ import annotations

import csv
import os
import threading
from collections.abc import Sequence
from typing import Any, Literal

from minnl import checks
from minnl.data import transforms
from minnl.data.clips import ClipDataset, numbered_classes
from minnl.data.listing import EXTENSIONS, entries, folders, hidden, say, say_repeated, walk
from minnl.data.video import VideoError, check_rate, read_video, scan_video


class VideoFiles(ClipDataset):
    """Clips of video files, decoded on demand.

    Decoding scales frames to the size of their use (the largest, with a range of `short_side`). Frames are kept in
    memory as uint8, up to a limit. The bits of a clip do not depend on whether its video is in memory.

    Parameters
    ----------
    paths : sequence of str
    labels : sequence of int
    classes : sequence of str
    frames, stride, size, short_side, resize, train, flip, differences, mean, deviation
        As in `ClipDataset`.
    rate : float, optional
        The rate at which every video is read, in frames per second. By default each video has its own rate.
    cache_bytes : int
        Memory for decoded videos in bytes. The first videos stay in memory: every epoch reads all videos, so a cache
        that drops the oldest would drop each video before it is read again.

    Raises
    ------
    TypeError, ValueError
        If an argument is wrong; the message names it.
    """

    def __init__(
        self,
        paths: Sequence[str | os.PathLike[str]],
        labels: Sequence[int],
        classes: Sequence[str],
        *,
        frames: int = 16,
        stride: int | Literal["whole"] = 2,
        size: int | Sequence[int] = 112,
        short_side: int | Sequence[int] | None = None,
        resize: Literal["crop", "squash"] = "crop",
        train: bool = False,
        flip: bool = True,
        differences: bool = False,
        rate: float | None = None,
        cache_bytes: int = 2**30,
        mean: float | Sequence[float] = transforms.MEAN,
        deviation: float | Sequence[float] = transforms.DEVIATION,
    ):
        super().__init__(
            classes,
            labels,
            frames=frames,
            stride=stride,
            size=size,
            short_side=short_side,
            resize=resize,
            train=train,
            flip=flip,
            differences=differences,
            mean=mean,
            deviation=deviation,
        )
        self.paths = [os.fsdecode(path) for path in paths]
        if len(self.paths) != len(self.labels):
            raise ValueError(f"{type(self).__name__}: got {len(self.paths)} paths and {len(self.labels)} labels")
        self.rate = check_rate(type(self).__name__, rate)
        self._free_bytes = checks.count(type(self).__name__, "cache_bytes", cache_bytes, 0)
        self._cache, self._scans, self._lock = {}, {}, threading.Lock()

    def name(self, index: int) -> str:
        return self.paths[index]

    def _length(self, index):
        return self._info(index).slots(self.rate)

    def _info(self, index):
        """The scan of a file. Each file is scanned once; the error of an unusable file is raised each time."""
        if index not in self._scans:
            try:
                self._scans[index] = scan_video(self.paths[index])
            except VideoError as error:
                self._scans[index] = error.reason
        if isinstance(self._scans[index], str):
            raise VideoError(self.paths[index], self._scans[index])
        return self._scans[index]

    def _read(self, index, positions, keep=True):
        video = self._cache.get(index)
        if video is not None:
            return video[positions]
        info = self._info(index)
        size = self._stored_size(info)
        whole = info.slots(self.rate) * size[0] * size[1] * 3
        with self._lock:
            fits = keep and index not in self._cache and whole <= self._free_bytes
            self._free_bytes -= whole if fits else 0
        if not fits:
            return read_video(self.paths[index], positions, size, self.rate, info)
        try:
            video = read_video(self.paths[index], None, size, self.rate, info)
        except BaseException:
            with self._lock:
                self._free_bytes += whole
            raise
        with self._lock:
            # Another worker may have read the same video meanwhile.
            self._free_bytes += whole if index in self._cache else 0
            self._cache.setdefault(index, video)
        return video[positions]

    def _stored_size(self, info):
        """The size of decoded frames: the largest scaled size of a clip, or the size of the file if that is smaller."""
        short = None if self.short_side is None else self.short_side[1 if self.train else 0]
        height, width = self._scaled_size(info.height, info.width, short)
        if self.resize == "squash":
            return min(height, info.height), min(width, info.width)
        return (height, width) if height < info.height else (info.height, info.width)


class VideoFolder(VideoFiles):
    """Videos in a folder for each class: ``root/split/class/clip.mp4``.

    The classes are the folders of ``root/train`` if it exists, else those of the split, sorted by name. Videos in
    subfolders of a class's folder belong to the class. Files without the ending of a video, hidden files and folders,
    and folders of operating systems are ignored; one warning names them.

    Parameters
    ----------
    root : str or path-like
    split : str
        Such as "train" or "val".
    **options
        As in `VideoFiles`.

    Raises
    ------
    ValueError
        If the split is missing or empty, or has classes that ``train`` does not have.
    """

    def __init__(self, root: str | os.PathLike[str], split: str = "train", **options: Any):
        root = os.fspath(root)
        folder = os.path.join(root, split)
        if not os.path.isdir(folder):
            found = ", ".join(folders(root)) or "none" if os.path.isdir(root) else "no such folder"
            raise ValueError(
                f"VideoFolder: {root} has no folder {split!r}; folders there: {found}. "
                "Expected: root/split/class/clip.mp4"
            )
        train = os.path.join(root, "train")
        classes = folders(train if os.path.isdir(train) else folder)
        strange = sorted(set(folders(folder)) - set(classes))
        if strange:
            raise ValueError(f"VideoFolder: {folder} has classes that {train} lacks: {checks.listed(strange)}")
        paths, labels, ignored, empty = [], [], [], []
        for entry in entries(folder):
            if not entry.is_dir() or hidden(entry):
                ignored.append(entry.path)
        for label, name in enumerate(classes):
            inside = os.path.join(folder, name)
            clips = walk(inside, {os.path.realpath(inside)}, ignored) if os.path.isdir(inside) else []
            paths += clips
            labels += [label] * len(clips)
            empty += [] if clips else [name]
        if not paths:
            loose = sum(name.lower().endswith(EXTENSIONS) for name in os.listdir(folder))
            raise ValueError(
                f"VideoFolder: no videos in {folder}. Expected: {folder}/class/clip, "
                f"with a name ending in one of {' '.join(EXTENSIONS)}"
                + (f". {loose} videos are in {folder} itself, not in a class" if loose else "")
            )
        super().__init__(paths, labels, classes, **options)
        say(f"VideoFolder: {folder}: ignored", ignored)
        if folder == train:
            say(f"VideoFolder: {folder}: classes without a video:", empty)
        say_repeated(self)


class VideoCSV(VideoFiles):
    """Videos listed in a CSV file with the columns ``path,label`` and optionally ``split``; other columns are ignored.

    Paths are relative to the folder of the CSV file. Labels are class names, or numbers from 0. The classes are those
    of the rows of split "train", or of all rows if that split is absent: sorted names, or 0 to the largest number.

    Parameters
    ----------
    path : str or path-like
    split : str, optional
        The value of ``split`` in the rows to use. By default all rows are used.
    classes : sequence of str, optional
        The class names of another dataset: a validation set needs the `classes` of the training set.
    **options
        As in `VideoFiles`.

    Raises
    ------
    ValueError
        If the file cannot be read (the message has the line), the split has no rows, or a label is not a class.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        split: str | None = None,
        classes: Sequence[str] | None = None,
        **options: Any,
    ):
        path = os.fspath(path)
        rows = _csv_rows(path, split)
        if classes is None:
            classes = _classes([label for _, label, s in rows if s == "train"] or [label for _, label, _ in rows])
        number = {name: k for k, name in enumerate(classes)}
        rows = [row for row in rows if split is None or row[2] == split]
        if not rows:
            raise ValueError(f"VideoCSV: {path} has no rows" + ("" if split is None else f" of split {split!r}"))
        strange = sorted({label for _, label, _ in rows} - set(number))
        if strange:
            raise ValueError(
                f"VideoCSV: {path} has labels that are not among the classes {checks.listed(number)}: "
                f"{checks.listed(strange)}"
            )
        folder = os.path.dirname(path)
        super().__init__(
            [os.path.join(folder, clip) for clip, _, _ in rows],
            [number[label] for _, label, _ in rows],
            classes,
            **options,
        )
        say_repeated(self)


def one_video(path: str | os.PathLike[str], classes: Sequence[str], **options: Any) -> VideoFiles:
    """A dataset of a single video file without a class, for `views`. Its label is always 0.

    Parameters
    ----------
    path : str or path-like
    classes : sequence of str
        The classes of the network.
    **options
        As in `VideoFiles`, with the values of the network's training.
    """
    return VideoFiles([os.fspath(path)], [0], classes, **options)


def _csv_rows(path, split):
    """(path, label, split) of every line."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, skipinitialspace=True)
            reader.fieldnames = named = [name.strip() for name in reader.fieldnames or []]
            wanted = ["path", "label"] + (["split"] if split is not None else [])
            if any(named.count(name) != 1 for name in wanted):
                raise ValueError(
                    f"VideoCSV: the first line of {path} must name the columns {','.join(wanted)}, each once, "
                    f"got {','.join(named) or 'nothing'}"
                )
            rows = []
            for row in reader:
                values = [(row[name] or "").strip() for name in wanted]
                if None in row or not all(values):
                    raise ValueError(
                        f"VideoCSV: line {reader.line_num} of {path} must have a value for each of "
                        f"{', '.join(wanted)} and none beyond the columns, got {checks.quoted(list(row.values()))}"
                    )
                rows.append((values[0], values[1], (row.get("split") or "").strip()))
            return rows
    except OSError as error:
        raise ValueError(f"VideoCSV: {path} cannot be read: {error.strerror}") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"VideoCSV: {path} is not a CSV file in UTF-8: {checks.clean(str(error))}") from None


def _classes(labels):
    if not all(label.isdecimal() for label in labels):
        return tuple(sorted(set(labels)))
    return numbered_classes("VideoCSV", list(map(int, labels)))
