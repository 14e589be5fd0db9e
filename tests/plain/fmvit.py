"""`fmvit_own` written plainly in torch, under our names (there are none of the authors'), to compare speeds."""

import torch
import torch.nn.functional as F
from torch import nn

VARIANT = "fmvit_own"
DIMS, DEPTHS, LOW, REDUCTION = (64, 128, 256, 512), (3, 4, 8, 3), (0, 0.25, 0.5, 0.75), (0, 4, 2, 1)


class ConvNorm(nn.Module):
    def __init__(self, dim, out, kernel, stride=1, groups=1, bias=False):
        super().__init__()
        self.conv = nn.Conv2d(dim, out, kernel, stride, kernel // 2, groups=groups, bias=bias)
        self.norm = nn.BatchNorm2d(out)

    def forward(self, m):
        return self.norm(self.conv(m))


class Branches(nn.Module):
    def __init__(self, dim, out, convolutions):
        super().__init__()
        self.branches = nn.ModuleList(ConvNorm(dim, out, k, groups=g) for k, g in convolutions)
        self.identity = nn.BatchNorm2d(dim) if dim == out else None
        for m in self.modules():
            if isinstance(m, nn.BatchNorm2d):
                nn.init.constant_(m.weight, (len(convolutions) + (dim == out)) ** -0.5)

    def forward(self, m):
        y = sum(branch(m) for branch in self.branches)
        return y if self.identity is None else y + self.identity(m)


def pointwise(dim, out):
    return Branches(dim, out, [(1, 1), (1, 2), (1, 4)])


def local(dim):
    return Branches(dim, dim, [(3, dim // 32), (3, dim), (1, dim // 32)])


class Convolutional(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.conv, self.fc = local(dim), pointwise(dim, dim)

    def forward(self, m):
        return self.fc(F.relu(self.conv(m)))


class Attention(nn.Module):
    def __init__(self, dim, reduction):
        super().__init__()
        self.reduction = reduction
        self.q, self.kv, self.proj = pointwise(dim, dim), pointwise(dim, 2 * dim), pointwise(dim, dim)

    def forward(self, m):
        n = F.avg_pool2d(m, self.reduction, ceil_mode=True, count_include_pad=False)
        q, k, v = (x.flatten(2).unflatten(1, (-1, 32)).mT for x in (self.q(m), *self.kv(n).chunk(2, 1)))
        return self.proj(F.scaled_dot_product_attention(q, k, v).mT.reshape(m.shape))


class Frequencies(nn.Module):
    def __init__(self, dim, share, reduction):
        super().__init__()
        low = int(dim * share)
        self.low, self.high = pointwise(dim, low), pointwise(dim, dim - low)
        self.attention, self.conv, self.fc = Attention(low, reduction), local(dim - low), pointwise(dim, dim)

    def forward(self, m):
        low, high = self.low(m), self.high(m)
        return self.fc(torch.cat([low + self.attention(low), high + self.conv(high)], 1))


class Mlp(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.fc1, self.fc2 = pointwise(dim, 3 * dim), pointwise(3 * dim, dim)

    def forward(self, m):
        return self.fc2(F.relu(self.fc1(m)))


class Block(nn.Module):
    def __init__(self, dim, mixer):
        super().__init__()
        self.mixer, self.ffn = mixer, Mlp(dim)

    def forward(self, m):
        m = m + self.mixer(m)
        return m + self.ffn(m)


class Stage(nn.Module):
    def __init__(self, i):
        super().__init__()
        dim, n = DIMS[i], DEPTHS[i]
        self.down = nn.Module()
        if i:
            self.down.convolution = ConvNorm(DIMS[i - 1], dim, 3, 2, bias=True)
        mixers = [Frequencies(dim, LOW[i], REDUCTION[i]) if i and j == n - 1 else Convolutional(dim) for j in range(n)]
        self.blocks = nn.ModuleList(Block(dim, mixer) for mixer in mixers)

    def forward(self, m):
        m = self.down.convolution(m) if hasattr(self.down, "convolution") else m
        for block in self.blocks:
            m = block(m)
        return m


class FMViT(nn.Module):
    def __init__(self):
        super().__init__()
        widths, self.backbone = (3, 64, 32, 64), nn.Module()
        self.backbone.stem = nn.Module()
        self.backbone.stem.layers = nn.ModuleList(
            ConvNorm(widths[i], widths[i + 1], 3, s, bias=True) for i, s in enumerate((2, 1, 2))
        )
        self.backbone.stages = nn.ModuleList(Stage(i) for i in range(4))
        self.norm, self.head = nn.BatchNorm2d(DIMS[-1]), nn.Linear(DIMS[-1], 1000)

    def forward(self, image):
        first, second, third = self.backbone.stem.layers
        m = F.relu(third(F.relu(second(F.relu(first(image))))))
        for stage in self.backbone.stages:
            m = stage(m)
        return self.head(self.norm(m).mean((2, 3)))


def build(variant: str = VARIANT) -> nn.Module:
    """The network, with fresh weights."""
    assert variant == VARIANT
    return FMViT()
