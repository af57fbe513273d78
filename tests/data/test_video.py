"""Video files of many kinds, whole and broken."""

import struct
import sys
from fractions import Fraction

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
    with pytest.raises(TypeError, match="positions must be integers, got float64"):
        read_video(path, [0.9])
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


def with_matrix(path, a, b, c, d):
    """A copy of an MP4 file with another display matrix in its track header, which PyAV cannot write."""
    data = path.read_bytes()
    unit = [struct.pack(">9i", x << 16, y << 16, 0, z << 16, w << 16, 0, 0, 0, 1 << 30) for x, y, z, w in
            ((1, 0, 0, 1), (a, b, c, d))]  # fmt: skip
    at = data.index(unit[0], data.index(b"tkhd"))
    turned = path.with_name("turned.mp4")
    turned.write_bytes(data[:at] + unit[1] + data[at + 36 :])
    return turned


@pytest.mark.parametrize("corner", [(1, 0, 0, 1), (-1, 0, 0, 1), (1, 0, 0, -1), (-1, 0, 0, -1),
                                    (0, 1, 1, 0), (0, -1, 1, 0), (0, 1, -1, 0), (0, -1, -1, 0)])  # fmt: skip
def test_all_eight_orientations_are_applied(tmp_path, corner):
    """A pixel at column x and row y is shown at (a x + c y, b x + d y), moved to where the picture begins."""
    picture = np.random.default_rng(0).integers(0, 256, (1, 32, 48, 3), dtype=np.uint8)
    path = write_video(tmp_path / "a.mp4", picture, qp=0)
    a, b, c, d = corner
    y, x = np.mgrid[:32, :48]
    across, down = a * x + c * y, b * x + d * y
    wanted = np.empty((1, 32, 48, 3) if a else (1, 48, 32, 3), np.uint8)
    wanted[0, down - down.min(), across - across.min()] = picture[0]
    turned = with_matrix(path, *corner)
    np.testing.assert_array_equal(read_video(turned), wanted)
    scaled = read_video(turned, size=(16, 8))
    assert scaled.shape == (1, 16, 8, 3)
    assert abs(scaled.mean() - picture.mean()) < 3


def test_a_matrix_that_says_nothing_changes_nothing(tmp_path):
    path = write_video(tmp_path / "a.mp4", numbered(2), qp=0)
    np.testing.assert_array_equal(read_video(with_matrix(path, 0, 0, 0, 0)), read_video(path))


@pytest.mark.parametrize("rate", [25, Fraction(24000, 1001)])
def test_b_frames_in_avi_come_in_the_order_of_the_decoder(tmp_path, rate):
    """The format has no place for the times of such frames; those that FFmpeg makes up are in no order."""
    options = {"rate": rate, "codec": "libx264", "pix_fmt": "yuv420p", "x264-params": "bframes=3:b-adapt=0:scenecut=0"}
    path = write_video(tmp_path / "a.avi", numbered(24), **options)
    info = scan_video(path)
    assert (info.frames, info.duration, info.even) == (24, pytest.approx(float(24 / rate)), True)
    frames = read_video(path, info=info)
    np.testing.assert_allclose(frames.mean((1, 2, 3)), 5 * np.arange(24), atol=2)
    np.testing.assert_array_equal(frames, read_video(write_video(tmp_path / "a.mkv", numbered(24), **options)))
    np.testing.assert_array_equal(read_video(path, [5, 0, 23], info=info), frames[[5, 0, 23]])
    np.testing.assert_array_equal(read_video(path, rate=2 * rate, info=info), np.repeat(frames, 2, axis=0))


@pytest.mark.parametrize(("name", "codec"), [("a.ts", "libx264"), ("a.ts", "mpeg2video"), ("a.mkv", "libx264"),
                                             ("a.mpg", "mpeg2video"), ("a.avi", "mpeg4")])  # fmt: skip
def test_joined_files_are_read_to_their_end(tmp_path, name, codec):
    path = write_video(tmp_path / name, numbered(24), rate=25, codec=codec, pix_fmt="yuv420p")
    once = read_video(path)
    path.write_bytes(2 * path.read_bytes())
    assert scan_video(path).duration == pytest.approx(48 / 25)
    np.testing.assert_array_equal(read_video(path), np.concatenate([once, once]))


@pytest.mark.parametrize(
    ("name", "codec"), [("a.mp4", "libx264"), ("a.mov", "mpeg4"), ("a.flv", "flv"), ("a.wmv", "wmv2")]
)
def test_joined_files_of_which_ffmpeg_reads_the_first_are_refused(tmp_path, name, codec):
    path = write_video(tmp_path / name, numbered(24), rate=25, codec=codec, pix_fmt="yuv420p")
    scan_video(path)
    path.write_bytes(2 * path.read_bytes())
    with pytest.raises(VideoError, match="several films joined"):
        scan_video(path)


def test_a_change_of_size_is_scaled_and_of_shape_refused(tmp_path):
    for name, height, width in (("wide", 32, 48), ("large", 64, 96), ("high", 48, 32)):
        write_video(tmp_path / name, numbered(12, height, width), 25, "libx264", "yuv420p", format="mpegts")
    wide, large, high = ((tmp_path / name).read_bytes() for name in ("wide", "large", "high"))
    (tmp_path / "a.ts").write_bytes(wide + large)
    frames = read_video(tmp_path / "a.ts")
    assert frames.shape == (24, 32, 48, 3)
    np.testing.assert_allclose(frames.mean((1, 2, 3)), np.tile(5 * np.arange(12), 2), atol=4)
    (tmp_path / "a.ts").write_bytes(wide + high)
    with pytest.raises(VideoError, match="changes its shape from 32 x 48 to 48 x 32 pixels at frame 12"):
        scan_video(tmp_path / "a.ts")


@pytest.mark.parametrize(
    ("name", "codec", "sound"),
    [
        ("a.mkv", "libx264", "pcm_s16le"),
        ("a.mpg", "mpeg2video", "mp2"),
        ("a.mp4", "libx264", "aac"),
        ("a.ts", "libx264", "mp2"),
    ],
)
def test_sound_may_be_longer_than_the_video(tmp_path, name, codec, sound):
    for frames in (1, 5):
        path = write_video(tmp_path / name, numbered(frames), rate=25, codec=codec, pix_fmt="yuv420p", sound=sound)
        assert scan_video(path).frames == frames


def test_a_transport_stream_may_begin_between_two_key_frames(tmp_path):
    """A recording begins when it begins: what leans on frames that came before cannot be shown."""
    path = write_video(
        tmp_path / "a.ts", numbered(24), 25, "libx264", "yuv420p", **{"x264-params": "keyint=8:scenecut=0"}
    )
    whole, data = read_video(path), path.read_bytes()
    tables = data[: 3 * 188]
    for packets in range(4, len(data) // 188 // 3, 2):
        path.write_bytes(tables + data[packets * 188 :])
        frames = read_video(path)
        assert len(frames) in (8, 16)
        np.testing.assert_array_equal(frames, whole[-len(frames) :])


def test_a_file_that_changed_since_its_scan_is_refused(tmp_path):
    path = write_video(tmp_path / "a.mp4", numbered(12), qp=0)
    info = scan_video(path)
    write_video(path, numbered(8), qp=0)
    with pytest.raises(VideoError, match="has changed: the scan found 12 frames, now there are 8"):
        read_video(path, info=info)


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
    with pytest.raises(ImportError, match=r"av>=17\.1,<19"):
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
        ("derived_truncated.avi", "cut short: 11664 bytes are missing"),
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
