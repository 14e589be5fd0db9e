"""ViT-ResNAS written plainly in torch, under the published names, to compare speeds with."""

import torch
import torch.nn.functional as F
from torch import nn

VARIANT = "vit_resnas_tiny"
TINY = (  # width, head width, (heads, hidden) of each block
    (176, 32, ((3, 704), (3, 576), (3, 640), (4, 576), (4, 704))),
    (352, 48, ((10, 1408), (8, 1408), (8, 1280), (8, 1408), (10, 1280), (10, 1024))),
    (704, 64, ((10, 2560), (10, 1792), (10, 2816), (8, 2816), (8, 2560))),
)


class ConvNorm(nn.Module):
    def __init__(self, dim, out, stride=1):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(dim, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out)

    def forward(self, x):
        return F.relu(self.bn(self.conv(x)))


class Stem(nn.Module):
    def __init__(self, dim, middle=24):
        super().__init__()
        self.conv1, self.conv2, self.conv3 = ConvNorm(3, middle, 2), ConvNorm(middle, middle), ConvNorm(middle, middle)
        self.conv_proj = nn.Conv2d(middle, dim, 7, 7)

    def forward(self, x):
        x = self.conv1(x)
        return self.conv_proj(self.conv3(self.conv2(x)) + x)


class Attention(nn.Module):
    def __init__(self, dim, heads, width):
        super().__init__()
        self.heads, self.qkv, self.proj = heads, nn.Linear(dim, 3 * heads * width), nn.Linear(heads * width, dim)

    def forward(self, x):
        b, n, _ = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, -1))


class Mlp(nn.Module):
    def __init__(self, dim, hidden):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)

    def forward(self, x):
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    def __init__(self, dim, heads, width, hidden):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(dim, eps=1e-6)
        self.attn, self.mlp = Attention(dim, heads, width), Mlp(dim, hidden)

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Reduce(nn.Module):
    def __init__(self, dim, out, side):
        super().__init__()
        self.side, self.more = side, out - dim
        self.pos_embed = nn.Parameter(torch.randn(1, (side // 2) ** 2, out) * 0.02)
        self.norm, self.patch_reduce = nn.LayerNorm(dim, eps=1e-6), nn.Conv2d(dim, out, 3, 2, 1)
        self.token_transform = nn.Linear(dim, out)

    def grid(self, x):
        return x.transpose(1, 2).unflatten(2, (self.side, self.side))

    def forward(self, x):
        y = self.norm(x)
        patches = self.patch_reduce(self.grid(y[:, 1:])).flatten(2).transpose(1, 2) + self.pos_embed
        pooled = F.avg_pool2d(self.grid(x[:, 1:]), 2).flatten(2).transpose(1, 2)
        new = torch.cat([self.token_transform(y[:, :1]), patches], 1)
        return new + F.pad(torch.cat([x[:, :1], pooled], 1), (0, self.more))


class ViTResNAS(nn.Module):
    def __init__(self, stages):
        super().__init__()
        dim, side, blocks = stages[0][0], 16, []
        self.patch_embed, self.tokens = Stem(dim), nn.Parameter(torch.randn(1, 1, dim) * 0.02)
        self.pos_embed = nn.Parameter(torch.randn(1, 1 + side * side, dim) * 0.02)
        for out, width, rows in stages:
            if blocks:
                blocks.append(Reduce(dim, out, side))
                dim, side = out, side // 2
            blocks += [Block(dim, heads, width, hidden) for heads, hidden in rows]
        self.blocks = nn.Sequential(*blocks)
        self.norm, self.cls_head = nn.LayerNorm(dim, eps=1e-6), nn.Linear(dim, 1000)
        self.patch_head = nn.Linear(dim, 1000)

    def forward(self, image):
        x = self.patch_embed(image).flatten(2).transpose(1, 2)
        x = torch.cat([self.tokens.expand(len(x), -1, -1), x], 1) + self.pos_embed
        return self.cls_head(self.norm(self.blocks(x)[:, 0]))


def build(variant: str = VARIANT) -> nn.Module:
    """The network at 224 x 224, with fresh weights."""
    return ViTResNAS({"vit_resnas_tiny": TINY}[variant])
