"""Video files of many kinds, whole and broken."""

import sys

import numpy as np
import pytest

from minnl.data import VideoError, read_video, scan_video
from minnl.data.video import VideoInfo
from tests.videos import SHARED, level, numbered, write_video


def test_every_frame_comes_back_in_order(tmp_path):
    frames = np.random.default_rng(0).integers(0, 256, (12, 32, 48, 3), dtype=np.uint8)
    path = write_video(tmp_path / "a.mp4", frames, qp=0)
    assert scan_video(path) == VideoInfo(12, pytest.approx(0.4), 32, 48)
    np.testing.assert_array_equal(read_video(path), frames)
    np.testing.assert_array_equal(read_video(path, [5, 0, 5, 11]), frames[[5, 0, 5, 11]])
    assert read_video(path, [], size=(8, 9)).shape == (0, 8, 9, 3)
    assert read_video(path, [3], size=(16, 24)).shape == (1, 16, 24, 3)


def test_positions_and_rates_are_checked(tmp_path):
    path = write_video(tmp_path / "a.mp4", numbered(4), qp=0)
    for bad in ([4], [-1]):
        with pytest.raises(ValueError, match="positions must lie in 0 to 3"):
            read_video(path, bad)
    with pytest.raises(ValueError, match="rate"):
        read_video(path, rate=0)
    with pytest.raises(ValueError, match="size"):
        read_video(path, size=(0, 3))


def test_a_rate_repeats_or_leaves_out_frames(tmp_path):
    path = write_video(tmp_path / "a.mp4", numbered(30), qp=0)
    assert level(read_video(path, rate=60)).tolist() == [k // 2 for k in range(60)]
    assert level(read_video(path, rate=15)).tolist() == [2 * k + 1 for k in range(15)]
    assert level(read_video(path, rate=0.01)).tolist() == [15]


def test_variable_intervals_are_read_at_a_constant_rate(tmp_path):
    times = [0, 1, 2, 3, 14, 15, 16, 17, 18, 19]
    path = write_video(tmp_path / "a.mp4", numbered(10), rate=10, times=times, qp=0)
    info = scan_video(path)
    assert (info.frames, info.duration) == (10, pytest.approx(2))
    # On screen in the middle of each of ten slots of two ticks.
    wanted = [max(k for k in range(10) if times[k] <= 2 * slot + 1) for slot in range(10)]
    assert level(read_video(path)).tolist() == wanted


@pytest.mark.parametrize(
    ("codec", "pix_fmt", "name"),
    [
        ("libx264", "gray", "gray.mp4"),
        ("libx264", "yuv420p10le", "ten_bits.mp4"),
        ("mpeg4", "yuv420p", "b.avi"),
        ("ffv1", "yuv444p", "odd.mkv"),
        ("libvpx-vp9", "yuv420p", "v.webm"),
        ("libx264", "yuv420p", "t.ts"),
        ("gif", "rgb8", "a.gif"),
        ("libx264", "yuv420p", "headerless.h264"),
    ],
)
def test_formats(tmp_path, codec, pix_fmt, name):
    height, width = (33, 47) if name.startswith("odd") else (32, 48)
    path = write_video(tmp_path / name, numbered(20, height, width), rate=25, codec=codec, pix_fmt=pix_fmt)
    frames = read_video(path)
    assert frames.shape == (20, height, width, 3)
    # GIF's eight-bit colours come in steps of 36.
    np.testing.assert_allclose(frames.mean((1, 2, 3)), 5 * np.arange(20), atol=20 if name == "a.gif" else 4)


def test_rotation_is_applied(tmp_path):
    """A file cannot be written turned by PyAV: the matrix is put into its track header."""
    picture = np.zeros((1, 32, 48, 3), np.uint8)
    picture[0, :16, :24] = 255
    upright = read_video(write_video(tmp_path / "a.mp4", picture, qp=0))
    data = (tmp_path / "a.mp4").read_bytes()
    one, zero, unit = (1 << 16).to_bytes(4, "big"), bytes(4), (1 << 30).to_bytes(4, "big")
    minus = (-(1 << 16)).to_bytes(4, "big", signed=True)
    at = data.index(one + 3 * zero + one + 3 * zero + unit, data.index(b"tkhd"))
    for turns, corner in (
        (1, zero + minus + zero + one),
        (2, minus + 3 * zero + minus),
        (3, zero + one + zero + minus),
    ):
        matrix = (corner + 9 * zero)[:32] + unit
        (tmp_path / "b.mp4").write_bytes(data[:at] + matrix + data[at + 36 :])
        turned = read_video(tmp_path / "b.mp4")
        np.testing.assert_array_equal(turned, np.rot90(upright, turns, (1, 2)))
        scaled = read_video(tmp_path / "b.mp4", size=(16, 8))
        assert scaled.shape == (1, 16, 8, 3)


@pytest.mark.parametrize("name", ["a.mkv", "a.avi", "a.mp4", "a.webm"])
def test_a_file_cut_short_is_refused(tmp_path, name):
    codec = "libvpx-vp9" if name.endswith("webm") else "mpeg4"
    noise = np.random.default_rng(0).integers(0, 256, (40, 32, 48, 3), dtype=np.uint8)
    path = write_video(tmp_path / name, noise, codec=codec, pix_fmt="yuv420p")
    assert scan_video(path).frames == 40
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 7 // 10])
    with pytest.raises(VideoError, match=name) as caught:
        scan_video(path)
    assert caught.value.path == str(path)
    assert caught.value.reason in str(caught.value)


def test_files_that_hold_no_video_are_refused_by_name(tmp_path):
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("no video at all\n" * 50)
    for name, reason in (("empty.mp4", "is empty"), ("text.mp4", "Invalid data"), ("none.mp4", "No such file")):
        pytest.importorskip("av")
        with pytest.raises(VideoError, match=f"{name}: .*{reason}"):
            read_video(tmp_path / name)


def test_titles_that_are_not_utf8_do_no_harm(tmp_path):
    av = pytest.importorskip("av")
    path = write_video(tmp_path / "a.mp4", numbered(4), qp=0)
    with av.open(str(path)) as source, av.open(str(tmp_path / "b.mkv"), "w") as copy:
        copy.metadata["title"] = "Bjoerk"
        stream = copy.add_stream_from_template(source.streams.video[0])
        for packet in source.demux():
            if packet.dts is not None:
                packet.stream = stream
                copy.mux(packet)
    data = (tmp_path / "b.mkv").read_bytes()
    assert b"Bjoerk" in data
    (tmp_path / "b.mkv").write_bytes(data.replace(b"Bjoerk", b"Bj\xf6rk "))
    assert scan_video(tmp_path / "b.mkv").frames == 4


def test_without_pyav_it_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ImportError, match=r"av>=17,<19"):
        read_video(tmp_path / "a.mp4")


@pytest.mark.skipif(not (SHARED / "containers").is_dir(), reason="needs ../shared/data/containers")
@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("animated.gif", (4, 48, 64)),
        ("bikes.mp4", (250, 272, 640)),
        ("corrupted.mp4", "after 28 frames"),
        ("derived_audio_only.mp4", "no video stream"),
        ("derived_empty.mp4", "is empty"),
        ("derived_gray_h264.mp4", (24, 96, 160)),
        ("derived_one_frame.mp4", (1, 96, 160)),
        ("derived_truncated.avi", "cut short: 49 frames"),
        ("derived_truncated_half.mp4", "Invalid data"),
        ("derived_vfr.mp4", (60, 96, 160)),
        ("derived_vp9.webm", (24, 96, 160)),
        ("discard_first_keyframe.mp4", (25, 64, 64)),
        ("h264_10bits.mp4", (30, 200, 200)),
        ("h265_video.mp4", (10, 128, 128)),
        ("non_zero_start.mp4", (12, 112, 200)),
        ("odd_height_and_width_mpeg2.mp4", (10, 81, 121)),
        ("rotate_90.mov", (3, 568, 320)),
        ("ucf101_v_Basketball_g01_c01.avi", (141, 240, 320)),
    ],
)
def test_real_containers(name, wanted):
    pytest.importorskip("av")
    path = SHARED / "containers" / name
    if isinstance(wanted, str):
        with pytest.raises(VideoError, match=f"{name}: .*{wanted}"):
            scan_video(path)
    else:
        info = scan_video(path)
        assert (info.frames, info.height, info.width) == wanted
        assert read_video(path, [0, info.frames - 1], size=(20, 30), info=info).shape == (2, 20, 30, 3)
