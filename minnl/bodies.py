"""Which faster bodies stand in for which class: where the mathematics of ops/ and the speed of kernels/ meet.

Bodies belong to a class, not to its name: of another class of that name, or of a class derived from it, forward runs.
"""

from minnl import engine, optim
from minnl.kernels import register
from minnl.kernels.cpu.accumulate import ThreadedSum
from minnl.kernels.cpu.adamw import BlockedAdamW
from minnl.kernels.cpu.avg_pool import BlockedAvgPool
from minnl.kernels.cpu.conv import FastConv3d
from minnl.kernels.cpu.max_pool import BlockedMaxPool
from minnl.kernels.cpu.mean import GlobalAveragePool, MeanOverPositions
from minnl.kernels.cpu.non_local import StreamedSoftmax
from minnl.kernels.cpu.non_local_concat import StreamedConcat
from minnl.kernels.cpu.non_local_dot import DotOfPairs, DotOfSums
from minnl.kernels.cpu.non_local_sorted import SortedConcat
from minnl.kernels.cpu.norm import BlockedBatchNorm, BlockedFrozenBatchNorm
from minnl.kernels.cpu.products import SmallMatMul, ThreadedLinear
from minnl.kernels.cuda.conv import GpuConv3d
from minnl.kernels.cuda.dropout import GpuDropout
from minnl.kernels.cuda.index import GpuIndex
from minnl.kernels.cuda.non_local import BlockedSoftmax
from minnl.kernels.cuda.non_local_concat import ConcatByLine
from minnl.kernels.cuda.non_local_dot import GpuDotOfPairs, GpuDotOfSums
from minnl.kernels.cuda.norm import FusedBatchNorm, FusedFrozenBatchNorm
from minnl.kernels.cuda.optim import OneLaunchAdamW, OneLaunchSGD
from minnl.kernels.cuda.pointwise import GpuAffine, GpuReLU, GpuSigmoid, GpuTanh
from minnl.kernels.cuda.pool import GpuAdaptiveAvgPool, GpuAdaptiveMaxPool, GpuAvgPool, GpuMaxPool
from minnl.kernels.cuda.softmax import GpuCrossEntropy, OneLaunchLogSoftmax, OneLaunchSoftmax
from minnl.ops import (
    adaptive_pool,
    conv,
    dropout,
    linear,
    loss,
    non_local,
    norm,
    pointwise,
    pool,
    reduce,
    shape,
    softmax,
)

register(engine.Accumulation, ThreadedSum)
register(adaptive_pool.AdaptiveAvgPool3d, GlobalAveragePool, GpuAdaptiveAvgPool)
register(adaptive_pool.AdaptiveMaxPool3d, GpuAdaptiveMaxPool)
register(conv.Conv3d, FastConv3d, GpuConv3d)
register(dropout.Dropout, GpuDropout)
register(linear.Linear, ThreadedLinear)
register(linear.MatMul, SmallMatMul)
register(loss.CrossEntropy, GpuCrossEntropy)
register(non_local.NonLocalConcat, SortedConcat, StreamedConcat, ConcatByLine)
register(non_local.NonLocalDot, DotOfPairs, DotOfSums, GpuDotOfPairs, GpuDotOfSums)
register(non_local.NonLocalSoftmax, StreamedSoftmax, BlockedSoftmax)
register(norm.Affine, GpuAffine)
register(norm.BatchNorm, BlockedBatchNorm, FusedBatchNorm)
register(norm.FrozenBatchNorm, BlockedFrozenBatchNorm, FusedFrozenBatchNorm)
register(pointwise.ReLU, GpuReLU)
register(pointwise.Sigmoid, GpuSigmoid)
register(pointwise.Tanh, GpuTanh)
register(pool.AvgPool3d, BlockedAvgPool, GpuAvgPool)
register(pool.MaxPool3d, BlockedMaxPool, GpuMaxPool)
register(reduce.Mean, MeanOverPositions)
register(shape.Index, GpuIndex)
register(softmax.LogSoftmax, OneLaunchLogSoftmax)
register(softmax.Softmax, OneLaunchSoftmax)
register(optim.AdamW, BlockedAdamW, OneLaunchAdamW)
register(optim.SGD, OneLaunchSGD)
