"""The kernels: faster subclasses of the ops, and the table that says which class has one. docs/kernels/README.md.

Nothing is compiled, and CuPy is not imported, before an op first runs on a GPU.
"""

from minnl.dispatch import register
from minnl.engine import Accumulation
from minnl.kernels.batch_norm import cpu as batch_norm_cpu
from minnl.kernels.batch_norm import cuda as batch_norm_cuda
from minnl.kernels.conv3d import cpu as conv3d_cpu
from minnl.kernels.conv3d import cuda as conv3d_cuda
from minnl.kernels.linear.cpu import CpuLinear, CpuMatMul
from minnl.kernels.non_local.cpu import CpuNonLocalSoftmax
from minnl.kernels.non_local.cuda import CudaNonLocalSoftmax
from minnl.kernels.non_local.cuda_dot import CudaNonLocalDot
from minnl.kernels.optim import cuda as optim_cuda
from minnl.kernels.optim.cpu import CpuAdamW
from minnl.kernels.pointwise import cuda as pointwise_cuda
from minnl.kernels.pointwise.cpu import CpuAccumulation
from minnl.kernels.pooling import cuda as pooling_cuda
from minnl.kernels.pooling.cpu import CpuMaxPool3d
from minnl.kernels.softmax import cuda as softmax_cuda
from minnl.ops.adaptive_pool import AdaptiveAvgPool3d, AdaptiveMaxPool3d
from minnl.ops.conv import Conv3d
from minnl.ops.dropout import Dropout
from minnl.ops.linear import Linear, MatMul
from minnl.ops.loss import CrossEntropy
from minnl.ops.non_local import NonLocalDot, NonLocalSoftmax
from minnl.ops.norm import Affine, BatchNorm, FrozenBatchNorm
from minnl.ops.pointwise import ReLU, Sigmoid, Tanh
from minnl.ops.pool import AvgPool3d, MaxPool3d
from minnl.ops.shape import Index
from minnl.ops.softmax import LogSoftmax, Softmax
from minnl.optim import SGD, AdamW

register(Accumulation, "cpu", CpuAccumulation)
register(BatchNorm, "cpu", batch_norm_cpu.CpuBatchNorm)
register(FrozenBatchNorm, "cpu", batch_norm_cpu.CpuFrozenBatchNorm)
register(Conv3d, "cpu", conv3d_cpu.CpuConv3d)
register(Linear, "cpu", CpuLinear)
register(MatMul, "cpu", CpuMatMul)
register(MaxPool3d, "cpu", CpuMaxPool3d)
register(NonLocalSoftmax, "cpu", CpuNonLocalSoftmax)
register(AdamW, "cpu", CpuAdamW)

register(AdaptiveAvgPool3d, "gpu", pooling_cuda.CudaAdaptiveAvgPool3d)
register(AdaptiveMaxPool3d, "gpu", pooling_cuda.CudaAdaptiveMaxPool3d)
register(Affine, "gpu", pointwise_cuda.CudaAffine)
register(AvgPool3d, "gpu", pooling_cuda.CudaAvgPool3d)
register(BatchNorm, "gpu", batch_norm_cuda.CudaBatchNorm)
register(Conv3d, "gpu", conv3d_cuda.CudaConv3d)
register(CrossEntropy, "gpu", softmax_cuda.CudaCrossEntropy)
register(Dropout, "gpu", pointwise_cuda.CudaDropout)
register(FrozenBatchNorm, "gpu", batch_norm_cuda.CudaFrozenBatchNorm)
register(Index, "gpu", pointwise_cuda.CudaIndex)
register(LogSoftmax, "gpu", softmax_cuda.CudaLogSoftmax)
register(MaxPool3d, "gpu", pooling_cuda.CudaMaxPool3d)
register(NonLocalDot, "gpu", CudaNonLocalDot)
register(NonLocalSoftmax, "gpu", CudaNonLocalSoftmax)
register(ReLU, "gpu", pointwise_cuda.CudaReLU)
register(Sigmoid, "gpu", pointwise_cuda.CudaSigmoid)
register(Softmax, "gpu", softmax_cuda.CudaSoftmax)
register(Tanh, "gpu", pointwise_cuda.CudaTanh)
register(AdamW, "gpu", optim_cuda.CudaAdamW)
register(SGD, "gpu", optim_cuda.CudaSGD)
