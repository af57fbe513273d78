"""Writes pickles as cPickle of Python 2 with NumPy 1 does: video-nonlocal-net loads and publishes such files."""

import struct

import numpy as np


def blobs(arrays, numbers, beside):
    """The bytes of ``{"blobs": arrays | numbers} | beside``, part by part.

    `arrays` are float32, `numbers` are float, and `beside` are texts.
    """
    yield b"\x80\x02}(" + _text("blobs") + b"}("
    for name, array in arrays.items():
        yield _text(name) + _array_head(array)
        yield np.ascontiguousarray(array, "<f4").tobytes()
        yield b"tb"
    for name, number in numbers.items():
        yield _text(name) + b"G" + struct.pack(">d", number)
    yield b"u"
    for name, text in beside.items():
        yield _text(name) + _text(text)
    yield b"u."


def _text(text):
    return _bytes_head(len(text)) + text.encode("ascii")


def _bytes_head(size):
    """The instruction that pushes a str of Python 2, of `size` bytes that follow it."""
    return b"U" + bytes([size]) if size < 256 else b"T" + struct.pack("<i", size)


def _int(number):
    return b"J" + struct.pack("<i", number)


def _array_head(array):
    """An array up to its bytes: a call of numpy's function that makes an empty one, and the state that fills it."""
    shape = b"(" + b"".join(map(_int, array.shape)) + b"t"
    dtype = b"cnumpy\ndtype\n(" + _text("f4") + _int(0) + _int(1) + b"tR(" + _int(3) + _text("<") + b"NNN"
    dtype += 2 * _int(-1) + _int(0) + b"tb"
    made = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(" + _int(0) + b"t" + _text("b") + b"tR("
    return made + _int(1) + shape + dtype + b"\x89" + _bytes_head(4 * array.size)
