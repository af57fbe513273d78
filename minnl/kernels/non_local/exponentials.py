"""What both kernels of the softmax non-local operation save beside the op's arrays: docs/kernels/non_local.md."""

import math

from minnl.engine import meta_array
from minnl.ops.non_local import NonLocalSoftmax


class SavesExponentials(NonLocalSoftmax):
    """The op, with :math:`e^{s_{ij}}` of all pairs saved for backward where there are few keys."""

    saved_for_backward = (*NonLocalSoftmax.saved_for_backward, "exponentials")

    def saves_exponentials(self):
        """Whether a number for each pair takes at most 8 MB, or at most four times the memory of y."""
        few = self.pairs() <= max(2**21, 4 * math.prod(self.theta_shape[:4]) * self.g_shape[-1])
        return few and any(self.needs)

    def infer(self, theta, phi, g):
        y = super().infer(theta, phi, g)
        self.exponentials = meta_array(self.pairs(), theta.dtype) if self.saves_exponentials() else None
        return y
