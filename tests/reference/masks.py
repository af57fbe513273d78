"""Dropout, with its mask made one integer at a time."""

import numpy as np


def scrambled(i, seed):
    """32 random-looking bits from a counter and a 64-bit seed: two rounds of an integer hash."""
    x = i
    for word in (seed % 2**32, seed // 2**32):
        x ^= word
        x ^= x >> 16
        x = x * 0x7FEB352D % 2**32
        x ^= x >> 15
        x = x * 0x846CA68B % 2**32
        x ^= x >> 16
    return x


def dropout(x, p, seed, channels=False):
    """y[i] = x[i] / (1 - p) where the i-th random number (of the element, or of its clip's channel) is p or more."""
    y = np.zeros(x.shape)
    for count, i in enumerate(np.ndindex(x.shape)):
        number = i[0] * x.shape[-1] + i[-1] if channels else count
        if scrambled(number, seed) >= p * 2**32:
            y[i] = x[i] / (1 - p)
    return y


def dropout_backward(gy, x, p, seed, channels=False):
    """The same elements, the same factor."""
    return (dropout(gy, p, seed, channels),)
