"""Layers and the modules that hold them."""

from typing import TYPE_CHECKING

from minnl.nn import init
from minnl.nn.containers import ModuleDict, ModuleList, Sequential
from minnl.nn.layers import (
    AdaptiveAvgPool3d,
    AdaptiveMaxPool3d,
    Affine,
    AvgPool3d,
    BatchNorm3d,
    Conv3d,
    Dropout,
    GlobalAvgPool3d,
    Linear,
    MaxPool3d,
    ReLU,
)
from minnl.nn.modes import evaluating
from minnl.nn.module import Module, Parameter
from minnl.nn.non_local import AXES, MODES, NonLocalBlock
from minnl.nn.recompute import Recompute

__all__ = [
    "AXES",
    "AdaptiveAvgPool3d",
    "AdaptiveMaxPool3d",
    "Affine",
    "AvgPool3d",
    "BatchNorm3d",
    "Conv3d",
    "Dropout",
    "GlobalAvgPool3d",
    "Linear",
    "MODES",
    "MaxPool3d",
    "Module",
    "ModuleDict",
    "ModuleList",
    "NonLocalBlock",
    "Parameter",
    "ReLU",
    "Recompute",
    "Sequential",
    "evaluating",
    "init",
]

ELSEWHERE = {  # a name in PyTorch's nn -> what to write here
    "Conv1d": "nn.Conv3d with kernels (k, 1, 1)",
    "Conv2d": "nn.Conv3d with kernels (1, k, k)",
    "BatchNorm1d": "nn.BatchNorm3d, for any number of axes",
    "BatchNorm2d": "nn.BatchNorm3d, for any number of axes",
    "CrossEntropyLoss": "functional.cross_entropy",
    "Dropout3d": "nn.Dropout(p, channels=True)",
    "Flatten": "x.reshape(len(x), -1)",
    "Identity": "nn.Sequential()",
    "LogSoftmax": "functional.log_softmax",
    "Sigmoid": "functional.sigmoid",
    "Softmax": "functional.softmax",
    "Tanh": "functional.tanh",
    "functional": "minnl.functional",
    "utils": "optim.clip_grad_norm, or nn.init",
}


if not TYPE_CHECKING:  # with this function a type checker would accept any name

    def __getattr__(name):
        instead = f"; write {ELSEWHERE[name]}" if name in ELSEWHERE else ""
        raise AttributeError(f"minnl.nn has no attribute {name!r}{instead}")
