"""iLLaMA written plainly (https://arxiv.org/abs/2404.06773), under the published names, with a causal mask."""

from math import ceil

import torch
import torch.nn.functional as F
from torch import Tensor, nn

VARIANT = "illama_tiny"
SIZES = {"tiny": (192, 12), "small": (384, 12), "base": (768, 12), "large": (1024, 24)}


class RMSNorm(nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        x32 = x.float()
        return (x32 * (x32.square().mean(-1, keepdim=True) + 1e-6).rsqrt()).to(x.dtype) * self.weight


class Attention(nn.Module):
    def __init__(self, dim: int, heads: int, length: int):
        super().__init__()
        self.heads, d = heads, dim // heads
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        angle = torch.arange(length)[:, None] / 10000 ** (torch.arange(0, d, 2) / d)
        self.register_buffer("cos", angle.cos().repeat_interleave(2, -1), persistent=False)  # N d
        self.register_buffer("sin", angle.sin().repeat_interleave(2, -1), persistent=False)
        self.register_buffer("mask", torch.ones(length, length).tril(), persistent=False)

    def turn(self, x: Tensor) -> Tensor:
        swapped = torch.stack([-x[..., 1::2], x[..., 0::2]], -1).flatten(-2)
        return x * self.cos + swapped * self.sin

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)  # B h N d
        score = self.turn(q) @ self.turn(k).transpose(-2, -1) * q.shape[-1] ** -0.5
        y = (score.softmax(-1) * self.mask) @ v
        return self.proj(y.transpose(1, 2).reshape(b, n, c))


class Mlp(nn.Module):
    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.fc1, self.fc3 = nn.Linear(dim, hidden, bias=False), nn.Linear(dim, hidden, bias=False)
        self.fc2 = nn.Linear(hidden, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.silu(self.fc1(x)) * self.fc3(x))


class Block(nn.Module):
    def __init__(self, dim: int, length: int):
        super().__init__()
        self.norm1, self.norm2 = RMSNorm(dim), RMSNorm(dim)
        self.attn, self.mlp = Attention(dim, dim // 64, length), Mlp(dim, 256 * ceil(int(8 * dim / 3) / 256))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class PatchEmbed(nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        self.proj = nn.Conv2d(3, dim, 16, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).flatten(2).transpose(1, 2)


class ILLaMA(nn.Module):
    def __init__(self, dim: int, depth: int, pixels: int):
        super().__init__()
        length = (pixels // 16) ** 2 + 1
        self.patch_embed, self.cls_token = PatchEmbed(dim), nn.Parameter(torch.randn(1, 1, dim) * 0.02)
        self.pos_embed = nn.Parameter(torch.randn(1, length, dim) * 0.02)
        self.blocks = nn.Sequential(*(Block(dim, length) for _ in range(depth)))
        self.norm, self.head = RMSNorm(dim), nn.Linear(dim, 1000)

    def forward(self, image: Tensor) -> Tensor:
        x = self.patch_embed(image)
        x = torch.cat([x, self.cls_token.expand(len(x), -1, -1)], 1) + self.pos_embed
        return self.head(self.norm(self.blocks(x)[:, -1]))


def build(variant: str = VARIANT) -> nn.Module:
    size = variant.split("_")[1]
    return ILLaMA(*SIZES[size], 384 if variant.endswith("384") else 224)
