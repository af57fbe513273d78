"""Decoding of one video file with PyAV (FFmpeg's libraries): local files only, from the start, with damage detection.

PyAV is imported on first use; the rest of minnl works without it (``pip install "av>=17.1,<19"``).

**Local regular files only.** FFmpeg never opens a path: Python opens the file, and FFmpeg reads through the Python
object. So no name is interpreted as a URL, and pipes and devices are refused. Only formats that contain their video are
read. Lists and playlists, which open other files, are refused, and so is every further opening.

**Damage.** FFmpeg conceals errors and goes on. Here a frame that FFmpeg calls corrupt, or an error that it would
conceal, makes the file an error. Not all damage is found: docs/data.md has figures.
"""

import os
import re
import stat
import time

import numpy as np

from minnl.data.structure import fault

# FFmpeg's names of the formats that minnl reads. "mov" includes mp4, and "mpeg" means program streams.
FORMATS = (
    "mov,matroska,avi,gif,apng,mpeg,mpegts,asf,flv,ogg,mxf,nut,dv,rm,ivf,obu,"
    "mpegvideo,m4v,h264,hevc,vvc,vc1,mjpeg,yuv4mpegpipe"
)
MOST_PIXELS = 2**26  # the largest number of pixels in a frame, twice that of 8K television
LIMIT = f"no frame may have more than {MOST_PIXELS:,} pixels"
PATIENCE = 60.0  # the time limit in seconds for opening a file, and for each frame
OTHER_SHAPE = 0.02  # a relative change of height / width above this is an error, since rounding changes it less
# Codecs whose packets each hold one frame to be shown.
ONE_EACH = ("h264", "hevc", "vp9", "av1", "mpeg1video", "mpeg2video", "mjpeg", "ffv1")


def shown(path):
    """A path for a terminal, with escapes for characters that are not printable or would move the cursor."""
    path = os.fsdecode(path) if isinstance(path, (bytes, os.PathLike)) else str(path)
    return path if path.isprintable() else ascii(path)


class VideoError(ValueError):
    """A video file that cannot be used: unreadable, empty, without video, damaged, or cut short.

    Attributes
    ----------
    path, reason : str
    """

    def __init__(self, path: str | os.PathLike[str], reason: str):
        super().__init__(path, reason)
        self.path, self.reason = os.fspath(path), reason

    def __str__(self):
        return f"{shown(self.path)}: {self.reason}"


class Video:
    """An open file and its first video stream; FFmpeg's errors become VideoError."""

    def __init__(self, path):
        try:
            import av
        except ImportError as error:
            raise ImportError('video files need PyAV: pip install "av>=17.1,<19"') from error
        self.av, self.path, self.furthest = av, path, 0.0
        # PyAV's own computations raise the last four errors for damaged headers.
        self.errors = (av.error.FFmpegError, OSError, IndexError, OverflowError, UnicodeError, ZeroDivisionError)
        self.area = av.video.reformatter.Interpolation.AREA
        self.reformatter = av.video.reformatter.VideoReformatter()
        self.source = _Source(path)
        try:
            self.stream = self._open()
            self.kind, self.codec = self.container.format.name, self.stream.codec_context.codec.canonical_name
        except BaseException:
            self.source.close()
            raise

    def _open(self):
        av = self.av
        # "explode" makes FFmpeg stop at an error that the decoder could conceal.
        decoding = {"err_detect": "crccheck+explode", "max_pixels": str(MOST_PIXELS)}
        try:
            # A title that is not UTF-8 does not make a video unusable. PyAV 17.0 crashes on `options`.
            self.container = av.open(
                self.source, metadata_errors="replace", buffer_size=2**16, options={"max_pixels": str(MOST_PIXELS)},
                container_options={"format_whitelist": FORMATS, "protocol_whitelist": "none"},
            )  # fmt: skip
        except av.error.ArgumentError:
            raise VideoError(self.path, f"is damaged, or not in one of the formats {FORMATS}") from None
        except self.errors as error:
            raise VideoError(self.path, _why(error)) from None
        # FFmpeg lists the cover picture of a music file as a video stream.
        films = [s for s in self.container.streams.video if not s.disposition & av.stream.Disposition.attached_pic]
        if not films:
            raise VideoError(self.path, "has no video stream")
        context = films[0].codec_context
        if context is None:
            raise VideoError(self.path, "holds video in a codec that this FFmpeg cannot decode")
        if context.width * context.height > MOST_PIXELS:
            raise VideoError(self.path, f"announces frames of {context.height} x {context.width} pixels; {LIMIT}")
        # One thread per file, since the loader's workers run in parallel, and since errors are then reproducible.
        context.thread_count, context.options = 1, decoding
        return films[0]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.container.close()
        self.source.close()

    @property
    def interval(self):
        """Seconds per frame according to the headers; 1 / 25 if they have no rate."""
        return 1 / float(self.stream.average_rate or self.stream.guessed_rate or 25)

    def frames(self, doubt=False):
        """Yield (time, length, frame), in seconds of the file. A time of None or a length of 0 is unknown.

        `doubt` adds the checks for damage that need a pass over the whole file.
        """
        witness, account = None, _Account(self)
        if doubt:
            if wrong := fault(self.source.file, self.kind):
                raise VideoError(self.path, wrong)
            self.source.wait()
            witness = self._witness()
        try:
            for packet in self.container.demux():
                if packet.pts is not None:
                    self.furthest = max(self.furthest, float((packet.pts + (packet.duration or 0)) * packet.time_base))
                if packet.stream.index != self.stream.index:
                    continue
                account.take_packet(packet)
                for frame in packet.decode():
                    account.take_frame(frame)
                    yield frame.time, float((frame.duration or 0) * frame.time_base), frame
                    self.source.wait()
                if witness:
                    witness.decode(packet if packet.size else None)
                self.source.check()
                if not packet.size and packet.dts is None:
                    break  # the decoder is empty; PyAV may fail on later packets if streams have appeared midway
        except self.errors as error:
            account.check_data()
            why = _why(error)
            if isinstance(error, self.av.error.ArgumentError):  # FFmpeg rarely has another reason for this error
                why += f" ({LIMIT})"
            raise VideoError(self.path, f"decoding failed after {account.count} frames: {why}") from None
        account.check_data()
        if doubt:
            account.check_frames()

    def _witness(self):
        """A second decoder that finds damage which FFmpeg's own decoder does not check for; or None."""
        context = self.stream.codec_context
        eight_bits = context.format is not None and all(c.bits == 8 for c in context.format.components)
        if self.codec != "vp9" or not eight_bits:
            return None
        try:
            witness = self.av.CodecContext.create("libvpx-vp9", "r")
        except self.av.codec.codec.UnknownCodecError:
            return None
        witness.thread_count = 1
        return witness

    def picture(self, frame, height, width):
        """A frame as uint8 RGB of shape (height, width, 3), turned upright."""
        swapped, rows, columns = _way_up(frame)
        if swapped:
            height, width = width, height
        # The whole file shares one reformatter, since a new one for each frame takes three times as long. It has one
        # thread: with more, such small frames take two to five times as long, and the workers run in parallel already.
        try:
            rgb = self.reformatter.reformat(frame, width, height, "rgb24", interpolation=self.area, threads=1)
        except self.errors as error:
            raise VideoError(self.path, f"its colours cannot be converted: {_why(error)}") from None
        rgb = rgb.to_ndarray()
        return (rgb.swapaxes(0, 1) if swapped else rgb)[::rows, ::columns]

    def announced_end(self):
        """The end of the video stream in seconds, according to the file, or None."""
        stream = self.stream
        if self.kind == "avi":
            # FFmpeg corrects an AVI's duration to the data that it finds, but keeps the number of frames. In other
            # formats that number includes frames that are not to be shown or were never written.
            return float(stream.frames / stream.average_rate) if stream.frames and stream.average_rate else None
        if "matroska" in self.kind or self.kind == "mpeg":
            # Without a duration of the stream, FFmpeg returns that of the file, which may be the duration of the sound.
            tag = re.fullmatch(r"(\d+):(\d+):(\d+\.?\d*)", stream.metadata.get("DURATION", ""))
            return 3600 * int(tag[1]) + 60 * int(tag[2]) + float(tag[3]) if tag else None
        return float(((stream.start_time or 0) + stream.duration) * stream.time_base) if stream.duration else None

    def announced_end_of_file(self):
        """The end of the file in seconds, according to its header, or None."""
        return self.container.duration / 1e6 if self.container.duration else None


class _Account:
    """A comparison of the packets of a video with the frames that are decoded from them."""

    def __init__(self, video):
        self.path, self.one_each = video.path, video.codec in ONE_EACH
        # The index at the end of an AVI file has the number of packets.
        self.indexed = sum(entry.size > 0 for entry in video.stream.index_entries) if video.kind == "avi" else 0
        self.stamps, self.count, self.first, self.shape, self.suspect = [], 0, None, None, None

    def take_packet(self, packet):
        if packet.is_keyframe:
            # Where transport streams were joined, FFmpeg marks one of the last two packets before the joint as corrupt,
            # although these packets are whole.
            self.suspect = None
        if self.suspect is not None and len(self.stamps) > self.suspect + 1:
            self.check_data()
        if packet.is_corrupt and self.suspect is None:
            self.suspect = len(self.stamps)
        if packet.size and not packet.is_discard:
            self.stamps.append(packet.pts)

    def take_frame(self, frame):
        shape = frame.height, frame.width
        if frame.is_corrupt:
            raise VideoError(self.path, f"damaged: the decoder gave up on parts of frame {self.count}")
        if not self.count:
            self.first, self.shape = frame.pts, shape
        if abs(shape[0] / shape[1] * self.shape[1] / self.shape[0] - 1) > OTHER_SHAPE:
            was, now = ("{} x {}".format(*pair) for pair in (self.shape, shape))
            raise VideoError(self.path, f"changes its shape from {was} to {now} pixels at frame {self.count}")
        self.one_each &= not frame.interlaced_frame  # the two fields of an interlaced frame may be separate packets
        self.count += 1

    def check_data(self):
        if self.suspect is not None:
            raise VideoError(self.path, f"damaged or cut short: the data of frame {self.suspect} is incomplete")

    def check_frames(self):
        # Frames before the first shown frame refer to missing frames, so the decoder is right to leave them out.
        due = sum(pts is None or self.first is None or pts >= self.first for pts in self.stamps)
        lost = max(due - self.count if self.one_each else 0, self.indexed - len(self.stamps))
        if lost > 0:
            raise VideoError(self.path, f"damaged: {lost} of {self.count + lost} frames could not be decoded")


class _Source:
    """A local regular file that FFmpeg reads through Python, with a time limit."""

    def __init__(self, path):
        self.name = os.fsdecode(path)  # FFmpeg uses its ending if the content does not determine the format
        try:
            # Without O_NONBLOCK, opening a pipe would block until another process writes to it.
            flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
            self.file = open(path, "rb", buffering=0, opener=lambda name, _: os.open(name, flags))  # noqa: SIM115
        except IsADirectoryError:
            raise VideoError(path, "is a folder") from None
        except (OSError, ValueError) as error:
            only = " (only local files are read)" if "://" in str(self.name) else ""
            raise VideoError(path, _why(error) + only) from None
        self.tell, self.close = self.file.tell, self.file.close
        self.wait()
        found = os.fstat(self.file.fileno())
        if not stat.S_ISREG(found.st_mode) or not found.st_size:
            self.close()
            raise VideoError(path, "is not a regular file" if not stat.S_ISREG(found.st_mode) else "is empty")

    def read(self, size):
        self.check()
        return self.file.read(size)

    def seek(self, offset, whence=0):
        try:
            return self.file.seek(offset, whence)
        except OSError as error:  # a damaged header may give a negative position; FFmpeg expects errors as numbers
            return -error.errno

    def wait(self):
        """Restart the time limit."""
        self.until = time.monotonic() + PATIENCE

    def check(self):
        if time.monotonic() > self.until:
            raise TimeoutError(f"no data for {PATIENCE:g} s")


def _way_up(frame):
    """How to turn a frame upright: (whether to swap rows and columns, step along rows, step along columns)."""
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return False, 1, 1
    # The matrix moves a pixel at column x and row y to (a x + c y, b x + d y), in one of eight orientations.
    a, b, _, c, d = np.frombuffer(matrix, np.int32, 5).astype(float)
    swapped = abs(b) + abs(c) > abs(a) + abs(d)
    across, down = (c, b) if swapped else (a, d)
    return swapped, -1 if down < 0 else 1, -1 if across < 0 else 1


def size_upright(frame):
    """(height, width) of a frame as it is shown."""
    return (frame.width, frame.height) if _way_up(frame)[0] else (frame.height, frame.width)


def _why(error):
    return getattr(error, "strerror", None) or str(error)
