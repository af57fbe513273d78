"""When memory runs out: the memory held and free, and the batch that would fit. The Trainer reports them."""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass
from pathlib import Path

from minnl import backend
from minnl.kernels.runtime import memory
from minnl.study.cost_summary import size, summarize

SPARE = 0.2  # Share of the memory left for workspace on the CPU, other processes and gaps, which no summary counts.


@dataclass(frozen=True)
class Usage:
    """Bytes of memory; on the CPU None where the system does not report them (Linux does).

    Attributes
    ----------
    held : int
        By arrays on a GPU; on the CPU by the process, libraries included.
    most : int
        The most held so far. On a GPU the bytes that CuPy's pool has taken from the driver: the pool keeps what arrays
        free until memory runs out.
    free : int
        Bytes that can still be allocated.
    """

    held: int | None
    most: int | None
    free: int | None


def usage(device):
    """The :class:`Usage` of a device now, without waiting for a GPU."""
    if device.kind == "cpu":
        return _process()
    cupy = backend.load_cupy()
    pool = cupy.get_default_memory_pool()
    with backend.on(device):
        held, limit = pool.used_bytes(), pool.get_limit()  # no limit is 0
        free = cupy.cuda.Device().mem_info[0] + pool.free_bytes()
        return Usage(held, pool.total_bytes(), min(free, limit - held) if limit else free)


def release(device):
    """Return the memory of arrays that are gone, which CuPy's pool or the C library keeps, to the device."""
    if device.kind == "cpu":
        memory.release()
        return
    with backend.on(device):
        backend.load_cupy().get_default_memory_pool().free_all_blocks()


def report(model, optimizer, shape, ahead, then, now):
    """The message after training on batches of shape (N, T, H, W, C) ran out of memory: what was held and would fit.

    Parameters
    ----------
    ahead : int
        Batches that wait on the device beside the one in use.
    then, now : Usage
        At the failure, and after the arrays of the failed step were freed.
    """
    clips, clip, device = shape[0], "x".join(map(str, shape[1:])), model.parameters()[0].device
    found = f"batches of {clips} clips of {clip} are too large for {device}."
    if then.held is not None:
        found += f" Held were {size(then.held)}, at most so far {size(max(then.held, then.most))}."
    try:
        wanted = summarize(model, shape, optimizer_arrays=len(optimizer.slots))
    except Exception as error:  # of a user's own layer, say: that memory ran out must still be reported
        return f"{found} Try a smaller --batch-size (there is no cost summary to say which: {error!r})."
    found += f" {size(wanted.fixed)} are parameters, gradients and the optimiser's arrays, whatever the batch."
    if now.free is None:
        return f"{found} Try a smaller --batch-size."
    kept = [*model.state_dict().values(), *filter(backend.is_array, optimizer.state_dict().values())]
    usable = (now.free + sum(array.nbytes for array in kept)) * (1 - SPARE)
    waiting = ahead - (device.kind == "gpu")  # the cost summary counts one there
    fits = wanted.largest_batch(usable, waiting * math.prod(shape[1:]) * kept[0].itemsize)
    if fits >= clips:
        fits = clips // 2  # the cost summary was too low, or another process has freed memory since
    if fits == 0:
        return f"{found} Not one clip fits: take fewer or smaller frames, or wrap stages in nn.Recompute."
    batches = math.ceil(clips / fits)
    return (
        f"{found} By the cost summary {fits} should fit: begin anew with --batch-size {fits}, "
        f"and {batches} times the --accumulate for steps of about as many clips."
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
