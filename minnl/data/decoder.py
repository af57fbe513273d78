"""One video file through PyAV (FFmpeg's libraries): opened as a local file, decoded from its start, doubted.

PyAV is imported on first use: the rest of minnl works without it (``pip install "av>=17.1,<19"``).

**Local regular files only.** A path never reaches FFmpeg as something to open: Python opens the file, and FFmpeg reads
through it. So no name is taken for a URL, and pipes and devices are refused. Of FFmpeg's formats those are read that
hold their video themselves; lists and playlists, which open other files, are refused, as is every second opening.

**Damage.** FFmpeg conceals what it cannot decode, and goes on. Here a frame that it calls corrupt, and an error that
it would conceal, refuse the file. Not all damage shows: docs/data.md has figures.
"""

import os
import re
import stat
import time

import numpy as np

from minnl.data.structure import fault

# FFmpeg's names of the formats that are read. "mov" stands for mp4 too, "mpeg" for program streams.
FORMATS = (
    "mov,matroska,avi,gif,apng,mpeg,mpegts,asf,flv,ogg,mxf,nut,dv,rm,ivf,obu,"
    "mpegvideo,m4v,h264,hevc,vvc,vc1,mjpeg,yuv4mpegpipe"
)
MOST_PIXELS = 2**26  # of a frame: twice those of 8K television
LIMIT = f"no frame may have more than {MOST_PIXELS:,} pixels"
PATIENCE = 60.0  # seconds for opening a file, and again for each frame
OTHER_SHAPE = 0.02  # a change of height / width that is more than rounding; frames of another size are scaled
# Codecs of which each packet holds one frame to be shown.
ONE_EACH = ("h264", "hevc", "vp9", "av1", "mpeg1video", "mpeg2video", "mjpeg", "ffv1")


def shown(path):
    """A path fit for a terminal: with escapes in the place of what would not be printed, or would move the cursor."""
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
        # The last four come from PyAV's own sums and look-ups where headers are damaged.
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
        # "explode": FFmpeg's word for stopping at an error that the decoder could conceal.
        decoding = {"err_detect": "crccheck+explode", "max_pixels": str(MOST_PIXELS)}
        try:
            # Titles and the like that are not UTF-8 are no reason to refuse a video. PyAV 17.0 crashes on `options`.
            self.container = av.open(
                self.source, metadata_errors="replace", buffer_size=2**16, options={"max_pixels": str(MOST_PIXELS)},
                container_options={"format_whitelist": FORMATS, "protocol_whitelist": "none"},
            )  # fmt: skip
        except av.error.ArgumentError:
            raise VideoError(self.path, f"is damaged, or of a format that is not read; those are: {FORMATS}") from None
        except self.errors as error:
            raise VideoError(self.path, _why(error)) from None
        # The cover picture of a music file is a video stream to FFmpeg.
        films = [s for s in self.container.streams.video if not s.disposition & av.stream.Disposition.attached_pic]
        if not films:
            raise VideoError(self.path, "has no video stream")
        context = films[0].codec_context
        if context is None:
            raise VideoError(self.path, "holds video of a kind that this FFmpeg cannot decode")
        if context.width * context.height > MOST_PIXELS:
            raise VideoError(self.path, f"announces frames of {context.height} x {context.width} pixels; {LIMIT}")
        # The loader's workers run side by side; and with one thread a damaged file fails the same way each time.
        context.thread_count, context.options = 1, decoding
        return films[0]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.container.close()
        self.source.close()

    @property
    def interval(self):
        """Seconds a frame, as far as the headers tell."""
        return 1 / float(self.stream.average_rate or self.stream.guessed_rate or 25)

    def frames(self, doubt=False):
        """(time, length, frame) one by one: seconds as the file says; a time of None or a length of 0 is unknown.

        `doubt` asks for all that can be found out about damage, for the pass over the whole file.
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
                    break  # all is out; PyAV stumbles over what follows if streams have come up midway
        except self.errors as error:
            account.check_data()
            why = _why(error)
            if isinstance(error, self.av.error.ArgumentError):  # which FFmpeg says of little else
                why += f" ({LIMIT})"
            raise VideoError(self.path, f"decoding failed after {account.count} frames: {why}") from None
        account.check_data()
        if doubt:
            account.check_frames()

    def _witness(self):
        """A second decoder, which finds damage that FFmpeg's own does not look for; or None."""
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
        # One reformatter for the whole file: set up anew for each frame it takes three times as long. One thread: with
        # more, frames as small as these take two to five times as long, and the workers run side by side already.
        try:
            rgb = self.reformatter.reformat(frame, width, height, "rgb24", interpolation=self.area, threads=1)
        except self.errors as error:
            raise VideoError(self.path, f"its colours cannot be converted: {_why(error)}") from None
        rgb = rgb.to_ndarray()
        return (rgb.swapaxes(0, 1) if swapped else rgb)[::rows, ::columns]

    def announced_end(self):
        """Second at which the video stream says that it ends, or None."""
        stream = self.stream
        if self.kind == "avi":
            # FFmpeg cuts an AVI's duration down to what is there; the number of frames it leaves alone. In other
            # formats that number counts frames that are not to be shown, or never got into the file.
            return float(stream.frames / stream.average_rate) if stream.frames and stream.average_rate else None
        if "matroska" in self.kind or self.kind == "mpeg":
            # Where these say nothing of a stream, FFmpeg gives it the duration of the file, be it that of sound.
            tag = re.fullmatch(r"(\d+):(\d+):(\d+\.?\d*)", stream.metadata.get("DURATION", ""))
            return 3600 * int(tag[1]) + 60 * int(tag[2]) + float(tag[3]) if tag else None
        return float(((stream.start_time or 0) + stream.duration) * stream.time_base) if stream.duration else None

    def announced_end_of_file(self):
        """Second at which the file as a whole says that it ends, or None."""
        return self.container.duration / 1e6 if self.container.duration else None


class _Account:
    """What the packets of a video promise, held against the frames that come of them."""

    def __init__(self, video):
        self.path, self.one_each = video.path, video.codec in ONE_EACH
        # In an AVI file the index, which is at its end, says how many packets are to come.
        self.indexed = sum(entry.size > 0 for entry in video.stream.index_entries) if video.kind == "avi" else 0
        self.stamps, self.count, self.first, self.shape, self.suspect = [], 0, None, None, None

    def take_packet(self, packet):
        if packet.is_keyframe:
            # A joint in a transport stream marks the last packet before it or the one before that. These are whole.
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
        self.one_each &= not frame.interlaced_frame  # its two fields may come in a packet each
        self.count += 1

    def check_data(self):
        if self.suspect is not None:
            raise VideoError(self.path, f"damaged or cut short: the data of frame {self.suspect} is incomplete")

    def check_frames(self):
        # Frames that lean on what came before the first one shown are rightly left out: their times are before its.
        due = sum(pts is None or self.first is None or pts >= self.first for pts in self.stamps)
        lost = max(due - self.count if self.one_each else 0, self.indexed - len(self.stamps))
        if lost > 0:
            raise VideoError(self.path, f"damaged: {lost} of {self.count + lost} frames could not be decoded")


class _Source:
    """A local regular file that FFmpeg reads through Python, for a limited time."""

    def __init__(self, path):
        self.name = os.fsdecode(path)  # FFmpeg looks at its ending where the content leaves the format open
        try:
            # Without waiting: a pipe would keep us until somebody writes to it.
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
            raise VideoError(path, "is no regular file" if not stat.S_ISREG(found.st_mode) else "is empty")

    def read(self, size):
        self.check()
        return self.file.read(size)

    def seek(self, offset, whence=0):
        try:
            return self.file.seek(offset, whence)
        except OSError as error:  # a place before the file, from a damaged header: FFmpeg takes errors as numbers
            return -error.errno

    def wait(self):
        """Begin to count the time that may pass."""
        self.until = time.monotonic() + PATIENCE

    def check(self):
        if time.monotonic() > self.until:
            raise TimeoutError(f"nothing came for {PATIENCE:g} s")


def _way_up(frame):
    """(whether rows and columns change places, then the steps along rows and columns) that put a frame upright."""
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return False, 1, 1
    # A pixel at column x and row y goes to (a x + c y, b x + d y): in a file one of eight orientations.
    a, b, _, c, d = np.frombuffer(matrix, np.int32, 5).astype(float)
    swapped = abs(b) + abs(c) > abs(a) + abs(d)
    across, down = (c, b) if swapped else (a, d)
    return swapped, -1 if down < 0 else 1, -1 if across < 0 else 1


def size_upright(frame):
    """(height, width) of a frame as it is shown."""
    return (frame.width, frame.height) if _way_up(frame)[0] else (frame.height, frame.width)


def _why(error):
    return getattr(error, "strerror", None) or str(error)
