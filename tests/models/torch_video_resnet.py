"""C2D and I3D in PyTorch, from the specification alone: names of the released Caffe2 files, channels first.

Nothing here knows models/. Weights are a dict under the names of the released files (``res4_2_branch2a_w``); which of
the residual blocks look along time, and where non-local blocks stand, is written out again.
"""

import torch
from torch.nn import functional as F

UNITS = {18: [2, 2, 2, 2], 34: [3, 4, 6, 3], 50: [3, 4, 6, 3], 101: [3, 4, 23, 3]}
INFLATED = {
    18: [[1, 1], [1, 0], [1, 0], [0, 1]],
    34: [[1, 1, 1], [1, 0, 1, 0], [1, 0, 1, 0, 1, 0], [0, 1, 0]],
    50: [[1, 1, 1], [1, 0, 1, 0], [1, 0, 1, 0, 1, 0], [0, 1, 0]],
    101: [[1, 1, 1], [1, 0, 1, 0], [1, 0] * 11 + [1], [0, 1, 0]],
}
PLAIN = {depth: [[0] * n for n in units] for depth, units in UNITS.items()}


def behind(depth, number):
    """{(stage, unit)} that a non-local block follows."""
    if number == 1:
        return {(4, UNITS[depth][2] - 2)}
    if number == 5:  # the released rule: unit % m == m - 1
        m = {3: 2, 4: 2 if depth < 101 else 7}
        return {(s, i) for s in (3, 4) for i in range(UNITS[depth][s - 2]) if i % m[s] == m[s] - 1}
    if number == 10:
        res4 = [2, 6, 10, 14, 18, 22] if depth == 101 else range(6)
        return {(3, i) for i in range(4)} | {(4, i) for i in res4}
    return set()


class Network:
    """Runs a clip (N, C, T, H, W) with weights `p`.

    Parameters
    ----------
    depth, i3d : int, one of None, "3x1x1", "3x3x3"
    stem : (stride of conv1, window of pool1, stride of pool1), along time
    pool1_padding, pool2 : int, bool
    number : 0, 1, 5, 10, or a set of (stage, unit)
    kind, order, scale, axes : of the non-local blocks
    chunks : {stage: frames}
    affine, training : bool
    """

    def __init__(
        self, p, depth=50, i3d=None, stem=(2, 2, 2), pool1_padding=0, pool2=True, number=0, kind="embedded",
        order="before", scale=True, axes="spacetime", chunks=None, affine=False, training=False, inflated=None,
    ):  # fmt: skip
        self.p, self.depth, self.i3d, self.stem = p, depth, i3d, stem
        self.pool1_padding, self.pool2, self.kind, self.order = pool1_padding, pool2, kind, order
        self.scale, self.axes, self.chunks, self.affine, self.training = scale, axes, chunks or {}, affine, training
        self.places = number if isinstance(number, set) else behind(depth, number)
        self.inflated = inflated or (INFLATED if i3d else PLAIN)[depth]
        self.moved = {}  # running statistics after the pass

    def features(self, x):
        conv1_stride, window, pool1_stride = self.stem
        taps = self.p["conv1_w"].shape[2]
        x = F.conv3d(x, self.p["conv1_w"], stride=(conv1_stride, 2, 2), padding=(taps // 2, 3, 3))
        x = F.relu(self.norm(x, "res_conv1_bn"))
        x = F.max_pool3d(x, (window, 3, 3), (pool1_stride, 2, 2), (0, self.pool1_padding, self.pool1_padding))
        for stage, units in zip((2, 3, 4, 5), UNITS[self.depth], strict=True):
            for unit in range(units):
                stride = 2 if unit == 0 and stage > 2 else 1
                x = self.unit(x, f"res{stage}_{unit}", stride, self.inflated[stage - 2][unit])
                if (stage, unit) in self.places:
                    x = self.non_local(x, f"nonlocal_conv{stage}_{unit}", self.chunks.get(stage))
            if stage == 2 and self.pool2:
                x = F.max_pool3d(x, (2, 1, 1), (2, 1, 1))
        return x

    def logits(self, x):
        x = self.features(x).mean((2, 3, 4))
        return x @ self.p["pred_w"].T + self.p["pred_b"]

    def fully_convolutional(self, x):
        """Softmax at each position of a 7 x 7 window, and their mean."""
        x = self.features(x)
        x = F.avg_pool3d(x, (x.shape[2], 7, 7), stride=1)
        x = F.conv3d(x, self.p["pred_w"][:, :, None, None, None], self.p["pred_b"])
        return torch.softmax(x, 1).mean((2, 3, 4))

    def unit(self, x, name, stride, inflated):
        shortcut = x
        if f"{name}_branch1_w" in self.p:
            shortcut = F.conv3d(x, self.p[f"{name}_branch1_w"], stride=(1, stride, stride))
            shortcut = self.norm(shortcut, f"{name}_branch1_bn")
        if self.depth < 50:  # two convolutions, the stride and the taps along time in the first
            kernels = {"a": (3 if inflated else 1, 3), "b": (1, 3)}
            strided = "a"
        else:
            kernels = {"a": (1, 1), "b": (1, 3), "c": (1, 1)}
            if inflated:
                kernels |= {"3x1x1": {"a": (3, 1)}, "3x3x3": {"b": (3, 3)}}[self.i3d]
            strided = "b"
        for letter, (time, space) in kernels.items():
            weight = self.p[f"{name}_branch2{letter}_w"]
            assert weight.shape[2:] == (time, space, space), f"{name}_branch2{letter}_w is {tuple(weight.shape)}"
            s = stride if letter == strided else 1
            x = F.conv3d(x, weight, stride=(1, s, s), padding=(time // 2, space // 2, space // 2))
            x = self.norm(x, f"{name}_branch2{letter}_bn")
            if letter != list(kernels)[-1]:
                x = F.relu(x)
        return F.relu(x + shortcut)

    def norm(self, x, name):
        scale, shift = self.p[f"{name}_s"], self.p[f"{name}_b"]
        if self.affine:
            return x * scale[:, None, None, None] + shift[:, None, None, None]
        mean, var = self.p[f"{name}_rm"].clone(), self.p[f"{name}_riv"].clone()
        self.moved |= {f"{name}_rm": mean, f"{name}_riv": var}
        return F.batch_norm(x, mean, var, scale, shift, self.training, 0.1, 1e-5)

    def non_local(self, x, name, chunk):
        """x + norm(W_z y). The affinity is made as a whole; keys that are not seen are taken out of it."""
        theta, phi, g = self.embed(x, name)
        (t, h, w), (tk, hk, wk) = theta.shape[2:], phi.shape[2:]
        lists = [a.flatten(2).transpose(1, 2) for a in (theta, phi, g)]  # (N, L, I), (N, P, I), (N, P, I)
        time, row, column = torch.meshgrid(torch.arange(t), torch.arange(h), torch.arange(w), indexing="ij")
        key_time, key_row, key_column = torch.meshgrid(
            torch.arange(tk), torch.arange(hk), torch.arange(wk), indexing="ij"
        )
        same_frame = time.reshape(-1, 1) == key_time.reshape(1, -1)
        seen = torch.ones_like(same_frame)
        if self.axes == "space":
            seen = same_frame
        if self.axes == "time":
            seen = (row.reshape(-1, 1) == key_row.reshape(1, -1)) & (column.reshape(-1, 1) == key_column.reshape(1, -1))
        if chunk:
            seen = seen & (time.reshape(-1, 1) // chunk == key_time.reshape(1, -1) // chunk)
        y = self.affinity(*lists[:2], seen, name) @ lists[2]
        y = y.transpose(1, 2).unflatten(2, (t, h, w))
        y = F.conv3d(y, self.p[f"{name}_out_w"], self.p[f"{name}_out_b"])
        return x + (y if self.affine else self.norm(y, f"{name}_bn"))

    def embed(self, x, name):
        def pointwise(letter, x):
            return F.conv3d(x, self.p[f"{name}_{letter}_w"], self.p[f"{name}_{letter}_b"])

        def pool(x):
            return F.max_pool3d(x, (1, 2, 2), (1, 2, 2))

        keys = pool(x) if self.order == "before" else x
        if self.kind == "gaussian":
            theta, phi = x, keys
        else:
            theta, phi = pointwise("theta", x), pointwise("phi", keys)
        g = pointwise("g", keys)
        if self.order == "after":
            phi, g = pool(phi), pool(g)
        return theta, phi, g

    def affinity(self, theta, phi, seen, name):
        """f / C(x), zero where a key is not seen: (N, L, P)."""
        if self.kind in ("gaussian", "embedded"):
            logits = theta @ phi.transpose(1, 2)
            if self.kind == "embedded" and self.scale:
                logits = logits * theta.shape[2] ** -0.5
            return torch.softmax(logits.masked_fill(~seen, -torch.inf), 2)
        if self.kind == "dot":
            f = theta @ phi.transpose(1, 2)
        else:
            n, (queries, keys) = len(theta), seen.shape
            pairs = [theta[:, :, None].expand(n, queries, keys, -1), phi[:, None].expand(n, queries, keys, -1)]
            f = F.relu(torch.cat(pairs, 3) @ self.p[f"{name}_wf"])
        return f * seen / seen.sum(1, keepdim=True)


def blob(name):
    """Our name of an array -> that of the released files."""
    parts = name.split(".")
    last = {"weight": "w", "bias": "b"}
    bn = {"weight": "bn_s", "bias": "bn_b", "running_mean": "bn_rm", "running_var": "bn_riv"}
    if parts[0] == "head":
        return f"pred_{last[parts[-1]]}"
    if parts[0] == "conv1":
        return "conv1_w" if parts[1] == "conv" else f"res_conv1_{bn[parts[2]]}"
    stage, unit, *rest = parts
    if unit.startswith("nonlocal"):
        prefix = f"nonlocal_conv{stage[3:]}_{unit.removeprefix('nonlocal')}"
        if rest == ["w_f"]:
            return f"{prefix}_wf"
        if rest[0] == "norm":
            return f"{prefix}_{bn[rest[1]]}"
        letter = "out" if rest[0] == "W_z" else rest[0]
        return f"{prefix}_{letter}_{last[rest[1]]}"
    prefix = f"{stage}_{unit.removeprefix('res')}_branch"
    prefix += "1" if rest[0] == "shortcut" else f"2{rest[1]}"
    return f"{prefix}_w" if rest[-2] == "conv" else f"{prefix}_{bn[rest[-1]]}"


def released(state, requires_grad=False):
    """A state of ours, or gradients by the same names, as the dict of tensors that Network takes."""
    found = {}
    for name, array in state.items():
        order = {5: (4, 3, 0, 1, 2), 2: (1, 0)}.get(array.ndim, (0,))
        found[blob(name)] = torch.tensor(array.transpose(order).copy())
    if len(found) != len(state):
        raise LookupError("two names became one")
    if requires_grad:
        for name, tensor in found.items():
            tensor.requires_grad_(not name.endswith(("_rm", "_riv")))
    return found
