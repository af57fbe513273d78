"""Evaluation: by one clip of each video while training, or by many views of each video as published.

Published figures take the mean of the softmax over the views of a video, 10 clips x 3 crops in the paper. The memory
for this depends neither on the number of videos nor on their length. See docs/evaluation.md.
"""

from __future__ import annotations

import contextlib
import csv
import math
import os
import warnings
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from minnl import backend, checks
from minnl import functional as F
from minnl.data import Views, ahead, views
from minnl.engine import Tensor
from minnl.nn import evaluating
from minnl.study import cost_summary
from minnl.training import checkpoint
from minnl.training.progress import counted
from minnl.training.run_folder import lock

MEMORY = 2e9  # bytes for the activations of the views that go through the network together
TOP = 5


def evaluate(model, loader):
    """Loss and accuracy over a loader, each clip by itself, with the model in eval mode.

    Returns {"loss", "top1", "top5", "clips"}; top-1 and top-5 in [0, 1], top-5 of all classes if those are fewer.
    """
    device = model.parameters()[0].device
    totals = np.zeros(3)
    clips = 0
    with evaluating(model):
        for x, labels in ahead.batches(loader, device):
            logits = model(Tensor(x))
            loss = F.cross_entropy(logits, labels, reduction="sum").item()
            hits = ranked(logits.numpy()) == labels[:, None]
            totals += loss, hits[:, 0].sum(), hits.any(axis=1).sum()
            clips += len(labels)
    loss, top1, top5 = (totals / clips).tolist()
    return {"loss": loss, "top1": top1, "top5": top5, "clips": clips}


def evaluate_views(
    model, dataset, clips=10, crops=3, *, batch_size=None, memory=MEMORY, workers=1, on_error="skip", scores=None,
    plain=False,
):  # fmt: skip
    """Loss and accuracy over a dataset, each video judged by all its views, with the model in eval mode.

    Parameters
    ----------
    model : nn.Module
        Clips (N, T, H, W, C) -> logits (N, classes). One that has `probabilities` (clips -> (N, classes), the softmax
        at each position of the last map, averaged) is asked for these instead, as the networks of the paper are.
    dataset : data.ClipDataset
        Videos or arrays.
    clips, crops : int
        As in `data.Views`.
    batch_size : int, optional
        Most views that go through the network together. By default as many as fit into `memory` by the cost
        summary.
    memory : float
        Bytes for their activations. One view always goes.
    workers : int
        Threads that decode videos ahead; each has the frames of one in memory.
    on_error : "skip" or "error"
        For a video that cannot be used: leave it out, with a warning that names it, or stop.
    scores : path-like, optional
        A CSV file to write, a line for each video: see :class:`Scores`.
    plain : bool
        Print lines instead of a progress bar, as without a terminal.

    Returns
    -------
    dict
        "loss", "top1", "top5" of the videos, in [0, 1]; "clips", the number of videos; "view_top1", the top-1 of single
        views; "skipped", a list of (name, reason).

    Raises
    ------
    ValueError
        If no video can be used; or with on_error="error" for the first that cannot; or if the model and the dataset
        have different numbers of classes.
    """
    checks.choice("evaluate_views", "on_error", on_error, ("skip", "error"))
    checks.count("evaluate_views", "workers", workers, 0)
    views.check(dataset, clips, crops)
    tally, skipped, shape = Tally(), [], None
    with evaluating(model), Scores(scores, dataset.classes) as table:
        loaded = _ahead(dataset, clips, crops, workers, on_error)
        for index, video in counted(loaded, len(dataset), "video", tally.describe, plain):
            name, label = dataset.name(index), dataset.labels[index]
            if isinstance(video, ValueError):
                skipped.append((name, getattr(video, "reason", str(video))))
                table.skipped(label, *skipped[-1])
                warnings.warn(f"evaluate_views: left out {': '.join(skipped[-1])}", RuntimeWarning, stacklevel=2)
                continue
            if video.shape != shape:
                shape, size = video.shape, at_once(model, video.shape, memory, batch_size)
            answers = probabilities(model, video, size)
            if answers.shape[1] != len(dataset.classes):
                raise ValueError(
                    f"evaluate_views: the model tells {answers.shape[1]} classes apart, "
                    f"the dataset has {len(dataset.classes)}; they must be the same"
                )
            tally.add(answers, label)
            table.scored(label, name, answers)
        if not tally.videos:
            reason = ": ".join(skipped[0])
            raise ValueError(f"evaluate_views: none of {len(dataset)} videos could be used; first {reason}")
    return tally.means() | {"clips": tally.videos, "skipped": skipped}


class Tally:
    """Sums over videos."""

    def __init__(self):
        self.videos, self.sums = 0, np.zeros(4)

    def add(self, answers, label):
        """Take in a video: the probabilities (views, classes) and the class."""
        mean = answers.mean(axis=0)
        loss = -math.log(max(mean[label], np.finfo(np.float32).tiny))
        hits = ranked(mean) == label
        self.sums += loss, hits[0], hits.any(), (answers.argmax(axis=1) == label).mean()
        self.videos += 1

    def means(self):
        return dict(zip(("loss", "top1", "top5", "view_top1"), (self.sums / self.videos).tolist(), strict=True))

    def describe(self):
        if not self.videos:
            return "first video"
        means = self.means()
        return f"top-1 {means['top1']:.1%}, top-5 {means['top5']:.1%}"


def probabilities(model, video, size):
    """Softmax of each view of a video by a model in eval mode, `size` views at a time: (views, classes), float64."""
    device = model.parameters()[0].device
    answers = []
    for x in views.batches(video, size):
        x = Tensor(backend.to_device(x, device))
        share = model.probabilities(x) if hasattr(model, "probabilities") else F.softmax(model(x))
        answers.append(share.numpy().astype(np.float64))
    return np.concatenate(answers)


def at_once(model, shape, memory=MEMORY, most=None):
    """Clips of a shape (T, H, W, C) that fit into `memory` bytes by the cost summary; from 1 to `most`."""
    # Two clips and three, since batch norm may refuse one.
    two, three = (cost_summary.summarize(model, (n, *shape)).forward_peak for n in (2, 3))
    fits = max(1, int(memory // (three - two)))
    return fits if most is None else min(fits, checks.count("at_once", "batch_size", most))


def ranked(scores):
    """The classes with the highest scores along the last axis, at most five; of equal ones the first comes first."""
    return np.argsort(-scores, axis=-1, kind="stable")[..., :TOP]


class Scores:
    """A CSV file of scores: path, label, status, views, class1, score1, … class5, score5, reason.

    Status is "ok" or "skipped", classes are names, a score is the mean of the softmax over the views. Rows are written
    to ``FILE.part``, which is renamed to FILE at the end. After an error or Ctrl-C both files stay as they are. A
    second evaluation that writes to the file at the same time is refused. Bytes of a name that are not UTF-8 are
    written as ``\\udc..``. Without a path nothing is written.
    """

    def __init__(self, path, classes):
        # An absolute path: the process may change its folder. A resolved one: a rename would replace a symlink.
        self.path, self.classes = None if path is None else Path(os.path.realpath(path)), classes

    def __enter__(self):
        if self.path is not None:
            if self.path.is_dir():
                raise ValueError(f"evaluate_views: scores={str(self.path)!r} is a folder, name a file in it")
            self.unfinished = self.path.with_name(self.path.name + ".part")
            self.file = open(self.unfinished, "a", newline="", encoding="utf-8", errors="backslashreplace")  # noqa: SIM115
            try:
                self._begin()
            except BaseException:
                with contextlib.suppress(OSError):
                    self.file.close()
                raise
        return self

    def _begin(self):
        if lock(self.file) is False:
            raise ValueError(f"evaluate_views: another evaluation writes {self.unfinished} now")
        if self.file.tell():  # of an evaluation that was stopped
            self.file.truncate(0)
        self.writer = csv.writer(self.file)
        best = [f"{what}{k}" for k in range(1, TOP + 1) for what in ("class", "score")]
        self._write(["path", "label", "status", "views", *best, "reason"])

    def __exit__(self, error, *_):
        if self.path is not None:
            with checkpoint.naming(self.unfinished):
                self.file.close()
            if error is None:
                os.replace(self.unfinished, self.path)

    def scored(self, label, name, answers):
        mean = answers.mean(axis=0)
        best = [cell for k in ranked(mean) for cell in (self.classes[k], f"{mean[k]:.6f}")]
        self._write([name, self.classes[label], "ok", len(answers), *best, *[""] * (2 * TOP - len(best)), ""])

    def skipped(self, label, name, reason):
        self._write([name, self.classes[label], "skipped", 0, *[""] * (2 * TOP), reason])

    def _write(self, row):
        if self.path is not None:
            with checkpoint.naming(self.unfinished):
                self.writer.writerow(row)
                self.file.flush()


def _ahead(dataset, clips, crops, workers, on_error):
    """Yield (index, Views) of each video, decoded ahead by threads; a ValueError instead of Views if that failed."""

    def load(index):
        try:
            return index, Views(dataset, index, clips, crops)
        except ValueError as error:
            if on_error == "error":
                raise
            return index, error

    if workers == 0:
        yield from map(load, range(len(dataset)))
        return
    pool = ThreadPoolExecutor(workers, thread_name_prefix="minnl-views")
    try:
        begun = deque()
        for index in range(len(dataset)):
            begun.append(pool.submit(load, index))
            if len(begun) > workers:
                yield begun.popleft().result()
        while begun:
            yield begun.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
