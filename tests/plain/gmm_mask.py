"""Gaussian mixture masks on ViT and PiT, written plainly in torch with the authors' names, to compare speeds with."""

import torch
from torch import nn

VARIANT = "gmm_vit"


def distance(side):
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    y, x = y.flatten().float(), x.flatten().float()
    r2 = (y[:, None] - y).square() + (x[:, None] - x).square()
    return torch.exp(-r2).sqrt()[None, None]


class Mask(nn.Module):
    """Scores times the mixture; a class token in front, if there is one, is left alone."""

    def __init__(self, heads, table, kernels=5):
        super().__init__()
        self.sigma = nn.Parameter(10 + 10 * torch.randn(kernels, heads, 1, 1))
        self.alpha = nn.Parameter(2 * torch.randn(kernels, heads, 1, 1))
        self.mask = table

    def forward(self, scores):
        mask = (self.alpha * self.mask ** (1 / (self.sigma.square() + 1e-5))).sum(0)
        k = scores.shape[-1] - mask.shape[-1]
        return scores * (nn.functional.pad(mask, (k, 0, k, 0), value=1.0) if k else mask)


class PreNorm(nn.Module):
    def __init__(self, dim, fn):
        super().__init__()
        self.norm, self.fn = nn.LayerNorm(dim), fn

    def forward(self, x):
        return self.fn(self.norm(x))


class Attention(nn.Module):
    def __init__(self, dim, heads, table):
        super().__init__()
        self.heads, self.scale = heads, (dim // heads) ** -0.5
        self.to_qkv, self.to_out = (
            nn.Linear(dim, 3 * dim, bias=False),
            nn.Sequential(nn.Linear(dim, dim), nn.Dropout(0)),
        )
        self.mask = nn.Identity() if table is None else Mask(heads, table)

    def forward(self, x):
        b, n, c = x.shape
        q, k, v = self.to_qkv(x).view(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        weights = self.mask(q @ k.transpose(-1, -2) * self.scale).softmax(-1)
        return self.to_out((weights @ v).transpose(1, 2).reshape(b, n, c))


class FeedForward(nn.Module):
    def __init__(self, dim, hidden):
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(dim, hidden), nn.GELU(), nn.Dropout(0), nn.Linear(hidden, dim), nn.Dropout(0)
        )

    def forward(self, x):
        return self.net(x)


class Transformer(nn.Module):
    def __init__(self, dim, depth, heads, table):
        super().__init__()
        self.layers = nn.ModuleList(
            nn.ModuleList([PreNorm(dim, Attention(dim, heads, table)), PreNorm(dim, FeedForward(dim, 2 * dim))])
            for _ in range(depth)
        )

    def forward(self, x):
        for attention, mlp in self.layers:
            x = x + attention(x)
            x = x + mlp(x)
        return x


def frozen(side):
    return nn.Parameter(distance(side), requires_grad=False)


class ViT(nn.Module):
    def __init__(self, patch, masked, classes):
        super().__init__()
        self.patch = patch
        self.pos_embedding = nn.Parameter(0.02 * torch.randn(1, 64 + (not masked), 192))
        self.mask = frozen(8) if masked else None
        self.cls_token = None if masked else nn.Parameter(torch.randn(1, 1, 192))
        self.to_patch_embedding = nn.Sequential(nn.Identity(), nn.Linear(3 * patch * patch, 192))
        self.transformer = Transformer(192, 9, 12, self.mask)
        self.mlp_head = nn.Sequential(nn.LayerNorm(192), nn.Linear(192, classes))

    def forward(self, x):
        b, p = x.shape[0], self.patch
        x = x.view(b, 3, 8, p, 8, p).permute(0, 2, 4, 3, 5, 1).reshape(b, 64, -1)  # row, column, channel
        x = self.to_patch_embedding(x)
        if self.cls_token is not None:
            x = torch.cat([self.cls_token.expand(b, -1, -1), x], 1)
        x = self.transformer(x + self.pos_embedding)
        return self.mlp_head(x.mean(1) if self.cls_token is None else x[:, 0])


class Pool(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.downsample = nn.Module()
        self.downsample.net = nn.Sequential(
            nn.Conv2d(dim, 2 * dim, 3, 2, 1, groups=dim), nn.Conv2d(2 * dim, 2 * dim, 1)
        )
        self.cls_ff = nn.Linear(dim, 2 * dim)

    def forward(self, x):
        token, x = x[:, :1], x[:, 1:]
        side = round(x.shape[1] ** 0.5)
        x = self.downsample.net(x.transpose(1, 2).unflatten(2, (side, side)))
        return torch.cat([self.cls_ff(token), x.flatten(2).transpose(1, 2)], 1)


class PiT(nn.Module):
    def __init__(self, patch, masked, classes):
        super().__init__()
        self.to_patch_embedding = nn.Sequential(nn.Conv2d(3, 96, patch, patch))
        self.cls_token = nn.Parameter(0.02 * torch.randn(1, 1, 96))
        self.pos_embedding = nn.Parameter(0.02 * torch.randn(1, 257, 96))
        layers = []
        for i, (depth, heads) in enumerate(((2, 2), (6, 4), (4, 8))):
            layers += [Pool(48 * 2**i)] if i else []
            layers.append(Transformer(96 * 2**i, depth, heads, frozen(16 // 2**i) if masked else None))
        self.layers = nn.Sequential(*layers)
        self.mlp_head = nn.Sequential(nn.LayerNorm(384), nn.Linear(384, classes))

    def forward(self, x):
        x = self.to_patch_embedding(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], 1) + self.pos_embedding
        return self.mlp_head(self.layers(x)[:, 0])


def build(variant=VARIANT):
    _, name, *rest = variant.split("_")
    large, masked = "64" in rest, "plain" not in rest
    kind, patch = {"vit": (ViT, 4), "pit": (PiT, 2)}[name]
    return kind(patch * (2 if large else 1), masked, 200 if large else 100)
