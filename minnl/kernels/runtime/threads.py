"""One pool of threads for all CPU kernels. NumPy lets go of the interpreter in copies, ufuncs and BLAS, so they help.

A kernel cuts its work into tasks by the shapes alone, never by the number of threads, and each task writes what is its
own: so results have the same bits whatever the number. Inside a task BLAS runs on one thread, or two kinds of
threads would fight for the same cores.
"""

from __future__ import annotations

import contextvars
import functools
import itertools
import os
import queue
import threading

from minnl import backend

_inside = threading.local()


@functools.cache
def blas_libraries():
    """Controllers of threadpoolctl, one for each BLAS that is loaded."""
    import threadpoolctl  # what takes time to load waits until there is work: `import minnl` is quick

    return threadpoolctl.ThreadpoolController().select(user_api="blas").lib_controllers


class _OneBlasThread:
    """BLAS on one thread while anyone is inside: the first caller sets it, the last puts back what was there.

    Asked of the libraries directly: threadpoolctl's own context takes ten times as long, as long as a small task.
    """

    def __init__(self, before=()):
        self.callers, self.before, self.lock = 0, before, threading.Lock()  # `before`: what there is to put back

    def __enter__(self):
        with self.lock:
            if not self.callers:
                self.before = self.before or [(library, library.num_threads) for library in blas_libraries()]
                self._set((library, 1) for library, _ in self.before)
            self.callers += 1

    def __exit__(self, *_):
        with self.lock:
            self.callers -= 1
            if not self.callers:
                self._set(self.before)
                self.before = ()

    @staticmethod
    def _set(numbers):
        for library, threads in numbers:
            # OpenBLAS's controller listens to no thread but the first that asked, as long as that lives: forget who did
            forget = getattr(library, "clear_controlling_thread", lambda force: None)
            forget(force=True)
            library.set_num_threads(threads)
            forget(force=True)


def _start(before=()):
    """The state of a process that has started no helper."""
    global _jobs, _helpers, _helpers_lock, _one_blas_thread
    _jobs, _helpers, _helpers_lock = queue.SimpleQueue(), 0, threading.Lock()
    _one_blas_thread = _OneBlasThread(before)


_start()
if hasattr(os, "register_at_fork"):
    # The parent's threads stay behind: those that helped, and those that were in the middle of a kernel or held a lock.
    os.register_at_fork(after_in_child=lambda: _start(_one_blas_thread.before))


def _call_helpers(number, work):
    """Have `number` threads call work(), each when it is free; returns at once."""
    global _helpers
    with _helpers_lock:
        while _helpers < number:
            threading.Thread(target=_help, args=(_jobs,), name=f"minnl-kernel_{_helpers}", daemon=True).start()
            _helpers += 1
    for _ in range(number):  # each in a copy of the caller's context: what np.errstate says there holds here too
        _jobs.put((contextvars.copy_context(), work))


def _help(jobs):
    _inside.task = True  # a task that calls `run` again computes in its own thread: all others could wait for it
    while True:
        context, work = jobs.get()
        context.run(work)
        del context, work  # or the arrays of this job would live until the next


def run(task, items):
    """Call ``task(item)`` for every item, on all threads; returns the results in order.

    The calling thread works too. Whoever is free takes the next item, so unequal tasks even out; a helper that comes
    late (another user thread keeps it busy) finds nothing left to do, and nobody waits for it.
    """
    items = list(items)
    helpers = min(backend.threads(), len(items)) - 1
    if getattr(_inside, "task", False):
        return [task(item) for item in items]
    with _one_blas_thread:
        if helpers < 1:
            return [task(item) for item in items]
        count, results, errors = len(items), [None] * len(items), []
        turn, finished, all_done = itertools.count(), itertools.count(1), threading.Lock()
        all_done.acquire()

        def work():
            while (i := next(turn)) < count:
                try:
                    if not errors:
                        results[i] = task(items[i])
                except BaseException as error:
                    errors.append(error)
                if next(finished) == count:
                    all_done.release()

        _call_helpers(helpers, work)
        _inside.task = True
        try:
            work()
        finally:
            _inside.task = False
        all_done.acquire()
        try:
            if errors:
                raise errors.pop(0)  # popped: the list would tie a knot of error and frame
            return results
        finally:
            task = items = results = None  # or a late helper, which still has `work`, would keep their arrays


def shares(n, most=8, multiple=1):
    """Slices that cut range(n) into at most `most` nearly equal parts, between multiples of a number."""
    units = -(-n // multiple)
    parts = max(1, min(units, most))
    ends = [min(n, units * i // parts * multiple) for i in range(parts + 1)]
    return [slice(start, end) for start, end in itertools.pairwise(ends)]


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
