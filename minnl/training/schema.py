"""What a checkpoint says of itself, held against what it may say: names, types and ranges, once, where it is read.

A :class:`Rule` says what is expected of a value, and which rules hold for what is in it. A file may be forged, and its
checksum with it; what passed :func:`check` has the types and the sizes that the code behind it counts on. Keys that no
rule names pass: another version of minnl may have added them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from minnl.checks import quoted

ALTERED = ": it was altered, or another version of minnl wrote it"
LONGEST = 10_000  # letters of a text, such as the name of a class


@dataclass(frozen=True)
class Rule:
    """`expected` ends a message, `fits` tells whether a value has the type and the range.

    `inside` gives (place, value, rule) for what is in a value that fits; `needed` are the keys it must have.
    """

    expected: str
    fits: Callable
    inside: Callable = lambda value: ()
    needed: tuple = ()


def check(place, value, rule, refuse=ValueError, because=ALTERED):
    """`value`, if it is as the rule says.

    Raises an error of the class `refuse`, naming the place (which begins with the file), what came and what would do.
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
    """One of some texts, numbers, bools or None, of the very same type."""
    names = ", ".join(map(repr, allowed))
    return Rule(f"one of {names}", lambda v: any(type(v) is type(one) and v == one for one in allowed))


def maybe(rule):
    """None, or what a rule says."""
    return Rule(f"None or {rule.expected}", lambda v: v is None or rule.fits(v), lambda v: v and rule.inside(v) or ())


def either(one, other):
    """What one or the other rule says."""
    return Rule(
        f"{one.expected}, or {other.expected}",
        lambda v: one.fits(v) or other.fits(v),
        lambda v: (one if one.fits(v) else other).inside(v),
    )


def listed(rule, least=0, most=100_000):
    """A list of `least` to `most` values."""
    expected = f"a list of {most:,} entries" if least == most else f"a list of {least:,} to {most:,} entries"
    return Rule(expected, lambda v: type(v) is list and least <= len(v) <= most, lambda v: _each(v, rule))


def _each(values, rule):
    return ((i, value, rule) for i, value in enumerate(values))


def table(rule, allowed):
    """A dict of some `allowed` keys to what a rule says."""
    return Rule(
        f"a dict with keys of {', '.join(allowed)}",
        lambda v: type(v) is dict and v.keys() <= set(allowed),
        lambda v: ((key, value, rule) for key, value in v.items()),
    )


def record(rules, optional=(), closed=False):
    """A dict with a rule for each of some keys; those not `optional` must be there, and no others if it is `closed`."""
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
RUN = record({  # what going on with a run needs: see training.Trainer
    "step": COUNT,
    "epoch": whole(),
    "best": real(-1, 1),
    "sums": record({"loss": real(), "correct": COUNT, "clips": COUNT, "seconds": real(0)}),
    "optimizer": record(OPTIMIZER, optional=("counts", "initial_lr")),  # which old runs lack
    "loader": record({"epoch": whole(), "batch": whole()}),
    "random": record({
        "bit_generator": choice("PCG64"),
        "state": record({"state": whole(high=2**128 - 1), "inc": whole(high=2**128 - 1)}),
        "has_uint32": whole(high=1),
        "uinteger": whole(high=2**32 - 1),
    }),
})  # fmt: skip
