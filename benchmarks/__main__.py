"""``python -m benchmarks``: minnl beside PyTorch, in one run. See docs/benchmarks.md."""

from __future__ import annotations

import argparse
import functools
import sys

import minnl
from benchmarks import networks, ops, report
from benchmarks.measure import measure
from benchmarks.optional import torch
from minnl import backend

PASSES = {"forward": False, "forward + backward": True}


def main(arguments=None):
    options = parse(arguments)
    threads = options.threads or backend.usable_cores()
    minnl.set_threads(threads)
    if torch is not None:
        torch.set_num_threads(threads)
    about = report.setting(threads, options.repeats)
    print(report.heading(about))
    results = []
    for name, contenders in chosen(options.only):
        results.append(measure(name, contenders(), options.repeats))
        print(report.line(results[-1]), flush=True)
    if options.json:
        report.write_json(options.json, about, results)
    if options.picture:
        report.draw(options.picture, about, results)


def parse(arguments):
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Time minnl beside PyTorch in one run.")
    parser.add_argument("--only", metavar="TEXT", default="", help="only cases whose name contains TEXT")
    parser.add_argument("--threads", type=positive, help="threads for both (default: every core)")
    parser.add_argument("--repeats", type=positive, default=9, help="rounds; each times every contender once")
    parser.add_argument("--json", metavar="FILE", help="write every time there")
    parser.add_argument("--picture", metavar="FILE", help="draw the ratios there (.png, .svg, .pdf)")
    return parser.parse_args(arguments)


def positive(text):
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, got {value}")
    return value


def chosen(text):
    """(name, function that makes the contenders) of every case whose name contains the text."""
    every = [
        (f"{case.name}, {word}", functools.partial(case.contenders, backward))
        for case in ops.CASES
        for word, backward in PASSES.items()
    ]
    every += [(case.name, case.contenders) for case in networks.CASES]
    found = [entry for entry in every if text in entry[0]]
    if not found:
        sys.exit(f"no case contains {text!r}; there are:\n  " + "\n  ".join(name for name, _ in every))
    return found


if __name__ == "__main__":
    main()
