"""Pictures of a run: files are made, show something, and the model is as before."""

import json

import numpy as np
import pytest

import minnl
import models
from minnl import Tensor, nn
from minnl.study import pictures

PNG = b"\x89PNG\r\n\x1a\n"


def build(mode="embedded", channels=1):
    minnl.manual_seed(0)
    return models.build("small", non_local=mode, in_channels=channels)


def clip(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def colours(path):
    """How many different colours a picture has."""
    from matplotlib.image import imread

    assert path.read_bytes().startswith(PNG)
    pixels = imread(path)
    return len(np.unique(pixels.reshape(-1, pixels.shape[-1]), axis=0))


def write_log(folder, records):
    (folder / "log.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))


def test_curves(tmp_path):
    records = [{"kind": "step", "epoch": 0, "step": s, "loss": 1 / (1 + s), "lr": 0.1} for s in range(0, 60, 20)]
    for epoch in (1, 2):
        records.append({"kind": "epoch", "epoch": epoch, "step": 30 * epoch, "loss": 0.5 / epoch, "accuracy": 0.6,
                        "test_loss": 0.7, "test_top1": 0.5, "test_top5": 1.0})  # fmt: skip
    write_log(tmp_path, records)
    path = pictures.curves(tmp_path)
    assert path == tmp_path / "curves.png"
    full = path.read_bytes()
    assert colours(path) > 20
    write_log(tmp_path, records[:3])  # a run that was stopped in its first epoch
    assert pictures.curves(tmp_path).read_bytes() != full
    log = pictures.read_log(tmp_path)
    assert [r["step"] for r in log["step"]] == [0, 20, 40] and log["epoch"] == []


@pytest.mark.parametrize("mode", nn.MODES)
def test_attention(tmp_path, mode):
    path = tmp_path / "attention.png"
    assert pictures.attention(build(mode), clip(8, 24, 24, 1), path) == path
    assert colours(path) > 20


@pytest.mark.slow
def test_attention_of_colour_clips_of_any_length(tmp_path):
    model, path = build(channels=3), tmp_path / "attention.png"
    for frames in (1, 5, 11):
        assert pictures.attention(model, clip(frames, 20, 28, 3), path) == path
        assert colours(path) > 20


def test_attention_without_a_block(tmp_path):
    path = tmp_path / "attention.png"
    assert pictures.attention(build(None), clip(8, 24, 24, 1), path) is None
    assert not path.exists()


def test_what_is_drawn_depends_on_the_position_and_the_weights(tmp_path):
    model, x = build(), clip(8, 24, 24, 1)

    def draw(**arguments):
        pictures.attention(model, x, tmp_path / "a.png", **arguments)
        return (tmp_path / "a.png").read_bytes()

    chosen = draw(positions=[(0, 0, 0)])
    assert draw(positions=[(0, 0, 0)]) == chosen != draw(positions=[(1, 2, 2)])
    assert len({draw(), draw(positions=[(0, 0, 0), (1, 2, 2), (0, 1, 1)]), chosen}) == 3
    block, _ = pictures.block_input(model, x)
    for p in (block.theta.weight, block.phi.weight):
        p.data *= 100
    assert draw(positions=[(0, 0, 0)]) != chosen
    with pytest.raises(ValueError, match=r"attention: position \(99, 0, 0\) lies outside"):
        draw(positions=[(99, 0, 0)])


def test_the_model_is_as_before(tmp_path):
    model = build()
    model.res2.eval()
    before = {k: a.tobytes() for k, a in model.state_dict().items()}
    modes = [m.training for m in model.modules()]
    pictures.attention(model, clip(8, 24, 24, 1), tmp_path / "attention.png")
    assert {k: a.tobytes() for k, a in model.state_dict().items()} == before
    assert [m.training for m in model.modules()] == modes
    assert not any("forward" in vars(m) for m in model.modules())


def test_block_input_is_what_the_block_gets():
    model, x = build(), clip(8, 24, 24, 1)
    block, given = pictures.block_input(model, x)
    assert isinstance(block, nn.NonLocalBlock)
    with nn.evaluating(model):
        expected = model.res2.res0(model.pool(model.stem(Tensor(x[None]))))
    np.testing.assert_array_equal(given.data, expected.data)


def test_busiest_is_where_something_moves_in_each_half():
    x = np.zeros((8, 24, 24, 1), np.float32)
    x[:, 3:6, 3:6] = 5  # bright, but always there
    x[1, 9, 22] = 1
    x[5, 18:20, 13:15] = 1
    assert pictures.busiest(x, (4, 6, 6)) == [(0, 2, 5), (2, 4, 3)]
    first, second = pictures.busiest(x, (8, 24, 24))
    assert first == (1, 9, 22) and second == (5, 18, 13)
    assert pictures.busiest(x[:3], (1, 6, 6)) == [(0, 2, 5)]
