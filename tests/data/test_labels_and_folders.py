"""What is taken for data, under which label, and what is said about all that is not."""

import os
import re
import shutil
import warnings

import numpy as np
import pytest

from minnl.data import ArrayClips, Loader, VideoCSV, VideoError, VideoFolder, one_video, open_dataset
from minnl.data.decoder import shown
from minnl.data.files import VideoFiles
from tests.videos import numbered, write_video

GOOD = np.zeros((2, 3, 4, 4, 1), np.uint8)


def touch(root, *names):
    """Empty files: a dataset lists videos, and opens them when they are asked for."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


# Folders


def test_folders_in_a_class_are_walked_down(tmp_path):
    touch(
        tmp_path, "train/a/day2/z/1.mp4", "train/a/day1/x.mp4", "train/a/a.mp4", "train/b/day1/x.MOV", "val/a/1/2.mkv"
    )
    data = VideoFolder(tmp_path, "train")
    names = [os.path.relpath(path, tmp_path / "train") for path in data.paths]
    assert names == [
        os.path.join(*name.split("/")) for name in ("a/a.mp4", "a/day1/x.mp4", "a/day2/z/1.mp4", "b/day1/x.MOV")
    ]
    assert (data.classes, data.labels) == (("a", "b"), [0, 0, 0, 1])
    assert len(VideoFolder(tmp_path, "val")) == 1


def test_what_is_ignored_is_said_once(tmp_path):
    ignored = ("train/.DS_Store", "train/__MACOSX/a/._1.mp4", "train/loose.mp4", "train/a/.hidden.mp4",
               "train/a/deep/.git/x.mp4", "train/a/notes.txt", "train/b/__MACOSX/2.mp4")  # fmt: skip
    touch(tmp_path, "train/a/1.mp4", "train/b/2.mp4", *ignored)
    with pytest.warns(RuntimeWarning) as said:
        data = VideoFolder(tmp_path, "train")
    assert data.classes == ("a", "b")
    assert [os.path.basename(path) for path in data.paths] == ["1.mp4", "2.mp4"]
    message = str(said.pop().message)
    assert not said.list and message.startswith(f"VideoFolder: {tmp_path / 'train'}: ignored ")
    for name in (".DS_Store", "__MACOSX", "loose.mp4", "a/.hidden.mp4", "a/deep/.git"):
        assert repr(str(tmp_path / "train" / name)) in message
    assert message.endswith("and 2 more")


def test_a_class_without_videos_is_said_and_stays(tmp_path):
    touch(tmp_path, "train/a/1.mp4", "val/a/2.mp4")
    (tmp_path / "train" / "b").mkdir()
    with pytest.warns(RuntimeWarning, match="classes without a video: 'b'"):
        assert VideoFolder(tmp_path, "train").classes == ("a", "b")
    assert VideoFolder(tmp_path, "val").classes == ("a", "b")


def test_links_that_lead_back_end_and_links_to_videos_are_followed(tmp_path):
    touch(tmp_path, "train/a/1.mp4", "elsewhere/2.mp4")
    (tmp_path / "train/a/back").symlink_to(tmp_path / "train")
    (tmp_path / "train/a/self").symlink_to(tmp_path / "train/a")
    (tmp_path / "train/a/more").symlink_to(tmp_path / "elsewhere")
    with pytest.warns(RuntimeWarning, match="ignored '.*self'"):
        data = VideoFolder(tmp_path, "train")
    assert sorted(os.path.basename(path) for path in data.paths) == ["1.mp4", "2.mp4"]


def test_a_folder_that_cannot_be_read_is_an_error(tmp_path, monkeypatch):
    touch(tmp_path, "train/a/1.mp4", "train/b/deep/2.mp4")

    def scandir(path, real=os.scandir):
        if os.path.basename(path) == "deep":
            raise PermissionError(13, "Permission denied", path)
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(PermissionError, match="deep"):
        VideoFolder(tmp_path, "train")


def test_videos_in_no_class_are_counted(tmp_path):
    touch(tmp_path, "train/1.mp4", "train/2.avi")
    with pytest.raises(ValueError, match="2 videos are in .*train itself, not in a class"):
        VideoFolder(tmp_path)


def test_of_two_layouts_the_one_taken_is_said(tmp_path):
    touch(tmp_path, "train/a/1.mp4")
    (tmp_path / "train.csv").write_text("path,label\ntrain/a/1.mp4,x\n")
    with pytest.warns(RuntimeWarning, match=r"has train and train\.csv; train is used$"):
        assert open_dataset(tmp_path, train=True).classes == ("a",)


def test_names_are_shown_without_what_moves_the_cursor(tmp_path):
    assert shown("a b\u00e9.mp4") == "a b\u00e9.mp4"
    assert shown(b"\xff\x1b[2J.mp4") == "'\\udcff\\x1b[2J.mp4'"
    path = os.path.join(tmp_path, "\x1b[2J.mp4")
    with pytest.raises(VideoError) as caught:
        one_video(path, ("a",)).clip(0, None)
    assert "\x1b" not in str(caught.value) and caught.value.path == path
    with (
        pytest.warns(RuntimeWarning, match=r"left out '.*\\x1b\[2J\.mp4': No such"),
        pytest.raises(ValueError, match=r"first '.*\\x1b"),
    ):
        list(Loader(one_video(path, ("a",)), 1))


# The same files in train and val


def test_videos_that_are_in_train_too_are_said(tmp_path):
    for name, levels in (("train/a/1.mp4", 4), ("train/a/2.mp4", 5), ("val/a/new.mp4", 6)):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        write_video(tmp_path / name, numbered(levels), qp=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        open_dataset(tmp_path, train=True)
        open_dataset(tmp_path, train=False)
    shutil.copy(tmp_path / "train/a/1.mp4", tmp_path / "val/a/copy.mp4")
    with pytest.warns(RuntimeWarning, match=r"1 of 2 files of val are in train too .*copy\.mp4") as said:
        open_dataset(tmp_path, train=False)
    assert len(said) == 1
    (tmp_path / "all.csv").write_text(
        "path,label,split\ntrain/a/1.mp4,a,train\nval/a/copy.mp4,a,val\nval/a/new.mp4,a,val\n"
    )
    with pytest.warns(RuntimeWarning, match=r"1 of 2 files of val .*copy\.mp4"):
        open_dataset(tmp_path / "all.csv", train=False)


def test_files_of_one_size_are_told_apart_by_their_ends(tmp_path):
    rng = np.random.default_rng(0)
    data = bytearray(rng.bytes(200_000))
    touch(tmp_path, "train/a/1.mp4", "val/a/2.mp4")
    (tmp_path / "train/a/1.mp4").write_bytes(data)
    data[-1] ^= 1
    (tmp_path / "val/a/2.mp4").write_bytes(data)
    open_dataset(tmp_path, train=False)
    data[-1] ^= 1
    (tmp_path / "val/a/2.mp4").write_bytes(data)
    with pytest.warns(RuntimeWarning, match="1 of 1 files"):
        open_dataset(tmp_path, train=False)


@pytest.mark.parametrize("folder", [True, False])
def test_arrays_that_are_in_train_too_are_said(tmp_path, folder):
    for split in ("train", "val"):
        if folder:
            (tmp_path / split).mkdir()
            np.save(tmp_path / split / "clips.npy", GOOD)
            np.save(tmp_path / split / "labels.npy", np.zeros(2, int))
        else:
            np.savez(tmp_path / f"{split}.npz", clips=GOOD, labels=np.zeros(2, int))
    with pytest.warns(RuntimeWarning, match="1 of 1 files of val are in train too"):
        open_dataset(tmp_path, train=False)


# Lists


def csv(tmp_path, text):
    (tmp_path / "a.csv").write_text(text)
    return VideoCSV(tmp_path / "a.csv")


def test_blanks_and_quotes_around_values_are_not_of_them(tmp_path):
    data = csv(tmp_path, 'path, label \n"a, b.mp4", "x"\nc.mp4 , y z \n')
    assert (data.classes, data.labels) == (("x", "y z"), [0, 1])
    assert [os.path.basename(path) for path in data.paths] == ["a, b.mp4", "c.mp4"]


def test_a_column_that_is_there_twice_is_refused(tmp_path):
    with pytest.raises(ValueError, match="path,label, each once, got path,label,label"):
        csv(tmp_path, "path,label,label\na.mp4,x,y\n")


def test_files_listed_more_than_once_are_said(tmp_path):
    with pytest.warns(RuntimeWarning, match=r"listed more than once: '.*a\.mp4'"):
        csv(tmp_path, "path,label\na.mp4,x\n./a.mp4,x\nb.mp4,y\n")
    with pytest.warns(RuntimeWarning, match=r"listed more than once, as different classes: '.*a\.mp4'"):
        csv(tmp_path, "path,label\na.mp4,x\na.mp4,y\n")


def test_labels_counted_from_one_are_said(tmp_path):
    with pytest.warns(RuntimeWarning, match="VideoCSV: no label is 0; labels are counted from 0"):
        assert csv(tmp_path, "path,label\na.mp4,1\nb.mp4,2\n").classes == ("0", "1", "2")
    np.savez(tmp_path / "a.npz", clips=GOOD, labels=np.array([1, 2]))
    with pytest.warns(RuntimeWarning, match="ArrayClips: no label is 0"):
        ArrayClips(tmp_path / "a.npz")


# Labels that come as Python values


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 0.9], "label 1 must be an int, got 0.9"),
        (["1", 0], "label 0 must be an int, got '1'"),
        ([True, 0], "label 0 must be an int, got True"),
        ([0, np.float32(1)], "label 1 must be an int"),
        ([0, None], "label 1 must be an int, got None"),
        ([0, -1], "label 1 must be 0 or more, got -1"),
        ([0, 2], "labels must be 0 to 1, got 2 at index 1"),
        ([0], "got 2 paths and 1 labels"),
    ],
)
def test_labels_are_whole_numbers_of_classes(labels, message):
    with pytest.raises((TypeError, ValueError), match=re.escape(message)):
        VideoFiles(["a.mp4", "b.mp4"], labels, ("x", "y"))
    assert VideoFiles(["a.mp4", "b.mp4"], [np.int8(1), 0], ("x", "y")).labels == [1, 0]


class Odd:
    classes, shape = ("x", "y"), (1, 2, 2, 1)

    def __init__(self, label):
        self.label = label

    def __len__(self):
        return 2

    def name(self, index):
        return str(index)

    def clip(self, index, rng):
        return np.zeros(self.shape, np.float32), self.label


@pytest.mark.parametrize("label", [0.9, "1", True, None, np.float64(1), [1]])
@pytest.mark.parametrize("workers", [0, 1])
def test_a_loader_takes_no_label_that_is_no_int(label, workers):
    with pytest.raises(TypeError, match="Loader: label of clip 0 must be an int"):
        next(iter(Loader(Odd(label), 2, workers=workers)))
    assert next(iter(Loader(Odd(np.uint8(1)), 2, workers=workers)))[1].tolist() == [1, 1]


def test_classes_are_names_that_differ():
    with pytest.raises(
        TypeError, match=re.escape("classes must be a sequence of names, got 'ab'; one class is ('ab',)")
    ):
        one_video("a.mp4", "ab")
    with pytest.raises(ValueError, match="classes must have different names, got a, b, a"):
        one_video("a.mp4", ("a", "b", "a"))


# Arrays


@pytest.mark.parametrize(
    ("shape", "order"),
    [
        ((2, 3, 16, 112, 112), (0, 2, 3, 4, 1)),
        ((2, 3, 16, 56, 64), (0, 2, 3, 4, 1)),
        ((2, 1, 8, 24, 24), (0, 2, 3, 4, 1)),
        ((2, 16, 3, 112, 112), (0, 1, 3, 4, 2)),
        ((2, 3, 16, 16, 16), (0, 2, 3, 4, 1)),
    ],
)
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_clips_that_can_only_be_channels_first_are_refused(tmp_path, shape, order, dtype):
    clips = np.zeros(shape, dtype)
    np.savez(tmp_path / "train.npz", clips=clips, labels=np.zeros(2, int))
    with pytest.raises(ValueError, match=re.escape(f"clips.transpose{order}")) as caught:
        open_dataset(tmp_path, train=True)
    assert f"channels seem to be axis {shape.index(min(shape[1:3]))}" in str(caught.value)
    np.savez(tmp_path / "train.npz", clips=clips.transpose(order), labels=np.zeros(2, int))
    assert open_dataset(tmp_path, train=True).shape[-1] in (1, 3)


@pytest.mark.parametrize(
    "shape", [(2, 3, 16, 16, 3), (2, 3, 7, 7, 64), (2, 16, 16, 16, 16), (2, 4, 20, 30, 8), (2, 1, 4, 4, 1)]
)
def test_clips_that_can_be_channels_last_are_taken(tmp_path, shape):
    np.savez(tmp_path / "a.npz", clips=np.zeros(shape, np.float32), labels=np.zeros(2, int))
    assert ArrayClips(tmp_path / "a.npz").shape == shape[1:]


def test_bytes_that_came_as_floats_are_refused(tmp_path):
    clips = np.random.default_rng(0).integers(0, 256, (2, 3, 4, 4, 3))
    np.savez(tmp_path / "a.npz", clips=clips.astype(np.float32), labels=np.zeros(2, int))
    with pytest.raises(ValueError, match="whole numbers from 0 to 255: store them as uint8"):
        ArrayClips(tmp_path / "a.npz")
    for other in (clips / 255, clips - 128, clips * 4, clips // 8):
        np.savez(tmp_path / "a.npz", clips=other.astype(np.float32), labels=np.zeros(2, int))
        np.testing.assert_array_equal(ArrayClips(tmp_path / "a.npz").clip(0, None)[0], other[0].astype(np.float32))
    np.savez(tmp_path / "a.npz", clips=clips / 255, labels=np.zeros(2, int))
    with pytest.raises(ValueError, match=r"got float64 of shape .*write clips\.astype\(np\.float32\)"):
        ArrayClips(tmp_path / "a.npz")


# Frames that are scaled beyond all measure, and rates that are none


def test_a_strip_is_not_scaled_to_fill_memory(tmp_path):
    clips = np.zeros((1, 1, 1, 60000, 3), np.uint8)
    np.savez(tmp_path / "a.npz", clips=clips, labels=np.zeros(1, int))
    data = ArrayClips(tmp_path / "a.npz", size=112)
    with pytest.raises(ValueError, match="frames of 1 x 60000 would be scaled to 112 x 6720000"):
        data.clip(0, None)
    assert ArrayClips(tmp_path / "a.npz", size=112, resize="squash").clip(0, None)[0].shape == (1, 112, 112, 3)


@pytest.mark.parametrize("rate", [0, -1, float("nan"), float("inf"), "30", True])
def test_a_rate_is_a_number_of_frames_a_second(rate):
    with pytest.raises((ValueError, TypeError), match="rate must be"):
        one_video("a.mp4", ("a",), rate=rate)
