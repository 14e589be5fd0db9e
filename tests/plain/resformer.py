"""ResFormer written plainly (https://arxiv.org/abs/2212.00776), under the published names."""

from math import pi

import torch
import torch.nn.functional as F
from torch import Tensor, nn

VARIANT = "resformer_tiny_patch16"
SIZES = {"tiny": (192, 3), "small": (384, 6), "base": (768, 12)}


class Attention(nn.Module):
    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads, d = heads, dim // heads
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.get_v = nn.Conv2d(d, d, 3, padding=1, groups=d)

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)  # B h N d
        side = int((n - 1) ** 0.5)
        m = v[:, :, 1:].transpose(-2, -1).reshape(b * self.heads, -1, side, side)
        place = self.get_v(m).view(b, self.heads, -1, n - 1).transpose(-2, -1)
        y = F.scaled_dot_product_attention(q, k, v) + F.pad(place, (0, 0, 1, 0))
        return self.proj(y.transpose(1, 2).reshape(b, n, c))


class Mlp(nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(dim, eps=1e-6)
        self.attn, self.mlp = Attention(dim, heads), Mlp(dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class PatchEmbed(nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        self.proj = nn.Conv2d(3, dim, 16, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).flatten(2).transpose(1, 2)


class Position(nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        self.dim, self.embed_layer = dim, nn.Conv2d(dim, dim, 3, padding=1, groups=dim)

    def forward(self, n: int) -> Tensor:
        half = self.dim // 2
        k = torch.arange(half, device=self.embed_layer.weight.device)
        angle = 2 * pi * (torch.arange(n, device=k.device) + 1)[:, None] / (n + 1e-6) / 10000 ** (2 * (k // 2) / half)
        code = torch.stack([angle[:, 0::2].sin(), angle[:, 1::2].cos()], -1).flatten(1)  # n D
        grid = torch.cat([code[:, None].expand(n, n, half), code[None].expand(n, n, half)], -1)
        return self.embed_layer(grid.permute(2, 0, 1)[None]).flatten(2).transpose(1, 2)


class ResFormer(nn.Module):
    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.patch_embed, self.pos_embed = PatchEmbed(dim), Position(dim)
        self.cls_token = nn.Parameter(torch.randn(1, 1, dim) * 0.02)
        self.blocks = nn.Sequential(*(Block(dim, heads) for _ in range(12)))
        self.norm, self.head = nn.LayerNorm(dim, eps=1e-6), nn.Linear(dim, 1000)

    def forward(self, image: Tensor) -> Tensor:
        x = self.patch_embed(image)
        x = x + self.pos_embed(int(x.shape[1] ** 0.5))
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1)
        return self.head(self.norm(self.blocks(x))[:, 0])


def build(variant: str = VARIANT) -> nn.Module:
    return ResFormer(*SIZES[variant.split("_")[1]])
