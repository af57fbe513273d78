"""AdamW in blocks: docs/kernels/adamw.md.

Written as a formula on whole arrays, a step makes a dozen passes over the memory of all parameters. Taken in blocks,
all but the first pass over a block find it in the cache, and threads share the blocks.
"""

from __future__ import annotations

import math

import numpy as np

from minnl.kernels.runtime import memory, threads
from minnl.optim import AdamW

SMALLEST = 256 * 1024  # numbers of all parameters together: with fewer, everything is in the cache anyway
BLOCK_ELEMENTS = 128 * 1024  # 0.5 MB of each array: calls long enough for two threads to work side by side


class CpuAdamW(AdamW):
    """The step of optim.AdamW for float32 on NumPy, same formula and same bits."""

    @staticmethod
    def suits(optimizer, updates):
        arrays = [array for w, gw, kept, _ in updates for array in (w, gw, *kept)]
        return sum(a.size for a in arrays) >= 4 * SMALLEST and all(
            type(a) is np.ndarray and a.dtype == np.float32 and a.flags.c_contiguous for a in arrays
        )

    def apply(self, updates):
        def one(blocks):
            scratch = memory.empty((2, BLOCK_ELEMENTS), np.float32)
            for options, w, gw, m, v in blocks:
                (b1, b2), lr, step = options["betas"], options["lr"], options["step"]
                d, e = scratch[:, : len(w)]
                m *= b1
                np.multiply(1 - b1, gw, out=d)
                m += d
                v *= b2
                np.multiply(1 - b2, gw, out=d)
                d *= gw
                v += d
                np.sqrt(v, out=d)
                d /= math.sqrt(1 - b2**step)
                d += options["eps"]
                np.multiply(lr / (1 - b1**step), m, out=e)
                np.divide(e, d, out=d)
                w *= 1 - lr * options["weight_decay"]
                w -= d

        blocks = [(options, *block) for w, gw, kept, options in updates for block in _blocks(w, gw, *kept)]
        threads.run(one, [blocks[some] for some in threads.shares(len(blocks), 16)])


def _blocks(*arrays):
    """The arrays of one parameter as flat pieces that lie side by side."""
    arrays = [memory.view(a, -1) for a in arrays]
    for some in threads.pieces(len(arrays[0]), BLOCK_ELEMENTS):
        yield [a[some] for a in arrays]
