"""Pickle files of others, read without running anything that stands in them.

A pickle is a program for a small machine with a stack: put this number on it, make a tuple of the last three values,
fetch this function by its name and call it. Python's own machine fetches and calls whatever the file names, and so a
pickle can do anything. The machine here knows the instructions that put plain values together, and for the few that
fetch and call it has a table of names: what each makes is written in this project, the named thing itself is never
imported. Everything else is refused.

Nor can a small file take much memory or time: no size that it announces is believed before the bytes are there, the
number of instructions is limited, what functions make counts against that limit or against the file's length, and
values are asked for their type before anything hashes or prints them: forty instructions make a tuple of 2^40 entries.
"""

import math
import struct

import numpy as np

from minnl.checks import clean, quoted

MOST_INSTRUCTIONS = 500_000  # published files have about 30 for an array
LONGEST = 1000  # letters of a name
LARGEST = 2**48  # number in a key or a shape


class Inert:
    """Stands for an object that is not made: a setting of a training program, say. Calling it makes another."""

    def __init__(self, name):
        self.name = name

    def __call__(self, *arguments):
        return self

    def build(self, state):
        pass


class Refused(ValueError):
    """What a file may not contain; becomes the end of a message that names the file."""


def load(where, raw, names, persistent=None, start=0):
    """Run the pickle that begins at `start` of `raw`.

    Parameters
    ----------
    where : str
        Begins every message: the file.
    raw : bytes
    names : callable, "module name" -> what stands for it, a callable or not
        Raises Refused for a name that the file may not contain.
    persistent : callable, tuple -> value, or None
        What stands for an object that lies outside of the pickle.

    Returns
    -------
    value
        Of dict, list, tuple, str, int, float, bool, None, memoryview (bytes, and the str of Python 2), and what
        `names` and `persistent` gave.
    end : int
        Where the pickle ends.

    Raises
    ------
    ValueError
        For a pickle that is cut short, damaged, or asks for more than this machine does.
    """
    machine = Machine(raw, names, persistent, start)
    try:
        return machine.run(), machine.place
    except Refused as error:
        raise ValueError(f"{where}: refused, and nothing of it was run: {error}") from None
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError, RecursionError, struct.error) as error:
        problem = f"{type(error).__name__}: {clean(str(error))}"
        raise ValueError(f"{where}: a damaged pickle, at byte {machine.place}: {problem}") from None


class Machine:
    """The stack, the marks in it, and the memo, where values are kept to be used again."""

    def __init__(self, raw, names, persistent, start):
        self.raw, self.names, self.persistent, self.place = memoryview(raw), names, persistent, start
        self.stack, self.marks, self.memo = [], [], {}
        self.bytes, self.entries = len(self.raw), MOST_INSTRUCTIONS  # that functions may still make

    def run(self):
        for _ in range(MOST_INSTRUCTIONS):
            code = self.take(1)[0]
            if code == ord("."):
                return self.stack.pop()
            if code not in INSTRUCTIONS:
                raise Refused(
                    f"byte {self.place - 1} has the instruction {bytes([code])!r}, which no published file needs; a "
                    "text pickle (protocol 0) must be saved again with protocol 2"
                )
            INSTRUCTIONS[code](self)
        raise Refused(f"a pickle of more than {MOST_INSTRUCTIONS:,} instructions; checkpoints have a few thousand")

    def take(self, size):
        """The next bytes, as a view of the file."""
        if not 0 <= size <= len(self.raw) - self.place:
            raise Refused(
                f"the file was cut short, or lies: at byte {self.place} it announces {size:,} bytes, "
                f"{len(self.raw) - self.place:,} follow"
            )
        self.place += size
        return self.raw[self.place - size : self.place]

    def number(self, form):
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def line(self):
        end = bytes(self.raw[self.place : self.place + 300]).find(b"\n")
        if end < 0:
            raise Refused(f"at byte {self.place} a name has no end")
        text = bytes(self.take(end + 1))[:-1]
        return text.decode()

    def push(self, value):
        self.stack.append(value)

    def pop(self, count):
        """The last `count` values, in order."""
        if not 0 <= count <= len(self.stack):
            raise Refused(f"at byte {self.place} it takes values that it never made")
        taken = self.stack[len(self.stack) - count :]
        del self.stack[len(self.stack) - count :]
        return taken

    def pop_mark(self):
        """All values since the last mark."""
        return self.pop(len(self.stack) - self.marks.pop())

    def fetch(self, module, name):
        self.push(self.names(f"{text(module)} {text(name)}"))

    def call(self):
        function, arguments = self.pop(2)
        if not callable(function) or not isinstance(arguments, tuple):
            raise Refused(f"it calls {type(function).__name__}, which is no function")
        made = function(*arguments)
        self.bytes -= len(made) if isinstance(made, memoryview) else 0
        self.entries -= len(made) if isinstance(made, dict) else 0
        if min(self.bytes, self.entries) < 0:
            raise Refused("it makes more bytes than it has" if self.bytes < 0 else "its dicts have too many entries")
        self.push(made)

    def call_with_names(self):
        function, arguments, named = self.pop(3)
        if not isinstance(function, Inert):
            raise Refused("it calls a function with named arguments")
        self.push(function)

    def build(self):
        state = self.stack.pop()
        if not isinstance(self.stack[-1], dict):  # a dict's attributes hold nothing that is needed
            self.stack[-1].build(state)

    def append(self, values):
        if isinstance(self.stack[-1], Inert):
            return
        if not isinstance(self.stack[-1], list):
            raise Refused(f"at byte {self.place} it adds to what is no list")
        self.stack[-1].extend(values)

    def set_items(self, values):
        if isinstance(self.stack[-1], Inert):
            return
        if not isinstance(self.stack[-1], dict):
            raise Refused(f"at byte {self.place} it gives keys to what is no dict")
        for key, value in zip(values[::2], values[1::2], strict=True):
            self.stack[-1][dict_key(key)] = value

    def outside(self):
        if self.persistent is None:
            raise Refused("it refers to an object outside of the file")
        self.push(self.persistent(self.stack.pop()))

    def put(self, key):
        self.memo[key] = self.stack[-1]

    def get(self, key):
        if key not in self.memo:
            raise Refused(f"at byte {self.place} it takes value {key} of its memo, which it never kept")
        self.push(self.memo[key])


def dict_key(value):
    """Keys are texts and numbers; what else Python allows can take ages to hash."""
    if isinstance(value, (str, memoryview)):
        return text(value)
    if not isinstance(value, (int, float, type(None))) or (isinstance(value, int) and abs(value) > LARGEST):
        raise Refused(f"a dict with a key of type {type(value).__name__}, or a huge number")
    return value


def text(value):
    """A name, a str of Python 2 or 3, as a str."""
    if not isinstance(value, (str, memoryview)):
        raise Refused(f"{type(value).__name__} where a text belongs")
    if len(value) > LONGEST:
        raise Refused(f"a name of {len(value):,} letters")
    return value if isinstance(value, str) else bytes(value).decode("latin-1")


def sizes(values, name):
    """Shape, strides or the like: a tuple of numbers that are not negative."""
    if not isinstance(values, tuple) or len(values) > 32:
        raise Refused(f"an array whose {name} is no tuple of numbers")
    if any(type(n) is not int or not 0 <= n <= LARGEST for n in values):
        raise Refused(f"an array with {name} {quoted(values)}")
    if name == "shape" and 0 in values and math.prod(n for n in values if n) > LARGEST:  # NumPy counts what is not 0
        raise Refused(f"an array with {name} {quoted(values)}, too large")
    return values


def instructions():
    """Byte -> what it does to a machine."""

    def constant(make):
        return lambda m: m.push(make())

    def number(form):
        return lambda m: m.push(m.number(form))

    def long(form):
        return lambda m: m.push(int.from_bytes(m.take(m.number(form)), "little", signed=True))

    def data(form):
        return lambda m: m.push(m.take(m.number(form)))

    def words(form):
        return lambda m: m.push(bytes(m.take(m.number(form))).decode("utf-8", "surrogatepass"))

    def packed(count):
        return lambda m: m.push(tuple(m.pop(count)))

    def pairs(m):
        items = m.pop_mark()
        m.push({})
        m.set_items(items)

    table = {
        b"\x80": lambda m: m.take(1),  # protocol
        b"\x95": lambda m: m.take(8),  # frame: the length of what follows, for readers that read ahead
        b"N": constant(lambda: None), b"\x88": constant(lambda: True), b"\x89": constant(lambda: False),
        b"}": constant(dict), b"]": constant(list), b")": constant(tuple), b"\x8f": constant(list),
        b"J": number("<i"), b"K": number("<B"), b"M": number("<H"), b"G": number(">d"),
        b"\x8a": long("<B"), b"\x8b": long("<i"),
        b"U": data("<B"), b"T": data("<i"),  # str of Python 2
        b"C": data("<B"), b"B": data("<I"), b"\x8e": data("<Q"), b"\x96": data("<Q"),  # bytes, bytearray
        b"\x8c": words("<B"), b"X": words("<I"), b"\x8d": words("<Q"),
        b"(": lambda m: m.marks.append(len(m.stack)),
        b"0": lambda m: m.pop(1), b"1": lambda m: m.pop_mark(), b"2": lambda m: m.push(m.stack[-1]),
        b"\x85": packed(1), b"\x86": packed(2), b"\x87": packed(3),
        b"t": lambda m: m.push(tuple(m.pop_mark())), b"l": lambda m: m.push(m.pop_mark()), b"d": pairs,
        b"a": lambda m: m.append(m.pop(1)), b"e": lambda m: m.append(m.pop_mark()),
        b"\x90": lambda m: m.append(m.pop_mark()),
        b"s": lambda m: m.set_items(m.pop(2)), b"u": lambda m: m.set_items(m.pop_mark()),
        b"q": lambda m: m.put(m.number("<B")), b"r": lambda m: m.put(m.number("<I")),
        b"\x94": lambda m: m.put(len(m.memo)),
        b"h": lambda m: m.get(m.number("<B")), b"j": lambda m: m.get(m.number("<I")),
        b"c": lambda m: m.fetch(m.line(), m.line()), b"\x93": lambda m: m.fetch(*m.pop(2)),
        b"R": Machine.call, b"\x81": Machine.call, b"\x92": Machine.call_with_names,
        b"b": Machine.build, b"Q": Machine.outside,
    }  # fmt: skip
    return {code[0]: act for code, act in table.items()}


INSTRUCTIONS = instructions()


# What stands for the names that arrays are pickled with.

DTYPES = {f"{kind}{size}" for kind in "iu" for size in (1, 2, 4, 8)} | {"f2", "f4", "f8", "b1"}
MULTIARRAY = ("numpy.core.multiarray", "numpy._core.multiarray")  # NumPy 1, NumPy 2
NUMERIC = ("numpy.core.numeric", "numpy._core.numeric")


class Dtype:
    """numpy.dtype: numbers of a fixed size, nothing else (an array of objects could be anything)."""

    def __init__(self, name, *flags):
        if text(name) not in DTYPES:
            raise Refused(f"an array of dtype {quoted(text(name))}; numbers are expected")
        self.dtype = np.dtype(text(name))

    def build(self, state):
        self.dtype = self.dtype.newbyteorder(text(state[1]) if text(state[1]) in "<>" else "=")


class Array:
    """An array that is being put together: numpy.core.multiarray._reconstruct makes an empty one, a state fills it."""

    def __init__(self, kind, shape, typecode):
        self.values = None

    def build(self, state):
        _, shape, dtype, fortran, data = state
        self.values = array(data, dtype, shape, "F" if fortran else "C")


def array(data, dtype, shape, order):
    """A view of bytes of the file as an array; exactly so many bytes as its shape says."""
    if not isinstance(dtype, Dtype) or not isinstance(data, memoryview):
        raise Refused("an array without a proper dtype, or without bytes")
    size = math.prod(sizes(shape, "shape")) * dtype.dtype.itemsize
    if size != len(data):
        raise Refused(f"an array of shape {shape} and dtype {dtype.dtype} ({size:,} bytes) with {len(data):,} bytes")
    return np.frombuffer(data, dtype.dtype).reshape(shape, order=text(order))


def from_buffer(data, dtype, shape, order):
    """numpy.core.numeric._frombuffer, which protocol 5 uses."""
    made = Array(None, None, None)
    made.values = array(data, dtype, shape, order)
    return made


def scalar(dtype, data):
    return array(data, dtype, (), "C").item()


def encode(value, encoding):
    """_codecs.encode: how Python 3 writes bytes with the protocol of Python 2."""
    if text(encoding) != "latin1":
        raise Refused(f"bytes in the encoding {quoted(text(encoding))}")
    if not isinstance(value, str):
        raise Refused(f"{type(value).__name__} where a text belongs")
    return memoryview(value.encode("latin-1"))


def ordered_dict(pairs=()):
    if not isinstance(pairs, (list, tuple)) or any(not isinstance(pair, (list, tuple)) for pair in pairs):
        raise Refused("a dict of what is no list of pairs")
    return {dict_key(key): value for key, value in pairs}


NUMPY = {
    "numpy ndarray": None,
    "numpy dtype": Dtype,
    "_codecs encode": encode,
    "collections OrderedDict": ordered_dict,
    **{f"{module} _reconstruct": Array for module in MULTIARRAY},
    **{f"{module} scalar": scalar for module in MULTIARRAY},
    **{f"{module} _frombuffer": from_buffer for module in NUMERIC},
}


def arrays_only(name):
    """Names of a pickle of arrays, for :func:`load`."""
    if name not in NUMPY:
        raise Refused(f"it asks for {clean(name.replace(' ', '.'))}; a file of arrays needs no such thing")
    return NUMPY[name]
