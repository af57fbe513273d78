"""Views of a video and evaluation by them: the authors' numbers, by hand, in bounded memory, with broken videos."""

import csv
import tracemalloc
import warnings

import numpy as np
import pytest

import minnl
import models
from minnl import Tensor, nn
from minnl.data import ArrayClips, RelationClips, VideoCSV, VideoFolder, Views, one_video, views
from minnl.data import video as video_file
from minnl.training import evaluation
from minnl.training.evaluation import evaluate_views
from tests import strict_cupy
from tests.videos import numbered, write_video


def video_of(path, *arguments, **options):
    return one_video(write_video(path, *arguments, qp=0), ("a", "b"), **options)


def grey(views):
    """Levels on the scale of 0 to 255 of the upper left pixel: (views, frames)."""
    return np.stack([np.rint(view[:, 0, 0, 0] * 57.375 + 114.75).astype(int) for view in views])


# Views


def test_ten_clips_of_three_crops_with_the_authors_numbers(tmp_path):
    """300 frames, 32 x 2: clips start at 0, 30, ..., 270, the last goes round; 256 x 340 is cut at 0, 42 and 84."""
    length, wide = 300, np.arange(340, dtype=np.float32)
    clip = np.broadcast_to(wide[:, None], (1, length, 256, 340, 1))  # a view: it takes no memory
    np.savez(tmp_path / "few.npz", clips=np.zeros((1, length, 1, 1, 1), np.uint8), labels=[0])
    dataset = ArrayClips(tmp_path / "few.npz", frames=32, stride=2, size=224, short_side=256)
    dataset.clips = clip
    seen = Views(dataset, 0)
    assert (len(seen), seen.shape, seen[29].shape) == (30, (32, 256, 256, 1), (32, 256, 256, 1))
    taken = [[(30 * j + 2 * k) % 300 for k in range(32)] for j in range(10)]
    assert taken[9] == [*range(270, 300, 2), *range(0, 34, 2)]
    positions = np.unique(taken)  # each frame is kept once, in order
    assert positions[seen.rows].tolist() == taken and len(seen.frames) == len(positions) == 150
    assert [view[0, 0, 0, 0] for view in list(seen)[:3]] == [0, 42, 84]
    assert all(view[5, 255, 255, 0] - view[5, 0, 0, 0] == 255 for view in list(seen)[:3])


def test_six_crops_are_three_and_their_mirror_images(tmp_path):
    dataset = video_of(tmp_path / "a.mp4", np.random.default_rng(0).integers(0, 256, (8, 32, 48, 3), dtype=np.uint8),
                       frames=2, size=32)  # fmt: skip
    three, six = list(Views(dataset, 0, 2, 3)), list(Views(dataset, 0, 2, 6))
    assert len(six) == 12
    for j in (0, 1):
        for k in range(3):
            np.testing.assert_array_equal(six[6 * j + k], three[3 * j + k])
            np.testing.assert_array_equal(six[6 * j + 3 + k], three[3 * j + k][:, :, ::-1])


def test_an_upright_video_is_cut_from_top_to_bottom(tmp_path):
    frames = np.broadcast_to(np.arange(0, 240, 5, dtype=np.uint8)[:, None, None], (4, 48, 32, 3)).copy()
    seen = Views(video_of(tmp_path / "a.mp4", frames, frames=2, size=32), 0, clips=1)
    assert seen.shape == (2, 32, 32, 3)
    assert grey(seen)[:, 0].tolist() == [0, 40, 80]


def test_a_video_shorter_than_a_clip_goes_round(tmp_path):
    seen = Views(video_of(tmp_path / "a.mp4", numbered(5), frames=4, stride=2, size=32), 0, clips=10, crops=1)
    assert (grey(seen) // 5).tolist() == [[(j // 2 + 2 * k) % 5 for k in range(4)] for j in range(10)]


def test_short_side_is_that_of_the_test_and_decoded_at_once_to_it(tmp_path, monkeypatch):
    sizes = []
    read = video_file.read_video
    monkeypatch.setattr("minnl.data.files.read_video", lambda *a: sizes.append(a[2]) or read(*a))
    path = write_video(tmp_path / "a.mp4", numbered(4, 80, 120), qp=0)
    for train in (False, True):
        dataset = one_video(path, ("a",), frames=2, size=24, short_side=(32, 40), train=train, cache_bytes=0)
        assert Views(dataset, 0, 1, 3).shape == (2, 32, 32, 3)
    assert sizes == [(32, 48), (40, 60)], "what training takes at random is stored at its largest"


def test_differences_are_taken_after_the_cut(tmp_path):
    dataset = video_of(tmp_path / "a.mp4", numbered(9), frames=3, stride=2, size=32, differences=True)
    seen = Views(dataset, 0, 2, 3)
    assert seen.shape == (3, 32, 32, 3) == seen[0].shape
    np.testing.assert_allclose(seen[0], 10 / 57.375, atol=1e-6)


def test_views_that_make_no_sense_are_refused(tmp_path):
    path = write_video(tmp_path / "a.mp4", numbered(4), qp=0)
    for options, arguments, message in (
        ({}, (0, 3), "Views: clips must be 1 or more, got 0"),
        ({}, (2, 2), "Views: crops must be one of 1, 3, 6, got 2"),
        ({"resize": "squash"}, (2, 3), "Views: crops=3 needs resize='crop'"),
        ({"stride": "whole"}, (10, 1), 'Views: stride="whole" makes one clip of a video, asked for clips=10'),
    ):
        with pytest.raises(ValueError, match=message):
            Views(one_video(path, ("a",), size=32, **options), 0, *arguments)
    with pytest.raises(TypeError, match="must be of videos or arrays, got RelationClips"):
        Views(RelationClips("test", clips=4), 0)
    assert views.parse("10x3") == (10, 3)
    for text in ("10", "10 x 3", "x3", "10x3x1", "-1x3"):
        with pytest.raises(ValueError, match="expected clips x crops such as 10x3"):
            views.parse(text)
    with pytest.raises(ValueError, match="crops must be one of"):
        views.parse("10x4")
    seen = Views(one_video(path, ("a",), frames=2, size=32), 0, 2, 1)
    with pytest.raises(IndexError, match="there are 2 views, asked for number 2"):
        seen[2]


def test_memory_does_not_depend_on_the_length_of_a_video(tmp_path):
    """The same 10 x 3 views of 60 frames and of 1200, which decoded would be 17 MB."""
    peaks = []
    for length in (60, 1200):
        path = write_video(tmp_path / f"{length}.mp4", numbered(60, 60, 80)[np.arange(length) % 60], crf=40)
        dataset = one_video(path, ("a",), frames=4, stride=1, size=48)
        Views(dataset, 0)  # libraries are loaded now
        tracemalloc.start()
        for view in Views(dataset, 0):
            assert view.shape == (4, 48, 48, 3)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert not dataset._cache
    assert peaks[1] < peaks[0] + 2e5, peaks
    assert peaks[1] < 5e6


# Evaluation


class Preset(nn.Module):
    """Says to a clip what its first frame's mean makes of a few fixed numbers; counts, and keeps what it was given."""

    def __init__(self, classes):
        super().__init__()
        self.weight = nn.Parameter(np.random.default_rng(1).normal(size=(1, classes)).astype(np.float32) * 4)
        self.batches = []

    def forward(self, x):
        logits = x[:, 0].mean(axis=(1, 2, 3)).reshape(-1, 1) @ self.weight
        if not self.training:  # the cost summary asks in the mode of training
            self.batches.append(x.shape[0])
            assert logits.op is None, "a graph is recorded"
        return logits


def folder_of(tmp_path, classes=7, videos=3):
    rng = np.random.default_rng(0)
    lines = ["path,label"]
    for k in range(videos):
        frames = np.broadcast_to(rng.integers(0, 256, (12, 1, 48, 1), dtype=np.uint8), (12, 32, 48, 3)).copy()
        write_video(tmp_path / f"{k}.mp4", frames, qp=0)
        lines.append(f"{k}.mp4,{k % classes}")
    lines.append(f"x.mp4,{classes - 1}")
    (tmp_path / "x.mp4").write_bytes(b"not a video")
    (tmp_path / "all.csv").write_text("\n".join(lines) + "\n")
    return VideoCSV(tmp_path / "all.csv", frames=2, stride=2, size=16, short_side=16)


@pytest.mark.filterwarnings("ignore:evaluate_views. left out")
@pytest.mark.parametrize("workers", [0, 1, 3])
def test_evaluation_by_hand(tmp_path, workers):
    dataset, model = folder_of(tmp_path), Preset(7)
    result = evaluate_views(model, dataset, 4, 3, batch_size=5, workers=workers, scores=tmp_path / "scores.csv")
    loss, first, fifth, alone = 0.0, 0, 0, 0.0
    for index in range(3):
        logits = [
            view[0].mean(dtype=np.float64) * model.weight.data[0].astype(np.float64)
            for view in Views(dataset, index, 4, 3)
        ]
        shares = [np.exp(row) / np.exp(row).sum() for row in logits]
        mean, label = np.mean(shares, axis=0), dataset.labels[index]
        ahead = sum(v > mean[label] for v in mean)
        loss, first, fifth = loss - np.log(mean[label]), first + (ahead < 1), fifth + (ahead < 5)
        alone += np.mean([share.argmax() == label for share in shares])
    assert result.pop("skipped") == [(str(tmp_path / "x.mp4"), "Invalid data found when processing input")]
    assert result == {
        "loss": pytest.approx(loss / 3, rel=1e-5), "top1": first / 3, "top5": fifth / 3, "clips": 3,
        "view_top1": pytest.approx(alone / 3),
    }  # fmt: skip
    assert model.batches == [5, 5, 2] * 3
    assert model.training


def test_softmax_is_taken_at_each_position_and_averaged():
    """3 x 3 positions: the mean of their softmax, which the softmax of the mean logits is not."""
    minnl.manual_seed(0)
    model = models.build("c2d_r18", width=8, classes=5, frames=8, size=32).eval()
    model.head.classify.weight.data *= 100
    x = np.random.default_rng(0).normal(size=(2, 8, 96, 96, 3)).astype(np.float32)
    positions = model.positions(Tensor(x)).numpy().astype(np.float64)
    assert positions.shape[1] * positions.shape[2] > 1
    shares = np.exp(positions) / np.exp(positions).sum(axis=-1, keepdims=True)
    got = evaluation.probabilities(model, Fixed(x), 1)
    np.testing.assert_allclose(got, shares.mean(axis=(1, 2)), atol=1e-5)
    other = np.exp(positions.mean(axis=(1, 2)))
    assert np.abs(got - other / other.sum(axis=-1, keepdims=True)).max() > 1e-3


class Fixed(list):
    """Views that are there already."""

    @property
    def shape(self):
        return self[0].shape


@pytest.mark.filterwarnings("ignore:evaluate_views. left out")
def test_the_table_of_scores(tmp_path):
    dataset, model = folder_of(tmp_path, classes=7), Preset(7)
    evaluate_views(model, dataset, 2, 1, scores=tmp_path / "scores.csv")
    assert not (tmp_path / "scores.csv.part").exists()
    rows = list(csv.DictReader((tmp_path / "scores.csv").read_text().splitlines()))
    assert [r["status"] for r in rows] == ["ok", "ok", "ok", "skipped"]
    assert [r["views"] for r in rows] == ["2", "2", "2", "0"]
    assert [r["path"] for r in rows] == dataset.paths and [r["label"] for r in rows] == ["0", "1", "2", "6"]
    for index in range(3):
        with nn.evaluating(model):
            mean = evaluation.probabilities(model, Views(dataset, index, 2, 1), 2).mean(axis=0)
        best = np.argsort(-mean)[:5]
        assert [rows[index][f"class{k + 1}"] for k in range(5)] == [str(c) for c in best]
        np.testing.assert_allclose([float(rows[index][f"score{k + 1}"]) for k in range(5)], mean[best], atol=1e-6)
    assert rows[3]["reason"] == "Invalid data found when processing input" and rows[3]["class1"] == ""


def test_a_table_is_whole_or_not_there(tmp_path):
    dataset, model = folder_of(tmp_path), Preset(7)
    (tmp_path / "scores.csv").write_text("of before")
    with pytest.raises(ValueError, match="x.mp4: Invalid data"):
        evaluate_views(model, dataset, 2, 1, scores=tmp_path / "scores.csv", on_error="error")
    assert (tmp_path / "scores.csv").read_text() == "of before"
    assert len((tmp_path / "scores.csv.part").read_text().splitlines()) == 4  # for whoever wants to see how far it came
    with pytest.raises(FileNotFoundError):
        evaluate_views(model, dataset, 2, 1, scores=tmp_path / "nowhere" / "scores.csv")


def test_what_cannot_be_used(tmp_path):
    dataset, model = folder_of(tmp_path, videos=0), Preset(7)
    with (
        pytest.warns(RuntimeWarning, match="left out"),
        pytest.raises(ValueError, match="none of 1 videos .*x.mp4: Inv"),
    ):
        evaluate_views(model, dataset)
    with warnings.catch_warnings(), pytest.raises(ValueError, match="needs resize='crop'"):
        evaluate_views(model, VideoCSV(tmp_path / "all.csv", resize="squash"))  # once, not for each video
    with pytest.raises(ValueError, match="on_error must be one of"):
        evaluate_views(model, dataset, on_error="ignore")
    assert not model.batches


@pytest.mark.filterwarnings("ignore:evaluate_views. left out")
def test_as_many_views_together_as_memory_has_room_for(tmp_path):
    dataset = folder_of(tmp_path, classes=3, videos=1)
    minnl.manual_seed(0)
    model = models.build("nl_small", classes=3, in_channels=3)
    shape = (2, 16, 16, 3)
    one = evaluation.at_once(model, shape, 1.0)
    assert one == 1, "one view always goes"
    many = evaluation.at_once(model, shape, 1e8)
    assert many > 10 and evaluation.at_once(model, shape, 2e8) == pytest.approx(2 * many, abs=1)
    assert evaluation.at_once(model, shape, 1e8, most=7) == 7
    results = [evaluate_views(model, dataset, 4, 3, memory=memory) for memory in (1.0, 1e8)]
    for key in ("loss", "top1", "top5"):
        assert results[0][key] == pytest.approx(results[1][key], rel=1e-5)


@pytest.mark.filterwarnings("ignore:evaluate_views. left out")
def test_memory_does_not_grow_from_video_to_video(tmp_path):
    path = write_video(tmp_path / "a.mp4", numbered(20, 48, 64), qp=0)
    peaks = []
    for count in (2, 12):
        (tmp_path / "a.csv").write_text("path,label\n" + f"{path.name},0\n" * count)
        with pytest.warns(RuntimeWarning, match="listed more than once"):
            dataset = VideoCSV(tmp_path / "a.csv", classes=("0", "1"), frames=4, size=32)
        model = Preset(2)
        evaluate_views(model, dataset, workers=0)
        tracemalloc.start()
        evaluate_views(model, dataset, workers=0)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] * 1.05, peaks


def test_on_a_gpu_it_is_the_same(tmp_path):
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "val.npz", clips=rng.integers(0, 256, (3, 9, 20, 24, 3), dtype=np.uint8), labels=[0, 1, 2])
    results = []
    with minnl.use_kernels("textbook"):
        for device in ("cpu", "gpu"):
            with strict_cupy.installed():
                minnl.manual_seed(0)
                model = models.build("nl_small", classes=3, in_channels=3).to(device)
                dataset = ArrayClips(tmp_path / "val.npz", frames=4, size=20)
                results.append(evaluate_views(model, dataset, 2, 3, batch_size=4))
    assert results[0] == {k: pytest.approx(v, rel=1e-5) if k != "skipped" else v for k, v in results[1].items()}


def test_progress_is_told_in_plain_lines(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("minnl.training.progress.QUIET", -1.0)
    path = write_video(tmp_path / "a.mp4", numbered(4), qp=0)
    evaluate_views(Preset(2), one_video(path, ("a", "b"), frames=2, size=16), 1, 1, plain=True)
    assert capsys.readouterr().out == "video 0/1: first video, ETA 0:00\n"


def test_a_folder_of_real_files_with_a_published_network(tmp_path):
    """A tiny I3D with non-local blocks over a folder, with the views of the paper."""
    for name in ("dark", "light"):
        (tmp_path / "val" / name).mkdir(parents=True)
        write_video(tmp_path / "val" / name / "a.mp4", numbered(20), qp=0)
    dataset = VideoFolder(tmp_path, "val", frames=8, stride=2, size=32, short_side=40)
    minnl.manual_seed(0)
    model = models.build("nl_i3d_r50_5_8x8", width=8, classes=2, frames=8, size=32)
    result = evaluate_views(model, dataset)
    assert result["clips"] == 2 and result["top5"] == 1 and result["skipped"] == []
    assert sum(p.grad is not None for p in model.parameters()) == 0


def test_a_model_with_other_classes_is_refused(tmp_path):
    dataset = video_of(tmp_path / "a.mp4", np.zeros((4, 32, 32, 3), np.uint8), frames=2, size=16)
    with pytest.raises(ValueError, match="the model tells 3 classes apart, the dataset has 2"):
        evaluate_views(Preset(3), dataset, 1, 1, plain=True, scores=tmp_path / "scores.csv")
    assert not (tmp_path / "scores.csv").exists()
