"""Which files are opened as videos: local regular files that hold their video themselves, of a size that is told."""

import os
import socket
import struct
import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest

from minnl.data import VideoCSV, VideoError, decoder, read_video, scan_video
from tests.videos import numbered, write_video


@pytest.mark.parametrize("name", ["12:30.mp4", "file:a.mp4", "a%d.mp4", "-i.mp4", "http:", "a\nb\x1b[31m.mp4"])
def test_any_name_is_that_of_a_file(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    write_video(tmp_path / "whole.mp4", numbered(4), qp=0).rename(tmp_path / name)
    for path in (name, tmp_path / name, os.fsencode(name)):
        assert scan_video(path).frames == 4


def test_names_that_are_not_utf8_and_links(tmp_path):
    path = write_video(tmp_path / "a.mp4", numbered(4), qp=0)
    (tmp_path / "link.mp4").symlink_to(path)
    assert scan_video(tmp_path / "link.mp4").frames == 4
    name = os.fsencode(tmp_path) + b"/\xff.mp4"
    try:
        os.rename(path, name)
    except OSError:
        pytest.skip("this file system takes UTF-8 only")
    assert scan_video(os.fsdecode(name)).frames == scan_video(name).frames == 4


@pytest.mark.parametrize("address", ["http://127.0.0.1:{}/a.mp4", "tcp://127.0.0.1:{}", "rtmp://127.0.0.1:{}/a.mp4"])
def test_no_connection_is_made(tmp_path, monkeypatch, address):
    pytest.importorskip("av")
    monkeypatch.chdir(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = address.format(server.getsockname()[1])
        (tmp_path / "a.csv").write_text(f"path,label\n{address},x\n")
        with pytest.raises(VideoError, match="No such file or directory .only local files are read"):
            scan_video(address)
        with pytest.raises(VideoError, match="No such file"):
            VideoCSV("a.csv").clip(0, None)
        server.settimeout(0.1)
        with pytest.raises(TimeoutError):
            server.accept()


@pytest.mark.parametrize(
    "text",
    [
        "ffconcat version 1.0\nfile good.mp4\n",
        "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\ngood.mp4\n#EXT-X-ENDLIST\n",
        "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n"
        "a=rtpmap:96 H264/90000\n",
    ],
    ids=["ffconcat", "hls", "sdp"],
)
@pytest.mark.parametrize("ending", [".mp4", ".m3u8", ".ffconcat", ".sdp"])
def test_lists_do_not_open_their_neighbours(tmp_path, monkeypatch, text, ending):
    monkeypatch.chdir(tmp_path)
    write_video(tmp_path / "good.mp4", numbered(4), qp=0)
    (tmp_path / f"list{ending}").write_text(text)
    with pytest.raises(VideoError, match="not in one of the formats|Invalid data"):
        scan_video(f"list{ending}")


def test_a_numbered_row_of_pictures_is_no_video(tmp_path):
    av = pytest.importorskip("av")
    with av.open(str(tmp_path / "%d.png"), "w", format="image2") as container:
        stream = container.add_stream("png", rate=25)
        stream.height, stream.width, stream.pix_fmt = 32, 48, "rgb24"
        for k, picture in enumerate(numbered(3)):
            frame = av.VideoFrame.from_ndarray(picture)
            frame.pts = k
            container.mux(stream.encode(frame))
    assert (tmp_path / "1.png").exists()
    for name, reason in (("%d.png", "No such file"), ("1.png", "not in one of the formats")):
        with pytest.raises(VideoError, match=reason):
            scan_video(tmp_path / name)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_pipes_folders_and_devices_are_refused_at_once(tmp_path):
    pytest.importorskip("av")
    os.mkfifo(tmp_path / "pipe.mp4")
    (tmp_path / "folder.mp4").mkdir()
    for path, reason in (
        (tmp_path / "pipe.mp4", "is not a regular file"),
        (tmp_path / "folder.mp4", "is a folder"),
        ("/dev/zero", "is not a regular file"),
        ("a\0b", "null byte"),
    ):
        with pytest.raises(VideoError, match=reason):
            scan_video(path)


def test_there_is_a_limit_of_time(tmp_path, monkeypatch):
    path = write_video(tmp_path / "a.mp4", numbered(4), qp=0)
    monkeypatch.setattr(decoder, "PATIENCE", -1.0)
    with pytest.raises(VideoError, match="no data for -1 s"):
        scan_video(path)


def tiny_gif(path, width, height):
    """66 bytes or so that announce a screen of any size."""
    colours = b"\x80\0\0\0\0\0\xff\xff\xff"
    picture = b"\x2c" + struct.pack("<HHHHB", 0, 0, width, height, 0) + b"\x02\x02\x44\x01\0"
    path.write_bytes(b"GIF89a" + struct.pack("<HH", width, height) + colours + picture + b"\x3b")
    return path


PEAK = """
import resource, sys
from minnl.data import VideoError, scan_video
try:
    scan_video(sys.argv[1])
except VideoError as error:
    print(error.reason)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_what_announces_more_pixels_than_may_be_is_refused_before_it_takes_memory(tmp_path):
    pytest.importorskip("av")
    pytest.importorskip("resource")
    peaks = []
    for path in (tiny_gif(tmp_path / "small.gif", 4, 4), tiny_gif(tmp_path / "large.gif", 30000, 20000)):
        done = subprocess.run([sys.executable, "-c", PEAK, path], capture_output=True, text=True, check=True)
        *reason, peak = done.stdout.splitlines()
        peaks.append(int(peak) * (1 if sys.platform == "darwin" else 1024))
    assert "no frame may have more than 67,108,864 pixels" in reason[0]
    assert peaks[1] - peaks[0] < 20e6, "its frames would take 2.4 GB"


# No clean file is refused: what PyAV writes, beside the real ones of test_video.py


VARIED = [2 * k + (k % 7 == 3) + 30 * (k > 14) for k in range(20)]
LATER = list(range(100, 120))
X265 = "log-level=none:pools=none:frame-threads=1"  # on frames smaller than 64 this encoder overwrites memory
CLEAN = [
    *((f"{float(rate):.3f}.{ending}", "libx264", {"rate": rate})
      for rate in (Fraction(24000, 1001), Fraction(30000, 1001), 7, Fraction(25, 2), Fraction(1, 2))
      for ending in ("mp4", "avi", "mkv", "ts")),
    *((f"{kind}.{ending}", "libx264", {"x264-params": x264})
      for kind, x264 in (("b", "bframes=3:b-adapt=0:scenecut=0"), ("open", "open-gop=1:keyint=8:bframes=3"),
                         ("refresh", "intra-refresh=1:keyint=10"), ("slices", "slices=4"), ("fields", "interlaced=1"),
                         ("one-slice", "cabac=0"))
      for ending in ("mp4", "avi", "mkv", "ts", "mov", "flv")),
    *((f"{kind}.{ending}", "libx264", {"times": times})
      for kind, times in (("varied", VARIED), ("later", LATER)) for ending in ("mp4", "mkv", "mov", "ts")),
    *((f"open-hevc.{ending}", "libx265", {"x265-params": f"{X265}:keyint=8:open-gop=1", "size": (64, 96)})
      for ending in ("mp4", "mkv", "ts")),
    ("hash.mp4", "libx265", {"x265-params": f"{X265}:hash=1", "size": (64, 96)}),
    *((f"hidden.{ending}", codec, {"auto-alt-ref": 1, "lag-in-frames": 16, "b": 300_000})
      for ending in ("webm", "mkv") for codec in ("libvpx", "libvpx-vp9")),
    ("444.webm", "libvpx-vp9", {"pix_fmt": "yuv444p"}),
    ("alpha.webm", "libvpx-vp9", {"pix_fmt": "yuva420p"}),
    ("alpha.mov", "png", {"pix_fmt": "rgba"}),
    *((f"plain.{ending}", "mjpeg", {"pix_fmt": "yuvj420p"}) for ending in ("avi", "mov", "mkv")),
    *((f"b.{ending}", "mpeg4", {"bf": 2}) for ending in ("avi", "mp4", "mkv", "mov", "ts")),
    *((f"{kind}.{ending}", "mpeg2video", {"bf": 2, **flags})
      for kind, flags in (("b", {"g": 6}), ("fields", {"flags": "+ilme+ildct"}))
      for ending in ("ts", "mpg", "mkv", "m2ts", "mxf")),
    ("a.wmv", "wmv2", {}), ("a.flv", "flv", {}), ("a.mpg", "mpeg1video", {}), ("a.avi", "msmpeg4", {}),
    ("a.mov", "prores_ks", {"pix_fmt": "yuv422p10le"}), ("odd.avi", "mpeg4", {"size": (33, 47)}),
    ("odd.mkv", "ffv1", {"size": (33, 47)}), ("gray.mp4", "libx264", {"pix_fmt": "gray"}),
    ("ten.mp4", "libx264", {"pix_fmt": "yuv420p10le"}),
    ("raw.hevc", "libx265", {"x265-params": X265, "size": (64, 96)}),
    ("raw.m2v", "mpeg2video", {"format": "mpeg2video"}), ("a.ivf", "libvpx-vp9", {}),
    *((f"one.{ending}", codec, {"frames": 1}) for ending, codec in (("mp4", "libx264"), ("mkv", "libx264"),
      ("avi", "libx264"), ("ts", "libx264"), ("webm", "libvpx-vp9"), ("mpg", "mpeg2video"), ("gif", "gif"))),
]  # fmt: skip


@pytest.mark.parametrize(("name", "codec", "options"), CLEAN, ids=[f"{name}-{codec}" for name, codec, _ in CLEAN])
def test_no_clean_file_is_refused(tmp_path, name, codec, options):
    options = {"rate": 25, "pix_fmt": "rgb8" if codec == "gif" else "yuv420p", "frames": 20, "size": (32, 48)} | options
    frames = numbered(options.pop("frames"), *options.pop("size"))
    path = write_video(tmp_path / name, frames, codec=codec, **options)
    info = scan_video(path)
    assert (info.frames, info.height, info.width) == frames.shape[:3]
    times = options.get("times", range(len(frames)))
    if not info.even:
        middles = [times[0] + (k + 0.5) * info.duration * options["rate"] / len(frames) for k in range(len(frames))]
        frames = frames[[max(k for k in range(len(frames)) if times[k] <= middle) for middle in middles]]
    # Eight bits of colour, of which GIF has three, come back from YCbCr after compression.
    np.testing.assert_allclose(
        read_video(path).mean((1, 2, 3)), frames.mean((1, 2, 3)), atol=20 if codec == "gif" else 4
    )
