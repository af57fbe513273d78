"""Batches from a dataset, in a reproducible order and with reproducible bits, made ahead by threads."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Literal, Protocol

import numpy as np

from minnl import checks
from minnl.backend import Array
from minnl.data.decoder import VideoError, shown


class Dataset(Protocol):
    """The attributes and methods that a Loader uses; :mod:`minnl.data` describes them."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    def __len__(self) -> int: ...
    def clip(self, index: int, rng: np.random.Generator, /) -> tuple[Array, int]: ...
    def name(self, index: int, /) -> str: ...


class Loader:
    """Iterates over a dataset in batches.

    **Bits.** Each sample has its own generator, seeded from ``(seed, epoch, index)``, and the order of an epoch comes
    from ``(seed, epoch)``. So the batches do not depend on the number of workers or on their timing, and an epoch can
    be resumed in its middle.

    **Threads.** Workers are threads: NumPy and FFmpeg release Python's lock while they work, and threads share memory.
    At most ``prefetch`` batches are made ahead of the batch in use. When a pass ends (at its end, by `break`, by an
    exception or by Ctrl-C), its threads finish their current samples and end.

    **Epochs.** A shuffled loader goes on to the next epoch after each full pass. A loader without shuffle (for an
    evaluation) stays in its epoch, so that every pass is the same. `set_epoch` sets the epoch of both.

    Parameters
    ----------
    dataset : object
        With ``len(dataset)``, ``.shape``, ``.clip(index, rng)`` and ``.name(index)``; see `minnl.data`.
    batch_size : int
    shuffle : bool
    seed : int
    workers : int
        The number of threads; with 0 the caller's thread makes each batch when it is needed.
    drop_last : bool
        Whether to leave out a last batch that is not full.
    prefetch : int
        The number of batches made ahead (with workers).
    on_error : "skip" or "error"
        The treatment of a sample for which the dataset raises a ValueError, such as a broken video. "skip" leaves the
        sample out of its batch, which gets smaller, and reports its name once: as a warning, and in `skipped`.

    Attributes
    ----------
    epoch : int
    skipped : list of (str, str)
        Names and reasons of the samples left out so far.

    Yields
    ------
    x : float32 ndarray of shape (N, T, H, W, C)
    labels : int64 ndarray of shape (N,)

    Raises
    ------
    TypeError, ValueError
        If an argument is wrong; the message names it. ValueError also if no sample of a whole epoch could be used.
    """

    def __init__(
        self, dataset: Dataset, batch_size: int, shuffle: bool = False, seed: int = 0, workers: int = 0,
        drop_last: bool = False, prefetch: int = 2, on_error: Literal["skip", "error"] = "skip",
    ):  # fmt: skip
        self.dataset = dataset
        self.batch_size = checks.count("Loader", "batch_size", batch_size, 1)
        self.shuffle = bool(shuffle)
        self.seed = checks.count("Loader", "seed", seed, 0)
        self.workers = checks.count("Loader", "workers", workers, 0)
        self.drop_last = bool(drop_last)
        self.prefetch = checks.count("Loader", "prefetch", prefetch, 1)
        self.on_error = checks.choice("Loader", "on_error", on_error, ("skip", "error"))
        self.epoch = 0
        self.skipped: list[tuple[str, str]] = []
        self._reported: set[int] = set()
        self._first, self._next = 0, 0
        if len(self) == 0:
            raise ValueError(
                f"Loader: {len(dataset)} samples make no batch of batch_size={batch_size}"
                + (" with drop_last=True" if drop_last else "")
            )

    def __len__(self) -> int:
        """The number of batches in an epoch."""
        full, rest = divmod(len(self.dataset), self.batch_size)
        return full + (1 if rest and not self.drop_last else 0)

    def set_epoch(self, epoch: int) -> None:
        """Go to `epoch`, 0 or more. If `load_state_dict` set the same epoch, the next pass starts at its batch."""
        epoch = checks.count("set_epoch", "epoch", epoch, 0)
        if epoch != self.epoch:
            self.epoch, self._first, self._next = epoch, 0, 0

    def state_dict(self) -> dict[str, Any]:
        """The position of the loader, as plain ints and bools. Inside a loop it is after the current batch."""
        return {"epoch": self.epoch, "batch": self._next, **self._cut()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue at the position of a `state_dict`: the next pass starts at that batch, with the same bits.

        Raises ValueError if the position is in the middle of an epoch and this loader makes other batches of it.
        """
        try:
            epoch, batch = (checks.count("load_state_dict", key, state[key], 0) for key in ("epoch", "batch"))
            other = {key: (state[key], mine) for key, mine in self._cut().items() if state[key] != mine}
        except KeyError as error:
            raise ValueError(f"load_state_dict: state lacks {error}; it must come from Loader.state_dict") from None
        if batch and other:
            raise ValueError(
                "load_state_dict: the state is in the middle of an epoch and needs a loader with the same options; "
                "different: "
                + ", ".join(f"{key} was {checks.quoted(was)}, is {now!r}" for key, (was, now) in other.items())
            )
        self.epoch, self._first, self._next = epoch, batch, batch

    def _cut(self):
        """The options that determine the batches of an epoch."""
        return {
            "samples": len(self.dataset),
            "batch_size": self.batch_size,
            "shuffle": self.shuffle,
            "seed": self.seed,
            "drop_last": self.drop_last,
        }

    def __iter__(self) -> Iterator[tuple[Array, Array]]:
        epoch, first, used = self.epoch, self._first, 0
        self._first, self._next = 0, first
        order = self._order(epoch)
        waiting = deque(order[b * self.batch_size : (b + 1) * self.batch_size] for b in range(first, len(self)))
        begun = deque()
        pool = ThreadPoolExecutor(self.workers, thread_name_prefix="minnl-loader") if self.workers else None
        submit, ahead = (pool.submit, self.prefetch) if pool else (_now, 0)
        try:
            while waiting or begun:
                while waiting and len(begun) <= ahead:
                    begun.append(self._begin(waiting.popleft(), epoch, submit))
                batch = self._finish(*begun.popleft())
                self._next += 1
                if len(batch[1]):
                    used += 1
                    yield batch
        finally:
            if pool:
                pool.shutdown(wait=True, cancel_futures=True)
        if first == 0 and used == 0:
            raise ValueError(
                f"Loader: none of {len(self.dataset)} samples could be used; first "
                f"{shown(self.skipped[0][0])}: {self.skipped[0][1]}"
            )
        self.epoch, self._next = epoch + int(self.shuffle), 0

    def _order(self, epoch):
        if not self.shuffle:
            return np.arange(len(self.dataset))
        rng = np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=(epoch,)))
        return rng.permutation(len(self.dataset))

    def _begin(self, indices, epoch, submit):
        """Submit the samples of a batch: (indices, x, labels, a future for each sample)."""
        x = np.empty((len(indices), *self.dataset.shape), np.float32)
        labels = np.empty(len(indices), np.int64)
        futures = [submit(self._load, int(i), epoch, x, labels, place) for place, i in enumerate(indices)]
        return indices, x, labels, futures

    def _load(self, index, epoch, x, labels, place):
        """Write a sample to its place in the batch. Returns None, or the reason why the sample is left out."""
        rng = np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=(epoch, index)))
        try:
            clip, label = self.dataset.clip(index, rng)
        except ValueError as error:
            if self.on_error == "error":
                raise
            return error.reason if isinstance(error, VideoError) else str(error)
        if clip.shape != x.shape[1:] or clip.dtype != x.dtype:
            raise TypeError(
                f"Loader: clip {index} of {type(self.dataset).__name__} must be float32 of shape "
                f"{x.shape[1:]}, got {clip.dtype} of shape {clip.shape}"
            )
        x[place], labels[place] = clip, checks.count("Loader", f"label of clip {index}", label, 0)
        return None

    def _finish(self, indices, x, labels, futures):
        """Wait for a batch and remove the samples that could not be used."""
        reasons = [future.result() for future in futures]
        kept = [reason is None for reason in reasons]
        if all(kept):
            return x, labels
        for index, reason in zip(indices.tolist(), reasons, strict=True):
            if reason is not None and index not in self._reported:
                self._reported.add(index)
                self.skipped.append((self.dataset.name(index), reason))
                warnings.warn(f"Loader: left out {shown(self.skipped[-1][0])}: {reason}", RuntimeWarning, stacklevel=3)
        return x[kept], labels[kept]


def _now(function, *arguments):
    """The `submit` of a loader without workers: it calls the function at once, in this thread."""
    future = Future()
    future.set_result(function(*arguments))
    return future
