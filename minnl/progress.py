"""Progress for people: a tqdm bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time

from tqdm import tqdm

QUIET = 10.0  # seconds between two plain lines


class Progress:
    """Shows epochs of steps with loss, accuracy, clips a second and the time that is left."""

    def __init__(self, epochs, steps, plain=False):
        self.epochs, self.steps = epochs, steps
        self.bar, self.plain = None, plain or not sys.stderr.isatty()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.bar is not None:
            self.bar.close()

    def start_epoch(self, epoch, done):
        self.epoch, self.done = epoch, done
        self.began = self.spoke = time.perf_counter()
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
        elif now - self.spoke > QUIET:
            self.spoke = now
            print(
                f"epoch {self.epoch}/{self.epochs} step {self.done}/{self.steps}: {text}, ETA {clock(left)}", flush=True
            )

    def end_epoch(self, epoch, summary):
        if self.bar is not None:
            self.bar.close()
            self.bar = None
        print(
            f"epoch {epoch}/{self.epochs}: loss {summary['loss']:.3f}, accuracy {summary['accuracy']:.1%}, "
            f"test top-1 {summary['test_top1']:.1%}, top-5 {summary['test_top5']:.1%}, "
            f"{summary['clips_per_second']:.0f} clips/s",
            flush=True,
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
    """The items, with a bar on a terminal and plain lines elsewhere; `describe` says how things stand."""
    plain = plain or not sys.stderr.isatty()
    began = spoke = time.perf_counter()
    with tqdm(total=total, unit=what, leave=False, dynamic_ncols=True, disable=plain) as bar:
        for done, item in enumerate(items):
            now = time.perf_counter()
            if plain and now - spoke > QUIET:
                spoke = now
                left = clock((now - began) / max(done, 1) * (total - done))
                print(f"{what} {done}/{total}: {describe()}, ETA {left}", flush=True)
            yield item
            bar.set_postfix_str(describe(), refresh=False)
            bar.update()
