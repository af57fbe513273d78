"""Progress of a run: a tqdm bar on a terminal, plain lines elsewhere. A lost terminal or pipe does not end the run."""

from __future__ import annotations

import contextlib
import os
import sys
import time

from tqdm import tqdm

QUIET = 10.0  # seconds between two plain lines


class Progress:
    """Shows epochs and steps with loss, accuracy, clips a second and the remaining time."""

    def __init__(self, epochs, steps, plain=False):
        self.epochs, self.steps = epochs, steps
        self.bar, self.plain = None, plain or not on_terminal()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.bar is not None:
            self.bar.close()

    def start_epoch(self, epoch, done):
        self.epoch, self.done = epoch, done
        self.began = self.printed = time.perf_counter()
        self.skipped = done
        if not self.plain:
            self.bar = tqdm(
                total=self.steps,
                initial=done,
                desc=f"epoch {epoch}/{self.epochs}",
                unit="step",
                leave=False,
                dynamic_ncols=True,
            )

    def advance(self, sums):
        self.done += 1
        now = time.perf_counter()
        text = describe(sums)
        rate = (now - self.began) / (self.done - self.skipped)
        left = rate * (self.steps - self.done + self.steps * (self.epochs - self.epoch))
        if self.bar is not None:
            self.bar.set_postfix_str(f"{text}, all in {clock(left)}")
            self.bar.update()
        elif now - self.printed > QUIET:
            self.printed = now
            say(f"epoch {self.epoch}/{self.epochs} step {self.done}/{self.steps}: {text}, ETA {clock(left)}")

    def end_epoch(self, epoch, summary):
        if self.bar is not None:
            self.bar.close()
            self.bar = None
        say(
            f"epoch {epoch}/{self.epochs}: loss {summary['loss']:.3f}, accuracy {summary['accuracy']:.1%}, "
            f"test top-1 {summary['test_top1']:.1%}, top-5 {summary['test_top5']:.1%}, "
            f"{summary['clips_per_second']:.0f} clips/s"
        )


def describe(sums):
    if not sums["clips"]:
        return "first steps"
    seconds = max(sums["seconds"], 1e-9)
    return (
        f"loss {sums['loss'] / sums['clips']:.3f}, accuracy {sums['correct'] / sums['clips']:.1%}, "
        f"{sums['clips'] / seconds:.0f} clips/s"
    )


def clock(seconds):
    """ "1:05" or "2:10:00"."""
    minutes, seconds = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def counted(items, total, what, describe, plain=False):
    """The items, with a bar on a terminal and plain lines elsewhere; `describe` gives the text beside the count."""
    plain = plain or not on_terminal()
    began = printed = time.perf_counter()
    with tqdm(total=total, unit=what, leave=False, dynamic_ncols=True, disable=plain) as bar:
        for done, item in enumerate(items):
            now = time.perf_counter()
            if plain and now - printed > QUIET:
                printed = now
                left = clock((now - began) / max(done, 1) * (total - done))
                say(f"{what} {done}/{total}: {describe()}, ETA {left}")
            yield item
            bar.set_postfix_str(describe(), refresh=False)
            bar.update()


def on_terminal():
    """Whether standard error is a terminal; it is None where a process was started without."""
    return sys.stderr is not None and not getattr(sys.stderr, "closed", False) and sys.stderr.isatty()


def say(text):
    """Print a line at once. After the reader of the pipe or terminal has gone, this and all later output is dropped."""
    try:
        print(text, flush=True)
    except OSError:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115, open as long as the process


def secure():
    """For commands: open the standard streams that are missing, and escape characters that their encoding lacks.

    The number of a missing stream would go to the next file that is opened, perhaps a checkpoint, and a library that
    writes to standard error would write into that file.
    """
    with contextlib.suppress(OSError):
        while (free := os.open(os.devnull, os.O_RDWR)) <= 2:
            pass
        os.close(free)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115, open as long as the process
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
