"""CUDA kernels: what runs instead of the textbook bodies on CuPy. docs/gpu.md says how one is written.

Nothing is read or compiled, and CuPy is not imported, before an op first runs on a GPU.
"""

from minnl.kernels import register
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

register("Conv3d", GpuConv3d)
register("BatchNorm", FusedBatchNorm)
register("FrozenBatchNorm", FusedFrozenBatchNorm)
register("Dropout", GpuDropout)
register("Index", GpuIndex)
register("Affine", GpuAffine)
register("ReLU", GpuReLU)
register("Sigmoid", GpuSigmoid)
register("Tanh", GpuTanh)
register("AdamW", OneLaunchAdamW)
register("SGD", OneLaunchSGD)
register("MaxPool3d", GpuMaxPool)
register("AvgPool3d", GpuAvgPool)
register("AdaptiveMaxPool3d", GpuAdaptiveMaxPool)
register("AdaptiveAvgPool3d", GpuAdaptiveAvgPool)
register("Softmax", OneLaunchSoftmax)
register("LogSoftmax", OneLaunchLogSoftmax)
register("CrossEntropy", GpuCrossEntropy)
register("NonLocalSoftmax", BlockedSoftmax)
register("NonLocalDot", GpuDotOfPairs)
register("NonLocalDot", GpuDotOfSums)
register("NonLocalConcat", ConcatByLine)
