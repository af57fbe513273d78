"""Video files to arrays, by PyAV (FFmpeg's libraries).

PyAV is imported on first use: the rest of minnl works without it (``pip install "av>=17,<19"``).

A file is decoded from its first frame on, never from the middle: seeking lands on other frames where an index is
broken, and a file cut short shows itself only at its end. So there are two passes. `scan_video` decodes the whole file,
keeps nothing, and judges it. `read_video` decodes as far as the last frame asked for, and keeps only those asked for,
scaled already: its memory is that of what it returns, however long the video.

**Time.** Frames of phones, screen recordings and GIFs do not come at equal intervals. A video of n frames that lasts
d seconds is read as n slots of d / n seconds (given a rate, as ``round(d * rate)`` slots), and a slot shows what is on
screen in its middle. Where frames do come at equal intervals, slot k is frame k.

**Scaling.** Colours have to be converted in any case (videos hold YCbCr, often with fewer pixels), and FFmpeg's swscale
shrinks in the same call, averaging over an area, in less time than it takes not to shrink.

Not applied: the shape of pixels (sample aspect ratio), mirroring, deinterlacing, transparency.
"""

import os
import re
from typing import NamedTuple

import numpy as np

from minnl import checks

# What a healthy file may lack of the video it announces; docs/data.md has the figures behind it.
SLACK_FRAMES = 3
SLACK_SHARE = 0.01


class VideoError(ValueError):
    """A video file that cannot be used: unreadable, empty, without video, damaged, or cut short.

    Attributes
    ----------
    path, reason : str
    """

    def __init__(self, path, reason):
        super().__init__(path, reason)
        self.path, self.reason = os.fspath(path), reason

    def __str__(self):
        return f"{self.path}: {self.reason}"


class VideoInfo(NamedTuple):
    """What `scan_video` finds.

    frames : int
        Frames that decoding gives (those marked as not to be shown left out).
    duration : float
        Seconds from the start of the first frame to the end of the last.
    height, width : int
        Size of the first frame, upright.
    """

    frames: int
    duration: float
    height: int
    width: int

    def slots(self, rate=None):
        """Length of the video at `rate` frames a second; its own number of frames for None."""
        return self.frames if rate is None else max(1, round(self.duration * rate))


def scan_video(path):
    """Decode a whole file, keeping nothing, to see whether it is sound and how long it is.

    A file counts as cut short if its video ends more than 3 frames and more than 1 % before the end that the file
    announces (the video's duration; in AVI files, its number of frames). Formats that announce nothing, such as MPEG
    transport streams, cannot be judged by that.

    Parameters
    ----------
    path : str or path-like

    Returns
    -------
    info : VideoInfo

    Raises
    ------
    VideoError
        Naming the file and the reason.
    ImportError
        Without PyAV.
    """
    with _Video(path) as video:
        times = []
        for time, seconds, frame in video.frames():
            if not times:
                height, width = _size_upright(frame)
            times.append(time)
            tail = seconds
        if not times:
            raise VideoError(path, "holds no frames")
        # The last frame has no length in some files; it gets that of an average one.
        interval = (times[-1] - times[0]) / (len(times) - 1) if times[-1] > times[0] else video.interval
        end = times[-1] + (tail or interval)
        announced, reached = video.announced_end(), end
        if announced is None:
            # What is announced for the file as a whole is the end of its longest stream, be it sound.
            announced, reached = video.announced_end_of_file(), max(end, video.furthest)
        if announced is not None and announced - reached > max(SLACK_FRAMES * interval, SLACK_SHARE * announced):
            raise VideoError(path, f"cut short: {len(times)} frames are there, {announced - reached:.2f} s are missing")
        return VideoInfo(len(times), end - times[0], height, width)


def read_video(path, positions=None, size=None, rate=None, info=None):
    """Frames of a video, upright, RGB, at a constant rate.

    Parameters
    ----------
    path : str or path-like
    positions : sequence of int, optional
        Which frames, in any order, repeats allowed, from 0 to ``info.slots(rate) - 1``. All, by default.
    size : (int, int), optional
        Height and width to scale to. As in the file, by default.
    rate : float, optional
        Frames a second. The file's own average, by default, which gives every frame once where they come evenly.
    info : VideoInfo, optional
        What `scan_video` gave for this file, if that is known, to save its pass.

    Returns
    -------
    frames : uint8 ndarray of shape (len(positions), H, W, 3)

    Raises
    ------
    VideoError
        For a file that cannot be used.
    ValueError
        For a position that the video does not have, or a rate or size that is not positive.
    ImportError
        Without PyAV.
    """
    if rate is not None and not rate > 0:
        raise ValueError(f"read_video: rate must be above 0 frames a second, got {rate!r}")
    info = scan_video(path) if info is None else info
    slots = info.slots(rate)
    positions = np.arange(slots) if positions is None else np.asarray(positions, dtype=np.int64)
    if positions.size and not 0 <= positions.min() <= positions.max() < slots:
        raise ValueError(
            f"read_video: positions must lie in 0 to {slots - 1} for {path}, got {positions.min()} to {positions.max()}"
        )
    height, width = (info.height, info.width) if size is None else checks.pair("read_video", "size", size)
    read = np.empty((len(positions), height, width, 3), np.uint8)
    waiting = sorted(range(len(positions)), key=positions.__getitem__, reverse=True)
    with _Video(path) as video:
        start, shown, picture = None, None, None
        for time, _, frame in video.frames():
            start = time if start is None else start
            # A slot shows the last frame that has come by its middle: known once a later frame comes.
            while waiting and shown is not None and time - start > _middle(positions[waiting[-1]], slots, info):
                picture = video.picture(shown, height, width) if picture is None else picture
                read[waiting.pop()] = picture
            if not waiting:
                return read
            shown, picture = frame, None
        if shown is None:
            raise VideoError(path, "holds no frames")
        read[waiting] = video.picture(shown, height, width)
    return read


def _middle(slot, slots, info):
    return (float(slot) + 0.5) * info.duration / slots


def _turns(frame):
    """Quarter turns to the left that put a frame upright."""
    return round(frame.rotation / 90) % 4


def _size_upright(frame):
    return (frame.width, frame.height) if _turns(frame) % 2 else (frame.height, frame.width)


class _Video:
    """An open file and its first video stream; FFmpeg's errors become VideoError."""

    def __init__(self, path):
        try:
            import av
        except ImportError as error:
            raise ImportError('video files need PyAV: pip install "av>=17,<19"') from error
        self.path, self.errors, self.furthest = path, (av.error.FFmpegError, OSError), 0.0
        self.area = av.video.reformatter.Interpolation.AREA
        self.reformatter = av.video.reformatter.VideoReformatter()
        try:
            # Titles and the like that are not UTF-8 are no reason to refuse a video.
            self.container = av.open(os.fspath(path), metadata_errors="replace")
        except self.errors as error:
            raise VideoError(path, _why(path, error)) from None
        # The cover picture of a music file is a video stream to FFmpeg.
        films = [s for s in self.container.streams.video if not s.disposition & av.stream.Disposition.attached_pic]
        try:
            if not films:
                raise VideoError(path, "has no video stream")
            if films[0].codec_context is None:
                raise VideoError(path, "holds video of a kind that this FFmpeg cannot decode")
        except VideoError:
            self.container.close()
            raise
        self.stream = films[0]
        # The loader's workers run side by side; and with one thread a damaged file fails the same way each time.
        self.stream.codec_context.thread_count = 1

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.container.close()

    @property
    def interval(self):
        """Seconds a frame, as far as the headers tell."""
        return 1 / float(self.stream.guessed_rate or 25)

    def frames(self):
        """(time, length, frame) one by one: seconds, never going back; a length of 0 is unknown."""
        count, time = 0, -float("inf")
        try:
            for packet in self.container.demux():
                if packet.pts is not None:
                    self.furthest = max(self.furthest, float((packet.pts + (packet.duration or 0)) * packet.time_base))
                if packet.stream.index != self.stream.index:
                    continue
                for frame in packet.decode():
                    time = max(time, count * self.interval if frame.time is None else frame.time)
                    yield time, float((frame.duration or 0) * frame.time_base), frame
                    count += 1
        except self.errors as error:
            raise VideoError(self.path, f"decoding failed after {count} frames: {_why(self.path, error)}") from None

    def picture(self, frame, height, width):
        """A frame as uint8 RGB of shape (height, width, 3), turned upright."""
        turns = _turns(frame)
        if turns % 2:
            height, width = width, height
        # One reformatter for the whole file: set up anew for each frame it takes three times as long. One thread: with
        # more, frames as small as these take two to five times as long, and the workers run side by side already.
        try:
            rgb = self.reformatter.reformat(frame, width, height, "rgb24", interpolation=self.area, threads=1)
        except self.errors as error:
            raise VideoError(self.path, f"its colours cannot be converted: {_why(self.path, error)}") from None
        return np.rot90(rgb.to_ndarray(), turns)

    def announced_end(self):
        """Second at which the video stream says that it ends, or None."""
        stream = self.stream
        if self.container.format.name == "avi":
            # FFmpeg cuts an AVI's duration down to what is there; the number of frames it leaves alone. In other
            # formats that number counts frames that are not to be shown, or never got into the file.
            return float(stream.frames / stream.average_rate) if stream.frames and stream.average_rate else None
        if stream.duration:
            return float(((stream.start_time or 0) + stream.duration) * stream.time_base)
        tag = re.fullmatch(r"(\d+):(\d+):(\d+\.?\d*)", stream.metadata.get("DURATION", ""))
        return 3600 * int(tag[1]) + 60 * int(tag[2]) + float(tag[3]) if tag else None

    def announced_end_of_file(self):
        """Second at which the file as a whole says that it ends, or None."""
        return self.container.duration / 1e6 if self.container.duration else None


def _why(path, error):
    if os.path.isfile(path) and os.path.getsize(path) == 0:
        return "is empty"
    return error.strerror or str(error)
