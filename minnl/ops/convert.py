"""Moving a tensor to another device or float type. Derivation: docs/ops/shape.md."""

from minnl import backend
from minnl.engine import Op


class To(Op):
    r"""The same numbers elsewhere, or with other precision; backward brings the gradient back. Keeps nothing."""

    public_name = "to"
    converts = True

    def __init__(self, device, dtype):
        self.device, self.dtype = device, dtype

    def forward(self, x):
        self.source = backend.device_of(x), x.dtype
        return self.moved(x, self.device, self.dtype)

    def backward(self, gy):
        return (self.moved(gy, *self.source),)

    def moved(self, array, device, dtype):
        with backend.on(device):
            return backend.to_device(array, device).astype(dtype, copy=False)
