"""Batches on the device that computes: on a GPU the next batch is copied while the current one is computed.

A launch on a GPU returns at once. When the host asks for the next batch, the GPU is still busy with the one before. In
that time the loader's batch is copied on a stream of its own, and the host goes on launching. The loader is asked for
a batch only after the step before has been launched, so its position in the data, which a checkpoint holds, is never
ahead of the training.
"""

import itertools

import numpy as np

from minnl import backend


def batches(loader, device):
    """The loader's batches, each with its clips on a device. For the CPU they are the loader's own.

    Yields
    ------
    x : float32 array of shape (N, T, H, W, C) on the device
        On a GPU it is valid for one pass of the loop: the batch after the next is written to the same memory.
    labels : int64 ndarray of shape (N,)
        On the host, where they are checked.
    """
    if device.kind == "cpu":
        yield from loader
        return
    with backend.on(device):
        buffers = StagingBuffer(), StagingBuffer()  # one is read by the step while the other is filled
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
    """Memory on the current GPU that batches are copied to, one after the other, from page-locked memory of the host.

    A GPU copies from page-locked memory while host and kernels go on. Host, copy and step use the two arrays in turn,
    and each waits for the one before it; copy and step wait on their streams, not on the host:

    ==========================  ============================  =======================================
    what                        waits until                   which is
    ==========================  ============================  =======================================
    the host, to write          the copy that read is done    `copied`, of the batch before the last
    the copy, to overwrite      the step that read is done    `free`, of the batch before the last
    the step, to read           the copy that wrote is done   `copied`
    ==========================  ============================  =======================================

    The first wait is the only one of the host. A whole step is queued behind the event that it waits for, so the GPU
    never idles; the wait keeps a fast host from running further ahead.
    """

    def __init__(self):
        self.cupy = backend.load_cupy()
        cuda = self.cupy.cuda
        self.stream = cuda.Stream(non_blocking=True)  # blocking, it would wait for the default stream, which computes
        self.copied, self.free = cuda.Event(disable_timing=True), cuda.Event(disable_timing=True)
        self.host = self.there = np.empty(0, np.uint8)

    def load(self, x):
        """Copy a host array; returns the array on the GPU, for the current stream to read."""
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
        """Note that everything that reads the batch has been launched on the current stream."""
        self.free.record(self.cupy.cuda.get_current_stream())

    def wait(self):
        """Let the host wait for the last copy, if it is not done yet."""
        if not self.copied.done:
            self.copied.synchronize()
