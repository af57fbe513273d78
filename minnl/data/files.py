"""Datasets of video files: a folder for each class, or a list in a CSV file."""

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
    """Clips of video files, decoded when they are asked for.

    Frames are shrunk while decoding to the size they are used at (the largest, with a range of `short_side`), and kept
    in memory as uint8, up to a limit. Whether a video is in memory changes the time, never the bits.

    Parameters
    ----------
    paths : sequence of str
    labels : sequence of int
    classes : sequence of str
    frames, stride, size, short_side, resize, train, flip, differences, mean, deviation
        As in `ClipDataset`.
    rate : float, optional
        Read every video at this many frames a second. By default each at its own.
    cache_bytes : int
        Memory for decoded videos. Those that come first stay: when every epoch goes through all of them, driving out
        the oldest would leave none that is asked for again in time.

    Raises
    ------
    TypeError, ValueError
        Naming the argument.
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
        self._room = checks.count(type(self).__name__, "cache_bytes", cache_bytes, 0)
        self._cache, self._known, self._lock = {}, {}, threading.Lock()

    def name(self, index: int) -> str:
        return self.paths[index]

    def _length(self, index):
        return self._info(index).slots(self.rate)

    def _info(self, index):
        """What a scan says about a file; each is scanned once, and a bad one stays bad."""
        if index not in self._known:
            try:
                self._known[index] = scan_video(self.paths[index])
            except VideoError as error:
                self._known[index] = error.reason
        if isinstance(self._known[index], str):
            raise VideoError(self.paths[index], self._known[index])
        return self._known[index]

    def _read(self, index, positions, keep=True):
        video = self._cache.get(index)
        if video is not None:
            return video[positions]
        info = self._info(index)
        size = self._stored_size(info)
        whole = info.slots(self.rate) * size[0] * size[1] * 3
        with self._lock:
            fits = keep and index not in self._cache and whole <= self._room
            self._room -= whole if fits else 0
        if not fits:
            return read_video(self.paths[index], positions, size, self.rate, info)
        try:
            video = read_video(self.paths[index], None, size, self.rate, info)
        except BaseException:
            with self._lock:
                self._room += whole
            raise
        with self._lock:
            # Another worker may have read the same video meanwhile.
            self._room += whole if index in self._cache else 0
            self._cache.setdefault(index, video)
        return video[positions]

    def _stored_size(self, info):
        """Size to decode to: the largest that clips are made from, or that of the file where it is smaller."""
        short = None if self.short_side is None else self.short_side[1 if self.train else 0]
        height, width = self._scaled_size(info.height, info.width, short)
        if self.resize == "squash":
            return min(height, info.height), min(width, info.width)
        return (height, width) if height < info.height else (info.height, info.width)


class VideoFolder(VideoFiles):
    """Videos in a folder for each class: ``root/split/class/clip.mp4``.

    The classes are the folders of ``root/train``, sorted by name, where there is one; else those of the split. Videos
    in folders of a class's folder are of that class. Files whose names do not end as those of videos do, hidden files
    and folders, and what operating systems leave behind are ignored: a warning names them, once.

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
        For a split that is missing or empty, or classes in it that ``train`` does not have.
    """

    def __init__(self, root: str | os.PathLike[str], split: str = "train", **options: Any):
        root = os.fspath(root)
        folder = os.path.join(root, split)
        if not os.path.isdir(folder):
            found = ", ".join(folders(root)) or "none" if os.path.isdir(root) else "no such folder"
            raise ValueError(
                f"VideoFolder: {root} has no folder {split!r}; folders there: {found}. "
                "Wanted: root/split/class/clip.mp4"
            )
        train = os.path.join(root, "train")
        classes = folders(train if os.path.isdir(train) else folder)
        strange = sorted(set(folders(folder)) - set(classes))
        if strange:
            raise ValueError(f"VideoFolder: {folder} has classes that {train} has not: {checks.listed(strange)}")
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
                f"VideoFolder: no videos in {folder}. Wanted: {folder}/class/clip, "
                f"with a name ending in one of {' '.join(EXTENSIONS)}"
                + (f". {loose} videos lie in {folder} itself, in no class" if loose else "")
            )
        super().__init__(paths, labels, classes, **options)
        say(f"VideoFolder: {folder}: ignored", ignored)
        if folder == train:
            say(f"VideoFolder: {folder}: classes without a video:", empty)
        say_repeated(self)


class VideoCSV(VideoFiles):
    """Videos listed in a CSV file with the columns ``path,label`` and perhaps ``split``; others are passed over.

    Paths are taken from the folder of the CSV file. Labels are class names, or numbers from 0. The classes are those
    of the rows of the split "train" where there are such, else of all rows: names in order, or 0 to the largest number.

    Parameters
    ----------
    path : str or path-like
    split : str, optional
        Take the rows whose ``split`` is this. By default all rows.
    classes : sequence of str, optional
        The classes, where another file decides on them (the training set's `classes`, for a validation set).
    **options
        As in `VideoFiles`.

    Raises
    ------
    ValueError
        For a file that cannot be read as this, naming the line; for a split without rows; for labels that are not
        among the classes.
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
            classes = _classes([label for _, label, part in rows if part == "train"] or [label for _, label, _ in rows])
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
    """A dataset of a single video file, to be classified: for `views`. Its label, 0, means nothing.

    Parameters
    ----------
    path : str or path-like
    classes : sequence of str
        The classes of the network.
    **options
        As in `VideoFiles`: those the network was trained with.
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
