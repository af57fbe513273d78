"""Pictures of a run: its curves, and where a position of a clip looks. Drawn with matplotlib, without a screen."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from minnl import backend
from minnl.engine import Tensor
from minnl.nn import NonLocalBlock, evaluating


def read_log(folder):
    """Records of ``folder/log.jsonl``: {"step": [...], "epoch": [...]}."""
    records = {"step": [], "epoch": []}
    for line in (Path(folder) / "log.jsonl").read_text("utf-8").splitlines():
        record = json.loads(line)
        records[record["kind"]].append(record)
    return records


def _figure(*size):
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # half a second to import: not before it is needed
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def curves(folder):
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
    right.set(xlabel="step", ylabel="top-1 (%)", title="accuracy", ylim=(0, 101))
    for axes in (left, right):
        axes.legend()
        axes.grid(alpha=0.3)
    path = Path(folder) / "curves.png"
    figure.savefig(path, dpi=100)
    return path


def block_input(model, clip):
    """The first non-local block of a model and what comes into it for a clip (T, H, W, C); None if there is none."""
    block = next((m for _, m in model.modules() if isinstance(m, NonLocalBlock)), None)
    if block is None:
        return None
    seen = []
    forward = block.forward
    block.__dict__["forward"] = lambda x: (seen.append(x), forward(x))[1]
    try:
        with evaluating(model):
            model(Tensor(backend.to_device(clip[None], model.parameters()[0].device)))
    finally:
        del block.__dict__["forward"]
    return block, seen[0]


def busiest(clip, shape):
    """The position (t, h, w) of a map of `shape` under which the clip changes most from frame to frame."""
    motion = np.abs(np.diff(clip, axis=0, prepend=clip[:1])).sum(axis=-1)
    cells = [np.array_split(np.arange(n), m) for n, m in zip(motion.shape, shape, strict=True)]
    energy = motion
    for axis, groups in enumerate(cells):
        energy = np.stack([energy.take(g, axis).mean(axis) for g in groups], axis)
    return tuple(int(i) for i in np.unravel_index(energy.argmax(), energy.shape))


def attention(model, clip, path, position=None):
    """Draw where one position of a clip looks, over its frames.

    Parameters
    ----------
    model : nn.Module with a non-local block; the first is drawn
    clip : float32 ndarray (T, H, W, C)
    path : where the picture goes
    position : (t, h, w) on the block's map, or None for the place that moves most

    Returns
    -------
    path, or None if the model has no non-local block
    """
    found = block_input(model, clip)
    if found is None:
        return None
    block, x = found
    position = busiest(clip, x.shape[1:4]) if position is None else position
    with evaluating(model):
        weights = backend.to_host(block.attention(x, [position]))[0, 0]
    frames, height, width = clip.shape[:3]
    columns = min(frames, 8)
    rows = -(-frames // columns)
    figure = _figure(1.5 * columns, 1.7 * rows + 0.5)
    low, high = np.percentile(clip, (0.5, 99.5))
    shown = np.clip((clip - low) / max(high - low, 1e-6), 0, 1)
    top = weights.max() or 1
    for t, axes in enumerate(figure.subplots(rows, columns, squeeze=False).flat):
        axes.axis("off")
        if t >= frames:
            continue
        axes.set_title(f"frame {t}", fontsize=8)
        picture = shown[t] if shown.shape[-1] == 3 else shown[t].mean(axis=-1)
        extent = (0, width, height, 0)
        axes.imshow(picture, cmap="gray", vmin=0, vmax=1, extent=extent)
        layer = weights[t * weights.shape[0] // frames]
        axes.imshow(layer, cmap="inferno", vmin=min(weights.min(), 0), vmax=top, alpha=0.5, extent=extent)
        if t * x.shape[1] // frames == position[0]:
            scale = height / x.shape[2], width / x.shape[3]
            axes.plot((position[2] + 0.5) * scale[1], (position[1] + 0.5) * scale[0], "c+", markersize=12, mew=2)
    figure.suptitle(
        f"where position {position} of the {block.mode} block looks (cross: the position; bright: the weight)",
        fontsize=9,
    )
    figure.savefig(path, dpi=100)
    return path
