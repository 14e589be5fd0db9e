"""RMT written plainly (https://arxiv.org/abs/2309.11523), under the published names."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

VARIANT = "rmt_tiny"
SIZES = {  # widths, depths, heads, ranges, ratios, decomposed stages
    "rmt_tiny": ((64, 128, 256, 512), (2, 2, 8, 2), (4, 4, 8, 16), (4, 4, 6, 6), (3, 3, 3, 3), 2),
    "rmt_small": ((64, 128, 256, 512), (3, 4, 18, 4), (4, 4, 8, 16), (4, 4, 6, 6), (4, 4, 3, 3), 3),
}


class Depthwise(nn.Module):
    def __init__(self, dim: int, size: int):
        super().__init__()
        self.conv = nn.Conv2d(dim, dim, size, padding=size // 2, groups=dim)

    def forward(self, x: Tensor) -> Tensor:  # B H W C
        return self.conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class RelPos(nn.Module):
    def __init__(self, dim: int, heads: int, span: int):
        super().__init__()
        angle = 1.0 / 10000 ** torch.linspace(0, 1, dim // heads // 2)
        self.register_buffer("angle", angle.repeat_interleave(2))
        self.register_buffer("decay", torch.log(1 - 2 ** -(2 + span * torch.arange(heads).float() / heads)))

    def forward(self, h: int, w: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        angle = torch.arange(h * w)[:, None] * self.angle
        rows, columns = ((torch.arange(n)[:, None] - torch.arange(n)).abs() * self.decay[:, None, None] for n in (h, w))
        return angle.sin().view(h, w, -1), angle.cos().view(h, w, -1), rows, columns


def turned(x: Tensor, sin: Tensor, cos: Tensor) -> Tensor:
    return x * cos + torch.stack([-x[..., 1::2], x[..., ::2]], -1).flatten(-2) * sin


class Retention(nn.Module):
    def __init__(self, dim: int, heads: int, decomposed: bool):
        super().__init__()
        self.heads, self.decomposed = heads, decomposed
        self.q_proj, self.k_proj, self.v_proj = nn.Linear(dim, dim), nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.out_proj, self.lepe = nn.Linear(dim, dim), Depthwise(dim, 5)

    def forward(self, x: Tensor, pos: tuple[Tensor, Tensor, Tensor, Tensor]) -> Tensor:
        b, h, w, c = x.shape
        sin, cos, rows, columns = pos
        q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        local = self.lepe(v)
        q, k, v = (t.view(b, h, w, self.heads, -1).permute(0, 3, 1, 2, 4) for t in (q, k, v))  # B n H W d
        q, k = turned(q, sin, cos), turned(k, sin, cos)
        if self.decomposed:
            q, k, v = (t.transpose(1, 2) for t in (q, k, v))  # B H n W d
            v = F.scaled_dot_product_attention(q, k, v, columns)
            q, k, v = (t.permute(0, 3, 2, 1, 4) for t in (q, k, v))  # B W n H d
            y = F.scaled_dot_product_attention(q, k, v, rows).permute(0, 3, 1, 2, 4)
        else:
            mask = (rows[:, :, None, :, None] + columns[:, None, :, None]).reshape(self.heads, h * w, h * w)
            y = F.scaled_dot_product_attention(q.flatten(2, 3), k.flatten(2, 3), v.flatten(2, 3), mask).transpose(1, 2)
        return self.out_proj(y.reshape(b, h, w, c) + local)


class FeedForward(nn.Module):
    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.fc1, self.fc2, self.dwconv = nn.Linear(dim, hidden), nn.Linear(hidden, dim), Depthwise(hidden, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.fc1(x))
        return self.fc2(x + self.dwconv(x))


class Block(nn.Module):
    def __init__(self, dim: int, heads: int, ratio: int, decomposed: bool):
        super().__init__()
        self.retention_layer_norm, self.final_layer_norm = nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(dim, eps=1e-6)
        self.retention, self.ffn = Retention(dim, heads, decomposed), FeedForward(dim, ratio * dim)
        self.pos = Depthwise(dim, 3)

    def forward(self, x: Tensor, pos: tuple[Tensor, Tensor, Tensor, Tensor]) -> Tensor:
        x = x + self.pos(x)
        x = x + self.retention(self.retention_layer_norm(x), pos)
        return x + self.ffn(self.final_layer_norm(x))


class Downsample(nn.Module):
    def __init__(self, dim: int, out: int):
        super().__init__()
        self.reduction, self.norm = nn.Conv2d(dim, out, 3, 2, 1), nn.BatchNorm2d(out)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.reduction(x.permute(0, 3, 1, 2))).permute(0, 2, 3, 1)


class Layer(nn.Module):
    def __init__(self, dim: int, depth: int, heads: int, span: int, ratio: int, decomposed: bool, out: int | None):
        super().__init__()
        self.Relpos = RelPos(dim, heads, span)
        self.blocks = nn.ModuleList(Block(dim, heads, ratio, decomposed) for _ in range(depth))
        self.downsample = nn.Identity() if out is None else Downsample(dim, out)

    def forward(self, x: Tensor) -> Tensor:
        pos = self.Relpos(*x.shape[1:3])
        for block in self.blocks:
            x = block(x, pos)
        return self.downsample(x)


class PatchEmbed(nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        half = dim // 2
        self.proj = nn.Sequential(
            nn.Conv2d(3, half, 3, 2, 1), nn.BatchNorm2d(half), nn.GELU(),
            nn.Conv2d(half, half, 3, 1, 1), nn.BatchNorm2d(half), nn.GELU(),
            nn.Conv2d(half, dim, 3, 2, 1), nn.BatchNorm2d(dim), nn.GELU(),
            nn.Conv2d(dim, dim, 3, 1, 1), nn.BatchNorm2d(dim),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).permute(0, 2, 3, 1)


class RMT(nn.Module):
    def __init__(self, dims, depths, heads, spans, ratios, decomposed):
        super().__init__()
        self.patch_embed = PatchEmbed(dims[0])
        rows = enumerate(zip(dims, depths, heads, spans, ratios, (*dims[1:], None), strict=True))
        self.layers = nn.ModuleList(Layer(d, n, h, g, r, i < decomposed, out) for i, (d, n, h, g, r, out) in rows)
        self.proj, self.norm, self.head = nn.Linear(dims[-1], 1024), nn.BatchNorm2d(1024), nn.Linear(1024, 1000)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed(x)
        for layer in self.layers:
            x = layer(x)
        x = F.silu(self.norm(self.proj(x).permute(0, 3, 1, 2)))
        return self.head(x.mean((2, 3)))


def build(variant: str = VARIANT) -> nn.Module:
    return RMT(*SIZES[variant])
