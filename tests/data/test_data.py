"""Datasets: folders and lists of videos, arrays, and whatever lies at a path."""

import os
import pathlib
import re

import numpy as np
import pytest

from minnl.data import ArrayClips, VideoCSV, VideoError, VideoFolder, Views, open_dataset, scan_video, transforms
from tests.videos import SHARED, numbered, write_video


def generator(seed=0):
    return np.random.default_rng(seed)


@pytest.fixture
def lossless(tmp_path):
    """A folder of lossless videos: train with two classes of two clips, val with one each."""
    for split, clips in (("train", 2), ("val", 1)):
        for name in ("left", "right"):
            (tmp_path / split / name).mkdir(parents=True)
            for k in range(clips):
                group = 20 if split == "train" else 5  # so that no file is in both
                write_video(tmp_path / split / name / f"{k}.mp4", numbered(20 + k), qp=0, g=group)
    return tmp_path


# Folders and lists of videos


def test_a_folder_is_read_by_split_and_class(lossless):
    train, val = (
        VideoFolder(lossless, "train", size=16, train=True),
        VideoFolder(lossless, "val", frames=4, size=(16, 24)),
    )
    assert (len(train), len(val), train.classes, train.labels) == (4, 2, ("left", "right"), [0, 0, 1, 1])
    assert train.name(2).endswith(os.path.join("train", "right", "0.mp4"))
    clip, label = train.clip(3, generator())
    assert (clip.shape, clip.dtype, clip.flags.c_contiguous, label) == (train.shape, np.float32, True, 1)
    assert train.shape == (16, 16, 16, 3)
    clip, _ = val.clip(0, None)
    np.testing.assert_allclose(clip[:, 0, 0, 0], (5 * np.arange(6, 14, 2) - 114.75) / 57.375, rtol=1e-6)


@pytest.mark.parametrize(
    "options", [{"resize": "squash"}, {"short_side": (16, 24)}, {"short_side": 40}, {}, {"rate": 20}]
)
def test_clips_are_the_same_from_memory_and_from_the_file(lossless, options):
    kept = VideoFolder(lossless, frames=4, size=(16, 12), train=True, **options)
    bare = VideoFolder(lossless, frames=4, size=(16, 12), train=True, cache_bytes=0, **options)
    for seed in range(3):
        np.testing.assert_array_equal(kept.clip(1, generator(seed))[0], bare.clip(1, generator(seed))[0])
    assert kept._cache
    assert not bare._cache


def test_memory_for_videos_is_limited(lossless):
    one = 20 * 32 * 48 * 3
    data = VideoFolder(lossless, frames=4, size=32, cache_bytes=2 * one + 10)
    for index in (0, 2, 1, 3):
        data.clip(index, None)
    assert sum(video.nbytes for video in data._cache.values()) == 2 * one
    assert data._free_bytes == 10


def test_training_clips_differ_by_generator_and_evaluation_clips_do_not(lossless):
    train = VideoFolder(lossless, frames=4, size=16, train=True)
    clips = [train.clip(0, generator(seed))[0].tobytes() for seed in (0, 0, 1, 2)]
    assert clips[0] == clips[1]
    assert len(set(clips)) == 3
    still = VideoFolder(lossless, frames=4, size=16)
    assert still.clip(0, generator(1))[0].tobytes() == still.clip(0, None)[0].tobytes()


def test_differences_have_as_many_frames(lossless):
    data = VideoFolder(lossless, frames=5, stride=2, size=16, differences=True)
    clip, _ = data.clip(0, None)
    assert clip.shape == data.shape == (5, 16, 16, 3)
    np.testing.assert_allclose(clip, 10 / 57.375, atol=1e-6)


def test_views_cover_the_video_in_time_and_space(lossless):
    data = VideoFolder(lossless, frames=4, stride=2, size=16, short_side=(20, 30))
    views = np.stack(Views(data, 0, clips=10, crops=3))
    assert (views.shape, views.dtype) == ((30, 4, 20, 20, 3), np.float32)
    first = (np.round(views[::3, 0, 0, 0, 0] * 57.375 + 114.75) / 5).tolist()
    assert first == list(range(0, 20, 2))
    squashed = VideoFolder(lossless, frames=4, size=16, resize="squash")
    for dataset in (data, squashed):
        assert [view.shape for view in Views(dataset, 0, clips=2, crops=1)] == [(4, 16, 16, 3)] * 2


def test_a_bad_file_is_refused_each_time_and_scanned_once(lossless, monkeypatch):
    (lossless / "train" / "left" / "0.mp4").write_bytes(b"")
    data, scans = VideoFolder(lossless, size=16), []
    monkeypatch.setattr("minnl.data.files.scan_video", lambda path, real=scan_video: scans.append(path) or real(path))
    for _ in range(2):
        with pytest.raises(VideoError, match=r"0\.mp4: .*is empty"):
            data.clip(0, None)
    assert len(scans) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"frames": 0}, "VideoFolder: frames must be 1 or more, got 0"),
        ({"stride": 1.5}, "stride must be an int"),
        ({"frames": True}, "frames must be an int"),
        ({"size": (3, 4, 5)}, "size must be one int or two"),
        ({"resize": "pad"}, "resize must be one of 'crop', 'squash', got 'pad'"),
        ({"rate": -1}, "rate must be above 0"),
        ({"size": 16, "short_side": 15}, "short_side"),
        ({"size": 16, "short_side": (20, 18)}, "short_side"),
        ({"resize": "squash", "short_side": 112}, "short_side is for resize='crop'"),
        ({"cache_bytes": -1}, "cache_bytes"),
        ({"mean": (1, 2)}, "mean must be one number, or 3, one for each channel; got (1, 2)"),
        ({"deviation": 0}, "deviation must be 1e-06 or more, got 0"),
        ({"mean": "grey"}, "mean must be a number, got str"),
    ],
)
def test_wrong_options_are_refused(lossless, options, message):
    with pytest.raises((ValueError, TypeError), match=re.escape(message)):
        VideoFolder(lossless, **options)


def test_folders_that_are_not_data_are_refused(lossless, tmp_path):
    with pytest.raises(ValueError, match="no folder 'test'; folders there: train, val"):
        VideoFolder(lossless, "test")
    with pytest.raises(ValueError, match="no such folder"):
        VideoFolder(tmp_path / "nothing")
    (lossless / "val" / "up").mkdir()
    with pytest.raises(ValueError, match="classes that .* lacks: up"):
        VideoFolder(lossless, "val")
    (tmp_path / "bare" / "train" / "a").mkdir(parents=True)
    (tmp_path / "bare" / "train" / "a" / "readme.txt").touch()
    with pytest.raises(ValueError, match="no videos in"):
        VideoFolder(tmp_path / "bare")


def test_a_list_of_videos(lossless):
    table = lossless / "all.csv"
    table.write_text(
        "label,path,split,note\nleft,train/left/0.mp4,train,x\n"
        "right,train/right/1.mp4,train,\nright,val/right/0.mp4,val,\n"
    )
    train, val = VideoCSV(table, "train", size=16), VideoCSV(table, "val", size=16)
    assert (train.classes, train.labels, val.classes, val.labels) == (("left", "right"), [0, 1], ("left", "right"), [1])
    assert val.clip(0, None)[0].shape == val.shape
    assert len(VideoCSV(table)) == 3
    assert VideoCSV(table, "val", classes=("right", "left")).labels == [0]


def test_labels_in_a_list_can_be_numbers(tmp_path):
    table = tmp_path / "a.csv"
    table.write_text("path,label\na.mp4,10\nb.mp4,2\n")
    assert (VideoCSV(table).classes, VideoCSV(table).labels) == (tuple(map(str, range(11))), [10, 2])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.mp4,left\n", "first line .* must name the columns path,label"),
        ("", "got nothing"),
        ("path,label\n", "has no rows"),
        ("path,label\na.mp4\n", "line 2 .* must have a value"),
        ("path,label\na.mp4,x\nb.mp4,\n", "line 3"),
        ("path,label\na.mp4,x,y\n", "line 2"),
        ("path,label,split\na.mp4,x,train\nb.mp4,y,val\n", "not among the classes x: y"),
        ("path,label\na.mp4,20240131\n", "numbers of classes"),
        (b"path,label\n\xff.mp4,x\n", "UTF-8"),
    ],
)
def test_bad_lists_are_refused_with_the_line(tmp_path, text, message):
    table = tmp_path / "a.csv"
    table.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=message):
        VideoCSV(table, split="val" if b"split" in table.read_bytes() else None)


def test_a_list_that_is_not_there_or_lacks_the_split(tmp_path):
    with pytest.raises(ValueError, match="cannot be read"):
        VideoCSV(tmp_path / "none.csv")
    (tmp_path / "a.csv").write_text("path,label,split\na.mp4,x,train\n")
    with pytest.raises(ValueError, match="no rows of split 'val'"):
        VideoCSV(tmp_path / "a.csv", "val")
    (tmp_path / "b.csv").write_text("path,label\na.mp4,x\n")
    with pytest.raises(ValueError, match="path,label,split"):
        VideoCSV(tmp_path / "b.csv", "val")


@pytest.mark.skipif(not (SHARED / "ut_interaction").is_dir(), reason="needs ../shared/data/ut_interaction")
def test_real_clips():
    pytest.importorskip("av")
    data = open_dataset(
        SHARED / "ut_interaction", train=False, frames=8, size=(64, 64), resize="squash", differences=True
    )
    assert len(data) == 37
    assert data.classes == ("handshake", "hug", "kick", "point", "punch", "push")
    clip, label = data.clip(20, None)
    assert (clip.shape, data.classes[label]) == ((8, 64, 64, 3), pathlib.Path(data.name(20)).parent.name)
    assert 0 < np.abs(clip).mean() < 1


# Arrays


def save_arrays(path, **arrays):
    if path.suffix == ".npz":
        np.savez(path, **arrays)
    else:
        path.mkdir(parents=True, exist_ok=True)
        for name, array in arrays.items():
            np.save(path / f"{name}.npy", array)
    return path


@pytest.fixture(params=["file.npz", "folder"])
def place(request, tmp_path):
    return tmp_path / request.param


def test_arrays_are_given_back(place):
    clips = generator().integers(0, 256, (3, 8, 6, 7, 2), dtype=np.uint8)
    data = ArrayClips(save_arrays(place, clips=clips, labels=np.array([1, 0, 1]), classes=np.array(["no", "yes"])))
    assert (len(data), data.classes, data.shape) == (3, ("no", "yes"), (8, 6, 7, 2))
    clip, label = data.clip(0, None)
    assert (label, clip.dtype, clip.flags.c_contiguous) == (1, np.float32, True)
    np.testing.assert_array_equal(clip, transforms.normalize(clips[0]))
    assert data.name(2) == f"{place}[2]"


def test_float_arrays_are_not_normalized_and_options_apply(place):
    clips = generator().random((2, 9, 6, 7, 3), dtype=np.float32)
    save_arrays(place, clips=clips, labels=np.array([0, 3], np.uint8))
    np.testing.assert_array_equal(ArrayClips(place).clip(1, None)[0], clips[1])
    assert len(ArrayClips(place).classes) == 4
    assert ArrayClips(place, stride=2).shape == (5, 6, 7, 3)
    assert ArrayClips(place, differences=True).shape == (8, 6, 7, 3)
    data = ArrayClips(place, frames=3, stride=2, size=4, train=True)
    assert data.clip(0, generator())[0].shape == data.shape == (3, 4, 4, 3)
    assert ArrayClips(place, classes=tuple("abcde")).classes == tuple("abcde")


def test_classes_in_another_order_are_refused(place):
    save_arrays(place, clips=GOOD, labels=np.array([0, 1]), classes=np.array(["b", "a"]))
    assert ArrayClips(place, classes=["b", "a"]).classes == ("b", "a")
    with pytest.raises(ValueError, match="must be a, b, got b, a"):
        ArrayClips(place, classes=["a", "b"])


def test_a_folder_of_arrays_is_mapped(tmp_path):
    data = ArrayClips(save_arrays(tmp_path / "a", clips=np.zeros((2, 3, 4, 4, 1), np.uint8), labels=np.zeros(2, int)))
    assert isinstance(data.clips, np.memmap)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused_by_index(place, value):
    clips = np.zeros((3, 2, 2, 2, 1), np.float32)
    clips[1, 1, 0, 0, 0] = value
    data = ArrayClips(save_arrays(place, clips=clips, labels=np.zeros(3, int)))
    data.clip(0, None)
    with pytest.raises(ValueError, match=r"\[1\] holds NaN or infinity"):
        data.clip(1, None)


GOOD = np.zeros((2, 3, 4, 4, 1), np.uint8)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"clips": GOOD}, "lacks labels"),
        ({"labels": np.zeros(2, int)}, "lacks clips"),
        ({"clips": GOOD[0], "labels": np.zeros(3, int)}, "shape"),
        ({"clips": GOOD.astype(float), "labels": [0, 0]}, "float64"),
        ({"clips": GOOD[:0], "labels": np.zeros(0, int)}, "without an axis of size 0"),
        ({"clips": GOOD, "labels": [0]}, "a label for each"),
        ({"clips": GOOD, "labels": [0.0, 1.0]}, "integers"),
        ({"clips": GOOD, "labels": [[0], [1]]}, "integers"),
        ({"clips": GOOD, "labels": [0, 2], "classes": ["a", "b"]}, "got 2 at index 1"),
        ({"clips": GOOD, "labels": [0, -1]}, "got -1 at index 1"),
        ({"clips": GOOD, "labels": [0, 10**9]}, "numbers of classes"),
        ({"clips": GOOD, "labels": [0, 1], "classes": [1, 2]}, "strings"),
        ({"clips": GOOD, "labels": np.array([0, None])}, "allow_pickle"),
    ],
)
def test_bad_arrays_are_refused(place, arrays, message):
    save_arrays(place, **arrays)
    with pytest.raises(ValueError, match=message):
        ArrayClips(place)


def test_damaged_files_of_arrays_are_refused(tmp_path):
    file = save_arrays(tmp_path / "a.npz", clips=GOOD, labels=np.zeros(2, int))
    file.write_bytes(file.read_bytes()[:-40])
    folder = save_arrays(tmp_path / "b", clips=GOOD, labels=np.zeros(2, int))
    (folder / "clips.npy").write_bytes((folder / "clips.npy").read_bytes()[:-40])
    for path in (file, folder, tmp_path / "none.npz"):
        with pytest.raises(ValueError, match="cannot be read"):
            ArrayClips(path)


# Whatever lies there


def test_open_dataset_finds_what_lies_there(lossless, tmp_path):
    train = open_dataset(lossless, train=True, size=16)
    assert (type(train), train.train, len(train)) == (VideoFolder, True, 4)
    assert len(open_dataset(lossless, train=False)) == 2
    assert len(open_dataset(lossless, train=False, split="train")) == 4
    for ending in ("", ".npz"):
        root = tmp_path / f"arrays{ending}"
        root.mkdir()
        save_arrays(root / f"train{ending}", clips=GOOD, labels=np.array([0, 2]))
        save_arrays(root / f"val{ending}", clips=GOOD + 1, labels=np.array([0, 1]))
        assert len(open_dataset(root, train=True).classes) == len(open_dataset(root, train=False).classes) == 3
    root = tmp_path / "lists"
    root.mkdir()
    (root / "train.csv").write_text("path,label\na.mp4,x\nb.mp4,y\n")
    (root / "val.csv").write_text("path,label\na.mp4,y\n")
    assert open_dataset(root, train=False).labels == [1]
    (root / "all.csv").write_text("path,label,split\na.mp4,x,train\nb.mp4,x,val\n")
    assert open_dataset(root / "all.csv", train=False).paths == [str(root / "b.mp4")]


def test_open_dataset_says_what_it_wants(tmp_path):
    with pytest.raises(ValueError, match="no such folder"):
        open_dataset(tmp_path / "none", train=True)
    with pytest.raises(ValueError, match="no 'train' data .* found: nothing"):
        open_dataset(tmp_path, train=True)
    save_arrays(tmp_path / "a.npz", clips=GOOD, labels=np.zeros(2, int))
    with pytest.raises(ValueError, match="folder that holds"):
        open_dataset(tmp_path / "a.npz", train=True)


def test_values_are_scaled_by_mean_and_deviation_of_each_channel(lossless):
    options = {"frames": 2, "size": (32, 48)}
    pixels = VideoFolder(lossless, "val", mean=0, deviation=1, **options).clip(0, None)[0]
    mean, deviation = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
    scaled = VideoFolder(lossless, "val", mean=mean, deviation=deviation, **options).clip(0, None)[0]
    assert scaled.dtype == np.float32 and pixels.max() > 10
    np.testing.assert_allclose(scaled, (pixels - np.array(mean)) / np.array(deviation), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("differences", [False, True])
def test_a_whole_video_is_one_clip(tmp_path, differences):
    video = np.arange(20, dtype=np.float32)[:, None, None, None] * np.ones((1, 4, 4, 3), np.float32)
    np.savez(tmp_path / "train.npz", clips=video[None], labels=np.zeros(1, np.int64))
    options = {"frames": 4, "stride": "whole", "differences": differences, "flip": False}
    data = ArrayClips(tmp_path / "train.npz", train=True, **options)
    clip, _ = data.clip(0, np.random.default_rng(0))
    seen = transforms.spread_indices(20, 4 + differences).astype(np.float32)
    assert clip[:, 0, 0, 0].tolist() == (np.diff(seen) if differences else seen).tolist()
    assert np.array_equal(Views(data, 0, clips=1, crops=1)[0], clip)
    assert ArrayClips(tmp_path / "train.npz", stride="whole").shape == (20, 4, 4, 3)
