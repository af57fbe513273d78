"""One pool of threads for all CPU kernels. NumPy releases the interpreter lock in copies, ufuncs and BLAS.

A kernel cuts its work into tasks by the shapes alone, never by the number of threads, and no two tasks write to the
same memory. So results have the same bits on any number of threads. While tasks run, BLAS uses one thread: otherwise
its threads and those of this pool would compete for the same cores.
"""

import contextvars
import functools
import itertools
import os
import threading

from minnl import backend

MOST = 64  # The pool never has more threads than this; a thread starts only when a task finds no idle thread.

_inside = threading.local()


@functools.cache
def blas_libraries():
    """Controllers of threadpoolctl, one for each BLAS that is loaded."""
    import threadpoolctl  # imported with the first work, since the import takes long and `import minnl` is to be quick

    return threadpoolctl.ThreadpoolController().select(user_api="blas").lib_controllers


class _OneBlasThread:
    """Context in which BLAS uses one thread: the first caller inside sets it, the last restores the earlier number.

    The context asks the libraries directly: threadpoolctl's own context takes ten times as long, as a small task does.
    """

    def __init__(self, before=()):
        self.callers, self.before, self.lock = 0, before, threading.Lock()

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
            # OpenBLAS's controller obeys only the thread that asked first, while that thread lives: forget that thread
            forget = getattr(library, "clear_controlling_thread", lambda force: None)
            forget(force=True)
            library.set_num_threads(threads)
            forget(force=True)


one_blas_thread = _OneBlasThread()


@functools.cache
def _executor():
    """The pool of threads, made with the first work that has several tasks."""
    from concurrent.futures import ThreadPoolExecutor

    return ThreadPoolExecutor(MOST, "minnl-kernel")


def _start_in_child():
    """The parent's threads do not exist in the child, and a lock that one of them held would never be released."""
    global one_blas_thread
    one_blas_thread = _OneBlasThread(one_blas_thread.before)
    _executor.cache_clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_in_child)


def run(task, items):
    """Call ``task(item)`` for every item, on all threads; returns the results in order.

    The calling thread works too. A thread that is free takes the next item, so that tasks of different length even out.
    No caller waits for a thread of the pool that has not begun, for instance because another caller keeps it busy.
    """
    items = list(items)
    threads = min(backend.threads(), len(items))
    if getattr(_inside, "task", False):  # a task that calls `run` must not wait for threads that wait for this task
        return [task(item) for item in items]
    with one_blas_thread:
        if threads < 2:
            return [task(item) for item in items]
        count, results, turn = len(items), [None] * len(items), itertools.count()

        def work():
            _inside.task = True
            try:
                while (i := next(turn)) < count:
                    results[i] = task(items[i])
            except BaseException:
                while next(turn) < count:  # no thread begins another item
                    pass
                raise
            finally:
                _inside.task = False

        # Each thread works in a copy of the caller's context, so that the caller's np.errstate holds there as well.
        futures = [_executor().submit(contextvars.copy_context().run, work) for _ in range(threads - 1)]
        try:
            try:
                work()
            finally:
                begun = [future for future in futures if not future.cancel()]
                errors = [future.exception() for future in begun]  # `exception` waits for the thread
            errors = list(filter(None, errors))
            if errors:
                raise errors.pop()
            return results
        finally:
            # An error refers to this frame, and a busy thread to `work` for a while: neither is to keep arrays alive.
            task = items = results = futures = begun = errors = None


def split(n, most=8, multiple=1):
    """Slices that cut range(n) into at most `most` nearly equal parts, at multiples of a number."""
    units = -(-n // multiple)
    count = max(1, min(units, most))
    ends = [min(n, units * i // count * multiple) for i in range(count + 1)]
    return [slice(start, end) for start, end in itertools.pairwise(ends)]


def chunks(n, longest):
    """Slices that cut range(n) into the fewest nearly equal parts of at most `longest`."""
    return split(n, -(-n // max(1, longest)))


def chunks_of(run, longest):
    """A slice in nearly equal slices of at most `longest`."""
    return [slice(run.start + s.start, run.start + s.stop) for s in chunks(run.stop - run.start, longest)]


def position_blocks(shape, most):
    """Runs of positions (N, T, H, W), each at most about `most` and whole lines of W: tuples of four slices."""
    n, t, h, w = shape
    cuts = chunks(n, most // (t * h * w)), chunks(t, most // (h * w)), chunks(h, most // w), [slice(0, w)]
    return list(itertools.product(*cuts))


def tasks_for(flops):
    """The number of tasks for so many floating point operations: 1, or an even number up to 8."""
    return min(8, 2 * max(1, flops // 64_000_000)) if flops > 8_000_000 else 1
