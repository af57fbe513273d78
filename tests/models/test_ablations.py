"""python -m minnl ablate: rows and their networks, shared runs, stop and resume, tables and curves, wrong input."""

import json
import re
import signal
import types
from pathlib import Path

import numpy as np
import pytest

import minnl
import models
import train
from minnl import __main__, nn, optim
from minnl.study import pictures
from minnl.training import Trainer, checkpoint
from minnl.training.accumulated_step import AccumulatedStep
from models.ablations import command, paper, report, runs, scales
from models.ablations.runs import Case
from tests import ROOT
from tests.study.test_pictures import colours

pytestmark = pytest.mark.slow

TINY = ("--clips", "6", "--frames", "8", "--size", "16", "--batch-size", "3", "--epochs", "2", "--workers", "0")
RESNET = ("--model", "c2d_r18", "--set", "width=8", "--frames", "16", "--size", "32", "--recipe", "adamw")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(runs, "TEST_CLIPS", 6)
    monkeypatch.setattr(runs, "measure", lambda *_: 1e-9)
    count = minnl.backend.threads()
    yield
    minnl.set_threads(count)


@pytest.fixture
def ablate(tmp_path, monkeypatch, capsys):
    """ablate(*arguments) -> (exit status, stdout, stderr), into tmp_path/out."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        status = __main__.main(["ablate", *arguments, "--out", "out"])
        return status, *capsys.readouterr()

    return run


def rows_of(text):
    """The cells of each row of a Markdown table, its head first."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if "---" not in line]


def epochs(name, seed=0):
    return pictures.read_log(f"out/{name}/seed{seed}")["epoch"]


def weights(name, seed=0):
    arrays, meta = checkpoint.load(f"out/{name}/seed{seed}/last.safetensors")
    return {key: array.tobytes() for key, array in arrays.items()}, meta["step"], meta["random"]


def networks(model, tables=("all",), base=None):
    """(table, label) -> the Config or the options that the row builds, with the clip's frames."""
    chosen = scales.scale(model)
    base = (base or {}) | chosen.clip | {"options": {}, "model": chosen.model, "short_side": None}
    found = runs.cases(paper.tables(tables), chosen, base)
    return {(name, row.label): case for name in found for row, case in found[name]}


# The tables


def test_the_papers_figures():
    """Of the abstract's claims and of rows that stand in several tables, written down a second time."""
    figures = {(name, row.label): (row.top1, row.top5) for name, t in paper.TABLES.items() for row in t.rows}
    assert figures["2a", "baseline"] == figures["2b", "baseline"] == figures["2f", "ResNet-50, C2D"] == (71.8, 89.7)
    assert figures["2a", "embedded Gaussian"] == figures["2b", "res4"] == figures["2c", "ResNet-50, 1 block"]
    assert figures["2c", "ResNet-50, 5 blocks"] == figures["2d", "ResNet-50, spacetime"] == (73.8, 91.0)
    assert figures["2c", "ResNet-101, 5 blocks"] == figures["2e", "ResNet-101 NL C2D, 5 blocks"] == (75.1, 91.7)
    assert figures["2c", "ResNet-101, 10 blocks"] == (75.1, 91.6)
    assert figures["2d", "ResNet-50, time only"] == (73.1, 90.5)
    assert figures["2e", "ResNet-101 I3D 3×1×1"] == figures["2f", "ResNet-101, I3D"] == (74.4, 91.1)
    assert figures["2g", "ResNet-101, NL I3D, 5 blocks"] == (77.7, 93.3)
    assert [len(t.rows) for t in paper.TABLES.values()] == [5, 5, 8, 8, 4, 6, 6]


def test_published_rows_are_the_published_networks():
    found = networks("c2d_r50")
    same = {
        ("2a", "baseline"): "c2d_r50",
        ("2a", "embedded Gaussian"): "nl_c2d_r50_1",
        ("2b", "res4"): "nl_c2d_r50_1",
        ("2c", "ResNet-50, 10 blocks"): "nl_c2d_r50_10",
        ("2c", "ResNet-101, baseline"): "c2d_r101",
        ("2c", "ResNet-101, 5 blocks"): "nl_c2d_r101_5",
        ("2e", "ResNet-101 I3D 3×3×3"): "i3d333_r101",
        ("2e", "ResNet-101 I3D 3×1×1"): "i3d_r101",
        ("2f", "ResNet-50, NL I3D, 5 blocks"): "nl_i3d_r50_5",
    }
    for key, preset in same.items():
        made = models.preset("c2d_r50", **found[key].config["options"])
        blocks = [made.non_local_blocks(stage) for stage in ("res2", "res3", "res4", "res5")]
        wanted = models.PRESETS[preset]
        assert blocks == [wanted.non_local_blocks(stage) for stage in ("res2", "res3", "res4", "res5")], key
        for field in ("depth", "non_local", "inflate", "conv1_frames", "frames", "subsample", "axes"):
            assert getattr(made, field) == getattr(wanted, field), (key, field)
    stages = {stage: found["2b", stage].config["options"] for stage in ("res2", "res3", "res5")}
    assert {stage: models.preset("c2d_r50", **options).blocks for stage, options in stages.items()} == {
        "res2": {"res2": (1,)},
        "res3": {"res3": (2,)},
        "res5": {"res5": (1,)},
    }  # before the last residual block
    long = found["2g", "ResNet-50, NL I3D, 5 blocks"].config
    assert (long["frames"], long["stride"], long["options"]["chunks"]) == (128, 1, {"res3": 4})
    assert found["2a", "baseline"].config["size"] == [224] and found["2a", "baseline"].config["rgb"]


@pytest.mark.parametrize("model", ["small", "c2d_r18", "c2d_r34", "c2d_r50", "c2d_r50_8x8"])
def test_every_row_is_built_or_says_why_not(model):
    base = {"dropout": 0.0, "data": None, "clips": 6}
    for (name, label), case in networks(model, base=base).items():
        if not isinstance(case, Case):
            assert re.search("no room|no 1×1|ends with res3", case), (name, label)
            continue
        clip = case.config
        shape = (clip["frames"], clip["size"][0], clip["size"][0], 1)
        dataset = types.SimpleNamespace(shape=shape, classes="abc")
        with nn.init.skipped():
            network = runs.build(case.config, dataset)
        blocks = [m for m in network.modules() if isinstance(m, nn.NonLocalBlock)]
        row = next(row for row in paper.TABLES[name].rows if row.label == label)
        words = scales.scale(model).describe(row.network)
        assert f"{len(blocks) or 'no'} non-local block" in words, (name, label)
        assert {b.mode for b in blocks} <= {row.network.mode}
        if row.network.axes:
            assert {(b.axes, b.subsample) for b in blocks} == {(row.network.axes, None)}
        taps = [m.weight.shape[0] for path, m in network.named_modules() if isinstance(m, nn.Conv3d) and "res" in path]
        assert (max(taps) == 3) == bool(row.network.inflate), (name, label)


def test_rows_that_are_the_same_network_are_one_run():
    found = networks("small")
    assert found["2a", "baseline"] is found["2d", "ResNet-50, baseline"] is found["2f", "ResNet-50, C2D"]
    assert found["2a", "embedded Gaussian"] is found["2b", "res2"] is found["2c", "ResNet-50, 1 block"]
    assert found["2c", "ResNet-101, 5 blocks"] is found["2e", "ResNet-101 NL C2D, 5 blocks"]
    cases = {case.name: case for case in found.values() if isinstance(case, Case)}
    configs = [json.dumps(case.config, sort_keys=True) for case in cases.values()]
    assert len(set(configs)) == len(configs), "a folder each"
    deep = found["2c", "ResNet-101, 5 blocks"]
    assert deep.name == "residuals=3.4-non_local=embedded-blocks=res2.1.2+res3.0.1.2"


def test_costs_are_those_of_one_clip():
    base = {"dropout": 0.0, "data": None, "clips": 6, "epochs": 2, "batch_size": 3, "precise": 1}
    case = networks("small", ("2a",), base)["2a", "embedded Gaussian"]
    network = models.build("nl_small")
    assert case.cost[0] == sum(p.size for p in network.parameters())
    assert case.cost[1] == minnl.study.cost_summary.summarize(network, (1, 16, 24, 24, 1)).multiply_adds
    assert case.work == case.cost[1] * (3 * 6 + 6 + 3) * 2  # training, test and precise batch norm


# The small network's options


def test_the_small_network_is_as_it_was():
    minnl.manual_seed(0)
    network = models.build("nl_small")
    assert [name for name, _ in network.res2._modules.items()] == ["res0", "nonlocal0"]
    assert [name for name, _ in network.res3._modules.items()] == ["res0", "res1"]


def inserted(**options):
    network = models.build("small", non_local="embedded", **options)
    return {stage: [n for n in getattr(network, stage)._modules if "nonlocal" in n] for stage in ("res2", "res3")}


def test_blocks_of_the_small_network():
    assert inserted(residuals=(3, 4)) == {"res2": ["nonlocal2"], "res3": []}
    assert inserted(residuals=(3, 4), blocks="res3") == {"res2": [], "res3": ["nonlocal2"]}
    assert inserted(residuals=(3, 4), blocks={"res2": (1, 2)}) == {"res2": ["nonlocal1", "nonlocal2"], "res3": []}
    assert inserted(blocks={"res2": (0,), "res3": (1,)}) == {"res2": ["nonlocal0"], "res3": ["nonlocal1"]}
    network = models.build("small", residuals=(2, 3), inflate=True)
    blocks = [*network.res2._modules.values(), *network.res3._modules.values()]
    frames = [block.branch.a.conv.weight.shape[0] for block in blocks]
    assert frames == [3, 3, 3, 1, 3]


@pytest.mark.parametrize(
    "options, message",
    [
        ({"blocks": {"res4": (0,)}}, "Small: stage of blocks must be one of 'res2', 'res3', got 'res4'"),
        ({"blocks": {"res2": (1,)}}, r"Small: blocks\['res2'\] must be different indices from 0 to 0, got \(1,\)"),
        ({"blocks": {"res3": (0, 0)}}, r"Small: blocks\['res3'\] must be different indices from 0 to 1"),
        ({"residuals": 0}, "Small: residuals must be 1 or more"),
        ({"residuals": (1, 2, 3)}, "Small: residuals must be one int or two"),
        ({"inflate": "3x1x1"}, "Small: inflate must be one of True, False"),
    ],
)
def test_wrong_options_of_the_small_network(options, message):
    with pytest.raises(ValueError, match=message):
        models.build("small", non_local="dot", **options)


# The command


def watched(draw, drawn):
    """`draw(path, rows)`, which also notes the rows of each picture."""

    def noted(path, rows):
        drawn[path.name] = rows
        return draw(path, rows)

    return noted


def test_a_table_and_its_curves(ablate, monkeypatch):
    drawn = {}
    monkeypatch.setattr(pictures, "error_curves", watched(pictures.error_curves, drawn))
    status, out, _ = ablate("2b", *TINY, "--seeds", "2")
    assert status == 0 and "[1/6] 2b baseline, seed 0 (baseline); about " in out
    assert out.index("[3/6] 2b res3, seed 0") < out.index("[4/6] 2b baseline, seed 1"), "seed by seed"
    text = Path("out/2b.md").read_text()
    head, *rows = rows_of(text)
    assert head[:2] == ["run here", "test top-1 (%)"] and head[-1] == "top-1 / top-5 there (%)"
    names = ("baseline", "non_local=embedded", "non_local=embedded-blocks=res3")
    for row, name, paper_row in zip(rows, names, paper.TABLES["2b"].rows, strict=False):
        tops = [100 * epochs(name, seed)[-1]["test_top1"] for seed in range(2)]
        assert row[1] == f"{np.mean(tops):.1f} ± {np.std(tops, ddof=1):.1f}"
        assert row[-2:] == [paper_row.label, f"{paper_row.top1} / {paper_row.top5}"]
    assert [row[2] for row in rows] == ["150,387", "152,579", "158,867"] and rows[0][3] == "4.0 M"
    assert "res4 (the small network ends with res3); res5 (the small network ends with res3)" in text
    assert (
        "6 training clips of 8×16×16, 2 epochs" in text
        and "over 2 seeds" in text
        and "another task at another scale" in text
    )
    assert "![learning curves of table 2b](2b.png)" in text
    assert colours(Path("out/2b.png")) > 20
    assert [label for label, _ in drawn["2b.png"]] == [row[0] for row in rows], "what was run, not the paper's rows"
    assert [[Path(f) for f in folders] for _, folders in drawn["2b.png"]] == [
        [Path("out", name, f"seed{seed}") for seed in range(2)] for name in names
    ]
    saved = Path("out/baseline/seed0/last.safetensors").stat().st_mtime_ns
    status, out, _ = ablate("2b", *TINY, "--seeds", "2")
    assert status == 0 and "[1/" not in out, "nothing is run a second time"
    assert Path("out/baseline/seed0/last.safetensors").stat().st_mtime_ns == saved
    status, out, _ = ablate("2a", "2b", *TINY, "--seeds", "2")
    assert status == 0 and "[1/6] 2a Gaussian, seed 0" in out and "embedded Gaussian" not in out


def stop_after(monkeypatch, steps):
    """Ctrl-C within a step, the so many-th from now."""
    done = [0]
    add = AccumulatedStep.add

    def step(self, *arguments):
        done[0] += 1
        if done[0] == steps:
            signal.raise_signal(signal.SIGINT)
        return add(self, *arguments)

    monkeypatch.setattr(AccumulatedStep, "add", step)


def test_stop_and_go_on_with_the_same_bits(ablate, monkeypatch):
    table = ("2b", *TINY, "--seeds", "1")
    assert ablate(*table)[0] == 0
    whole = {name: weights(name) for name in ("baseline", "non_local=embedded", "non_local=embedded-blocks=res3")}
    Path("out").rename("whole")
    with monkeypatch.context() as patch:
        stop_after(patch, 7)  # four steps a run: in the second epoch of the second
        status, out, _ = ablate(*table)
    assert status == 130 and "stopped; the same command goes on from here" in out
    assert not Path("out/non_local=embedded/seed0/result.json").exists()
    cells = [row[1] for row in rows_of(Path("out/2b.md").read_text())[1:]]
    assert re.fullmatch(r"\d+\.\d", cells[0]) and cells[1:] == ["not run", "not run"]
    status, out, _ = ablate(*table)
    assert status == 0 and "[1/2] 2b res2, seed 0" in out
    assert {name: weights(name) for name in whole} == whole
    assert [r["epoch"] for r in epochs("non_local=embedded")] == [1, 2]


def test_ctrl_c_between_runs(ablate, monkeypatch):
    def build(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(runs, "trainer", build)
    status, out, _ = ablate("2b", *TINY)
    assert status == 130 and "the same command goes on" in out
    monkeypatch.setattr(runs, "measure", build)
    status, out, err = ablate("2b", *TINY, "--plan")
    assert (status, out, err) == (130, "", "stopped\n")


def test_a_run_that_diverges_is_said_in_the_table(ablate):
    with np.errstate(all="ignore"):
        status, _, _ = ablate("2b", *TINY, "--seeds", "2", "--lr", "1e30")
    assert status == 0
    assert [row[1] for row in rows_of(Path("out/2b.md").read_text())[1:]] == ["2 of 2 diverged"] * 3
    assert not Path("out/2b.png").exists()


@pytest.mark.parametrize(
    "results, text",
    [
        ([{"top1": 0.5}, {"top1": 0.6}], "55.0 ± 7.1"),
        ([{"top1": 0.5}], "50.0"),
        ([None, None], "not run"),
        ([{"top1": 0.5}, None], "50.0, 1 of 2 runs"),
        ([{"top1": 1.0}, {"diverged": "at step 7"}, None], "100.0, 1 of 3 diverged, 2 of 3 runs"),
    ],
)
def test_cells(results, text):
    assert report.cell(results, "top1") == text


def test_costs_beside_the_papers(ablate):
    status, _, _ = ablate("2e", *TINY, "--seeds", "1", "--epochs", "1")
    head, *rows = rows_of(Path("out/2e.md").read_text())
    assert (
        status == 0
        and head[-1] == "costs there"
        and [row[-1] for row in rows] == ["1×, 1×", "1.5×, 1.8×", "1.2×, 1.2×"]
    )
    assert rows[0][2].endswith("(1.0×)") and rows[1][2] == f"492,147 ({492147 / 335475:.1f}×)"


def test_a_published_network_on_data_of_its_own(ablate, tmp_path, capsys):
    (tmp_path / "arrays").mkdir()
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        clips = rng.integers(0, 256, (6, 20, 40, 40, 3), dtype=np.uint8)
        np.savez(tmp_path / "arrays" / f"{split}.npz", clips=clips, labels=np.arange(6), classes=list("abcdef"))
    status, out, _ = ablate("2a", *RESNET, "--data", "arrays", "--batch-size", "3", "--epochs", "1", "--seeds", "1")
    assert status == 0 and "width=8-depth=18-non_local=dot-blocks=1" in out
    text = Path("out/2a.md").read_text()
    head, *rows = rows_of(text)
    assert (
        head[1:3] == ["test top-1 (%)", "test top-5 (%)"]
        and len(rows) == 5
        and "`arrays`, 6 classes" in text
        and "another task" not in text
    )
    kept = json.loads(Path("out/width=8-depth=18/seed0/config.json").read_text())
    assert kept["resize"] == "crop" and kept["rgb"] and kept["options"] == {"width": 8, "depth": 18}
    run = "out/width=8-depth=18-non_local=dot-blocks=1/seed0"
    assert train.main(["--evaluate", run, "--views", "2x3", "--threads", "1"]) == 0
    assert re.match(r"6 videos in 2 x 3 views: top-1 \d", capsys.readouterr().out)


def test_the_papers_recipe(ablate, monkeypatch):
    made = []
    fit = Trainer.fit
    monkeypatch.setattr(Trainer, "fit", lambda self: made.append(self) or fit(self))
    few = ("--clips", "18", "--batch-size", "3", "--epochs", "2", "--workers", "0", "--seeds", "1")
    assert ablate("2b", *RESNET[:-4], "--size", "48", "--recipe", "paper", *few)[0] == 0
    trainer = made[0]
    assert (trainer.accumulate, trainer.precise, trainer.step) == (8, 1600, 2)
    assert trainer.accumulated_step.clip_norm is None
    assert isinstance(trainer.optimizer, optim.SGD) and trainer.schedule(0) == pytest.approx(0.01 * 24 / 64)
    assert [m.p for m in trainer.model.modules() if isinstance(m, nn.Dropout)] == [0.5]


def test_plan_runs_nothing(ablate):
    status, out, _ = ablate("2a", "2b", *TINY, "--plan")
    assert status == 0 and not Path("out").exists()
    lines = {line.split()[0]: line.split() for line in out.splitlines()[1:]}
    assert lines["baseline"][1:3] == ["2a,2b", "150,387"] and lines["baseline"][-2] == "3"
    assert "not here: 2b, res5: the small network ends with res3" in out
    assert out.splitlines()[-1].startswith("18 runs left of 18, about 0:")
    ablate("2b", *TINY, "--seeds", "1")
    assert ablate("2b", *TINY, "--plan", "--seeds", "1")[1].splitlines()[-1] == "0 runs left of 3"


def test_the_measured_speed(monkeypatch, tmp_path):
    monkeypatch.undo()
    monkeypatch.setattr(runs, "MEASURED_STEPS", 4)
    base = {"dropout": 0.0, "data": None, "clips": 6, "epochs": 2, "batch_size": 3, "lr": 1e-3, "weight_decay": 0.0}
    base |= {"recipe": "adamw", "warm_up": 0.0, "clip_norm": None, "accumulate": 1}
    case = networks("small", ("2a",), base)["2a", "baseline"]
    assert 0 < runs.measure(case, workers=0) < 1e-3
    monkeypatch.setattr(Trainer, "fit", lambda self, steps: False)
    with pytest.raises(KeyboardInterrupt):  # it stopped before the step that was asked for
        runs.measure(case, workers=0)


def test_time_left_follows_the_runs_that_were_seen():
    left = command.Left(None, [])
    work = types.SimpleNamespace(work=100)
    left.saw(work, 5.0)
    left.saw(work, 15.0)
    assert left.of([(types.SimpleNamespace(work=30), 0), (work, 1)]) == pytest.approx(13.0)


def test_error_curves(tmp_path):
    def folder(name, tops):
        (tmp_path / name).mkdir()
        lines = [{"kind": "epoch", "epoch": i + 1, "accuracy": t / 2, "test_top1": t} for i, t in enumerate(tops)]
        (tmp_path / name / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        return tmp_path / name

    one, two, short = folder("a", [0.1, 0.5, 0.9]), folder("b", [0.3, 0.5, 0.7]), folder("c", [0.2])
    path = tmp_path / "curves.png"
    assert pictures.error_curves(path, [("row", [one])]) == path
    single = path.read_bytes()
    pictures.error_curves(path, [("row", [one, two])])
    assert colours(path) > 20 and path.read_bytes() != single
    pictures.error_curves(path, [("row", [one, two]), ("other", [one, short])])
    assert path.read_bytes() != single


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("9z",), "ablate: no table '9z'; there are 2a, 2b, .* and all"),
        (("2a", "--model", "nl_i3d_r50_5"), "ablate: --model is the network without blocks, one of small, c2d_r18"),
        (("2a", "--model", "resnet"), "ablate: --model is the network without blocks.* got 'resnet'"),
        (("2a", "--set", "non_local=dot"), "ablate: --set cannot change 'non_local' in all rows; it can subsample"),
        (("2a", "--set", "subsample"), "--set takes FIELD=VALUE"),
        (("2a", "--model", "c2d_r18", "--set", "width=wide"), "Config: width must be an int, got 'wide'"),
        (("2a", "--model", "c2d_r18"), "Config: a clip with .* is too small for .* would do"),
        (("2a", "--seeds", "0"), "ablate: --seeds must be 1 or more, got 0"),
        (("2a", "--epochs", "0"), "ablate: --epochs must be 1 or more, got 0"),
        (("2a", "--size", "16", "20"), "the built-in task are square, --size takes one number"),
        (("2a", "--frames", "3"), "RelationClips: frames must be 8 or more, got 3"),
        (("2a", "--data", "nowhere"), "open_dataset: no 'train' data in nowhere"),
        (("2a", "--device", "tpu"), 'device: expected "cpu", "gpu" or "gpu:N"'),
        (("2a", "--lr", "-1"), "AdamW: lr must be 0 or more"),
        (("2a", "--threads", "0"), "set_threads: n must be 1 or more"),
    ],
)
def test_wrong_input_is_one_clear_line(ablate, arguments, message):
    status, out, err = (
        ablate(*TINY, *arguments) if arguments[0] == "--" else ablate(arguments[0], *TINY, *arguments[1:])
    )
    lines = err.splitlines()
    assert status == 2 and len(lines) == 1 and re.search(message, lines[0]), err
    assert not Path("out").exists()


def test_other_settings_in_the_same_folder_are_refused(ablate):
    assert ablate("2b", *TINY, "--seeds", "1")[0] == 0
    status, _, err = ablate("2b", *TINY, "--seeds", "1", "--epochs", "3")
    assert status == 2
    assert "out/baseline/seed0 holds a run with epochs 2, now it is 3; choose another --out" in err
    Path("out/baseline/seed0/config.json").write_text("{")
    status, _, err = ablate("2b", *TINY, "--seeds", "1")
    assert status == 2 and "config.json cannot be read" in err


def test_the_page_tells_of_every_option_and_no_other():
    text = (ROOT / "docs/ablations.md").read_text()
    told = set(re.findall(r"(?m)^\| `(--[a-z-]+)` \|", text))
    source = (ROOT / "minnl/__main__.py").read_text()
    options = set(re.findall(r'add\(\s*"(--[a-z-]+)"', source.partition("def _ablate(")[2]))
    assert told == options and "--plan" in options


def test_a_run_can_be_evaluated_by_itself(ablate, capsys):
    status, _, err = ablate("2e", *TINY, "--seeds", "1")
    assert status == 0, err
    for name in {path.parent.parent.name for path in Path("out").glob("*/seed0/best.safetensors")}:
        assert train.main(["--evaluate", f"out/{name}/seed0", "--threads", "1"]) == 0, name
        assert re.match(r"600 clips: top-1 \d", capsys.readouterr().out)
