"""Layers and the modules that hold them."""

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
