"""``python -m benchmarks``: minnl beside PyTorch, in one run. See docs/benchmarks.md."""

from __future__ import annotations

import argparse
import sys

import minnl
from benchmarks import cases, memory, places, report
from benchmarks.measure import Result, measure
from benchmarks.optional import torch
from minnl import backend


def main(arguments=None):
    options = parse(arguments)
    try:
        place = places.find(options.device, options.tf32)
    except (RuntimeError, ValueError) as error:
        sys.exit(f"python -m benchmarks --device {options.device}: {error}")
    threads = options.threads or backend.usable_cores()
    minnl.set_threads(threads)
    if torch is not None:
        torch.set_num_threads(threads)
    about = report.setting(place, threads, options.repeats)
    print(report.heading(about), flush=True)
    with backend.on(place.device):
        results = compare(chosen(options.only), place, threads, options, about)
    print(report.summary(results, about))
    if options.json:
        report.write_json(options.json, about, results)
    if options.picture:
        report.draw(options.picture, about, results)


def compare(contests, place, threads, options, about):
    """The result of each contest, printed as soon as it is there."""
    results = []
    for contest in contests:
        if not results or results[-1].group != contest.group:
            print(report.group(contest.group, about), flush=True)
        calls = {way: contender.call for way, contender in contest.contenders(place).items()}
        result = Result(contest.name, contest.group, contest.work, measure(calls, options.repeats, place))
        del calls
        place.make_room()
        if options.memory or contest.network:
            ways = filter(None, ("minnl", result.rival))
            result.bytes = {way: memory.peak(contest, way, threads, place) for way in ways}
        results.append(result)
        print(report.line(result), flush=True)
    return results


def parse(arguments):
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Time minnl beside PyTorch in one run.")
    parser.add_argument("--only", metavar="TEXT", default="", help="only cases whose name or group contains TEXT")
    parser.add_argument("--device", default="cpu", help='"cpu", "gpu" or "gpu:1": where both compute (default: cpu)')
    parser.add_argument("--tf32", action="store_true", help="let both use TF32 on a GPU: 10 bits of a fraction, not 23")
    parser.add_argument("--threads", type=positive, help="threads for both (default: every core)")
    parser.add_argument("--repeats", type=positive, default=7, help="rounds, fewer for what takes long (default: 7)")
    parser.add_argument("--memory", action="store_true", help="measure the memory of every case, not of networks alone")
    parser.add_argument("--json", metavar="FILE", help="write every time there")
    parser.add_argument("--picture", metavar="FILE", help="draw the ratios there (.png, .svg, .pdf)")
    return parser.parse_args(arguments)


def positive(text):
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, got {value}")
    return value


def chosen(text):
    """The contests whose title or group contains the text."""
    every = cases.every()
    found = [contest for contest in every if text in contest.title or text in contest.group]
    if not found:
        sys.exit(f"no case contains {text!r}; there are:\n  " + "\n  ".join(contest.title for contest in every))
    return found


if __name__ == "__main__":
    main()
