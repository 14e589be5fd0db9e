"""SReT written plainly in torch, under the published names, to compare speeds with."""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn

VARIANT = "sret_t"
SHARED = (2, 5, 3)
SLICED, WHOLE = ((8, 4, 1), (2, 1, 1)), ((1, 1, 1), (1, 1, 1))
SIZES = {"sret_t": (32, (2, 4, 8), 3.6, 1, SLICED), "sret_s_wo_slice": (42, (3, 6, 12), 3, 2, WHOLE)}


class Scalar(nn.Module):
    def __init__(self):
        super().__init__()
        self.bias = nn.Parameter(torch.ones(1))

    def forward(self, x):
        return x * self.bias


class Mlp(nn.Module):
    def __init__(self, dim, hidden):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)

    def forward(self, x):
        return self.fc2(F.gelu(self.fc1(x)))


class Attention(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.heads, self.qkv, self.proj = heads, nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x, groups, shuffled):
        b, n, c = x.shape
        qkv = self.qkv(x)
        if shuffle := shuffled and groups > 1:
            order = torch.randperm(n) if self.training else 5 * torch.arange(n) % n
            qkv = qkv[:, order]
        q, k, v = qkv.view(b * groups, n // groups, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, c)
        return self.proj(y[:, order.argsort()] if shuffle else y)


class Block(nn.Module):
    def __init__(self, dim, heads, hidden):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(dim, eps=1e-6)
        self.attn, self.mlp = Attention(dim, heads), Mlp(dim, hidden)
        self.coefficient1, self.coefficient2, self.coefficient3, self.coefficient4 = (Scalar() for _ in range(4))

    def forward(self, x, groups, shuffled):
        x = self.coefficient1(x) + self.coefficient2(self.attn(self.norm1(x), groups, shuffled))
        return self.coefficient3(x) + self.coefficient4(self.mlp(self.norm2(x)))


class Own(nn.Module):
    def __init__(self, dim, hidden):
        super().__init__()
        self.norm1, self.mlp = nn.LayerNorm(dim, eps=1e-6), Mlp(dim, hidden)
        self.coefficient1, self.coefficient2 = Scalar(), Scalar()

    def forward(self, x):
        return self.coefficient1(x) + self.coefficient2(self.mlp(self.norm1(x)))


class Stage(nn.Module):
    def __init__(self, dim, heads, shared, ratio, own, groups):
        super().__init__()
        self.groups, self.blocks = groups, nn.ModuleList()
        for _ in range(shared):
            block = Block(dim, heads, int(dim * ratio))
            self.blocks.extend([block, Own(dim, int(dim * own)), block, Own(dim, int(dim * own))])

    def forward(self, m):
        x = m.flatten(2).transpose(1, 2)
        for i, block in enumerate(self.blocks):
            x = block(x) if i % 2 else block(x, self.groups[i % 4 // 2], i % 4 == 2)
        return x.transpose(1, 2).reshape(m.shape)


class Stem(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, dim // 2, 3, 2, 1), nn.BatchNorm2d(dim // 2)
        self.conv2, self.bn2 = nn.Conv2d(dim // 2, dim, 3, 2, 1), nn.BatchNorm2d(dim)
        self.conv3, self.bn3 = nn.Conv2d(dim, dim, 3, 2, 1), nn.BatchNorm2d(dim)

    def forward(self, x):
        for conv, norm in ((self.conv1, self.bn1), (self.conv2, self.bn2), (self.conv3, self.bn3)):
            x = F.relu(norm(conv(x)))
        return x


class Pool(nn.Module):
    def __init__(self, dim, out):
        super().__init__()
        self.conv = nn.Conv2d(dim, out, 3, 2, 1, groups=dim)

    def forward(self, m):
        return self.conv(m)


class SReT(nn.Module):
    def __init__(self, base, heads, ratio, own, slices):
        super().__init__()
        dims = [base * h for h in heads]
        self.patch_embed, self.pos_embed = Stem(dims[0]), nn.Parameter(torch.randn(1, dims[0], 28, 28) * 0.02)
        rows = zip(dims, heads, SHARED, strict=True)
        self.transformers = nn.ModuleList(
            Stage(d, h, r, ratio, own, (slices[0][i], slices[1][i])) for i, (d, h, r) in enumerate(rows)
        )
        self.pools = nn.ModuleList(Pool(a, b) for a, b in pairwise(dims))
        self.norm, self.head = nn.LayerNorm(dims[-1], eps=1e-6), nn.Linear(dims[-1], 1000)

    def forward(self, image):
        m = self.transformers[0](self.patch_embed(image) + self.pos_embed)
        for pool, stage in zip(self.pools, self.transformers[1:], strict=True):
            m = stage(pool(m))
        return self.head(self.norm(m.mean((2, 3))))


def build(variant: str = VARIANT) -> nn.Module:
    """The network at 224 x 224, with fresh weights."""
    return SReT(*SIZES[variant])
