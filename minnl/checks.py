"""Checks of plain arguments; every message names the function, the argument, what came and what would do.

What came may be the user's, or a file's, and a file may hold anything: :func:`quoted` and :func:`clean` keep a message
short and harmless.
"""

import math
import numbers
import operator
import reprlib

LONGEST = 120  # letters of a text in a message


class _Short(reprlib.Repr):
    """repr that looks at a few entries and a few levels, however many there are."""

    def __init__(self):
        super().__init__()
        self.maxlevel, self.maxstring, self.maxother = 4, LONGEST, LONGEST
        self.maxtuple = self.maxlist = self.maxdict = self.maxset = self.maxfrozenset = 8

    def repr_int(self, x, level):
        return repr(x) if x.bit_length() < 100 else f"<a number of {x.bit_length():,} bits>"

    def repr_bytes(self, x, level):
        return self.repr_instance(x[: self.maxother], level)

    def repr_dict(self, x, level):
        return super().repr_dict(x if len(x) <= self.maxdict else _First(x, self.maxdict + 1), level)


class _First(dict):
    """The first entries of a dict: reprlib sorts all of them."""

    def __init__(self, found, count):
        super().__init__((key, found[key]) for key, _ in zip(found, range(count), strict=False))


def quoted(value):
    """A value for a message, as Python writes it: short, on one line, without what a terminal would obey.

    Takes no time to speak of for values that are deep, long or refer to themselves.
    """
    return clean(_SHORT.repr(value), 10 * LONGEST)


def clean(text, most=LONGEST):
    """A text for a message without quotes: a name from a file, or another library's complaint about one."""
    cut = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text[:most])
    return cut if len(text) <= most else f"{cut}… ({len(text):,} letters)"


def listed(names, most=20):
    """Names for a message: the first of them, cleaned, with commas between."""
    names = list(names)
    more = f", … ({len(names):,} in all)" if len(names) > most else ""
    return ", ".join(clean(str(name)) for name in names[:most]) + more


def printable(message):
    """A message of any length and origin as a terminal may have it: only the ends of lines move a cursor."""
    cut = message[: 100 * LONGEST]
    made = "\n".join(clean(line, len(line)) for line in cut.replace("\t", "    ").split("\n"))
    return made if len(cut) == len(message) else f"{made}… ({len(message):,} letters)"


_SHORT = _Short()


def count(where, name, value, least=1):
    """`value` as an int of at least `least`."""
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{where}: {name} must be an int, got {quoted(value)}") from None
    if isinstance(value, bool):
        raise TypeError(f"{where}: {name} must be an int, got {quoted(value)}")
    if number < least:
        raise ValueError(f"{where}: {name} must be {least} or more, got {quoted(number)}")
    return number


def pair(where, name, value, least=1):
    """An int, or two, as a tuple of two ints."""
    values = tuple(value) if isinstance(value, (tuple, list)) else (value, value)
    if len(values) != 2:
        raise ValueError(f"{where}: {name} must be one int or two, got {quoted(value)}")
    return tuple(count(where, name, v, least) for v in values)


def choice(where, name, value, allowed):
    """`value`, if it is one of those allowed."""
    if value not in allowed:
        raise ValueError(f"{where}: {name} must be one of {', '.join(map(repr, allowed))}, got {quoted(value)}")
    return value


def number(where, name, value, low=None, high=None):
    """A Python float within [low, high]; with a bound, finite."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{where}: {name} must be a number, got {type(value).__name__}")
    if not (low is None or value >= low) or not (high is None or value <= high):
        bounds = f"{low} or more" if high is None else f"from {low} to {high}"
        raise ValueError(f"{where}: {name} must be {bounds}, got {quoted(value)}")
    try:
        value = float(value)
    except OverflowError:
        raise ValueError(f"{where}: {name} must be a number that float64 can hold, got {quoted(value)}") from None
    if low is not None and not math.isfinite(value):
        raise ValueError(f"{where}: {name} must be finite, got {value}")
    return value


def positive(where, name, value):
    """A finite Python float above 0."""
    value = number(where, name, value)
    if not 0 < value < math.inf:
        raise ValueError(f"{where}: {name} must be {'finite' if value > 0 else 'above 0'}, got {value}")
    return value
