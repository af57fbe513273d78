"""What a thread works out once for a shape, and the memory it then works in: docs/kernels/runtime.md.

Between two calls of NumPy a thread is in Python, where it needs the interpreter lock, and another one that is just done
with its own call sleeps until it gets it. So what only depends on shapes (buffers, views of them, the products in turn)
is made once and looked up after that.
"""

from __future__ import annotations

import math
import threading

import numpy as np

from minnl.kernels.runtime import memory

MOST = 256  # plans of a thread; then it begins anew
LINE = 64  # bytes of a line of the cache


class Plans(threading.local):
    """The plans of each thread, and its room: memory in which all of them lie, since it carries out one at a time."""

    def __init__(self):
        self.made, self.room, self.taken = {}, np.empty(0, np.uint8), 0

    def of(self, make, *arguments):
        """``make(empty, *arguments)``, or what that was before. ``empty(shape, dtype)`` takes from the room.

        What a plan leaves in there is gone when the thread turns to another.
        """
        key = make, *arguments
        if key not in self.made:
            self.taken = 0
            plan = make(self.empty, *arguments)
            if self.taken > self.room.size:
                self.made, self.room, self.taken = {}, memory.empty((self.taken,), np.uint8), 0
                plan = make(self.empty, *arguments)
            if len(self.made) == MOST:
                self.made = {}
            self.made[key] = plan
        if memory.POISON:
            memory.poisoned(self.room)
        return self.made[key]

    def empty(self, shape, dtype):
        first, bytes_ = self.taken, math.prod(shape) * np.dtype(dtype).itemsize
        self.taken += -(-bytes_ // LINE) * LINE
        if self.taken > self.room.size:  # only to see how much it takes: `of` makes room and asks again
            return np.empty(shape, dtype)
        return self.room[first : first + bytes_].view(dtype).reshape(shape)


plans = Plans()
