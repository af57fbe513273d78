"""AdamW in blocks: docs/kernels/optim.md.

Written as a formula on whole arrays, a step makes a dozen passes over the memory of all parameters. In blocks, all but
the first pass over a block find the block in the cache, and threads share the blocks.
"""

from __future__ import annotations

import math

import numpy as np

from minnl.kernels.runtime import memory, threads
from minnl.optim import AdamW

SMALLEST = 256 * 1024  # Elements of all parameters together; fewer are in the cache anyway.
BLOCK = 128 * 1024  # Elements of a block, 0.5 MB of each array: with shorter calls two threads wait for each other.


class CpuAdamW(AdamW):
    """The step of optim.AdamW for float32 on NumPy: the same formula and the same bits."""

    @staticmethod
    def suits(optimizer, updates):
        arrays = [array for update in updates for array in (update.w, update.gw, *update.kept)]
        return sum(update.w.size for update in updates) >= SMALLEST and all(
            type(a) is np.ndarray and a.dtype == np.float32 and a.flags.c_contiguous for a in arrays
        )

    def apply(self, updates):
        blocks = []
        for w, gw, kept, options in updates:
            arrays = [memory.view(array, -1) for array in (w, gw, *kept)]
            blocks += [([a[block] for a in arrays], options) for block in threads.chunks(w.size, BLOCK)]

        def task(share):
            scratch = memory.empty((2, BLOCK), np.float32)
            for (w, gw, m, v), options in blocks[share]:
                (b1, b2), lr, step = options["betas"], options["lr"], options["step"]
                denominator, change = scratch[:, : len(w)]
                m *= b1
                m += np.multiply(1 - b1, gw, out=change)
                v *= b2
                np.multiply(1 - b2, gw, out=change)
                change *= gw
                v += change
                np.sqrt(v, out=denominator)
                denominator /= math.sqrt(1 - b2**step)
                denominator += options["eps"]
                np.multiply(lr / (1 - b1**step), m, out=change)
                change /= denominator
                w *= 1 - lr * options["weight_decay"]
                w -= change

        threads.run(task, threads.split(len(blocks), 16))
