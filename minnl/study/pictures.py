"""Pictures of a run: training curves and attention maps. Drawn with matplotlib, without a screen."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from minnl import backend
from minnl.backend import Array
from minnl.engine import Tensor
from minnl.nn import Module, NonLocalBlock, evaluating
from minnl.training import checkpoint


def read_log(folder: str | Path) -> dict[str, list[dict[str, Any]]]:
    """Records of ``folder/log.jsonl``: {"step": [...], "epoch": [...]}."""
    records = {"step": [], "epoch": []}
    for line in (Path(folder) / "log.jsonl").read_text("utf-8").splitlines():
        record = json.loads(line)
        records[record["kind"]].append(record)
    return records


def _figure(*size):
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # imported here because the import takes 0.5 s
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _save(figure, path):
    """Write a figure, whole or not at all, in the format that the ending of `path` names; returns the path."""
    picture = io.BytesIO()
    figure.savefig(picture, format=Path(path).suffix[1:] or "png", dpi=100)
    checkpoint.write(path, [picture.getbuffer()])
    return path


def curves(folder: str | Path) -> str | Path:
    """Draw the log's loss and accuracy over steps into ``folder/curves.png``; returns the path."""
    log = read_log(folder)
    figure = _figure(10, 4)
    left, right = figure.subplots(1, 2)
    left.plot([r["step"] for r in log["step"]], [r["loss"] for r in log["step"]], color="0.8", label="train, a step")
    ends = [r["step"] for r in log["epoch"]]
    left.plot(ends, [r["loss"] for r in log["epoch"]], "o-", label="train, an epoch")
    left.plot(ends, [r["test_loss"] for r in log["epoch"]], "s-", label="test")
    left.set(xlabel="step", ylabel="cross-entropy", title="loss")
    right.plot(ends, [100 * r["accuracy"] for r in log["epoch"]], "o-", label="train")
    right.plot(ends, [100 * r["test_top1"] for r in log["epoch"]], "s-", label="test")
    right.set(xlabel="step", ylabel="top-1 (%)", title="accuracy", ylim=(0, 103))
    for axes, corner in ((left, "upper right"), (right, "lower right")):  # the curves of a run that learns avoid these
        axes.legend(loc=corner)
        axes.grid(alpha=0.3)
    return _save(figure, Path(folder) / "curves.png")


def block_input(model: Module, clip: Array) -> tuple[NonLocalBlock, Tensor] | None:
    """The first non-local block of a model and its input for a clip (T, H, W, C); None if there is no block."""
    block = next((m for m in model.modules() if isinstance(m, NonLocalBlock)), None)
    if block is None:
        return None
    inputs = []
    forward = block.forward

    def recorded(x):
        inputs.append(x)
        return forward(x)

    block.__dict__["forward"] = recorded
    try:
        with evaluating(model):
            model(Tensor(backend.to_device(clip[None], model.parameters()[0].device)))
    finally:
        del block.__dict__["forward"]
    return block, inputs[0]


def busiest(clip: Array, shape: Sequence[int]) -> list[tuple[int, int, int]]:
    """The positions (t, h, w) on a map of `shape` at which the clip changes most, in its first and its second half."""
    motion = np.abs(np.diff(clip, axis=0, prepend=clip[:1])).sum(axis=-1)
    for axis, n in enumerate(shape):
        cells = np.array_split(np.arange(motion.shape[axis]), min(n, motion.shape[axis]))
        motion = np.stack([motion.take(cell, axis).mean(axis) for cell in cells], axis)
    halves = [h for h in np.array_split(np.arange(len(motion)), 2) if len(h)]
    best = [np.unravel_index(motion[half].argmax(), motion[half].shape) for half in halves]
    return [(int(half[0] + t), int(h), int(w)) for half, (t, h, w) in zip(halves, best, strict=True)]


def attention(
    model: Module, clip: Array, path: str | Path, positions: Sequence[Sequence[int]] | None = None
) -> str | Path | None:
    """Draw the attention weights of positions over the frames of a clip: a row per position, a column per time step.

    Parameters
    ----------
    model : nn.Module whose first non-local block is drawn
    clip : float32 ndarray (T, H, W, C)
    path : file of the picture
    positions : list of (t, h, w) on the block's map; or None for the two of :func:`busiest`

    Returns
    -------
    path, or None if the model has no non-local block
    """
    found = block_input(model, clip)
    if found is None:
        return None
    block, x = found
    steps, *cells = x.shape[1:4]
    positions = busiest(clip, x.shape[1:4]) if positions is None else positions
    with evaluating(model):
        weights = backend.to_host(block.attention(x, positions))[0]
    frames, height, width = clip.shape[:3]
    low, high = np.percentile(clip, (0.5, 99.5))
    shown = np.clip((clip - low) / max(high - low, 1e-6), 0, 1)
    figure = _figure(1.5 * steps, 1.9 * len(positions) + 0.4)
    for row, position, weight in zip(
        figure.subplots(len(positions), steps, squeeze=False), positions, weights, strict=True
    ):
        size = np.abs(weight) / max(np.abs(weight).max(), 1e-12)
        for t, axes in enumerate(row):
            axes.set(xticks=[], yticks=[])
            frame = (2 * t + 1) * frames // (2 * steps)
            axes.set_title(f"frame {frame}: {weight[t * len(weight) // steps].sum():.0%}", fontsize=8)
            picture = shown[frame] if clip.shape[-1] == 3 else shown[frame].mean(axis=-1)
            box = (0, width, height, 0)
            axes.imshow(picture, cmap="gray", vmin=0, vmax=1, extent=box)
            heat = size[t * len(weight) // steps]
            axes.imshow(heat, cmap="autumn", vmin=0, vmax=1, alpha=0.75 * heat, extent=box)
            if t == position[0]:
                h, w = ((p + 0.5) * n / m for p, n, m in zip(position[1:], (height, width), cells, strict=True))
                axes.plot(w, h, "c+", markersize=14, mew=2.5)
    figure.suptitle(
        f"{block.mode} block: attention of the position at the cross (colour: weight; above: sum per time step)",
        fontsize=9,
    )
    return _save(figure, path)


def error_curves(path: str | Path, rows: Sequence[tuple[str, Sequence[str | Path]]]) -> str | Path:
    """Draw training and test error over epochs: for each row the mean of its runs, in a band of their std.

    As in figure 4 of Non-local Neural Networks, training error is dashed and test error solid.

    Parameters
    ----------
    path : file of the picture
    rows : list of (label, folders of runs that differ only in the seed)

    Returns
    -------
    path
    """
    figure = _figure(9, 5 + 0.2 * len(rows))
    axes = figure.subplots()
    for i, (label, folders) in enumerate(rows):
        logs = [read_log(folder)["epoch"] for folder in folders]
        epochs = [r["epoch"] for r in min(logs, key=len)]  # the epochs that all runs have finished
        for key, style, width in (("accuracy", "--", 1.0), ("test_top1", "-", 1.8)):
            errors = np.array([[100 - 100 * r[key] for r in log[: len(epochs)]] for log in logs])
            mean = errors.mean(axis=0)
            axes.plot(epochs, mean, style, color=f"C{i}", lw=width, label=label if key == "test_top1" else None)
            if len(logs) > 1:
                band = errors.std(axis=0, ddof=1)
                axes.fill_between(
                    epochs, (mean - band).clip(0), (mean + band).clip(max=100), color=f"C{i}", alpha=0.12, lw=0
                )
    axes.set(xlabel="epoch", ylabel="error (%)", title="test error (solid) and training error (dashed)")
    axes.set_ylim(0, 101)
    axes.xaxis.get_major_locator().set_params(integer=True)
    figure.legend(fontsize=8, loc="outside lower center")  # inside the axes the legend would hide falling curves
    axes.grid(alpha=0.3)
    return _save(figure, path)
