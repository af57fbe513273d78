"""Batches on the device of the network: on a GPU the next batch is copied during the step of the current batch.

A launch on a GPU returns at once, so the GPU is still busy with a step when the host asks for the next batch. Meanwhile
that batch is copied on its own stream, and the host goes on launching. The loader gives a batch only after the step
before has been launched, so its position in the data, which a checkpoint holds, is never ahead of the training.
"""

import itertools

import numpy as np

from minnl import backend


def batches(loader, device):
    """The loader's batches with the clips on a device. For the CPU they are the loader's own batches.

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
        buffers = StagingBuffer(), StagingBuffer()  # the step reads one while the next batch is copied to the other
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
    """A host array in page-locked memory and an array on the current GPU, through which batches are copied.

    A GPU copies from page-locked memory while host and kernels go on. Host, copy and step use the two arrays in turn,
    and each waits for an event. Copy and step wait on their streams and do not block the host:

    ============================  ===========================================  =======================================
    action                        waits for                                    event
    ============================  ===========================================  =======================================
    host writes the host array    the copy that reads it                       `copied`, of the batch before the last
    copy writes the GPU array     the step that reads it                       `free`, of the batch before the last
    step reads the GPU array      the copy that writes it                      `copied`
    ============================  ===========================================  =======================================

    Only the first wait blocks the host. A whole step is queued behind the event that it waits for, so the GPU never
    idles; the wait keeps a fast host from running further ahead.
    """

    def __init__(self):
        self.cupy = backend.load_cupy()
        cuda = self.cupy.cuda
        self.stream = cuda.Stream(non_blocking=True)  # a blocking stream would wait for the kernels of the default one
        self.copied, self.free = cuda.Event(disable_timing=True), cuda.Event(disable_timing=True)
        self.host = self.there = np.empty(0, np.uint8)

    def load(self, x):
        """Copy a host array; returns the array on the GPU, for the current stream to read."""
        self.wait()
        if x.nbytes > self.host.nbytes:
            self.host = np.frombuffer(self.cupy.cuda.alloc_pinned_memory(x.nbytes), np.uint8, x.nbytes)
            self.there = self.cupy.empty(x.nbytes, np.uint8)
            self.used()  # kernels launched earlier may still read the memory that the pool hands out again
        host, there = (buffer[: x.nbytes].view(x.dtype).reshape(x.shape) for buffer in (self.host, self.there))
        np.copyto(host, x)
        self.stream.wait_event(self.free)
        there.set(host, stream=self.stream)
        self.copied.record(self.stream)
        self.cupy.cuda.get_current_stream().wait_event(self.copied)
        return there

    def used(self):
        """Record that every kernel that reads the batch has been launched on the current stream."""
        self.free.record(self.cupy.cuda.get_current_stream())

    def wait(self):
        """Block the host until the last copy is done."""
        if not self.copied.done:
            self.copied.synchronize()
