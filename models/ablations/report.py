"""Tables and learning curves from the runs that are complete."""

import math
from pathlib import Path

from minnl.study import pictures
from minnl.training import checkpoint
from models.ablations import runs
from models.ablations.paper import TABLES
from models.ablations.runs import Case

SOURCE = "Wang, Girshick, Gupta, He, *Non-local Neural Networks*, CVPR 2018"


def write(name, rows, scale, seeds, out):
    """Write OUT/NAME.md, and OUT/NAME.png if a run is complete; returns what was written."""
    out = Path(out)
    cases = [(row, case) for row, case in rows if isinstance(case, Case)]
    curves = []
    for row, case in cases:
        folders = [case.folder(out, s) for s in range(seeds) if "top1" in (runs.result(case, s, out) or {})]
        if folders:
            curves.append((scale.describe(row.network), folders))  # not the paper's words: it is not its run
    written = [out / f"{name}.md"]
    if curves:
        written.append(pictures.error_curves(out / f"{name}.png", curves))
    text = markdown(name, rows, scale, seeds, out, picture=bool(curves))
    checkpoint.write(written[0], [text.encode()])
    return written


def markdown(name, rows, scale, seeds, out, picture=False):
    """A table of the paper beside what the runs in `out` ended with."""
    table = TABLES[name]
    here = [(row, case) for row, case in rows if isinstance(case, Case)]
    config = here[0][1].config
    train_set, test_set = runs.datasets(config)
    five = len(train_set.classes) > 5
    kinds = ("top1", "top5") if five else ("top1",)
    head = ["run here", *(f"test top-{kind[-1]} (%)" for kind in kinds), "parameters", "multiply-adds"]
    head += ["row of the paper", "top-1 / top-5 there (%)", *(["costs there"] if table.relative else [])]
    lines = [f"## Table {name}: {table.title.lower()}", "", _line(head), _line(["---"] * len(head))]
    first = here[0][1].cost
    for row, case in here:
        cells = [scale.describe(row.network)]
        cells += [cell([runs.result(case, s, out) for s in range(seeds)], kind) for kind in kinds]
        cells += [
            f"{text}{f' ({mine / base:.1f}×)' if table.relative else ''}"
            for text, mine, base in zip(costs(case), case.cost, first, strict=True)
        ]
        cells += [row.label, f"{row.top1} / {row.top5}", *([row.cost] if table.relative else [])]
        lines.append(_line(cells))
    lines += ["", about(config, seeds, train_set, test_set)]
    missing = [f"{row.label} ({reason})" for row, reason in rows if not isinstance(reason, Case)]
    if missing:
        lines += ["", f"Rows of the paper without a counterpart here: {'; '.join(missing)}."]
    if picture:
        lines += ["", f"![learning curves of table {name}]({name}.png)"]
    return "\n".join(lines) + "\n"


def costs(case):
    """Parameters and multiply-adds of a clip, for people."""
    parameters, multiply_adds = case.cost
    return f"{parameters:,}", f"{multiply_adds / 1e9:.2f} G" if multiply_adds >= 1e9 else f"{multiply_adds / 1e6:.1f} M"


def cell(results, kind):
    """ "97.2 ± 1.1" over the seeds; how many there are, if not all; and how many diverged."""
    values = [100 * r[kind] for r in results if r and kind in r]
    diverged = sum("diverged" in r for r in results if r)
    parts = []
    if values:
        mean = sum(values) / len(values)
        parts.append(f"{mean:.1f}")
        if len(values) > 1:
            deviation = math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1))
            parts[0] += f" ± {deviation:.1f}"
    if diverged:
        parts.append(f"{diverged} of {len(results)} diverged")
    if len(values) + diverged < len(results):
        parts.append(f"{len(values) + diverged} of {len(results)} runs" if parts else "not run")
    return ", ".join(parts)


def about(config, seeds, train_set, test_set):
    """What the figures are, and what they are not, in a paragraph."""
    task = f"the videos in `{config['data']}`" if config["data"] else "the built-in task"
    clip = "×".join(map(str, train_set.shape[:3]))
    epochs = f"{config['epochs']} epoch{'s' * (config['epochs'] > 1)}"
    over = f"mean ± standard deviation over {seeds} seeds" if seeds > 1 else "of one seed"
    other = "Networks start otherwise here" if config["data"] else "It is another task at another scale"
    return (
        f"Here: {task}, {len(train_set.classes)} classes, {len(train_set):,} training clips of {clip}, {epochs}, "
        f"recipe `{config['recipe']}`, from scratch; test accuracy of {len(test_set):,} clips after the last epoch, "
        f"{over}; multiply-adds of one clip forward. There: {SOURCE}, table 2: Kinetics-400, from ImageNet weights. "
        f"{other}: compare the order of the rows, not the figures, and where deviations overlap not even that."
    )


def _line(cells):
    return f"| {' | '.join(cells)} |"
