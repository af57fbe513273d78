"""CPU kernels: what runs instead of the textbook bodies on NumPy. Each file is one idea; docs/kernels/ derives them."""

from minnl.kernels import register
from minnl.kernels.cpu.conv import ColumnConv3d
from minnl.kernels.cpu.non_local import StreamedSoftmax
from minnl.kernels.cpu.norm import BlockedBatchNorm

register("Conv3d", ColumnConv3d)
register("NonLocalSoftmax", StreamedSoftmax)
register("BatchNorm", BlockedBatchNorm)
