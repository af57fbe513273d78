"""Reads pickles from other projects without running anything that is in them.

A pickle is a program for a small stack machine. Python's own machine imports and calls whatever the file names, so a
pickle can do anything. Here the standard library's pickletools decodes the instructions, which runs nothing, and the
machine below carries out only those that build plain values. Every name that a pickle asks for is looked up in a table
of stand-ins written in this project. Everything else is refused.

A small file cannot take much memory or time either. No announced size is believed before the bytes are there. The
number of instructions is limited, and so is what the stand-ins make. The type of a value is checked before the value is
hashed or printed, because forty instructions make a tuple of 2^40 entries.
"""

import io
import math
import pickletools

import numpy as np

from minnl.checks import clean, quoted

MOST_INSTRUCTIONS = 500_000  # Published files have about 30 instructions for an array, some ten thousand in all.
LONGEST = 1000  # The longest name, in characters; published names have about 50.
LARGEST = 2**48  # The largest number in a key or a shape; no array of so many bytes fits into memory.


class Refused(ValueError):
    """Says why a file is not read; what reads the file puts its name in front."""


class Inert:
    """Stands for an object that is not made, such as a setting of a training program: nothing changes it."""

    def __call__(self, *arguments):
        return self

    def build(self, state):
        pass

    extend = update = build


def load(raw, names, persistent=None, start=0):
    """(value, end) of the pickle that begins at byte `start` of `raw`.

    `names` gives the stand-in for "module name", or None if the file must not contain it. `persistent` gives the object
    that a tuple refers to, outside of the pickle. The value is made of dict, list, tuple, str, int, float, bool, None,
    memoryview (bytes, and str of Python 2), and of what `names` and `persistent` gave.

    Raises Refused for a pickle that is cut short, damaged, or does more than this machine does.
    """
    machine = Machine(raw, names, persistent, start)
    try:
        return machine.run(), machine.stream.tell()
    except Refused as error:
        place = machine.stream.tell()
        raise Refused(f"refused, and nothing of it was run: {error} (at byte {place:,})") from None
    # pickletools warns of escape sequences in names, and a warning may be an error.
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError, RecursionError, Warning) as error:
        problem = f"at byte {machine.stream.tell():,}: {type(error).__name__}: {clean(str(error))}"
        raise Refused(f"a damaged pickle, or one that was cut short, {problem}") from None


class Stream(io.BytesIO):
    """The bytes of a file, of which pickletools gets no more than there are, and lines of a limited length."""

    def readline(self, size=LONGEST):
        return super().readline(size)


class Machine:
    """The stack, the stacks below its marks, and the memo of values that are used again."""

    def __init__(self, raw, names, persistent, start):
        self.raw, self.names, self.persistent, self.stream = memoryview(raw), names, persistent, Stream(raw)
        self.stream.seek(start)
        self.stack, self.below, self.memo = [], [], {}
        self.bytes, self.entries = len(raw), MOST_INSTRUCTIONS  # What stand-ins may still make.

    def run(self):
        for count, (opcode, argument, _) in enumerate(pickletools.genops(self.stream)):
            if opcode.name not in INSTRUCTIONS:
                raise Refused(
                    f"it has the instruction {opcode.name}, which no published file needs; save a text pickle "
                    "(protocol 0) again with protocol 2"
                )
            if count == MOST_INSTRUCTIONS:
                raise Refused(f"it has more than {MOST_INSTRUCTIONS:,} instructions; checkpoints have a few thousand")
            INSTRUCTIONS[opcode.name](self, argument)
        return self.stack.pop()

    def push(self, value):
        self.stack.append(value)

    def push_bytes(self, argument):
        """A view of the file, so that weights are not copied."""
        end = self.stream.tell()
        self.push(self.raw[end - len(argument) : end])

    def pop(self, count):
        """The last `count` values, in order."""
        if count > len(self.stack):
            raise Refused("it takes values that it never made")
        values = self.stack[-count:]
        del self.stack[-count:]
        return values

    def mark(self, _):
        self.below.append(self.stack)
        self.stack = []

    def pop_mark(self):
        """All values since the last mark."""
        values, self.stack = self.stack, self.below.pop()
        return values

    def extend(self, values):
        if not isinstance(self.stack[-1], (list, Inert)):
            raise Refused("it appends to a value that is no list")
        self.stack[-1].extend(values)

    def set_items(self, values):
        if not isinstance(self.stack[-1], (dict, Inert)):
            raise Refused("it sets keys of a value that is no dict")
        pairs = zip(values[::2], values[1::2], strict=True)
        self.stack[-1].update([(dict_key(key), value) for key, value in pairs])

    def put(self, key):
        self.memo[len(self.memo) if key is None else key] = self.stack[-1]

    def get(self, key):
        if key not in self.memo:
            raise Refused(f"it takes value {key} of its memo, which it never stored")
        self.push(self.memo[key])

    def stand_in(self, name):
        found = self.names(name)
        if found is None:
            raise Refused(
                f"it asks for {clean(name.replace(' ', '.'))}, which weights do not need; if you trust the file, load "
                "it where it was written and save the arrays alone"
            )
        self.push(found)

    def call(self, _):
        function, arguments = self.pop(2)
        if not callable(function) or not isinstance(arguments, tuple):
            raise Refused(f"it calls {type(function).__name__}, which is no function")
        made = function(*arguments)
        self.bytes -= len(made) if isinstance(made, memoryview) else 0
        self.entries -= len(made) if isinstance(made, dict) else 0
        if min(self.bytes, self.entries) < 0:
            raise Refused("it makes more bytes than it has" if self.bytes < 0 else "its dicts have too many entries")
        self.push(made)

    def call_with_names(self, _):
        function, _, _ = self.pop(3)
        if not isinstance(function, Inert):
            raise Refused("it calls a function with named arguments")
        self.push(function)

    def build(self, _):
        state = self.stack.pop()
        if not isinstance(self.stack[-1], dict):  # The attributes of a dict are not needed.
            self.stack[-1].build(state)

    def outside(self, _):
        if self.persistent is None:
            raise Refused("it refers to an object outside of the file")
        self.push(self.persistent(self.stack.pop()))


# Names of pickletools -> what a machine does with the instruction's argument, which is None for most.
INSTRUCTIONS = {
    name: act
    for names, act in {
        "PROTO FRAME STOP": lambda m, _: None,
        "BININT BININT1 BININT2 LONG1 LONG4 BINFLOAT SHORT_BINUNICODE BINUNICODE BINUNICODE8 NONE": Machine.push,
        "SHORT_BINSTRING BINSTRING SHORT_BINBYTES BINBYTES BINBYTES8 BYTEARRAY8": Machine.push_bytes,
        "NEWTRUE": lambda m, _: m.push(True),
        "NEWFALSE": lambda m, _: m.push(False),
        "EMPTY_TUPLE": lambda m, _: m.push(()),
        "EMPTY_LIST EMPTY_SET": lambda m, _: m.push([]),
        "EMPTY_DICT": lambda m, _: m.push({}),
        "TUPLE1": lambda m, _: m.push(tuple(m.pop(1))),
        "TUPLE2": lambda m, _: m.push(tuple(m.pop(2))),
        "TUPLE3": lambda m, _: m.push(tuple(m.pop(3))),
        "TUPLE": lambda m, _: m.push(tuple(m.pop_mark())),
        "MARK": Machine.mark,
        "POP": lambda m, _: m.pop(1),
        "POP_MARK": lambda m, _: m.pop_mark(),
        "APPEND": lambda m, _: m.extend(m.pop(1)),
        "APPENDS ADDITEMS": lambda m, _: m.extend(m.pop_mark()),
        "SETITEM": lambda m, _: m.set_items(m.pop(2)),
        "SETITEMS": lambda m, _: m.set_items(m.pop_mark()),
        "BINPUT LONG_BINPUT MEMOIZE": Machine.put,
        "BINGET LONG_BINGET": Machine.get,
        "GLOBAL": lambda m, name: m.stand_in(text(name)),
        "STACK_GLOBAL": lambda m, _: m.stand_in(" ".join(map(text, m.pop(2)))),
        "REDUCE NEWOBJ": Machine.call,
        "NEWOBJ_EX": Machine.call_with_names,
        "BUILD": Machine.build,
        "BINPERSID": Machine.outside,
    }.items()
    for name in names.split()
}


def dict_key(value):
    """Keys are texts and numbers; other values that Python allows can take ages to hash."""
    if isinstance(value, (str, memoryview)):
        return text(value)
    if not isinstance(value, (int, float, type(None))) or (isinstance(value, int) and abs(value) > LARGEST):
        raise Refused(f"a dict with a key of type {type(value).__name__}, or a huge number")
    return value


def text(value, most=LONGEST):
    """A str of Python 2 or 3 as a str."""
    if not isinstance(value, (str, memoryview)):
        raise Refused(f"{type(value).__name__} where a text belongs")
    if len(value) > most:
        raise Refused(f"a name of {len(value):,} letters")
    return value if isinstance(value, str) else bytes(value).decode("latin-1")


def sizes(values, name):
    """Raise Refused unless a shape, strides or the like are a tuple of integers from 0 to LARGEST."""
    if not isinstance(values, tuple) or len(values) > 32:
        raise Refused(f"an array whose {name} is no tuple of numbers")
    if (
        any(type(n) is not int or not 0 <= n <= LARGEST for n in values)
        # NumPy multiplies the sizes of an empty array too, those that are not 0.
        or (name == "shape" and 0 in values and math.prod(n for n in values if n) > LARGEST)
    ):
        raise Refused(f"an array with {name} {quoted(values)}")


# Stand-ins for the names that arrays are pickled with.

DTYPES = {f"{letter}{size}" for letter in "iu" for size in (1, 2, 4, 8)} | {"f2", "f4", "f8", "b1"}


class Dtype:
    """numpy.dtype, of numbers of a fixed size only: an array of objects could be anything."""

    def __init__(self, name, *flags):
        if text(name) not in DTYPES:
            raise Refused(f"an array of dtype {quoted(text(name))}; numbers are expected")
        self.dtype = np.dtype(text(name))

    def build(self, state):
        self.dtype = self.dtype.newbyteorder(text(state[1]) if text(state[1]) in "<>" else "=")


class Array:
    """What numpy's _reconstruct makes: an empty array that BUILD fills."""

    def __init__(self, subtype, shape, typecode):
        self.values = None

    def build(self, state):
        _, shape, dtype, fortran, data = state
        self.values = array(data, dtype, shape, "F" if fortran else "C")


def array(data, dtype, shape, order):
    """numpy's _frombuffer, of protocol 5: bytes of the file as an array that needs exactly so many."""
    if not isinstance(dtype, Dtype) or not isinstance(data, memoryview):
        raise Refused("an array without a proper dtype, or without bytes")
    sizes(shape, "shape")
    size = math.prod(shape) * dtype.dtype.itemsize
    if size != len(data):
        raise Refused(f"an array of shape {shape} and dtype {dtype.dtype} ({size:,} bytes) with {len(data):,} bytes")
    return np.frombuffer(data, dtype.dtype).reshape(shape, order=text(order))


def scalar(dtype, data):
    return array(data, dtype, (), "C").item()


def encode(value, encoding):
    """_codecs.encode, with which Python 3 writes bytes in the protocol of Python 2."""
    if text(encoding) != "latin1" or not isinstance(value, str):
        raise Refused(f"bytes from {type(value).__name__} in the encoding {quoted(text(encoding))}")
    return memoryview(value.encode("latin-1"))


def ordered_dict(pairs=()):
    if not isinstance(pairs, (list, tuple)) or any(not isinstance(pair, (list, tuple)) for pair in pairs):
        raise Refused("a dict of what is no list of pairs")
    return {dict_key(key): value for key, value in pairs}


NUMPY = {
    "numpy ndarray": "numpy.ndarray",  # It is only an argument.
    "numpy dtype": Dtype,
    "_codecs encode": encode,
    "collections OrderedDict": ordered_dict,
}
for core in ("numpy.core", "numpy._core"):  # NumPy 1 and NumPy 2.
    NUMPY |= {
        f"{core}.multiarray _reconstruct": Array, f"{core}.multiarray scalar": scalar,
        f"{core}.numeric _frombuffer": array,
    }  # fmt: skip
