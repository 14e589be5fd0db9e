"""FaViT written plainly (https://arxiv.org/abs/2312.08614), under the published names."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

VARIANT = "favit_b0"
SIZES = {"favit_b0": (32, (2, 2, 6, 2)), "favit_b1": (64, (2, 2, 6, 2))}


class Separable(nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        self.depth_conv, self.point_conv = nn.Conv2d(dim, dim, 3, padding=1, groups=dim), nn.Conv2d(dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.point_conv(self.depth_conv(x))


class Attention(nn.Module):
    def __init__(self, dim: int, heads: int, reduction: int):
        super().__init__()
        self.heads = heads
        weights = (2, 7, 7) if reduction > 1 else (1, 7)
        unit = dim // sum(weights)
        self.wide, self.near = unit * weights[0], unit * 7
        self.dilations = (1, reduction)[: len(weights) - 1]
        d, e, rest = self.wide, self.near // heads, dim - self.wide
        self.q, self.kv_g, self.proj = nn.Linear(dim, dim), nn.Linear(d, 2 * d), nn.Linear(dim, dim)
        self.kv_l, self.sr, self.norm = Separable(rest), nn.Conv2d(d, d, reduction, reduction), nn.LayerNorm(d)
        self.local_conv_g = nn.Conv2d(d, d, 3, padding=1, groups=d)
        self.fcs = nn.ModuleList(nn.Linear(e, e) for _ in self.dilations)
        self.single_heads = nn.ModuleList(nn.Linear(e, 2 * e) for _ in self.dilations)
        self.local_convs = nn.ModuleList(
            nn.Conv2d(self.near, self.near, 3, padding=1, groups=self.near) for _ in self.dilations
        )

    def forward(self, x: Tensor, h: int, w: int) -> Tensor:
        b, n, _ = x.shape
        q, d = self.q(x), self.wide
        m = x.transpose(1, 2).reshape(b, -1, h, w)
        reduced = self.sr(m[:, :d])
        k, v = self.kv_g(self.norm(reduced.flatten(2).transpose(1, 2))).chunk(2, -1)
        v = v + self.local_conv_g(v.transpose(1, 2).reshape(reduced.shape)).flatten(2).transpose(1, 2)
        out = [F.scaled_dot_product_attention(q[:, None, :, :d], k[:, None], v[:, None])[:, 0]]
        queries = q[..., d:].reshape(b, n, self.heads, -1).transpose(1, 2)
        kv = self.kv_l(m[:, d:])
        for i, dilation in enumerate(self.dilations):
            e, span = self.near // self.heads, 6 * dilation + 1
            part = F.pad(kv[:, i * self.near : (i + 1) * self.near], (0, -w % span, 0, -h % span), mode="reflect")
            u = F.unfold(part, 7, dilation, 0, span).view(b, self.heads, e, 49, -1).permute(0, 1, 3, 4, 2)  # B h 49 L e
            keys = F.adaptive_avg_pool1d(u.reshape(b * self.heads, 49, -1), e).view(b, self.heads, 49, e)
            k, v = self.single_heads[i](self.fcs[i](keys)).chunk(2, -1)
            map_of_v = v.transpose(2, 3).reshape(b, -1, 7, 7)
            v = v + self.local_convs[i](map_of_v).view(b, self.heads, e, 49).transpose(2, 3)
            y = F.scaled_dot_product_attention(queries[..., i * e : (i + 1) * e], k, v)
            out.append(y.transpose(1, 2).reshape(b, n, -1))
        return self.proj(torch.cat(out, -1))


class Depthwise(nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        self.dwconv = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)

    def forward(self, x: Tensor, h: int, w: int) -> Tensor:
        return self.dwconv(x.transpose(1, 2).view(x.shape[0], -1, h, w)).flatten(2).transpose(1, 2)


class Mlp(nn.Module):
    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.fc1, self.dwconv, self.fc2 = nn.Linear(dim, hidden), Depthwise(hidden), nn.Linear(hidden, dim)

    def forward(self, x: Tensor, h: int, w: int) -> Tensor:
        return self.fc2(F.gelu(self.dwconv(self.fc1(x), h, w)))


class Block(nn.Module):
    def __init__(self, dim: int, heads: int, reduction: int, ratio: int):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(dim, eps=1e-6)
        self.attn, self.mlp = Attention(dim, heads, reduction), Mlp(dim, dim * ratio)

    def forward(self, x: Tensor, h: int, w: int) -> Tensor:
        x = x + self.attn(self.norm1(x), h, w)
        return x + self.mlp(self.norm2(x), h, w)


class PatchEmbed(nn.Module):
    def __init__(self, dim: int, out: int, size: int, stride: int):
        super().__init__()
        self.proj, self.norm = nn.Conv2d(dim, out, size, stride, size // 2), nn.LayerNorm(out)

    def forward(self, x: Tensor) -> tuple[Tensor, int, int]:
        x = self.proj(x)
        return self.norm(x.flatten(2).transpose(1, 2)), *x.shape[2:]


class FaViT(nn.Module):
    def __init__(self, dim: int, depths: tuple[int, ...]):
        super().__init__()
        past, rows = 3, zip(depths, (1, 2, 4, 8), (8, 4, 2, 1), (8, 6, 4, 4), strict=True)
        for i, (depth, heads, reduction, ratio) in enumerate(rows, 1):
            out = dim * 2 ** (i - 1)
            setattr(self, f"patch_embed{i}", PatchEmbed(past, out, 7 if i == 1 else 3, 4 if i == 1 else 2))
            setattr(self, f"block{i}", nn.ModuleList(Block(out, heads, reduction, ratio) for _ in range(depth)))
            setattr(self, f"norm{i}", nn.LayerNorm(out, eps=1e-6))
            past = out
        self.head = nn.Linear(past, 1000)

    def forward(self, x: Tensor) -> Tensor:
        for i in (1, 2, 3, 4):
            x, h, w = getattr(self, f"patch_embed{i}")(x)
            for block in getattr(self, f"block{i}"):
                x = block(x, h, w)
            x = getattr(self, f"norm{i}")(x)
            if i < 4:
                x = x.transpose(1, 2).reshape(x.shape[0], -1, h, w)
        return self.head(x.mean(1))


def build(variant: str = VARIANT) -> nn.Module:
    return FaViT(*SIZES[variant])
