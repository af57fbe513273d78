"""C2D, I3D and Slow as torch modules named as in SlowFast, pytorchvideo and mmaction2, written from the specification.

Nothing here knows models/. A network's ``state_dict`` is what these projects publish; ``forward`` is what they compute.
"""

import torch
from torch import nn
from torch.nn import functional as F

UNITS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
I3D = {2: (0, 1, 2), 3: (0, 2), 4: (0, 2, 4), 5: (1,)}
SLOW = {4: range(6), 5: range(3)}


class SlowFast:
    """Names: s2.pathway0_res0.branch2.a, .a_bn, .branch1, pathway0_nonlocal1.conv_theta."""

    stem = ("s1.pathway0_stem.conv", "s1.pathway0_stem.bn")
    head = "head.projection"

    def unit(self, s, i, letter):
        return f"s{s}.pathway0_res{i}.branch2.{letter}", f"s{s}.pathway0_res{i}.branch2.{letter}_bn"

    def shortcut(self, s, i):
        return f"s{s}.pathway0_res{i}.branch1", f"s{s}.pathway0_res{i}.branch1_bn"

    def part(self, s, i, letter):
        return f"s{s}.pathway0_nonlocal{i}." + ("bn" if letter == "bn" else f"conv_{letter}")


class PyTorchVideo:
    """Names: blocks.1.res_blocks.0.branch2.conv_a, .norm_a; a pool behind res2 is a block of its own."""

    stem = ("blocks.0.conv", "blocks.0.norm")

    def __init__(self, pooled):
        self.stage = {2: 1, 3: 3, 4: 4, 5: 5} if pooled else {2: 1, 3: 2, 4: 3, 5: 4}
        self.head = f"blocks.{self.stage[5] + 1}.proj"

    def unit(self, s, i, letter):
        block = f"blocks.{self.stage[s]}.res_blocks.{i}.branch2"
        return f"{block}.conv_{letter}", f"{block}.norm_{letter}"

    def shortcut(self, s, i):
        block = f"blocks.{self.stage[s]}.res_blocks.{i}"
        return f"{block}.branch1_conv", f"{block}.branch1_norm"


class MMAction2:
    """Names: backbone.layer1.0.conv1.conv, .bn, .downsample, .non_local_block.phi.0 (.0 with subsampling)."""

    stem = ("backbone.conv1.conv", "backbone.conv1.bn")
    head = "cls_head.fc_cls"

    def __init__(self, subsampled=True):
        self.subsampled = subsampled

    def unit(self, s, i, letter):
        block = f"backbone.layer{s - 1}.{i}.conv{'abc'.index(letter) + 1}"
        return f"{block}.conv", f"{block}.bn"

    def shortcut(self, s, i):
        return f"backbone.layer{s - 1}.{i}.downsample.conv", f"backbone.layer{s - 1}.{i}.downsample.bn"

    def part(self, s, i, letter):
        block = f"backbone.layer{s - 1}.{i}.non_local_block."
        if letter == "bn":
            return f"{block}conv_out.bn"
        if letter in ("phi", "g") and self.subsampled:
            return f"{block}{letter}.0.conv"
        return f"{block}{'conv_out' if letter == 'out' else letter}.conv"


class Network(nn.Module):
    """Clips (N, C, T, H, W) -> logits.

    Parameters
    ----------
    names : SlowFast, PyTorchVideo or MMAction2
    stem : (taps, stride of conv1, stride of pool1), along time
    padding, pool2 : int, bool
    inflated : dict of stage to blocks whose first convolution has three taps
    places : dict of stage to blocks that a non-local block follows
    kind, order, scale : of the non-local blocks; order "before", "after" or None
    out_bias : bool
    flat : bool
        2D convolutions and norms, frame by frame.
    """

    def __init__(
        self, names, stem=(1, 1, 1), padding=1, pool2=True, inflated=None, places=None, kind="embedded",
        order="before", scale=True, out_bias=True, flat=False, depth=50, width=4, classes=7,
    ):  # fmt: skip
        super().__init__()
        self.names, self.pool2, self.kind, self.order = names, pool2, kind, order
        self.scale, self.flat, self.depth, self.places = scale, flat, depth, places or {}
        inflated = inflated or {}
        taps, stride, self.pool1_stride = stem
        self.padding = padding
        self.put(names.stem, 3, width, (taps, 7, 7), (stride, 2, 2))
        channels = width
        for s, units in zip((2, 3, 4, 5), UNITS[depth], strict=True):
            inner = width * 2 ** (s - 2)
            for i in range(units):
                step = 2 if s > 2 and i == 0 else 1
                first = 3 if i in inflated.get(s, ()) else 1
                self.put(names.unit(s, i, "a"), channels, inner, (first, 1, 1))
                self.put(names.unit(s, i, "b"), inner, inner, (1, 3, 3), (1, step, step))
                self.put(names.unit(s, i, "c"), inner, 4 * inner, (1, 1, 1))
                if i == 0:
                    self.put(names.shortcut(s, i), channels, 4 * inner, (1, 1, 1), (1, step, step))
                channels = 4 * inner
                if i in self.places.get(s, ()):
                    self.put_block(s, i, channels, out_bias)
        self.add(names.head, nn.Linear(channels, classes))
        self.randomize()

    def add(self, path, module):
        """Add a module under a dotted path, with the plain modules above it."""
        *above, last = path.split(".")
        node = self
        for name in above:
            if not hasattr(node, name):
                node.add_module(name, nn.Module())
            node = getattr(node, name)
        node.add_module(last, module)

    def put(self, paths, channels, out, kernel, stride=(1, 1, 1)):
        padding = tuple(k // 2 for k in kernel)
        if self.flat:
            self.add(paths[0], nn.Conv2d(channels, out, kernel[1:], stride[1:], padding[1:], bias=False))
            self.add(paths[1], nn.BatchNorm2d(out))
        else:
            self.add(paths[0], nn.Conv3d(channels, out, kernel, stride, padding, bias=False))
            self.add(paths[1], nn.BatchNorm3d(out))

    def put_block(self, s, i, channels, out_bias):
        inner = channels // 2
        for letter in ("g",) if self.kind == "gaussian" else ("theta", "phi", "g"):
            self.add(self.names.part(s, i, letter), nn.Conv3d(channels, inner, 1))
        if self.kind == "concat":
            self.add(self.names.part(s, i, "concat_project"), nn.Conv2d(2 * inner, 1, 1, bias=False))
        self.add(self.names.part(s, i, "out"), nn.Conv3d(inner, channels, 1, bias=out_bias))
        self.add(self.names.part(s, i, "bn"), nn.BatchNorm3d(channels))

    def randomize(self):
        """Weights that keep the size of what passes, and statistics that are not the initial ones."""
        for name, tensor in self.state_dict().items():
            if name.endswith("num_batches_tracked"):
                continue
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 1.5)
            elif tensor.ndim > 1:
                tensor.normal_(0, (1.5 / tensor[0].numel()) ** 0.5)
            elif name.endswith("weight"):
                tensor.uniform_(0.3, 0.8)
            else:
                tensor.normal_(0, 0.1)

    def run(self, path, x):
        module = self.get_submodule(path)
        if isinstance(module, (nn.Conv2d, nn.BatchNorm2d)):
            n, _, t = x.shape[:3]
            return module(x.transpose(1, 2).flatten(0, 1)).unflatten(0, (n, t)).transpose(1, 2)
        return module(x)

    def conv_norm(self, paths, x):
        return self.run(paths[1], self.run(paths[0], x))

    def forward(self, x):
        x = F.relu(self.conv_norm(self.names.stem, x))
        x = F.max_pool3d(x, (1, 3, 3), (self.pool1_stride, 2, 2), (0, self.padding, self.padding))
        for s, units in zip((2, 3, 4, 5), UNITS[self.depth], strict=True):
            for i in range(units):
                y = F.relu(self.conv_norm(self.names.unit(s, i, "a"), x))
                y = F.relu(self.conv_norm(self.names.unit(s, i, "b"), y))
                y = self.conv_norm(self.names.unit(s, i, "c"), y)
                x = F.relu(y + (self.conv_norm(self.names.shortcut(s, i), x) if i == 0 else x))
                if i in self.places.get(s, ()):
                    x = x + self.non_local(s, i, x)
            if s == 2 and self.pool2:
                x = F.max_pool3d(x, (2, 1, 1))
        return self.run(self.names.head, x.mean((2, 3, 4)))

    def non_local(self, s, i, x):
        def part(letter, x):
            return self.run(self.names.part(s, i, letter), x)

        def pool(x):
            return F.max_pool3d(x, (1, 2, 2))

        keys = pool(x) if self.order == "before" else x
        g = part("g", keys)
        theta, phi = (x, keys) if self.kind == "gaussian" else (part("theta", x), part("phi", keys))
        if self.order == "after":
            phi, g = pool(phi), pool(g)
        theta, phi, g = (a.flatten(2) for a in (theta, phi, g))
        affinity = torch.einsum("nil,nip->nlp", theta, phi)
        if self.kind == "embedded" and self.scale:
            affinity = affinity / theta.shape[1] ** 0.5
        if self.kind == "concat":
            weight = self.get_submodule(self.names.part(s, i, "concat_project")).weight[0, :, 0, 0]
            a, b = (torch.einsum("i,nil->nl", w, m) for w, m in zip(weight.chunk(2), (theta, phi), strict=True))
            affinity = F.relu(a[:, :, None] + b[:, None, :])
        affinity = affinity / affinity.shape[2] if self.kind in ("dot", "concat") else affinity.softmax(2)
        y = torch.einsum("nlp,nip->nil", affinity, g).unflatten(2, x.shape[2:])
        return part("bn", part("out", y))
