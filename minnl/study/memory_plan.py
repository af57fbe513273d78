"""The arrays in memory at each moment of a training step, from shapes alone, and the size of CuPy's pool for them."""

import bisect
import itertools
import weakref

from minnl import dispatch
from minnl.engine import Op, meta_array
from minnl.nn.recompute import TwoRuns
from minnl.ops.norm import BatchNorm

UNIT = 512  # CuPy's memory pool rounds every size up to a multiple of this many bytes


class Events(list):
    """Allocations and frees in order: (number, bytes) for an allocated array, (number, None) for a freed array.

    A meta array is allocated when the engine or an op makes it, and freed when nothing refers to it any more, as the
    real array would be. The CUDA kernels state their workspace. For other bodies the plan assumes one array of the size
    of the larger of input and output (a padded or centred copy) in forward, and two such arrays in backward.
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
        """Record an array of `size` bytes, allocated now and freed together with the object `memory`."""
        number = self.come(size)
        self.watched[number] = weakref.ref(memory, lambda _: self.go(number))

    def forward(self, op, inputs):
        """Run the op's `infer`, record its scratch, and return its output."""
        kernel = dispatch.kernel_of(op, inputs, self.device)
        if kernel is not None:
            op.__class__ = kernel
        y = op.infer(*inputs)
        self.work(op, max(inputs[0].nbytes, y.nbytes), 0)
        return y

    def work(self, op, larger, stage):
        """Record an op's scratch: of forward (0), of the first input's gradient (1), of the other gradients (2)."""
        if not self.gpu_kernels:
            scratch = ([[larger]], [], [[larger] * 2])[stage]
        else:
            scratch = op.workspace()[stage] if dispatch.is_kernel(type(op)) else []
        for sizes in scratch:
            for number in reversed([self.come(size) for size in sizes if size]):
                self.go(number)

    def gradients(self, op, gy):
        """The gradients of an op, as meta arrays."""
        if isinstance(op, TwoRuns) or type(op).infer is Op.infer:  # backward infers shapes too, or makes views
            return op.backward(gy)
        if self.gpu_kernels and isinstance(op, BatchNorm):  # its kernel makes the gradients of gamma and beta first
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
    """The peak memory in bytes: arrays of `sizes`, then steps of `events`, with `kept` after the first step."""
    return _replay(_Count(), sizes, events, kept).most


def pool_size(sizes, events, kept):
    """Bytes that CuPy's pool allocates from the driver for arrays of `sizes`, then steps of `events`, and `kept`."""
    return _replay(Pool(), sizes, events, kept).total


def _replay(memory, sizes, events, kept):
    """Run three steps on a memory. Each step frees the gradients of the step before; the first step adds `kept`."""
    for size in sizes:
        memory.take(size)
    held = {}
    for step in range(3):
        for block in held.values():
            memory.give(block)
        held = {}
        for number, size in events:
            if size is None:
                memory.give(held.pop(number))
            else:
                held[number] = memory.take(size)
        for size in kept if step == 0 else ():
            memory.take(size)
    return memory


class _Count:
    """A memory without gaps, which counts bytes."""

    held = most = 0

    def take(self, size):
        self.held += size
        self.most = max(self.most, self.held)
        return size

    def give(self, size):
        self.held -= size


class _Block:
    def __init__(self, size, before=None, after=None):
        self.size, self.before, self.after, self.free = size, before, after, False


class Pool:
    """CuPy's memory pool on one stream.

    An allocation splits the smallest free block that is large enough. A freed block is merged with its free neighbours.
    Memory from the driver stays in the pool; `total` is its size in bytes.
    """

    def __init__(self):
        self.free, self.sizes, self.total = {}, [], 0  # free blocks by size, and the sizes in ascending order

    def take(self, size):
        size = -(-size // UNIT) * UNIT
        at = bisect.bisect_left(self.sizes, size)
        if at == len(self.sizes):
            self.total += size
            return _Block(size)
        block = self.free[self.sizes[at]][-1]
        self._remove(block)
        if block.size > size:
            rest = _Block(block.size - size, block, block.after)
            self._link(rest, rest.after)
            self._link(block, rest)
            block.size = size
            self._add(rest)
        return block

    def give(self, block):
        for left, right in ((block, block.after), (block.before, block)):
            if left and right and (left if right is block else right).free:
                self._remove(left if right is block else right)
                left.size += right.size
                self._link(left, right.after)
                block = left
        self._add(block)

    @staticmethod
    def _link(left, right):
        left.after = right
        if right:
            right.before = left

    def _add(self, block):
        block.free = True
        if block.size not in self.free:
            self.free[block.size] = []
            bisect.insort(self.sizes, block.size)
        self.free[block.size].append(block)

    def _remove(self, block):
        block.free = False
        same = self.free[block.size]
        same.remove(block)
        if not same:
            del self.free[block.size]
            self.sizes.remove(block.size)
