"""CPU kernels: what runs instead of the textbook bodies on NumPy. Each file is one idea; docs/kernels/ derives them."""

from minnl.kernels import register
from minnl.kernels.cpu.conv import FastConv3d
from minnl.kernels.cpu.max_pool import MaxPoolByAxis
from minnl.kernels.cpu.non_local import StreamedSoftmax
from minnl.kernels.cpu.norm import BlockedBatchNorm

register("Conv3d", FastConv3d)
register("NonLocalSoftmax", StreamedSoftmax)
register("BatchNorm", BlockedBatchNorm)
register("MaxPool3d", MaxPoolByAxis)
