"""The layout of an array here and in other projects: channels last here, first there."""

import numpy as np

CLASSIFIER, CONCAT = "head.classify.weight", ".w_f"


def here(name, array):
    """An array of theirs as a view in our layout. `name` is ours.

    ======================  ==================================================  =================
    array                   there                                               here
    ======================  ==================================================  =================
    convolution             (K, C, kT, kH, kW); (K, C, kH, kW) of a 2D network  (kT, kH, kW, C, K)
    classifier              (K, C), or as a convolution (K, C, 1, 1, 1)         (C, K)
    w_f of concatenation    (1, 2I, 1, 1)                                       (2I,)
    all others              (C,)                                                (C,)
    ======================  ==================================================  =================

    Shapes that fit none of these stay as they are; the comparison with the network finds that they differ.
    """
    ones = all(n == 1 for n in array.shape[2:])
    if name == CLASSIFIER and array.ndim >= 2 and ones:
        return array.reshape(array.shape[:2]).T
    if name.endswith(CONCAT) and array.ndim >= 2 and ones and array.shape[0] == 1:
        return array.reshape(array.shape[1])
    if name != CLASSIFIER and array.ndim == 4:
        array = array[:, :, None]
    return array.transpose(2, 3, 4, 1, 0) if array.ndim == 5 else array


def there(name, array):
    """The inverse of :func:`here`: a contiguous array in the layout of PyTorch and Caffe2."""
    if name.endswith(CONCAT):
        array = array[None, :, None, None]
    elif name == CLASSIFIER:
        array = array.T
    elif array.ndim == 5:
        array = array.transpose(4, 3, 0, 1, 2)
    return np.ascontiguousarray(array)


def shape_here(name, shape):
    """What :func:`here` makes of a shape."""
    return here(name, np.broadcast_to(np.float32(0), shape)).shape
