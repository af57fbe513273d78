"""Checks of plain arguments. Every message names the function, the argument, its value and the allowed values.

The value may come from a file, which may hold anything, so :func:`quoted` and :func:`clean` make it short and
printable.
"""

import math
import numbers
import operator
import reprlib

LONGEST = 120  # the largest number of characters of a value in a message


class _Short(reprlib.Repr):
    """A repr of a few entries and a few levels of a value of any size."""

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
    """The first entries of a dict, since reprlib would sort all entries."""

    def __init__(self, found, count):
        super().__init__((key, found[key]) for key, _ in zip(found, range(count), strict=False))


def quoted(value):
    """The repr of a value for a message: short, on one line, without control characters.

    It is fast even for values that are deep, long or recursive.
    """
    return clean(_SHORT.repr(value), 10 * LONGEST)


def clean(text, most=LONGEST):
    """A text for a message without quotes, such as a name from a file or another library's error message."""
    cut = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text[:most])
    return cut if len(text) <= most else f"{cut}… ({len(text):,} letters)"


def listed(names, most=20):
    """Names for a message: the first `most` names, cleaned and separated by commas."""
    names = list(names)
    more = f", … ({len(names):,} in all)" if len(names) > most else ""
    return ", ".join(clean(str(name)) for name in names[:most]) + more


def printable(message):
    """A message of any length and origin for a terminal, without control characters other than line ends."""
    cut = message[: 100 * LONGEST]
    made = "\n".join(clean(line, len(line)) for line in cut.replace("\t", "    ").split("\n"))
    return made if len(cut) == len(message) else f"{made}… ({len(message):,} letters)"


_SHORT = _Short()


def count(where, name, value, least=1):
    """`value` as an int; an error if it is not an integer of at least `least`."""
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
    """One int or two as a tuple of two ints."""
    values = tuple(value) if isinstance(value, (tuple, list)) else (value, value)
    if len(values) != 2:
        raise ValueError(f"{where}: {name} must be one int or two, got {quoted(value)}")
    return tuple(count(where, name, v, least) for v in values)


def choice(where, name, value, allowed):
    """`value`; an error if it is not in `allowed`."""
    if value not in allowed:
        raise ValueError(f"{where}: {name} must be one of {', '.join(map(repr, allowed))}, got {quoted(value)}")
    return value


def number(where, name, value, low=None, high=None):
    """`value` as a Python float; an error outside of [low, high]. With a bound, `value` must be finite."""
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
    """`value` as a Python float; an error unless it is finite and above 0."""
    value = number(where, name, value)
    if not 0 < value < math.inf:
        raise ValueError(f"{where}: {name} must be {'finite' if value > 0 else 'above 0'}, got {value}")
    return value
