"""SLAB's DeiT written plainly in torch, to compare speeds with."""

import torch
import torch.nn.functional as F
from torch import nn

VARIANT = "slab_deit_tiny"
SIZES = {"slab_deit_tiny": (192, 12, 3), "slab_deit_small": (384, 12, 6)}


class Norm(nn.Module):
    """A layer norm that has become a batch norm and a residual: the first half of its training is over."""

    def __init__(self, dim):
        super().__init__()
        self.norm1, self.bn, self.alpha = nn.LayerNorm(dim, eps=1e-6), nn.BatchNorm1d(dim), nn.Parameter(torch.ones(1))
        self.register_buffer("left", torch.tensor(60_000))

    def forward(self, x):
        y = self.bn(x.transpose(1, 2)).transpose(1, 2) + self.alpha * x
        if not self.training:
            return y
        share = self.left / 60_000
        self.left -= 1
        return share * self.norm1(x) + (1 - share) * y


class Attention(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.heads, self.qkv, self.proj = heads, nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.dwc = nn.Conv2d(dim // heads, dim // heads, 5, padding=2, groups=dim // heads)
        self.place = nn.Parameter(torch.zeros(1, 196, dim))

    def forward(self, x):
        b, n, c = x.shape
        q, k, v = self.qkv(x).chunk(3, -1)
        q, k, v = (t.view(b, n, self.heads, -1).transpose(1, 2) for t in (F.relu(q), F.relu(k + self.place), v))
        z = 1 / (q @ k.mean(2, keepdim=True).mT * n + 1e-6)
        y = q @ (k.mT @ v) * z
        m = v.transpose(2, 3).reshape(b * self.heads, -1, 14, 14)
        y = y.transpose(2, 3).reshape(m.shape) + self.dwc(m)
        return self.proj(y.reshape(b, c, n).transpose(1, 2))


class Block(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.norm1, self.norm2, self.attn = Norm(dim), Norm(dim), Attention(dim, heads)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Slab(nn.Module):
    def __init__(self, dim, depth, heads):
        super().__init__()
        self.patches, self.place = nn.Conv2d(3, dim, 16, 16), nn.Parameter(torch.zeros(1, 196, dim))
        self.blocks = nn.Sequential(*(Block(dim, heads) for _ in range(depth)))
        self.norm, self.head = Norm(dim), nn.Linear(dim, 1000)

    def forward(self, image):
        x = self.patches(image).flatten(2).transpose(1, 2) + self.place
        return self.head(self.norm(self.blocks(x)).mean(1))


def build(variant: str = VARIANT) -> nn.Module:
    """The network at 224 x 224, with fresh weights."""
    return Slab(*SIZES[variant])
