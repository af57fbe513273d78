"""train.py with recipes, published networks and views."""

import csv
import dataclasses
import json
import pathlib

import numpy as np
import pytest

import models
import train
from minnl.training import checkpoint, command_line
from models import published, run_config
from tests.fast import as_before  # noqa: F401 (a fixture: threads and kernels as they were)
from tests.videos import numbered, write_video


def arguments(*given):
    return vars(command_line.arguments(given, run_config.defaults()))


# What options become


def test_the_papers_recipe_on_a_published_network():
    made = arguments("--model", "nl_i3d_r50_5_8x8", "--recipe", "paper", "--data", "kinetics")
    expected = {
        "frames": 8, "stride": 8, "size": [224, 224], "short_side": [256, 320], "resize": "crop", "rgb": True,
        "dropout": 0.5, "batch_size": 8, "accumulate": 8, "lr": None, "weight_decay": 1e-4, "clip_norm": None,
        "warm_up": 0.0, "epochs": 109, "precise": 1600, "recipe": "paper",
    }  # fmt: skip
    assert {k: made[k] for k in expected} == expected
    assert not {"non_local", "blocks", "subsample", "axes"} & set(made), "its name says these"


@pytest.mark.parametrize(
    "name, frames, step",
    [("c2d_r50", 32, 2), ("c2d_r50_8x8", 8, 8), ("i3d_r50_128x1", 128, 1), ("i3d_r50_32x4", 32, 4)],
)
def test_a_networks_name_says_which_frames_it_takes(name, frames, step):
    made = arguments("--model", name)
    assert (made["frames"], made["stride"], made["lr"]) == (frames, step, 3e-3)


def test_what_is_given_goes_before_the_recipe():
    made = arguments("--recipe", "paper", "--data", "x", "--lr", "0.5", "--size", "112", "--no-rgb", "--dropout", "0.1",
                     "--clip-norm", "40", "--accumulate", "2", "--frames", "16", "--precise", "0")  # fmt: skip
    assert (made["lr"], made["size"], made["rgb"], made["dropout"], made["clip_norm"]) == (0.5, [112], False, 0.1, 40)
    assert (made["accumulate"], made["frames"], made["precise"], made["stride"]) == (2, 16, 0, 2)
    assert made["short_side"] == [128, 160], "in proportion to the size"
    assert arguments("--recipe", "paper", "--data", "x", "--short-side", "230", "240")["short_side"] == [230, 240]
    assert arguments("--recipe", "paper", "--data", "x", "--resize", "squash")["short_side"] is None


def test_nothing_given_is_as_ever():
    made = arguments()
    expected = {
        "model": "small", "non_local": "embedded", "blocks": "res2", "frames": 16, "size": [24], "lr": 3e-3,
        "batch_size": 32, "epochs": 10, "resize": "squash", "rgb": False, "accumulate": 1, "precise": 0,
        "warm_up": 0.05, "weight_decay": 0.01, "clip_norm": 1.0, "recipe": "adamw", "short_side": None, "dropout": 0.0,
    }  # fmt: skip
    assert {k: made[k] for k in expected} == expected
    assert arguments("--data", "x")["size"] == [64, 96]
    assert arguments("--recipe", "paper")["size"] == [24], "the built-in task has its own clips"


def network(*given, classes=5, channels=3):
    config = arguments(*given) | {"classes": list(range(classes)), "channels": channels}
    return models.Config(**run_config.published(config)["network"])


def test_a_published_network_with_changes():
    made = network("--model", "nl_c2d_r50_5_8x8")
    assert made == models.preset("nl_c2d_r50_5_8x8", classes=5, dropout=0.0)
    assert network("--model", "nl_c2d_r50_5", "--subsample", "none", "--axes", "space").subsample is None
    assert network("--model", "nl_c2d_r50_5", "--non-local", "none").non_local is None
    assert network("--model", "c2d_r50", "--non-local", "dot", "--blocks", "10").blocks == 10
    assert network("--model", "nl_c2d_r50_1", "--blocks", "res3").blocks == {"res3": (2,)}
    assert network("--model", "nl_c2d_r50_1", "--blocks", "res5").blocks == {"res5": (1,)}
    assert network("--model", "c2d_r50", "--size", "112", "128", "--frames", "16", channels=1).clip == (16, 112, 128, 1)
    for given, message in (
        (("--model", "c2d_r50", "--blocks", "5"), "c2d_r50 has no non-local blocks; ask for some with --non-local"),
        (("--model", "nl_c2d_r50_1", "--blocks", "res9"), "Config: blocks must be one of 'res2'"),
        (("--model", "nl_c2d_r50_1", "--blocks", "3"), "blocks must be 1 or 5 or 10"),
    ):
        with pytest.raises(ValueError, match=message):
            network(*given)


@pytest.mark.parametrize(
    "given, message",
    [
        (("--views", "10x3"), "--views is for --evaluate and --predict"),
        (("--evaluate", "x", "--scores", "a.csv"), "--scores needs --evaluate and --views"),
        (("--recipe", "best"), "argument --recipe: invalid choice: 'best'"),
    ],
)
def test_options_that_do_not_go_together(capsys, given, message):
    with pytest.raises(SystemExit):
        arguments(*given)
    assert message in capsys.readouterr().err


# Older checkpoints

RUN = {
    "model": "small", "classes": ["a", "b", "c"], "channels": 1, "data": None, "frames": 16, "stride": 2, "size": [24],
    "resize": "squash", "rgb": False, "seed": 0, "non_local": "embedded", "subsample": "before", "axes": "spacetime",
    "device": "cpu", "dropout": 0.0,
}  # fmt: skip


def read(path, config, arrays):
    """The configuration of a checkpoint as train.py reads it."""
    checkpoint.save(path, {f"model/{name}": array for name, array in arrays.items()}, {"config": config})
    return train.load(path, "cpu")[1]


@pytest.mark.parametrize(
    "older, now",
    [
        ({"place": "res2", "blocks": 1}, {"blocks": "res2"}),
        ({"place": "res3", "blocks": 1}, {"blocks": "res3"}),
        ({"options": {"non_local": "dot", "place": "res3"}}, {"options": {"non_local": "dot", "blocks": "res3"}}),
        ({"options": {"non_local": "dot", "place": {"res2": [0], "res3": [0]}}},
         {"options": {"non_local": "dot", "blocks": {"res2": [0], "res3": [0]}}}),
        ({"options": {"non_local": "dot", "residuals": [3, 4], "number": 2}},
         {"options": {"non_local": "dot", "residuals": [3, 4], "blocks": {"res2": [1, 2]}}}),
        ({"options": {"non_local": "dot", "residuals": [3, 4], "place": "res3", "number": 3}},
         {"options": {"non_local": "dot", "residuals": [3, 4], "blocks": {"res3": [0, 1, 2]}}}),
    ],
)  # fmt: skip
def test_older_words_for_the_blocks_of_the_small_network(tmp_path, older, now):
    model = run_config.build(RUN | now)
    found = read(tmp_path / "older.safetensors", RUN | older, model.state_dict())
    assert {key: found.get(key) for key in ("place", "blocks", "options")} == {
        key: now.get(key) for key in ("place", "blocks", "options")
    }


@pytest.mark.parametrize("places", [5, {"res3": [2]}])
def test_older_words_for_the_blocks_of_a_published_network(tmp_path, places):
    model = models.build("nl_c2d_r50_5_8x8", width=2, classes=3, blocks=places, size=32, pool1_padding=1)
    network = json.loads(json.dumps(dataclasses.asdict(model.config)))
    older = {"places" if key == "blocks" else key: value for key, value in network.items()}
    config = RUN | {"model": "nl_c2d_r50_5_8x8", "rgb": True, "network": older, "place": "res3"}
    found = read(tmp_path / "older.safetensors", config, model.state_dict())
    assert found["network"] == network and "place" not in found
    assert published.export_file(tmp_path / "older.safetensors", tmp_path / "there.safetensors", "slowfast")


@pytest.mark.parametrize(
    "older, message",
    [
        ({"place": "res2", "blocks": 2}, r"config\['blocks'\]"),
        ({"place": "res9", "blocks": 1}, "Small: blocks must be one of 'res2', 'res3', got 'res9'"),
        ({"place": [1], "blocks": 1}, r"config\['place'\] is \[1\]; a text"),
        (
            {"options": {"place": "res2", "number": 99}},
            r"\['number'\] is 99; an integer from 1 to 10",
        ),
        ({"options": {"place": "res2", "number": 2}}, r"\['blocks'\]\['res2'\]\[0\] is -1; an integer from 0"),
        ({"network": {"places": 5, "blocks": 5}}, "a dict with no keys but depth, .*"),
    ],
)
def test_older_words_that_mean_nothing(tmp_path, older, message):
    with pytest.raises(ValueError, match=message):
        read(tmp_path / "older.safetensors", RUN | older, models.build("nl_small").state_dict())


# Runs

PAPER = (
    "--data", "videos", "--model", "nl_c2d_r18_1", "--recipe", "paper", "--frames", "8", "--size", "32",
    "--epochs", "1", "--batch-size", "2", "--accumulate", "2", "--precise", "1", "--threads", "2",
)  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder of videos, and a published network that was trained on it for an epoch by the paper's recipe."""
    folder = tmp_path_factory.mktemp("published")
    for split, count in (("train", 3), ("val", 2)):
        for k, name in enumerate(("dark", "light")):
            (folder / "videos" / split / name).mkdir(parents=True)
            for i in range(count):
                write_video(
                    folder / "videos" / split / name / f"{i}.mp4",
                    numbered(12 + i, 40, 60) // 4 + np.uint8(100 * k + (split == "val")),
                )
    (folder / "videos/val/light/1.mp4").write_bytes(b"not a video")
    with pytest.MonkeyPatch.context() as patch, pytest.warns(RuntimeWarning, match="left out"):
        patch.chdir(folder)
        assert train.main([*PAPER, "--name", "r18"]) == 0
    return folder


@pytest.fixture
def run(trained, monkeypatch, capsys):
    monkeypatch.chdir(trained)

    def run(*arguments):
        status = train.main(list(arguments))
        return status, *capsys.readouterr()

    return run


@pytest.mark.slow
def test_what_the_run_says_of_itself(run):
    config = json.loads(pathlib.Path("runs/r18/config.json").read_text())
    expected = models.preset("nl_c2d_r18_1", frames=8, size=32, classes=2)
    assert models.Config(**config["network"]) == expected
    assert config["short_side"] == [37, 46] and config["lr"] is None
    records = [json.loads(line) for line in pathlib.Path("runs/r18/log.jsonl").read_text().splitlines()]
    assert [(r["step"], r["lr"]) for r in records if r["kind"] == "epoch"] == [(2, pytest.approx(0.01 * 4 / 64 / 10))]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:evaluate_views. left out")
def test_evaluate_by_views(run):
    status, out, _ = run("--evaluate", "runs/r18", "--views", "2x3", "--scores", "scores.csv")
    assert status == 0 and out.startswith("3 videos in 2 x 3 views: top-1 ") and "top-5 100.00%" in out
    assert ", top-1 of single views " in out
    rows = list(csv.DictReader(pathlib.Path("scores.csv").read_text().splitlines()))
    assert [(r["label"], r["status"], r["views"]) for r in rows] == [
        ("dark", "ok", "6"), ("dark", "ok", "6"), ("light", "ok", "6"), ("light", "skipped", "0"),
    ]  # fmt: skip
    right = np.mean([r["class1"] == r["label"] for r in rows[:3]])
    assert f"top-1 {right:.2%}," in out
    status, _, err = run("--evaluate", "runs/r18", "--views", "2x3", "--on-error", "error")
    assert status == 1 and "light/1.mp4: Invalid data" in err
    status, _, err = run("--evaluate", "runs/r18", "--views", "3")
    assert status == 1 and "expected clips x crops such as 10x3, got '3'" in err


@pytest.mark.slow
def test_predict_by_views(run):
    shares = {}
    for text in ("2x3", "10x1"):
        status, out, _ = run("--predict", "videos/val/dark/0.mp4", "--checkpoint", "runs/r18", "--views", text)
        lines = [line.split() for line in out.splitlines()]
        assert status == 0 and sorted(name for _, name in lines) == ["dark", "light"]
        shares[text] = out
    assert run("--predict", "videos/val/dark/0.mp4", "--checkpoint", "runs/r18")[1] == shares["10x1"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:evaluate_views. left out")
def test_an_imported_network_is_evaluated_on_videos(run):
    """Its configuration says what it takes, also the mean and deviation of its own; the data are named."""
    arrays, meta = checkpoint.load("runs/r18/best.safetensors")
    config = {key: meta["config"][key] for key in ("model", "network", "classes", "channels", "seed", "device")}
    config |= {"data": None, "frames": 8, "stride": 2, "size": [32, 32], "resize": "crop", "rgb": True}
    weights = {name: array for name, array in arrays.items() if name.startswith("model/")}
    outs = []
    for mean in ([114.75], [123.675, 116.28, 103.53]):
        checkpoint.save("imported.safetensors", weights, {"config": config | {"mean": mean, "deviation": [57.375]}})
        status, out, _ = run("--evaluate", "imported.safetensors", "--data", "videos", "--views", "2x3")
        assert status == 0
        outs.append(out)
    assert outs[0] == run("--evaluate", "runs/r18", "--views", "2x3")[1] != outs[1]
    assert run("--predict", "videos/val/dark/0.mp4", "--checkpoint", "imported.safetensors")[0] == 0


@pytest.mark.slow
def test_stop_and_resume_a_published_network(run, trained):
    with pytest.warns(RuntimeWarning, match="left out"):
        assert run(*PAPER, "--name", "stopped", "--max-steps", "1")[0] == 0
        assert run("--resume", "runs/stopped", "--threads", "2")[0] == 0
    mine, whole = (checkpoint.load(f"runs/{name}/last.safetensors")[0] for name in ("stopped", "r18"))
    assert {k: a.tobytes() for k, a in mine.items()} == {k: a.tobytes() for k, a in whole.items()}
