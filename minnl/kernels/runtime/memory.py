"""Arrays for results and workspace, and views that results can be written through: docs/kernels/runtime.md."""

import ctypes
import os

import numpy as np

POISON = os.environ.get("MINNL_POISON") == "1"  # For tests: memory that nothing has written reads as NaN.


def empty(shape, dtype):
    """np.empty; NaN throughout in the tests' poison mode. `shape` is a tuple."""
    array = np.empty(shape, dtype)
    return poisoned(array) if POISON else array


def poisoned(array):
    """The contiguous array with all bits set. As floats these are NaN, so a read before the first write shows."""
    ctypes.memset(array.ctypes.data, 0xFF, array.nbytes)
    return array


def view(array, *shape):
    """The array in another shape, as PyTorch's ``Tensor.view``: for results, which have to arrive in `array` itself.

    Raises
    ------
    ValueError
        Where ``array.reshape`` would be a copy: a result written to a copy is lost.
    """
    try:
        return array.reshape(shape, copy=False)
    except ValueError:
        raise ValueError(
            f"view: an array of shape {array.shape} and strides {array.strides} has no view of shape {shape}"
        ) from None
