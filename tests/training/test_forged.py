"""Checkpoints whose metadata were forged, with a checksum that is right: read as they were, or refused in few words."""

import copy
import random

import numpy as np
import pytest

import minnl
import models
import train
from minnl.training import checkpoint, run_data
from models import published
from tests.limited import outcomes, refused

pytest.importorskip("resource", reason="needs POSIX limits")

EXTREMES = (
    None, True, False, 0, -1, 1, 2**31, 2**63, 10**4000, 0.5, -1e308, 1e308, float("nan"), float("inf"), "", "batch",
    "\x1b[2J\x07\u202e" * 9, "x" * 1_000_000, [], [[]], [0] * 100_000, {}, {"\x1b]0;": 1}, {"res2": [0] * 50},
    [1, 2, 3], [-1], "gpu:9", [None] * 3, {"res4": [2**40]}, [10**4000],
)  # fmt: skip
READ = """
import hashlib
import numpy as np
from minnl.training import checkpoint

def digest(arrays):
    found = hashlib.sha256()
    for name in sorted(arrays):
        found.update(name.encode() + arrays[name].tobytes())
    return found.hexdigest()

def network(path):
    model, config = train.load(path, "cpu")
    return digest(model.state_dict())

def exported(path):
    published.export_file(path, path + ".out", "slowfast")

trainer = None

def run(path):
    global trainer
    _, config, _ = train.read(path, run=True)
    if trainer is None:
        from minnl import data, optim
        from minnl.training import Trainer
        from minnl.training.run_data import datasets
        from models.run_config import build
        model = build(config)
        loader = data.Loader(datasets(config)[0], 8, shuffle=True, seed=config["seed"])
        adam = optim.AdamW(model.parameters(), 0.1)
        trainer = Trainer(model, adam, lambda step: 0.1, loader, loader, path + ".folder", config, 1)
        train.Path(path + ".folder").mkdir()
    trainer.resume(path)
    return digest(trainer.model.state_dict())
"""


def places(value, at=()):
    """Where values stand in a value, itself included."""
    yield at
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield from places(value[key], (*at, key))


def forged(meta, draw):
    """(what was done, meta with one value changed, one key gone or one too many)."""
    meta, at = copy.deepcopy(meta), draw.choice([place for place in places(meta) if place])
    inner = meta
    for key in at[:-1]:
        inner = inner[key]
    if isinstance(inner, dict) and draw.random() < 0.15:
        del inner[at[-1]]
        return f"no {at}", meta
    if isinstance(inner, dict) and draw.random() < 0.1:
        inner["\x1b[31m more"] = draw.choice(EXTREMES)
        return f"more beside {at}", meta
    inner[at[-1]] = draw.choice(EXTREMES)
    return f"{at} = {str(type(inner[at[-1]]))}", meta


def digest(arrays):
    import hashlib

    found = hashlib.sha256()
    for name in sorted(arrays):
        found.update(name.encode() + arrays[name].tobytes())
    return found.hexdigest()


@pytest.fixture(scope="module")
def valid(tmp_path_factory):
    """kind -> (arrays, meta) of a valid checkpoint."""
    folder = tmp_path_factory.mktemp("valid")
    patch = pytest.MonkeyPatch()
    with patch.context() as at:
        at.chdir(folder)
        options = ["--clips", "8", "--batch-size", "8", "--epochs", "1", "--frames", "8", "--size", "12"]
        at.setattr(run_data, "TEST_CLIPS", 12)
        assert train.main([*options, "--max-steps", "1", "--name", "a"]) == 0
    minnl.manual_seed(0)
    model = models.build("nl_i3d_r50_5_8x8", width=2, classes=3, pool1_padding=1)
    arrays = {f"model/{name}": array for name, array in model.state_dict().items()}
    return {
        "run": checkpoint.load(folder / "runs/a/last.safetensors"),
        "network": (arrays, {"config": published.described(model.config)}),
        "exported": (arrays, {"config": published.described(model.config)}),
    }


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "number"), [("run", 200), ("network", 150), ("exported", 60)])
def test_a_forged_checkpoint_is_read_as_it_was_or_refused(valid, tmp_path, monkeypatch, kind, number):
    arrays, meta = valid[kind]
    monkeypatch.setattr(checkpoint.os, "fsync", lambda descriptor: None)
    draw, done = random.Random(kind), {}
    checkpoint.save(tmp_path / "valid", arrays, meta)
    for i in range(number):
        done[str(tmp_path / str(i))], altered = forged(meta, draw)
        checkpoint.save(tmp_path / str(i), arrays, altered)
    found = outcomes(kind, [tmp_path / "valid", *done], READ)
    right = digest({name.removeprefix("model/"): a for name, a in arrays.items() if name.startswith("model/")})
    assert found.pop(str(tmp_path / "valid"))[:2] == ("read", "None" if kind == "exported" else right)
    assert found.keys() == done.keys(), "the process was killed"
    wrong = {}
    for path, outcome in found.items():
        if outcome[0] != "read":
            wrong[done[path]] = refused(outcome, 10)
        elif outcome[1] != ("None" if kind == "exported" else right):
            wrong[done[path]] = f"other weights: {outcome[1]}"
    assert not {what: problem for what, problem in wrong.items() if problem}
    refusals = sum(outcome[0] != "read" for outcome in found.values())
    assert refusals > number / 3, "a test that forges nothing proves nothing"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda m: m["config"]["network"].update(pool2_frames=2**31),
            r"\['pool2_frames'\] is 2147483648; an integer",
        ),
        (lambda m: m["config"]["network"].update(width=4096), "width=4096, the arrays are of one with 2: .* altered"),
        (lambda m: m["config"]["network"].update(deep=3), "a dict with no keys but depth, width"),
        (lambda m: m["config"].pop("frames"), "config lacks 'frames'; a dict with model, classes"),
        (lambda m: m["config"].update(classes=["a", 3]), r"config\['classes'\]\[1\] is 3; a text of at most"),
        (
            lambda m: m["config"].update(stride="all"),
            "is 'all'; an integer from 1 to 100,000, or one of 'whole' expected",
        ),
        (lambda m: m.update(config=[]), "not one of train.py"),
    ],
)
def test_a_refusal_names_file_key_value_and_what_would_do(valid, tmp_path, change, message):
    arrays, meta = valid["network"]
    meta = copy.deepcopy(meta)
    change(meta)
    checkpoint.save(tmp_path / "c", arrays, meta)
    with pytest.raises(ValueError, match=f"^{tmp_path / 'c'}: .*{message}"):
        train.load(tmp_path / "c", "cpu")


def test_content_that_is_none(tmp_path):
    """The checksum is right, what stands beside the arrays is not."""
    import safetensors.numpy

    for content, message in (
        ("[", "is no JSON"), ("[]", "its header is \\[\\]; a dict with meta, order expected"),
        ('{"meta": {}}', "its header lacks 'order'"), ('{"meta": [], "order": []}', r"\['meta'\] is \[\]; a dict exp"),
        ('{"meta": {}, "order": ["w", "v"]}', "lists other arrays"), ("[" * 100_000, "is no JSON"),
        ('{"meta": {}, "order": ["w", "w"]}', "lists other arrays"), ("9" * 100_000, "is no JSON"),
    ):  # fmt: skip
        header = {"minnl_checkpoint": "1", "content": content, "sha256": checkpoint.BLANK.decode()}
        raw = memoryview(safetensors.numpy.save({"w": np.zeros(3)}, header))
        start = checkpoint._checksum_place(raw)
        (tmp_path / "c").write_bytes(
            raw[:start].tobytes() + checkpoint._checksum(raw, start) + raw[start + len(checkpoint.BLANK) :].tobytes()
        )
        with pytest.raises(checkpoint.CheckpointError, match=f"^{tmp_path / 'c'}: .*{message}"):
            checkpoint.load(tmp_path / "c")


def test_what_could_not_be_read_again_is_not_saved(tmp_path):
    with pytest.raises(checkpoint.CheckpointError, match="more than 10,000,000 bytes"):
        checkpoint.save(tmp_path / "c", {}, {"x": "y" * 10_000_000})
    assert not list(tmp_path.iterdir())
