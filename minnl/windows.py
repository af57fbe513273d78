"""Sliding windows: their sizes, their padding, and the view of the input that each tap of a window sees.

A window of kernel k, stride s, dilation d and padding p puts its tap j on input position ``s*i + d*j - p`` to make
output i. Fix the tap and let i run: that is a strided view of the padded input, which never overlaps itself. So a
sliding-window op is a loop over taps, ``view(x)`` read in forward and ``view(gx) += ...`` in backward: exact without
scatter or atomics, though the windows overlap.
"""

import itertools
import operator

AXES = "THW"


def triple(op, name, value, least=1):
    """An int, or three, as a tuple (T, H, W); TypeError or ValueError naming op and argument otherwise."""
    values = value if isinstance(value, (tuple, list)) else (value,) * 3
    if len(values) != 3:
        raise ValueError(f"{op}: {name} must be an int or three (T, H, W), got {value!r}")
    try:
        values = tuple(operator.index(None if isinstance(v, bool) else v) for v in values)
    except TypeError:
        raise TypeError(f"{op}: {name} must be an int or three (T, H, W), got {value!r}") from None
    if min(values) < least:
        raise ValueError(f"{op}: {name} must be {least} or more along every axis, got {value!r}")
    return values


def paddings(op, padding, kernel, stride, dilation):
    """Padding as ((before, after), ...) along T, H, W, from an int, three, "same" or "valid".

    "same" keeps the size (stride 1 only); where the total is odd, the extra one goes after, as in PyTorch.
    """
    if padding == "valid":
        return ((0, 0),) * 3
    if padding == "same":
        if stride != (1, 1, 1):
            raise ValueError(f'{op}: padding "same" needs stride 1, got {stride}; give the padding as a number')
        totals = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
        return tuple((t // 2, t - t // 2) for t in totals)
    if isinstance(padding, str):
        raise ValueError(f'{op}: padding must be an int, three, "same" or "valid", got {padding!r}')
    return tuple((p, p) for p in triple(op, "padding", padding, least=0))


def out_size(op, n, k, s, d, pad, axis=0, ceil_mode=False):
    """How many windows fit along an axis of n positions.

    ``(n + before + after - d*(k-1) - 1) // s + 1``; with `ceil_mode` a last window may hang over the end, if it
    starts within the input or the padding before it.
    """
    before, after = pad
    room = n + before + after - d * (k - 1) - 1
    if room < 0:
        reach = d * (k - 1) + 1
        raise ValueError(
            f"{op}: the window spans {reach} along {AXES[axis]} (kernel_size {k}, dilation {d}), "
            f"the padded input has {n + before + after}; use a smaller kernel or more padding"
        )
    if ceil_mode:
        size = -(-room // s) + 1
        return size - 1 if (size - 1) * s >= n + before else size
    return room // s + 1


def out_sizes(op, shape, kernel, stride, dilation, pads, ceil_mode=False):
    """Output sizes (T', H', W') for an input of sizes `shape` = (T, H, W)."""
    return tuple(
        out_size(op, n, k, s, d, p, axis, ceil_mode)
        for axis, (n, k, s, d, p) in enumerate(zip(shape, kernel, stride, dilation, pads, strict=True))
    )


def taps(kernel):
    """The positions (t, h, w) within a window, in row-major order."""
    return itertools.product(*map(range, kernel))


def padded(xp, x, pads, value=0):
    """x (N, T, H, W, C) in a border of `value`; x itself where there is none."""
    if not any(map(any, pads)):
        return x
    sizes = [n + sum(p) for n, p in zip(x.shape[1:4], pads, strict=True)]
    big = xp.full((x.shape[0], *sizes, x.shape[4]), value, dtype=x.dtype)
    inner(big, pads, x.shape)[...] = x
    return big


def inner(big, pads, shape):
    """The view of a padded array without its border: inverse of :func:`padded`."""
    return big[(slice(None), *(slice(p, p + n) for (p, _), n in zip(pads, shape[1:4], strict=True)))]


def view(big, tap, stride, dilation, sizes):
    """What a tap sees of the padded input, for all windows at once: shape (N, *sizes, C), no element twice."""
    spans = (slice(j * d, j * d + (n - 1) * s + 1, s) for j, s, d, n in zip(tap, stride, dilation, sizes, strict=True))
    return big[(slice(None), *spans)]


def covering(shape, kernel, stride, dilation, pads, sizes):
    """Pads, enlarged after the end so that every window lies inside (needed for ceil_mode only)."""
    return tuple(
        (before, max(after, (m - 1) * s + d * (k - 1) + 1 - n - before))
        for n, k, s, d, (before, after), m in zip(shape, kernel, stride, dilation, pads, sizes, strict=True)
    )
