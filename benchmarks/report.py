"""The output: tables in Markdown, a JSON file, a picture."""

from __future__ import annotations

import functools
import itertools
import json
import os
import statistics
from dataclasses import asdict
from pathlib import Path

import numpy as np
import threadpoolctl

import minnl
from benchmarks.cases import AIMS
from benchmarks.contest import FORWARD
from benchmarks.optional import torch
from minnl import backend, dispatch

COLUMNS = {"case": 52, "work": 18, "minnl": 10, "PyTorch": 10, "ratio": 20, "PyTorch's better way": 43, "memory": 18}
ALONE = ("case", "work", "minnl")
EXPLANATION = "bars: forward + backward, training steps, inference, with quartiles; dots: forward alone"
DASHED = "; dashed: the geometric mean that is aimed at"
INFERENCE = "inference"


def setting(place, threads, repeats):
    """The setting of the measurements: device, threads, and versions of all libraries."""
    libraries = [lib for lib in threadpoolctl.threadpool_info() if lib["user_api"] == "blas"]
    return {
        **place.setting(),
        "threads": threads,
        "repeats": repeats,
        "dtype": "float32",
        "kernels": dispatch.mode(),
        "minnl": minnl.__version__,
        "numpy": np.__version__,
        "blas": [f"{lib['internal_api']} {lib['version']} {lib['architecture']}" for lib in libraries],
        "torch": None if place.torch is None else torch.__version__,
        "cores": backend.usable_cores(),
        "load": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
    }


def heading(about):
    """The setting, and how to read the tables."""
    on_gpu = about["device"] != "cpu"
    without = "no PyTorch with CUDA here" if on_gpu else "no PyTorch here"
    rival = f"{without}: minnl's times alone" if about["torch"] is None else f"PyTorch {about['torch']}"
    lines = [
        f"threads: {about['threads']}, rounds: {about['repeats']}, {about['dtype']}, {about['kernels']} kernels, "
        f"minnl {about['minnl']}, NumPy {about['numpy']} ({', '.join(about['blas'])}), {rival}",
    ]
    if on_gpu:
        lines.insert(
            0,
            f"{about['device']}: {about['gpu']}, driver for CUDA {about['cuda driver']}, CuPy {about['cupy']}, "
            f"TF32 {'on' if about['tf32'] else 'off'}; times by CUDA events",
        )
    elif about["load"] and about["load"] > 0.5:
        lines.append(
            f"other programs use this machine (load {about['load']}, {about['cores']} cores): threads that wait for "
            "each other suffer most, PyTorch's above all; --threads 1 is fairer then"
        )
    if about["torch"] is not None:
        lines.append("ratio: PyTorch's time over minnl's, median of the rounds (quartiles); above 1 minnl is quicker")
        held = "arrays of minnl / PyTorch" if on_gpu else "minnl / PyTorch"
        lines.append(f"memory: the most that {held} took, in MB, each in its own process")
    return "\n".join(lines)


def group(name, about):
    """The heading of a group."""
    columns = ALONE if about["torch"] is None else COLUMNS
    return f"\n### {name}\n\n{row(columns)}\n{row('-' * COLUMNS[column] for column in columns)}"


def row(cells):
    """A row of a table, padded so that it can be read as it is."""
    return "| " + " | ".join(f"{cell:<{width}}" for cell, width in zip(cells, COLUMNS.values(), strict=False)) + " |"


def line(result):
    """The row of one result."""
    cells = [result.name, result.work, f"{1e3 * result.minnl:.2f} ms"]
    if result.rival is not None:
        low, middle, high = result.ratios
        cells += [
            f"{1e3 * result.median(result.rival):.2f} ms",
            f"{middle:.2f} ({low:.2f} to {high:.2f})",
            result.rival,
        ]
        taken = [result.bytes.get(way) for way in ("minnl", result.rival)]
        cells.append("" if None in taken else " / ".join(f"{count / 1e6:.0f}" for count in taken))
    return row(cells)


def summary(results, about):
    """The geometric means of the groups, with their slowest cases and minnl's goals."""
    if about["torch"] is None:
        return ""
    lines = [
        "\n### geometric means of the ratios\n",
        "| group | forward | smallest | with gradients | smallest | aim |",
        "|---|---|---|---|---|---|",
    ]
    for name, members in grouped(results):
        cells = [name]
        for some in ([r for r in members if not with_gradients(r)], [r for r in members if with_gradients(r)]):
            cells += [f"{mean(some):.2f}", smallest(some)] if some else ["", ""]
        lines.append(f"| {' | '.join([*cells, aim(name, about)])} |")
    return "\n".join(lines)


def grouped(results):
    return [(name, list(some)) for name, some in itertools.groupby(results, key=lambda result: result.group)]


def with_gradients(result):
    return result.work not in (FORWARD, INFERENCE)


def mean(results):
    return statistics.geometric_mean(result.ratios[1] for result in results)


def smallest(results):
    least = min(results, key=lambda result: result.ratios[1])
    return f"{least.ratios[1]:.2f} ({least.name})"


def aims(about):
    """The goals are for the CPU only, since minnl has not been timed on a GPU."""
    return AIMS if about["device"] == "cpu" else {}


def aim(name, about):
    wanted = zip(("mean", "each"), aims(about).get(name, (None, None)), strict=True)
    return ", ".join(f"{what} {value}" for what, value in wanted if value)


def write_json(path, about, results):
    """The setting, and of every result each time in seconds and the memory in bytes."""
    content = {"setting": about, "results": [asdict(result) for result in results]}
    Path(path).write_text(json.dumps(content, indent=1) + "\n")


def draw(path, about, results):
    """A bar for each case, by group; where there is no PyTorch, a bar for each time."""
    from matplotlib.figure import Figure

    draw_rows = draw_times if about["torch"] is None else functools.partial(draw_ratios, aims=aims(about))
    columns = balanced(grouped(results))
    longest = max(sum(1 + len(cases_of(members)) for _, members in column) for column in columns)
    figure = Figure(figsize=(9 * len(columns), 1.4 + 0.21 * longest), layout="constrained")
    for axes, column in zip(figure.subplots(1, len(columns), squeeze=False)[0], columns, strict=True):
        draw_rows(axes, column)
        axes.set_ylim(longest - 0.4, -0.6)
        axes.tick_params(axis="y", length=0, labelsize=8)
        axes.spines[["top", "right", "left"]].set_visible(False)
    rival = "" if about["torch"] is None else f" and PyTorch {about['torch']}"
    where = f"threads: {about['threads']}" if about["device"] == "cpu" else about["gpu"]
    title = f"minnl ({about['kernels']} kernels){rival}, {where}"
    if rival:
        title += f"\n{EXPLANATION}{DASHED if aims(about) else ''}"
    figure.suptitle(title, x=0.01, ha="left", fontsize=10)
    figure.savefig(path, dpi=110)


def balanced(groups):
    """One column, or two of about the same height where there are many rows."""
    sizes = [1 + len(cases_of(members)) for _, members in groups]
    if sum(sizes) < 30:
        return [groups]
    heights = list(itertools.accumulate(sizes))
    cut = min(range(1, len(groups) + 1), key=lambda i: max(heights[i - 1], heights[-1] - heights[i - 1]))
    return [part for part in (groups[:cut], groups[cut:]) if part]


def cases_of(members):
    """Name of a case -> its results, with gradients and without."""
    found = {}
    for result in members:
        found.setdefault(result.name, []).append(result)
    return found


def draw_ratios(axes, groups, aims):
    """Bars from 1, to the right where minnl is faster; a dashed line at the goal of a group."""
    place, names = 0, {}
    for name, members in groups:
        write_group(axes, place, name)
        start, place = place, place + 1
        for case, results in cases_of(members).items():
            main = next((result for result in results if with_gradients(result)), results[0])
            low, middle, high = main.ratios
            color = "tab:blue" if middle >= 1 else "tab:orange"
            axes.barh(place, middle - 1, left=1, height=0.7, color=color, zorder=2)
            axes.plot([low, high], [place, place], color="0.25", linewidth=1, zorder=3)
            for result in results:
                if result is not main:
                    axes.plot(result.ratios[1], place, "o", color="black", markersize=3.5, zorder=4)
            names[place], place = case, place + 1
        wanted = aims.get(name, (None, None))[0]
        if wanted:
            axes.plot([wanted, wanted], [start + 0.5, place - 0.5], "--", color="tab:green", linewidth=1.2, zorder=1)
    axes.axvline(1, color="black", linewidth=0.8, zorder=3)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.grid(axis="x", color="0.9", zorder=0)
    axes.set_yticks(list(names), names.values())
    axes.set_xlabel("PyTorch's time over minnl's: right of 1 minnl is quicker")


def write_group(axes, place, name):
    where = axes.get_yaxis_transform()
    axes.text(-0.01, place, name, weight="bold", fontsize=9, va="center", ha="right", transform=where)


def draw_times(axes, groups):
    place, names = 0, {}
    for name, members in groups:
        write_group(axes, place, name)
        place += 1
        for case, results in cases_of(members).items():
            axes.barh(place, max(1e3 * result.minnl for result in results), height=0.7, color="tab:blue")
            names[place], place = case, place + 1
    axes.set_xscale("log")
    axes.set_yticks(list(names), names.values())
    axes.set_xlabel("ms, with gradients where there are any")
