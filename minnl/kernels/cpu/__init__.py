"""CPU kernels: what runs instead of the textbook bodies on NumPy. Each file is one idea; docs/kernels/ derives them."""

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

register("Accumulation", ThreadedSum)
register("Conv3d", FastConv3d)
register("NonLocalSoftmax", StreamedSoftmax)
register("NonLocalDot", DotOfPairs)
register("NonLocalDot", DotOfSums)
register("NonLocalConcat", SortedConcat)
register("NonLocalConcat", StreamedConcat)
register("BatchNorm", BlockedBatchNorm)
register("FrozenBatchNorm", BlockedFrozenBatchNorm)
register("Linear", ThreadedLinear)
register("MatMul", SmallMatMul)
register("MaxPool3d", BlockedMaxPool)
register("AvgPool3d", BlockedAvgPool)
register("AdaptiveAvgPool3d", GlobalAveragePool)
register("Mean", MeanOverPositions)
register("AdamW", BlockedAdamW)
