"""What is shown: a table, a JSON file, a picture."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path

import numpy as np
import threadpoolctl

import minnl
from benchmarks.optional import torch
from minnl import backend, kernels


def setting(threads, repeats):
    """What the figures are of; without it they say nothing."""
    libraries = [lib for lib in threadpoolctl.threadpool_info() if lib["user_api"] == "blas"]
    return {
        "threads": threads,
        "repeats": repeats,
        "dtype": "float32",
        "kernels": kernels.mode(),
        "minnl": minnl.__version__,
        "numpy": np.__version__,
        "blas": [f"{lib['internal_api']} {lib['version']} {lib['architecture']}" for lib in libraries],
        "torch": None if torch is None else torch.__version__,
        "cores": backend.usable_cores(),
        "load": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
    }


def heading(about):
    """The setting, how to read the table, and the names of its columns."""
    rival = "no PyTorch here: minnl's times alone" if about["torch"] is None else f"PyTorch {about['torch']}"
    lines = [
        f"threads: {about['threads']}, rounds: {about['repeats']}, {about['dtype']}, {about['kernels']} kernels, "
        f"minnl {about['minnl']}, NumPy {about['numpy']} ({', '.join(about['blas'])}), {rival}",
    ]
    if about["load"] and about["load"] > 0.5:
        lines.append(
            f"other programs use this machine (load {about['load']}, {about['cores']} cores): threads that wait for "
            "each other suffer most, PyTorch's above all; --threads 1 is fairer then"
        )
    if about["torch"] is not None:
        lines.append("ratio: PyTorch's time over minnl's, median of the rounds (quartiles); above 1 minnl is quicker")
        lines += ["", f"{'minnl':>10} {'PyTorch':>10}   {'ratio':<22} what (PyTorch's better way)"]
    return "\n".join(lines)


def line(result):
    """One row of the table."""
    ours = f"{1e3 * result.minnl:7.2f} ms"
    if result.rival is None:
        return f"{ours}   {result.name}"
    low, middle, high = result.ratios
    theirs = f"{1e3 * result.median(result.rival):7.2f} ms"
    return f"{ours} {theirs}   {f'{middle:5.2f} ({low:.2f} to {high:.2f})':<22} {result.name} ({result.rival})"


def write_json(path, about, results):
    """The setting, and every time of every contender in seconds."""
    content = {"setting": about, "results": [asdict(result) for result in results]}
    Path(path).write_text(json.dumps(content, indent=1) + "\n")


def draw(path, about, results):
    """A bar for each ratio with its quartiles; where there is no PyTorch, a bar for each time."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14, 1.2 + 0.3 * len(results)), layout="constrained")
    axes = figure.subplots()
    names = [result.name for result in results]
    if about["torch"] is None:
        axes.barh(names, [1e3 * result.minnl for result in results], color="tab:blue")
        axes.set_xlabel("ms")
    else:
        low, middle, high = np.array([result.ratios for result in results]).T
        colors = ["tab:blue" if m >= 1 else "tab:orange" for m in middle]
        axes.barh(names, middle, xerr=(middle - low, high - middle), color=colors, ecolor="0.3")
        axes.axvline(1, color="black", linewidth=1)
        axes.set_xlabel("PyTorch's time over minnl's; right of the line minnl is quicker")
    axes.set_xscale("log")
    axes.set_ylim(len(results) - 0.5, -0.5)
    axes.set_title(f"minnl's {about['kernels']} kernels, threads: {about['threads']}", loc="left")
    figure.savefig(path, dpi=150)
