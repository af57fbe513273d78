"""The devices of the benchmark: the CPU, or a GPU, which the host's clock alone cannot time."""

from __future__ import annotations

import gc
import os
import time

from benchmarks import optional
from minnl import backend


class Cpu:
    """The CPU. :class:`Gpu` has the same attributes."""

    device = backend.CPU
    name = "cpu"
    torch = optional.torch  # PyTorch, or None if it cannot compute here
    torch_device = "cpu"
    pause = 0.02  # seconds between contenders, since threads of BLAS and OpenMP spin for a while after their work
    warm_up = 1  # number of calls before the first timed call
    tf32 = False
    slack = 1  # a factor on the allowed difference of two results

    def timed(self, call, times):
        """Mean seconds of one of several calls in a row."""
        start = time.perf_counter()
        for _ in range(times):
            call()
        return (time.perf_counter() - start) / times

    def setting(self):
        """The part of the setting that depends on the device."""
        return {"device": self.name}

    def make_room(self):
        """Free unused memory."""
        gc.collect()


class Gpu(Cpu):
    """An NVIDIA GPU; PyTorch takes part if it was built with CUDA.

    Times are measured between CUDA events on the stream. If a call launches so little work that the GPU waits for the
    host, the time includes that wait, for both contenders.
    """

    pause = 0
    warm_up = 10  # kernels are compiled and chosen at first use, and the clock of a GPU rises under load

    def __init__(self, name, tf32=False):
        os.environ["CUPY_TF32"] = "1" if tf32 else "0"  # CuPy reads it once, at its first product
        self.device, self.name, self.tf32 = backend.device(name), name, tf32
        self.slack = 100 if tf32 else 1  # TF32 keeps 10 of the 23 bits of the fraction
        self.torch_device = f"cuda:{self.device.index}"
        self.cuda = backend.load_cupy().cuda
        self.torch = optional.torch if optional.torch is not None and optional.torch.cuda.is_available() else None
        if self.torch is not None:
            backends = self.torch.backends
            backends.cuda.matmul.allow_tf32 = backends.cudnn.allow_tf32 = tf32
            backends.cudnn.benchmark = True  # cuDNN tries its algorithms and then uses the fastest

    def timed(self, call, times):
        """Mean seconds of one of several calls in a row, between two events of the stream that both compute on."""
        start, end = self.cuda.Event(), self.cuda.Event()
        start.record()
        for _ in range(times):
            call()
        end.record()
        end.synchronize()
        return self.cuda.get_elapsed_time(start, end) / 1e3 / times

    def setting(self):
        """The name is what CuPy calls the device, be it a GPU or a program that stands in for one."""
        runtime = self.cuda.runtime
        version = runtime.driverGetVersion()
        return {
            "device": self.name,
            "gpu": runtime.getDeviceProperties(self.device.index)["name"].decode(),
            "cuda driver": f"{version // 1000}.{version % 1000 // 10}",
            "cupy": backend.load_cupy().__version__,
            "tf32": self.tf32,
        }

    def make_room(self):
        gc.collect()
        backend.load_cupy().get_default_memory_pool().free_all_blocks()
        if self.torch is not None:
            self.torch.cuda.empty_cache()


CPU = Cpu()


def find(name, tf32=False):
    """The place of that name; RuntimeError or ValueError tell why there is none."""
    if name == "cpu":
        if tf32:
            raise ValueError("--tf32 is a way to multiply on a GPU; add --device gpu")
        return CPU
    return Gpu(name, tf32)
