"""When memory runs out: what was held, what is free, and which batch would fit. The Trainer says it."""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass
from pathlib import Path

from minnl import backend
from minnl.study import bill

SPARE = 0.2  # of the memory for what the bill leaves out: workspace on the CPU, what others take, gaps that vary


@dataclass(frozen=True)
class Usage:
    """Bytes of memory; on the CPU None where the system does not tell (it does on Linux).

    Attributes
    ----------
    held : int
        By arrays on a GPU; on the CPU by the process, libraries included.
    most : int
        The most held so far. On a GPU what CuPy's pool has taken from the driver: it keeps what arrays give back, until
        memory runs out.
    free : int
        What could still be had.
    """

    held: int | None
    most: int | None
    free: int | None


def usage(device):
    """The :class:`Usage` of a device at this moment; no GPU is waited for."""
    if device.kind == "cpu":
        return _process()
    cupy = backend.load_cupy()
    pool = cupy.get_default_memory_pool()
    with backend.on(device):
        held, limit = pool.used_bytes(), pool.get_limit()  # no limit is 0
        free = cupy.cuda.Device().mem_info[0] + pool.free_bytes()
        return Usage(held, pool.total_bytes(), min(free, limit - held) if limit else free)


def release(device):
    """Give back what CuPy's pool keeps of arrays that are gone."""
    if device.kind == "gpu":
        with backend.on(device):
            backend.load_cupy().get_default_memory_pool().free_all_blocks()


def report(model, optimizer, shape, ahead, then, now):
    """What was held when training on batches of a shape (N, T, H, W, C) ran out of memory, and what would fit.

    Parameters
    ----------
    ahead : int
        Batches that wait on the device beside the one in hand.
    then, now : Usage
        When it ran out, and after the arrays of the step that failed have gone.
    """
    clips, clip, device = shape[0], "x".join(map(str, shape[1:])), model.parameters()[0].device
    found = f"batches of {clips} clips of {clip} are too large for {device}."
    if then.held is not None:
        found += f" Held were {bill.size(then.held)}, at most so far {bill.size(max(then.held, then.most))}."
    try:
        wanted = bill.plan(model, shape, optimizer_arrays=len(optimizer.slots))
    except Exception as error:  # no reason to hide what happened: a layer of somebody's own may not be made for bills
        return f"{found} Try a smaller --batch-size (there is no bill to say which: {error!r})."
    found += f" {bill.size(wanted.fixed)} are parameters, gradients and the optimiser's arrays, whatever the batch."
    if now.free is None:
        return f"{found} Try a smaller --batch-size."
    kept = [*model.state_dict().values(), *filter(backend.is_array, optimizer.state_dict().values())]
    room = (now.free + sum(array.nbytes for array in kept)) * (1 - SPARE)
    waiting = ahead - (device.kind == "gpu")  # the bill counts one there
    fits = wanted.largest_batch(room, waiting * math.prod(shape[1:]) * kept[0].itemsize)
    if fits >= clips:
        fits = clips // 2  # the bill was too low, or somebody else has since given memory back
    if fits == 0:
        return f"{found} Not one clip fits: take fewer or smaller frames, or wrap stages in nn.Recompute."
    parts = math.ceil(clips / fits)
    return (
        f"{found} By the bill {fits} should fit: begin anew with --batch-size {fits}, "
        f"and {parts} times the --accumulate for steps of about as many clips."
    )


def _process():
    mine, machine = _kilobytes("/proc/self/status"), _kilobytes("/proc/meminfo")
    bounds = [machine["MemAvailable"]] if "MemAvailable" in machine else []
    with contextlib.suppress(ImportError):  # not on Windows
        import resource

        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        if limit != resource.RLIM_INFINITY and "VmSize" in mine:
            bounds.append(max(limit - mine["VmSize"], 0))
    return Usage(mine.get("VmRSS"), mine.get("VmHWM"), min(bounds, default=None))


def _kilobytes(file):
    """The sizes that a file of Linux lists as "name: number kB", in bytes; none elsewhere."""
    try:
        rows = [line.split() for line in Path(file).read_text().splitlines()]
    except OSError:
        return {}
    return {row[0].rstrip(":"): int(row[1]) * 1024 for row in rows if len(row) == 3 and row[2] == "kB"}
