"""What is in memory at each moment of a training step, from shapes alone; and how much CuPy's pool takes for it."""

import bisect
import itertools
import weakref

from minnl import dispatch
from minnl.engine import Op, meta_array
from minnl.nn.recompute import TwoRuns
from minnl.ops.norm import BatchNorm

UNIT = 512  # bytes: CuPy's pool rounds sizes up to a multiple


class Events(list):
    """What happens to memory, in order: (number, bytes) of an array that comes, (number, None) of one that goes.

    A meta array comes when the engine or an op makes it, and goes when nothing refers to it any more: when the real
    one would. What a body makes beside its results is known of the CUDA kernels; else it is taken to be an array of the
    larger side (padded, centred) forward, and two of them backward.
    """

    def __init__(self, gpu):
        super().__init__()
        self.numbers, self.watched = itertools.count(), {}
        self.device = "gpu" if gpu else "cpu"
        self.gpu_kernels = gpu and dispatch.mode() == "fast"

    def come(self, size):
        number = next(self.numbers)
        self.append((number, size))
        return number

    def go(self, number):
        self.append((number, None))

    def made(self, memory, size):
        """An array of so many bytes, which is there until `memory` is gone."""
        number = self.come(size)
        self.watched[number] = weakref.ref(memory, lambda _: self.go(number))

    def forward(self, op, inputs):
        """What an op infers, and what it makes meanwhile."""
        kernel = dispatch.kernel_of(op, inputs, self.device)
        if kernel is not None:
            op.__class__ = kernel
        y = op.infer(*inputs)
        self.work(op, max(inputs[0].nbytes, y.nbytes), 0)
        return y

    def work(self, op, larger, stage):
        """What an op makes for a while: forward (0), for the first input's gradient (1), for the others' (2)."""
        if not self.gpu_kernels:
            moments = ([[larger]], [], [[larger] * 2])[stage]
        else:
            moments = op.workspace()[stage] if dispatch.is_kernel(type(op)) else []
        for sizes in moments:
            for number in reversed([self.come(size) for size in sizes if size]):
                self.go(number)

    def gradients(self, op, gy):
        """What a backward returns, meta arrays."""
        if isinstance(op, TwoRuns) or type(op).infer is Op.infer:  # the second run, planned; views and small results
            return op.backward(gy)
        if self.gpu_kernels and isinstance(op, BatchNorm):  # the gradients of channels come first
            of_channels = [meta_array(*e) for e in op.expected[1:3]]
            self.work(op, 0, 2)
            rest = [meta_array(*e) if need else None for e, need in zip(op.expected[::3], op.needs[::3], strict=True)]
            return [rest[0], *of_channels, *rest[1:]]
        grads = []
        for i, (expected, need) in enumerate(zip(op.expected, op.needs, strict=True)):
            grads.append(meta_array(*expected) if need else None)
            if i == 0:
                self.work(op, 0, 1)
        self.work(op, max([gy.nbytes, *(gx.nbytes for gx in grads if gx is not None)]), 2)
        return grads


def most_at_once(sizes, events, kept=()):
    """The most bytes in memory beside what is there all the time: the arrays of two steps with their gradients."""
    return _replay(_Count(), sizes, events, kept).most


def pool_size(sizes, events, kept):
    """Bytes that CuPy's pool takes from the driver for arrays of some sizes and then some steps."""
    return _replay(Pool(), sizes, events, kept).total


def _replay(memory, sizes, events, kept):
    """Steps on a memory: what a step leaves, the gradients, goes when the next begins; `kept` comes after the first."""
    for size in sizes:
        memory.take(size)
    there = {}
    for step in range(3):
        for piece in there.values():
            memory.give(piece)
        there = {}
        for number, size in events:
            if size is None:
                memory.give(there.pop(number))
            else:
                there[number] = memory.take(size)
        for size in kept if step == 0 else ():
            memory.take(size)
    return memory


class _Count:
    """Memory without gaps."""

    held = most = 0

    def take(self, size):
        self.held += size
        self.most = max(self.most, self.held)
        return size

    def give(self, size):
        self.held -= size


class _Piece:
    def __init__(self, size, before=None, after=None):
        self.size, self.before, self.after, self.free = size, before, after, False


class Pool:
    """CuPy's memory pool, on one stream: of the free pieces the smallest that is large enough is cut, neighbours that
    are free are joined, and what came from the driver stays. `total` is how many bytes did.
    """

    def __init__(self):
        self.free, self.sizes, self.total = {}, [], 0  # pieces by size, and these sizes in order

    def take(self, size):
        size = -(-size // UNIT) * UNIT
        at = bisect.bisect_left(self.sizes, size)
        if at == len(self.sizes):
            self.total += size
            return _Piece(size)
        piece = self.free[self.sizes[at]][-1]
        self._remove(piece)
        if piece.size > size:
            rest = _Piece(piece.size - size, piece, piece.after)
            self._link(rest, rest.after)
            self._link(piece, rest)
            piece.size = size
            self._add(rest)
        return piece

    def give(self, piece):
        for left, right in ((piece, piece.after), (piece.before, piece)):
            if left and right and (left if right is piece else right).free:
                self._remove(left if right is piece else right)
                left.size += right.size
                self._link(left, right.after)
                piece = left
        self._add(piece)

    @staticmethod
    def _link(left, right):
        left.after = right
        if right:
            right.before = left

    def _add(self, piece):
        piece.free = True
        if piece.size not in self.free:
            self.free[piece.size] = []
            bisect.insort(self.sizes, piece.size)
        self.free[piece.size].append(piece)

    def _remove(self, piece):
        piece.free = False
        same = self.free[piece.size]
        same.remove(piece)
        if not same:
            del self.free[piece.size]
            self.sizes.remove(piece.size)
