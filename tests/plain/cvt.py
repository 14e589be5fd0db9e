"""CvT written plainly in torch, under the published names, to compare speeds with."""

import torch
import torch.nn.functional as F
from torch import nn

VARIANT = "cvt_13"
SIZES = {"cvt_13": ((64, 192, 384), (1, 2, 10), (1, 3, 6)), "cvt_21": ((64, 192, 384), (1, 4, 16), (1, 3, 6))}


class Conv(nn.Module):
    def __init__(self, dim, stride):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(dim, dim, 3, stride, 1, groups=dim, bias=False), nn.BatchNorm2d(dim)

    def forward(self, m):
        return self.bn(self.conv(m)).flatten(2).transpose(1, 2)


class Attention(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.heads, self.scale = heads, dim**-0.5
        self.conv_proj_q, self.conv_proj_k, self.conv_proj_v = Conv(dim, 1), Conv(dim, 2), Conv(dim, 2)
        self.proj_q, self.proj_k, self.proj_v, self.proj = (nn.Linear(dim, dim) for _ in range(4))

    def forward(self, x, h, w):
        b, n, c = x.shape
        token, m = x[:, : n - h * w], x[:, n - h * w :].transpose(1, 2).reshape(b, c, h, w)
        q, k, v = (
            linear(torch.cat([token, conv(m)], 1)).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for linear, conv in (
                (self.proj_q, self.conv_proj_q), (self.proj_k, self.conv_proj_k), (self.proj_v, self.conv_proj_v)
            )
        )  # fmt: skip
        return self.proj(F.scaled_dot_product_attention(q, k, v, scale=self.scale).transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, x):
        x = self.fc1(x)
        return self.fc2(x * torch.sigmoid(1.702 * x))


class Block(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(dim), Attention(dim, heads)
        self.norm2, self.mlp = nn.LayerNorm(dim), Mlp(dim)

    def forward(self, x, h, w):
        x = x + self.attn(self.norm1(x), h, w)
        return x + self.mlp(self.norm2(x))


class Embed(nn.Module):
    def __init__(self, dim, out, kernel, stride, padding):
        super().__init__()
        self.proj, self.norm = nn.Conv2d(dim, out, kernel, stride, padding), nn.LayerNorm(out)

    def forward(self, m):
        m = self.proj(m)
        return self.norm(m.flatten(2).transpose(1, 2)), m.shape[2:]


class Stage(nn.Module):
    def __init__(self, dim, out, depth, heads, conv, token):
        super().__init__()
        self.patch_embed = Embed(dim, out, *conv)
        self.blocks = nn.ModuleList(Block(out, heads) for _ in range(depth))
        self.cls_token = nn.Parameter(torch.randn(1, 1, out) * 0.02) if token else None

    def forward(self, m):
        x, (h, w) = self.patch_embed(m)
        if self.cls_token is not None:
            x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1)
        for block in self.blocks:
            x = block(x, h, w)
        return x if self.cls_token is not None else x.transpose(1, 2).reshape(len(x), -1, h, w)


class CvT(nn.Module):
    def __init__(self, dims, depths, heads):
        super().__init__()
        self.stage0 = Stage(3, dims[0], depths[0], heads[0], (7, 4, 2), False)
        self.stage1 = Stage(dims[0], dims[1], depths[1], heads[1], (3, 2, 1), False)
        self.stage2 = Stage(dims[1], dims[2], depths[2], heads[2], (3, 2, 1), True)
        self.norm, self.head = nn.LayerNorm(dims[2]), nn.Linear(dims[2], 1000)

    def forward(self, image):
        return self.head(self.norm(self.stage2(self.stage1(self.stage0(image)))[:, 0]))


def build(variant: str = VARIANT) -> nn.Module:
    """The network, with fresh weights."""
    return CvT(*SIZES[variant])
