"""Max pooling, one axis after the other, in blocks that stay in the cache: docs/kernels/pooling.md."""

from __future__ import annotations

import math

import numpy as np

from minnl import windows
from minnl.dispatch import CpuKernel
from minnl.kernels.runtime import memory, threads
from minnl.ops.pool import MaxPool3d

BLOCK = 1024 * 1024  # elements of the input in a block, 4 MB: two threads with shorter steps wait for each other
ALONE = 1024 * 1024  # elements of the input up to which one thread is quicker than two
LONG = 64  # channels from which on pixels are compared where they lie; shorter ones are first copied side by side
INDICES = 64 * 1024  # outputs whose places in the input are listed at once, 512 KB


class CpuMaxPool3d(CpuKernel, MaxPool3d):
    @staticmethod
    def suits(op, arrays):
        """Not for a dilation wider than the input: a window may then lie wholly on the padding."""
        x = arrays[0]
        narrow = all(d <= n for d, n in zip(op.dilation, x.shape[1:4], strict=True))
        return CpuKernel.suits(op, arrays) and x.size > 0 and narrow

    def forward(self, x):
        self.shape, x = x.shape, np.ascontiguousarray(x)
        y = memory.empty(self.infer_shape(x), x.dtype)
        self.argmax = memory.empty(y.shape, np.uint8) if self.needs[0] else None

        def task(block):
            """Pool a block; False if no comparison finds its argmax: that of NaN, or of nothing but -infinity."""
            self.pool(x, y, block)
            return self.argmax is None or y[block].min() > -math.inf

        blocks = self.blocks(y.shape)
        done = [task(block) for block in blocks] if x.size <= ALONE else threads.run(task, blocks)
        return y if all(done) else super().forward(x)

    def blocks(self, shape):
        """The output in runs of samples, or of frames of one sample: tuples of two slices."""
        samples, frames = shape[:2]
        cost = self.stride[0] * math.prod(self.shape[2:])  # elements of the input for a frame of the output
        if frames * cost <= BLOCK:
            return [(run, slice(0, frames)) for run in threads.chunks(samples, BLOCK // (frames * cost))]
        return [(slice(n, n + 1), run) for n in range(samples) for run in threads.chunks(frames, BLOCK // cost)]

    def pool(self, x, y, block):
        """Reduce a block's frames, then rows, then columns.

        Each value has a rank, a byte: the number of taps in a window less the tap that the value comes from. Of equal
        values the one of the highest rank is the first in the window.
        """
        samples, frames = block
        y, argmax = y[block], None if self.argmax is None else self.argmax[block]
        axes = [axis for axis in range(3) if self.kernel[axis] > 1 or self.stride[axis] > 1] or [2]
        values, ranks = x[samples] if axes[0] == 0 else x[samples, frames], None
        for axis in axes:
            dim, out, out_ranks = axis + 1, y, argmax
            if axis != axes[-1]:
                shape = (*values.shape[:dim], y.shape[dim], *values.shape[dim + 1 :])
                out = memory.empty(shape, y.dtype)
                out_ranks = None if argmax is None else memory.empty(shape, np.uint8)
            start = (frames.start * self.stride[0] if axis == 0 else 0) - self.pads[axis][0]
            taps = []  # for each: the index of the windows in which it lies on the input, the values there, their ranks
            for tap in range(self.kernel[axis]):
                first = start + tap * self.dilation[axis]
                slices = on_input(first, values.shape[dim], self.stride[axis], y.shape[dim])
                inside, places = ((*[slice(None)] * dim, along) for along in slices)
                arrays = [None if a is None else a[places] for a in (values, ranks)]
                if dim == 3 and y.shape[4] < LONG:
                    arrays = [None if a is None else side_by_side(a) for a in arrays]
                taps.append((inside, *arrays))
            highest(out, taps)
            if argmax is not None:
                rank(out_ranks, out, taps, math.prod(self.kernel), math.prod(self.kernel[dim:]))
            values, ranks = out, out_ranks
        if argmax is not None:
            np.subtract(math.prod(self.kernel), argmax, out=argmax)

    def backward(self, gy):
        """Add each output's gradient to its argmax's place in memory. On one thread: np.add.at holds Python's lock."""
        gx, gy = memory.empty(self.shape, gy.dtype), np.ascontiguousarray(gy)
        gx.fill(0)
        steps = [step // gx.itemsize for step in gx.strides]
        taps = [sum(np.multiply(tap, self.dilation) * steps[1:4]) for tap in windows.taps(self.kernel)]
        n, t, h, w, c = (np.arange(size) for size in gy.shape)
        t, h, w = (
            (i * stride - before) * step
            for i, stride, (before, _), step in zip((t, h, w), self.stride, self.pads, steps[1:4], strict=True)
        )
        frame = (h[:, None, None] + w[:, None] + c).reshape(-1)  # where tap 0 of each window lies in its frame
        frames = (n[:, None] * steps[0] + t).reshape(-1, 1)
        gy, argmax = (a.reshape(len(frames), -1) for a in (gy, self.argmax))
        for run in threads.chunks(len(frames), INDICES // frame.size):
            indices = memory.empty(gy[run].shape, np.intp)
            np.take(np.array(taps), argmax[run], out=indices, mode="clip")  # the mode that needs no buffer
            indices += frame
            indices += frames[run]
            np.add.at(memory.view(gx, -1), indices.reshape(-1), gy[run].reshape(-1))
        return (gx,)


def on_input(first, size, stride, count):
    """In which of `count` windows a tap lies on the input, and where: two slices. Window 0 has it at `first`."""
    low = max(0, -(first // stride))
    high = max(low, min(count, -((first - size) // stride)))
    start = first + low * stride
    return slice(low, high), slice(start, start + max(0, (high - low - 1) * stride + 1), stride)


def side_by_side(array):
    """A contiguous copy. Pixels as single elements of type void are copied quicker than one channel after the other."""
    copy, pixel = memory.empty(array.shape, array.dtype), f"V{array.shape[-1] * array.itemsize}"
    copy.view(pixel)[...] = array.view(pixel)
    return copy


def highest(out, taps):
    """out = the largest of the taps' values. The taps that lie on the input in all windows come first."""
    whole = [values for _, values, _ in taps if values.shape == out.shape]
    if whole:
        best = whole[0]
        for values in whole[1:]:
            best = np.maximum(best, values, out=out)
        if best is not out:
            out[...] = best
    else:
        out.fill(-math.inf)
    for inside, values, _ in taps:
        if values.shape != out.shape:
            np.maximum(out[inside], values, out=out[inside])


def rank(out_ranks, out, taps, count, weight):
    """The highest rank of the values that are as large as `out`. Each tap lowers the ranks by `weight`."""
    hit, lowered = (memory.empty(out.shape, np.uint8) for _ in range(2))
    unranked = taps[0][2] is None  # then the last tap has the lowest rank, and is the argmax where no other is
    out_ranks.fill(count - (len(taps) - 1) * weight if unranked else 0)
    for tap, (inside, values, ranks) in enumerate(taps[:-1] if unranked else taps):
        if unranked:
            ranks = count - tap * weight
        elif tap:
            ranks = np.subtract(ranks, tap * weight, out=lowered[inside])
        np.equal(values, out[inside], out=hit[inside].view(bool))
        np.multiply(hit[inside], ranks, out=hit[inside])
        np.maximum(out_ranks[inside], hit[inside], out=out_ranks[inside])
