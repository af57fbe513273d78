"""One pool of threads for all CPU kernels. NumPy lets go of the interpreter in copies, ufuncs and BLAS, so they help.

A kernel cuts its work into tasks by the shapes alone, never by the number of threads, and each task writes what is its
own: so results have the same bits whatever the number. Inside a task BLAS runs on one thread, or two kinds of
threads would fight for the same cores.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import itertools
import threading

from minnl import backend

_inside = threading.local()
_alone = {"callers": 0, "limit": None}
_alone_lock = threading.Lock()


@functools.cache
def _controller():
    import threadpoolctl  # here and below: what takes time to load waits until there is work, `import minnl` is quick

    return threadpoolctl.ThreadpoolController()


@functools.cache
def _pool(threads):
    from concurrent.futures import ThreadPoolExecutor

    return ThreadPoolExecutor(threads, thread_name_prefix="minnl-kernel")


@contextlib.contextmanager
def _one_blas_thread():
    """BLAS on one thread while anyone is inside: the first caller sets it, the last puts back what was there."""
    with _alone_lock:
        if not _alone["callers"]:
            _alone["limit"] = _controller().limit(limits=1, user_api="blas")
        _alone["callers"] += 1
    try:
        yield
    finally:
        with _alone_lock:
            _alone["callers"] -= 1
            if not _alone["callers"]:
                _alone["limit"].restore_original_limits()


def run(task, items):
    """Call ``task(item)`` for every item, on all threads; returns the results in order.

    The calling thread works too. Whoever is free takes the next item, so unequal tasks even out.
    """
    items = list(items)
    helpers = min(backend.threads(), len(items)) - 1
    with _one_blas_thread():
        if helpers < 1 or getattr(_inside, "task", False):
            return [task(item) for item in items]
        results, turn = [None] * len(items), itertools.count()

        def work():
            while (i := next(turn)) < len(items):
                results[i] = task(items[i])

        # Each in a copy of the caller's context: what np.errstate says there holds here too.
        others = [
            _pool(backend.threads()).submit(contextvars.copy_context().run, _marked, work) for _ in range(helpers)
        ]
        try:
            _marked(work)
        finally:
            # One that has not begun (another user thread keeps the pool busy) would find nothing left to do.
            errors = [other.exception() for other in others if not other.cancel()]
        for error in errors:
            if error is not None:
                raise error
        return results


def _marked(work):
    _inside.task = True  # a task that calls `run` again computes in its own thread: the pool could be full of such
    try:
        work()
    finally:
        _inside.task = False


def shares(n, most=8):
    """Slices that cut range(n) into at most `most` nearly equal parts."""
    parts = max(1, min(n, most))
    return [slice(n * i // parts, n * (i + 1) // parts) for i in range(parts)]


def tasks_for(flops):
    """Into how many tasks to cut that much work: few, since to hand one over takes its time too, and an even number."""
    return min(8, 2 * max(1, flops // 64_000_000)) if flops > 8_000_000 else 1


def pieces(n, longest):
    """Slices that cut range(n) into the fewest nearly equal parts of at most `longest`."""
    return shares(n, -(-n // max(1, longest)))


def cuts(part, longest, multiple=1):
    """A slice in nearly equal pieces of at most `longest`, or a little more: all but the last a multiple."""
    n = part.stop - part.start
    pieces = max(1, -(-n // max(1, longest)))
    step = max(1, -(-n // (pieces * multiple)) * multiple)
    return [slice(i, min(i + step, part.stop)) for i in range(part.start, part.stop, step)]


def blocks(shape, most):
    """Runs of positions (N, T, H, W), each at most about `most` and whole lines of W: tuples of four slices."""
    n, t, h, w = shape
    return list(
        itertools.product(
            pieces(n, most // (t * h * w)),
            pieces(t, most // (h * w)),
            pieces(h, most // w),
            [slice(0, w)],
        )
    )
