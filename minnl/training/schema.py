"""Checks of the values in a checkpoint: names, types and ranges, once, where the file is read.

A :class:`Rule` says what is expected of a value and of the values within it. A file may be forged, and its checksum
with it. A value that passed :func:`check` has the types and sizes that the rest of the code relies on. Keys without a
rule pass: another version of minnl may have added them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from minnl.checks import quoted

ALTERED = ": it was altered, or another version of minnl wrote it"
LONGEST = 10_000  # letters of a text, such as the name of a class


@dataclass(frozen=True)
class Rule:
    """`expected` ends a message; `fits(value)` is whether the value has the right type and range.

    `inside(value)` gives (key, value, rule) for the values within one that fits; `needed` are the keys it must have.
    """

    expected: str
    fits: Callable
    inside: Callable = lambda value: ()
    needed: tuple = ()


def check(place, value, rule, refuse=ValueError, because=ALTERED):
    """`value`, if it obeys the rule.

    Raises an error of the class `refuse`. It names the place (which begins with the file), what came and what would do.
    """
    missing = [key for key in rule.needed if type(value) is dict and key not in value]
    if missing or not rule.fits(value):
        problem = f"lacks {missing[0]!r}" if missing else f"is {quoted(value)}"
        raise refuse(f"{place} {problem}; {rule.expected} expected{because}")
    for key, inner, below in rule.inside(value):
        check(f"{place}[{quoted(key)}]", inner, below, refuse, because)
    return value


def whole(low=0, high=2**31 - 1):
    """An int (no bool) from low to high."""
    return Rule(f"an integer from {low:,} to {high:,}", lambda v: type(v) is int and low <= v <= high)


def real(low=-1e30, high=1e30):
    """A number from low to high; NaN is none."""
    return Rule(f"a number from {low:g} to {high:g}", lambda v: type(v) in (int, float) and low <= v <= high)


def text(longest=LONGEST):
    return Rule(f"a text of at most {longest:,} letters", lambda v: type(v) is str and len(v) <= longest)


def choice(*allowed):
    """One of the `allowed` texts, numbers, bools or None, of the same type."""
    names = ", ".join(map(repr, allowed))
    return Rule(f"one of {names}", lambda v: any(type(v) is type(a) and v == a for a in allowed))


def maybe(rule):
    """None, or a value that obeys a rule."""
    return Rule(f"None or {rule.expected}", lambda v: v is None or rule.fits(v), lambda v: v and rule.inside(v) or ())


def either(first, second):
    """A value that obeys one of two rules."""
    return Rule(
        f"{first.expected}, or {second.expected}",
        lambda v: first.fits(v) or second.fits(v),
        lambda v: (first if first.fits(v) else second).inside(v),
    )


def listed(rule, least=0, most=100_000):
    """A list of `least` to `most` values."""
    expected = f"a list of {most:,} entries" if least == most else f"a list of {least:,} to {most:,} entries"
    return Rule(expected, lambda v: type(v) is list and least <= len(v) <= most, lambda v: _each(v, rule))


def _each(values, rule):
    return ((i, value, rule) for i, value in enumerate(values))


def table(rule, allowed):
    """A dict whose keys are `allowed` and whose values obey a rule."""
    return Rule(
        f"a dict with keys of {', '.join(allowed)}",
        lambda v: type(v) is dict and v.keys() <= set(allowed),
        lambda v: ((key, value, rule) for key, value in v.items()),
    )


def record(rules, optional=(), closed=False):
    """A dict with a rule for each key. Keys that are not `optional` must be there; `closed` allows no other keys."""
    return Rule(
        f"a dict with {'no keys but ' * closed}{', '.join(key for key in rules if closed or key not in optional)}",
        lambda v: type(v) is dict and (not closed or v.keys() <= rules.keys()),
        lambda v: ((key, v[key], rule) for key, rule in rules.items() if key in v),
        tuple(key for key in rules if key not in optional),
    )


CONTENT = record({  # of every checkpoint
    "meta": Rule("a dict", lambda v: type(v) is dict),
    "order": Rule("a list of texts", lambda v: type(v) is list and all(type(name) is str for name in v)),
})  # fmt: skip
COUNT = whole(high=2**53)
OPTIMIZER = {"lr": real(0), "steps": COUNT, "counts": listed(COUNT), "initial_lr": real(0)}
RUN = record({  # what resuming a run needs: see state.py
    "step": COUNT,
    "epoch": whole(),
    "best": real(-1, 1),
    "sums": record({"loss": real(), "correct": COUNT, "clips": COUNT, "seconds": real(0)}),
    "optimizer": record(OPTIMIZER, optional=("counts", "initial_lr")),  # old runs lack these
    "loader": record({"epoch": whole(), "batch": whole()}),
    "random": record({
        "bit_generator": choice("PCG64"),
        "state": record({"state": whole(high=2**128 - 1), "inc": whole(high=2**128 - 1)}),
        "has_uint32": whole(high=1),
        "uinteger": whole(high=2**32 - 1),
    }),
})  # fmt: skip
