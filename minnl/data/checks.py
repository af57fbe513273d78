"""Checks of arguments that the data code shares."""

import operator

# A number as large as this in the place of a label is a date or a key, not a class.
MOST_CLASSES = 100_000


def count(where, name, value, least=0):
    """`value` as an int of at least `least`; TypeError or ValueError naming function and argument otherwise."""
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{where}: {name} must be an int, got {value!r}") from None
    if isinstance(value, bool):
        raise TypeError(f"{where}: {name} must be an int, got {value!r}")
    if number < least:
        raise ValueError(f"{where}: {name} must be {least} or more, got {number}")
    return number


def pair(where, name, value, least=1):
    """An int, or two, as a tuple of two ints."""
    values = tuple(value) if isinstance(value, (tuple, list)) else (value, value)
    if len(values) != 2:
        raise ValueError(f"{where}: {name} must be one int or two, got {value!r}")
    return tuple(count(where, name, v, least) for v in values)


def choice(where, name, value, allowed):
    """`value`, if it is one of those allowed."""
    if value not in allowed:
        raise ValueError(f"{where}: {name} must be {' or '.join(map(repr, allowed))}, got {value!r}")
    return value


def numbered_classes(where, largest):
    """The names "0", "1", ... of classes that have none, up to the largest label."""
    if largest >= MOST_CLASSES:
        raise ValueError(f"{where}: labels must be numbers of classes, from 0, or names; got {largest}")
    return tuple(str(k) for k in range(largest + 1))
