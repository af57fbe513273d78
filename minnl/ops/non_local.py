"""The non-local operation (equation 1 of the paper), streamed. Derivation: docs/ops/non_local.md.

.. math:: y_i = \\frac{1}{C(x)} \\sum_j f(x_i, x_j)\\, g(x_j)

i runs over L query positions, j over P key positions. As a matrix, f has L x P elements: 2.5 GB at 25,088 positions.
The ops here never form the whole matrix. Queries are independent of each other, so forward computes them in blocks:
it forms the rows of f of one block, uses them and frees them. Backward computes the rows again. Memory is linear in L.
"""

import math

from minnl.engine import Op, meta_array

BLOCK_ELEMENTS = 4_000_000  # a block has at most this many elements of f (16 MB in float32), but at least one query


class _NonLocal(Op):
    """An op that folds positions into one axis: theta (B, L, I), phi (B, P, I), g (B, P, D) -> y (B, L, D).

    B is the batch. It includes the frames for axes="space" and the pixels for axes="time", so a query attends only to
    the keys of its own frame, or of its own pixel.
    """

    public_name = "non_local"

    def __init__(self, axes, scale=1.0):
        self.axes, self.scale = axes, scale

    def fold(self, x):
        n, t, h, w, c = x.shape
        if self.axes == "space":
            return x.reshape(n * t, h * w, c)
        if self.axes == "time":
            return x.transpose(0, 2, 3, 1, 4).reshape(n * h * w, t, c)
        return x.reshape(n, t * h * w, c)

    def unfold(self, rows, shape):
        n, t, h, w, _ = shape
        if self.axes == "time":
            return self.xp.ascontiguousarray(rows.reshape(n, h, w, t, -1).transpose(0, 3, 1, 2, 4))
        return rows.reshape(n, t, h, w, rows.shape[-1])

    def unfold_gradients(self, *lists):
        """The gradients of theta, phi and g in the shapes of the inputs; None stays None."""
        shapes = self.theta_shape, self.phi_shape, self.g_shape
        return [None if x is None else self.unfold(x, shape) for x, shape in zip(lists, shapes, strict=True)]

    def blocks(self, theta, phi):
        """Pairs (batch slice, query slice) that cover all queries, each of at most BLOCK_ELEMENTS elements of f."""
        batch, length, _ = theta.shape
        rows = max(1, BLOCK_ELEMENTS // max(phi.shape[1], 1))
        if rows >= length:  # a block holds all queries of one or more elements of the batch
            step = rows // max(length, 1)
            return [(slice(b, b + step), slice(None)) for b in range(0, batch, step)]
        return [(slice(b, b + 1), slice(i, i + rows)) for b in range(batch) for i in range(0, length, rows)]

    def shapes(self, theta, phi, g, weight=None):
        self.theta_shape, self.phi_shape, self.g_shape = theta.shape, phi.shape, g.shape

    def pairs(self):
        """The number of pairs (i, j)."""
        keys = math.prod(self.phi_shape[1:4])
        shared = {"space": self.phi_shape[1], "time": math.prod(self.phi_shape[2:4]), "spacetime": 1}[self.axes]
        return math.prod(self.theta_shape[:4]) * keys // max(shared, 1)


class NonLocalSoftmax(_NonLocal):
    r"""Gaussian and embedded Gaussian: f is an exponential and C(x) its sum, so the weights are a softmax over j.

    With :math:`s_{ij} = \lambda\,\theta_i^\top \phi_j` and :math:`\ell_i = \ln \sum_j e^{s_{ij}}`:

    .. math::
        p_{ij} = e^{s_{ij} - \ell_i}, \quad y_i = \sum_j p_{ij} g_j, \qquad
        \bar g_j = \sum_i p_{ij} \bar y_i, \\
        \bar s_{ij} = p_{ij} (r_{ij} - \sum_k p_{ik} r_{ik}), \quad r_{ij} = \bar y_i^\top g_j - \bar y_i^\top y_i, \\
        \bar\theta_i = \lambda \sum_j \bar s_{ij} \phi_j, \quad \bar\phi_j = \lambda \sum_i \bar s_{ij} \theta_i

    :math:`\sum_j p_{ij}\,\bar y_i^\top g_j = \bar y_i^\top y_i`, so :math:`\sum_k p_{ik} r_{ik}` is 0 in exact
    arithmetic. In floating point it is a rounding error, which matters where one weight is nearly 1: there r is nearly
    0 too.

    Shapes: theta (N, T, H, W, I), phi (N, T', H', W', I), g (N, T', H', W', D) -> y (N, T, H, W, D).
    Keeps theta, phi, g, y, and :math:`\ell_i` as two numbers: the largest logit m, and :math:`\ell_i - m`. One number
    would not do: beside a logit of 10,000, float32 has no digits for :math:`\ell_i - m`.
    """

    saved_for_backward = ("theta", "phi", "g", "y", "log_sum")

    def forward(self, theta, phi, g):
        xp = self.xp
        self.shapes(theta, phi, g)
        self.theta, self.phi, self.g = self.fold(theta), self.fold(phi), self.fold(g)
        self.y = xp.empty((*self.theta.shape[:2], g.shape[-1]), dtype=g.dtype)
        self.log_sum = xp.empty((*self.theta.shape[:2], 2), dtype=g.dtype)
        for b, i in self.blocks(self.theta, self.phi):
            s = self.logits(b, i)
            top = s.max(axis=-1, keepdims=True)
            s -= top
            p = xp.exp(s, out=s)
            total = p.sum(axis=-1, keepdims=True)
            self.y[b, i] = (p @ self.g[b]) / total
            self.log_sum[b, i, :1], self.log_sum[b, i, 1:] = top, xp.log(total)
        return self.unfold(self.y, theta.shape)

    def backward(self, gy):
        xp, gy = self.xp, self.fold(gy)
        gtheta, gphi, gg = (xp.zeros_like(a) for a in (self.theta, self.phi, self.g))
        for b, i in self.blocks(self.theta, self.phi):
            s = self.logits(b, i)
            s -= self.log_sum[b, i, :1]
            s -= self.log_sum[b, i, 1:]
            p = xp.exp(s, out=s)
            gg[b] += p.swapaxes(1, 2) @ gy[b, i]
            gs = gy[b, i] @ self.g[b].swapaxes(1, 2)
            gs -= (gy[b, i] * self.y[b, i]).sum(axis=-1, keepdims=True)
            gs -= (gs * p).sum(axis=-1, keepdims=True)
            gs *= p
            gs *= self.scale
            gtheta[b, i] = gs @ self.phi[b]
            gphi[b] += gs.swapaxes(1, 2) @ self.theta[b, i]
        return self.unfold_gradients(gtheta, gphi, gg)

    def logits(self, b, i):
        s = self.theta[b, i] @ self.phi[b].swapaxes(1, 2)
        s *= self.scale
        return s

    def weights(self, theta, phi, chosen):
        """Rows of p for chosen queries: theta (B, Q, I), phi (B, P, I) -> (B, Q, P)."""
        s = self.scale * (theta[:, chosen] @ phi.swapaxes(1, 2))
        s = self.xp.exp(s - s.max(axis=-1, keepdims=True))
        return s / s.sum(axis=-1, keepdims=True)

    def infer(self, theta, phi, g):
        self.shapes(theta, phi, g)
        self.theta, self.phi, self.g = theta, phi, g
        self.log_sum = meta_array((*theta.shape[:4], 2), theta.dtype)
        self.y = meta_array((*theta.shape[:4], g.shape[-1]), g.dtype)
        self.multiply_adds = self.pairs() * (theta.shape[-1] + g.shape[-1])
        return self.y


class NonLocalDot(_NonLocal):
    r"""Dot product: :math:`f = \theta_i^\top\phi_j`, :math:`C(x) = P`. Re-associated, the product never forms f.

    .. math::
        M = \tfrac1P \sum_j \phi_j g_j^\top, \quad y_i = M^\top \theta_i, \qquad
        \bar\theta_i = M \bar y_i, \quad \bar M = \sum_i \theta_i \bar y_i^\top, \quad
        \bar\phi_j = \tfrac1P \bar M g_j, \quad \bar g_j = \tfrac1P \bar M^\top \phi_j

    M is I x D, whatever the number of positions. Shapes as in :class:`NonLocalSoftmax`. Keeps theta, phi, g and M.
    """

    saved_for_backward = ("theta", "phi", "g", "m")

    def forward(self, theta, phi, g):
        self.shapes(theta, phi, g)
        self.theta, self.phi, self.g = self.fold(theta), self.fold(phi), self.fold(g)
        self.m = self.phi.swapaxes(1, 2) @ self.g
        self.m /= self.phi.shape[1]
        return self.unfold(self.theta @ self.m, theta.shape)

    def backward(self, gy):
        gy, keys = self.fold(gy), self.phi.shape[1]
        gtheta = gy @ self.m.swapaxes(1, 2)
        gm = self.theta.swapaxes(1, 2) @ gy
        gm /= keys
        gphi, gg = self.g @ gm.swapaxes(1, 2), self.phi @ gm
        return self.unfold_gradients(gtheta, gphi, gg)

    def weights(self, theta, phi, chosen):
        """Rows of f / P for chosen queries; weights may be negative and need not sum to 1."""
        return theta[:, chosen] @ phi.swapaxes(1, 2) / phi.shape[1]

    def infer(self, theta, phi, g):
        self.shapes(theta, phi, g)
        self.theta, self.phi, self.g = theta, phi, g
        shared = {"space": theta.shape[1], "time": theta.shape[2] * theta.shape[3], "spacetime": 1}[self.axes]
        self.m = meta_array((theta.shape[0] * shared, theta.shape[-1], g.shape[-1]), g.dtype)
        positions = math.prod(theta.shape[:4]) + math.prod(phi.shape[:4])
        self.multiply_adds = positions * theta.shape[-1] * g.shape[-1]
        return meta_array((*theta.shape[:4], g.shape[-1]), g.dtype)


class NonLocalConcat(_NonLocal):
    r"""Concatenation: :math:`f = \mathrm{ReLU}(w_f^\top[\theta_i, \phi_j])`, :math:`C(x) = P`.

    The product is a term of i plus a term of j, so f is the ReLU of an outer sum and no pair is concatenated:

    .. math::
        a_i = w_\theta^\top \theta_i, \quad b_j = w_\phi^\top \phi_j, \quad
        f_{ij} = \tfrac1P \max(a_i + b_j, 0), \quad y_i = \sum_j f_{ij} g_j,

        \bar g_j = \sum_i f_{ij} \bar y_i, \quad
        \bar s_{ij} = \tfrac1P\,[a_i + b_j > 0]\;\bar y_i^\top g_j, \quad
        \bar a_i = \sum_j \bar s_{ij}, \quad \bar b_j = \sum_i \bar s_{ij}

    Shapes: as in :class:`NonLocalSoftmax`, and weight (2I,), w_theta before w_phi. Keeps theta, phi, g, weight.
    """

    saved_for_backward = ("theta", "phi", "g", "weight")

    def forward(self, theta, phi, g, weight):
        self.shapes(theta, phi, g)
        self.theta, self.phi, self.g, self.weight = self.fold(theta), self.fold(phi), self.fold(g), weight
        y = self.xp.empty((*self.theta.shape[:2], g.shape[-1]), dtype=g.dtype)
        a, b_keys = self.halves(self.theta, self.phi)
        for b, i in self.blocks(self.theta, self.phi):
            y[b, i] = self.affinity(a[b, i], b_keys[b]) @ self.g[b]
        return self.unfold(y, theta.shape)

    def backward(self, gy):
        xp, gy, keys = self.xp, self.fold(gy), self.phi.shape[1]
        a, b_keys = self.halves(self.theta, self.phi)
        ga, gb, gg = xp.zeros_like(a), xp.zeros_like(b_keys), xp.zeros_like(self.g)
        for b, i in self.blocks(self.theta, self.phi):
            f = self.affinity(a[b, i], b_keys[b])
            gg[b] += f.swapaxes(1, 2) @ gy[b, i]
            gs = gy[b, i] @ self.g[b].swapaxes(1, 2)
            gs *= f > 0
            gs /= keys
            ga[b, i] = gs.sum(axis=2)
            gb[b] += gs.sum(axis=1)
        inner = self.theta.shape[-1]
        w_theta, w_phi = self.weight[:inner], self.weight[inner:]
        gtheta, gphi = ga[..., None] * w_theta, gb[..., None] * w_phi
        gweight = xp.concatenate([
            (self.theta * ga[..., None]).sum(axis=(0, 1)), (self.phi * gb[..., None]).sum(axis=(0, 1))
        ])  # fmt: skip
        return *self.unfold_gradients(gtheta, gphi, gg), gweight

    def halves(self, theta, phi):
        """a (B, L) and b (B, P)."""
        inner = theta.shape[-1]
        return theta @ self.weight[:inner], phi @ self.weight[inner:]

    def affinity(self, a, b):
        """f / P for a block of queries: (B, rows, P)."""
        f = a[:, :, None] + b[:, None, :]
        self.xp.maximum(f, 0, out=f)
        f /= b.shape[1]
        return f

    def weights(self, theta, phi, chosen):
        """Rows of f / P for chosen queries."""
        a, b = self.halves(theta, phi)
        return self.affinity(a[:, chosen], b)

    def infer(self, theta, phi, g, weight):
        self.shapes(theta, phi, g)
        self.theta, self.phi, self.g, self.weight = theta, phi, g, weight
        self.multiply_adds = self.pairs() * g.shape[-1] + (theta.size + phi.size)
        return meta_array((*theta.shape[:4], g.shape[-1]), g.dtype)
