"""minnl: non-local neural networks for video, from the array up, on NumPy and CuPy."""

from minnl import functional, nn, optim
from minnl import kernels as _kernels  # noqa: F401 (importing it registers the kernels)
from minnl import methods as _methods  # noqa: F401 (importing it gives Tensor its operators)
from minnl.backend import device, set_threads
from minnl.debugging import debug
from minnl.dispatch import use_kernels
from minnl.engine import Op, Tensor, no_grad
from minnl.random import manual_seed
from minnl.study.float32 import float32check
from minnl.study.gradcheck import gradcheck

__version__ = "0.1.0"
__all__ = [
    "Op",
    "Tensor",
    "debug",
    "device",
    "float32check",
    "functional",
    "gradcheck",
    "manual_seed",
    "nn",
    "no_grad",
    "optim",
    "set_threads",
    "use_kernels",
]
