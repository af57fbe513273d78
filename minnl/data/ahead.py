"""Batches on the device that is to compute on them: on a GPU the next one travels while the one in hand computes.

A launch on a GPU returns at once. So when the host asks for the next batch, the GPU is still at the one before, and
has a while to go: in that while the loader's batch is copied, on a stream of its own, and the host goes on launching.
Nothing is asked of the loader before the step that comes before has been launched, so its place in the data, which a
checkpoint holds, is never ahead of what was trained.
"""

import itertools

import numpy as np

from minnl import backend


def batches(loader, device):
    """The loader's batches, each with its clips on a device. For the CPU they are the loader's own.

    Yields
    ------
    x : float32 array of shape (N, T, H, W, C) on the device
        On a GPU it stands for one pass of the loop: the batch after the next is written to the same memory.
    labels : int64 ndarray of shape (N,)
        On the host, where they are checked.
    """
    if device.kind == "cpu":
        yield from loader
        return
    with backend.on(device):
        buffers = StagingBuffer(), StagingBuffer()  # one computes while the other loads
    try:
        for (x, labels), buffer in zip(loader, itertools.cycle(buffers)):
            with backend.on(device):
                clips = buffer.load(x)
            yield clips, labels
            with backend.on(device):
                buffer.used()
    finally:
        for buffer in buffers:
            buffer.wait()


class StagingBuffer:
    """Memory on the current GPU that batches are copied to, one after the other, through memory that a GPU can read.

    Only from page-locked memory does the GPU copy by itself while both sides go on. Three things then touch the two
    arrays, and each waits for the one before it, the streams without the host:

    ==========================  ============================  =======================================
    what                        waits until                   which is
    ==========================  ============================  =======================================
    the host, to write          the copy that read is done    `copied`, of the batch before the last
    the copy, to overwrite      the step that read is done    `free`, of the batch before the last
    the step, to read           the copy that wrote is done   `copied`
    ==========================  ============================  =======================================

    The first is the only wait of the host. What it waits for came before a whole step that the GPU has yet to do, so
    the GPU never idles for it; it keeps a quick host from running further ahead than that.
    """

    def __init__(self):
        self.cupy = backend.load_cupy()
        cuda = self.cupy.cuda
        self.stream = cuda.Stream(non_blocking=True)  # the plain kind waits for the default stream, which computes
        self.copied, self.free = cuda.Event(disable_timing=True), cuda.Event(disable_timing=True)
        self.host = self.there = np.empty(0, np.uint8)

    def load(self, x):
        """Have a host array copied; returns where it will be, for the current stream to read."""
        self.wait()
        if x.nbytes > self.host.nbytes:
            self.host = np.frombuffer(self.cupy.cuda.alloc_pinned_memory(x.nbytes), np.uint8, x.nbytes)
            self.there = self.cupy.empty(x.nbytes, np.uint8)
            self.used()  # the pool's memory may still be read by work that was launched before
        host, there = (buffer[: x.nbytes].view(x.dtype).reshape(x.shape) for buffer in (self.host, self.there))
        np.copyto(host, x)
        self.stream.wait_event(self.free)
        there.set(host, stream=self.stream)
        self.copied.record(self.stream)
        self.cupy.cuda.get_current_stream().wait_event(self.copied)
        return there

    def used(self):
        """All that reads the batch has been launched on the current stream."""
        self.free.record(self.cupy.cuda.get_current_stream())

    def wait(self):
        """Let the host wait for the last copy, if it is not done yet."""
        if not self.copied.done:
            self.copied.synchronize()
