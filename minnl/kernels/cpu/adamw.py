"""AdamW in blocks: docs/kernels/adamw.md.

Written as a formula on whole arrays, a step makes a dozen passes over the memory of all parameters. Taken in blocks,
all but the first pass over a block find it in the cache, and threads share the blocks.
"""

from __future__ import annotations

import numpy as np

from minnl.kernels import memory, threads

SMALLEST = 256 * 1024  # numbers of all parameters together: with fewer, everything is in the cache anyway
BLOCK_ELEMENTS = 128 * 1024  # 0.5 MB of each array: calls long enough for two threads to work side by side


class BlockedAdamW:
    """The step of optim.AdamW for float32 on NumPy, same formula and same bits."""

    @staticmethod
    def suits(optimizer, arrays):
        return sum(a.size for a in arrays) >= 4 * SMALLEST and all(
            type(a) is np.ndarray and a.dtype == np.float32 and a.flags.c_contiguous for a in arrays
        )

    @staticmethod
    def step(optimizer, updates):
        (b1, b2), steps = optimizer.betas, optimizer.steps
        rate, bias = optimizer.lr / (1 - b1**steps), 1 - b2**steps

        def one(blocks):
            scratch = memory.empty((2, BLOCK_ELEMENTS), np.float32)
            for w, gw, decay, m, v in blocks:
                d, e = scratch[:, : len(w)]
                np.subtract(gw, m, out=d)
                d *= 1 - b1
                m += d
                np.multiply(gw, gw, out=d)
                d -= v
                d *= 1 - b2
                v += d
                np.divide(v, bias, out=d)
                np.sqrt(d, out=d)
                d += optimizer.eps
                np.multiply(rate, m, out=e)
                np.divide(e, d, out=d)
                w *= 1 - optimizer.lr * decay
                w -= d

        blocks = [block for update in updates for block in _blocks(*update)]
        threads.run(one, [blocks[some] for some in threads.shares(len(blocks), 16)])


def _blocks(w, gw, decay, m, v):
    """The arrays of one parameter as flat pieces that lie side by side."""
    w, gw, m, v = (memory.view(a, -1) for a in (w, gw, m, v))
    for some in threads.pieces(len(w), BLOCK_ELEMENTS):
        yield w[some], gw[some], decay, m[some], v[some]
