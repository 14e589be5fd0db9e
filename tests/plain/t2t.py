"""T2T-ViT written plainly in torch, to compare speeds with."""

import torch
import torch.nn.functional as F
from torch import nn

VARIANT = "t2t_vit_7"
SIZES = {"t2t_vit_7": (256, 7, 4, 2), "t2t_vit_14": (384, 14, 6, 3), "t2t_vit_t_14": (384, 14, 6, 3)}


def mlp(dim, hidden, drop=0.0):
    return nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim), nn.Dropout(drop))


class PerformerLayer(nn.Module):
    def __init__(self, dim, width=64):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(width)
        self.kqv, self.proj, self.drop = nn.Linear(dim, 3 * width), nn.Linear(width, width), nn.Dropout(0.1)
        self.mlp = mlp(width, width, 0.1)
        self.w = nn.Parameter(torch.randn(width // 2, width), requires_grad=False)

    def features(self, x):
        return torch.exp(x @ self.w.T - x.square().sum(-1, keepdim=True) / 2) / self.w.shape[0] ** 0.5

    def forward(self, x):
        k, q, v = self.kqv(self.norm1(x)).chunk(3, -1)
        k, q = self.features(k), self.features(q)
        total = (q * k.sum(1, keepdim=True)).sum(-1, keepdim=True)
        y = q @ (k.transpose(1, 2) @ v) / (total + 1e-8)
        x = v + self.drop(self.proj(y))
        return x + self.mlp(self.norm2(x))


class TransformerLayer(nn.Module):
    def __init__(self, dim, width=64):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(dim, 3 * width, bias=False), nn.Linear(width, width)
        self.mlp, self.scale = mlp(width, width), dim**-0.5

    def forward(self, x):
        q, k, v = self.qkv(self.norm1(x)).chunk(3, -1)
        x = v + self.proj(F.scaled_dot_product_attention(q, k, v, scale=self.scale))
        return x + self.mlp(self.norm2(x))


class Block(nn.Module):
    def __init__(self, dim, heads, ratio):
        super().__init__()
        self.norm1, self.norm2, self.heads = nn.LayerNorm(dim), nn.LayerNorm(dim), heads
        self.qkv, self.proj = nn.Linear(dim, 3 * dim, bias=False), nn.Linear(dim, dim)
        self.mlp = mlp(dim, dim * ratio)

    def forward(self, x):
        b, n, c = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        x = x + self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, c))
        return x + self.mlp(self.norm2(x))


class T2T(nn.Module):
    def __init__(self, layer, dim, depth, heads, ratio):
        super().__init__()
        self.layer1, self.layer2 = layer(147), layer(576)
        self.project = nn.Linear(576, dim)
        self.token = nn.Parameter(torch.zeros(1, 1, dim))
        self.register_buffer("place", torch.zeros(1, 197, dim))
        self.blocks = nn.Sequential(*(Block(dim, heads, ratio) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(dim), nn.Linear(dim, 1000)

    def forward(self, image):
        x = F.unfold(image, 7, stride=4, padding=2).transpose(1, 2)
        for layer, side in ((self.layer1, 56), (self.layer2, 28)):
            m = layer(x).transpose(1, 2).unflatten(2, (side, side))
            x = F.unfold(m, 3, stride=2, padding=1).transpose(1, 2)
        x = self.project(x)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.place
        return self.head(self.norm(self.blocks(x))[:, 0])


def build(variant: str = VARIANT) -> nn.Module:
    """The network at 224 x 224, with fresh weights."""
    return T2T(TransformerLayer if "_t_" in variant else PerformerLayer, *SIZES[variant])
