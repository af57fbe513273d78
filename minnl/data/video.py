"""Video files to arrays.

A file is always decoded from its first frame, because seeking in a file with a broken index returns other frames, and
because only the end of a file shows whether the file is cut short. There are two passes. `scan_video` decodes the whole
file, keeps nothing, and checks it. `read_video` decodes up to the last requested frame and keeps only the requested
frames, scaled, so its memory does not depend on the length of the video.

**Time.** The frames of phones, screen recordings and GIFs do not come at equal intervals. A video of n frames that
lasts d seconds is read as n slots of d / n seconds (with a rate, as ``round(d * rate)`` slots), and a slot holds the
frame on screen at its middle. If frames come at equal intervals, slot k is frame k. If the times of the frames do not
increase (H.264 with B-frames in AVI; joined files), they are not used: the frames are read in the order of the decoder,
at the file's average rate.

**Scaling.** Colours have to be converted in any case (videos hold YCbCr, often with fewer pixels). FFmpeg's swscale
scales down in the same call, averaging over an area, which takes less time than the conversion at full size.

Not applied: the shape of pixels (sample aspect ratio), deinterlacing, transparency.
"""

from __future__ import annotations

import math
import numbers
import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from minnl import checks
from minnl.backend import Array
from minnl.data.decoder import Video, VideoError, size_upright

# A healthy file may end this much before the end that it announces: 3 frames, or 1 % of the duration, whichever is more
# (docs/data.md has the measurements).
SLACK_FRAMES = 3
SLACK_SHARE = 0.01


class VideoInfo(NamedTuple):
    """The result of `scan_video`.

    frames : int
        The number of decoded frames, without frames marked as not to be shown.
    duration : float
        Seconds from the start of the first frame to the end of the last.
    height, width : int
        Size of the first frame, upright.
    even : bool
        Whether the frames are read at equal intervals because their times do not increase.
    """

    frames: int
    duration: float
    height: int
    width: int
    even: bool = False

    def slots(self, rate: float | None = None) -> int:
        """The length of the video at `rate` frames per second; for None its own number of frames."""
        return self.frames if rate is None else max(1, round(self.duration * rate))


def scan_video(path: str | os.PathLike[str]) -> VideoInfo:
    """Decode a whole file, keeping nothing, to check it for damage and to find its length.

    A file counts as cut short if its video ends more than 3 frames and more than 1 % before the end that the file
    announces (the video's duration; in AVI files, its number of frames). Formats that announce nothing, such as MPEG
    transport streams, cannot be checked in this way.

    Parameters
    ----------
    path : str or path-like

    Returns
    -------
    info : VideoInfo

    Raises
    ------
    VideoError
        If the file cannot be used; the message names the file and the reason.
    ImportError
        If PyAV is not installed.
    """
    with Video(path) as video:
        times = []
        for time, seconds, frame in video.frames(doubt=True):
            if not times:
                height, width = size_upright(frame)
            times.append(time)
            tail = seconds
        if not times:
            raise VideoError(path, "holds no frames")
        even = None in times or any(later <= time for time, later in zip(times, times[1:], strict=False))
        if even:
            times, tail = [(times[0] or 0) + k * video.interval for k in range(len(times))], video.interval
        # The last frame has no length in some files; it gets the average length.
        interval = (times[-1] - times[0]) / (len(times) - 1) if len(times) > 1 else video.interval
        end = times[-1] + (tail or interval)
        announced, reached = video.announced_end(), end
        if announced is None:
            # The end that the file announces is the end of its longest stream, which may be a sound stream.
            announced, reached = video.announced_end_of_file(), max(end, video.furthest)
        if announced is not None and announced - reached > max(SLACK_FRAMES * interval, SLACK_SHARE * announced):
            raise VideoError(path, f"cut short: {len(times)} frames are there, {announced - reached:.2f} s are missing")
        return VideoInfo(len(times), end - times[0], height, width, even)


def read_video(
    path: str | os.PathLike[str], positions: Array | Sequence[int] | None = None,
    size: int | Sequence[int] | None = None, rate: float | None = None, info: VideoInfo | None = None,
) -> Array:  # fmt: skip
    """Frames of a video, upright, RGB, at a constant rate.

    Parameters
    ----------
    path : str or path-like
    positions : sequence of int, optional
        Positions of frames from 0 to ``info.slots(rate) - 1``, in any order, repeats allowed. By default all frames.
    size : (int, int), optional
        Height and width to scale to. By default the size of the file.
    rate : float, optional
        Frames per second. By default the file's average rate, which gives every frame once if they come evenly.
    info : VideoInfo, optional
        The result of `scan_video` for this file, which saves its pass.

    Returns
    -------
    frames : uint8 ndarray of shape (len(positions), H, W, 3)

    Raises
    ------
    VideoError
        If the file cannot be used.
    ValueError
        If the video does not have a position, or rate or size is not positive.
    ImportError
        If PyAV is not installed.
    """
    check_rate("read_video", rate)
    info = scan_video(path) if info is None else info
    slots = info.slots(rate)
    positions = np.arange(slots) if positions is None else np.asarray(positions)
    if positions.size and positions.dtype.kind not in "iu":
        raise TypeError(f"read_video: positions must be integers, got {positions.dtype}")
    if positions.size and not 0 <= positions.min() <= positions.max() < slots:
        raise ValueError(
            f"read_video: positions must lie in 0 to {slots - 1} for {path}, got {positions.min()} to {positions.max()}"
        )
    height, width = (info.height, info.width) if size is None else checks.pair("read_video", "size", size)
    read = np.empty((len(positions), height, width, 3), np.uint8)
    waiting = sorted(range(len(positions)), key=positions.__getitem__, reverse=True)
    with Video(path) as video:
        count, start, shown, picture = 0, None, None, None
        for time, _, frame in video.frames():
            start = time if start is None else start
            since = count * info.duration / info.frames if info.even else time - start
            # A slot holds the last frame that starts before its middle, which is known when a later frame comes.
            while waiting and shown is not None and since > _middle(positions[waiting[-1]], slots, info):
                picture = video.picture(shown, height, width) if picture is None else picture
                read[waiting.pop()] = picture
            if not waiting:
                return read
            shown, picture, count = frame, None, count + 1
        if count != info.frames:
            raise VideoError(path, f"has changed: the scan found {info.frames} frames, now there are {count}")
        read[waiting] = video.picture(shown, height, width)
    return read


def check_rate(where, rate):
    """`rate`; an error unless it is None or a finite number above 0."""
    if rate is not None and (isinstance(rate, bool) or not isinstance(rate, numbers.Real)):
        raise TypeError(f"{where}: rate must be a number of frames per second, got {rate!r}")
    if rate is not None and not 0 < rate < math.inf:
        raise ValueError(f"{where}: rate must be above 0 frames per second, and finite; got {rate!r}")
    return rate


def _middle(slot, slots, info):
    return (float(slot) + 0.5) * info.duration / slots
