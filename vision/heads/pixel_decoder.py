"""Mask2Former's pixel decoder, https://arxiv.org/abs/2112.01527: deformable attention over the coarse maps together,
and a step up to the finest one.

Shapes: B images, C channels, N places of all encoded maps together, L of these maps, h heads, P samples each.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..layers import Mlp
from ..mixers.deformable import DeformableAttention


def sine(h: int, w: int, like: Tensor) -> Tensor:
    """(h*w C) sines of the place, for channels as `like` (… C) has them: half of them for y, half for x; places count
    from 1 and end at 2 pi, frequencies are 10000^(-2 floor(k/2) / (C/2)), sine where k is even, cosine where it is odd.
    """
    dim, device = like.shape[-1], like.device
    k = torch.arange(dim // 2, device=device)
    frequency = 10000 ** (-2 * (k // 2) / (dim // 2))

    def axis(n: int) -> Tensor:
        place = torch.arange(1, n + 1, device=device) / (n + 1e-6) * (2 * math.pi)
        angle = place[:, None] * frequency
        return torch.where(k % 2 == 0, angle.sin(), angle.cos())

    y, x = axis(h), axis(w)
    return torch.cat([y[:, None].expand(h, w, -1), x[None].expand(h, w, -1)], -1).flatten(0, 1).to(like.dtype)


def centres(shapes: Sequence[tuple[int, int]], device: torch.device) -> Tensor:
    """(N 2): (x, y) in 0..1 of the middle of each place."""
    grids = []
    for h, w in shapes:
        y, x = ((torch.arange(n, device=device) + 0.5) / n for n in (h, w))
        grids.append(torch.stack([x.expand(h, w), y[:, None].expand(h, w)], -1).flatten(0, 1))
    return torch.cat(grids)


class EncoderLayer(nn.Module):
    """x -> norm1(x + attention(x)) -> norm2(x + ffn(x)), with ReLU inside."""

    def __init__(self, dim: int, hidden: int, levels: int, heads: int):
        super().__init__()
        self.attention, self.norm1 = DeformableAttention(dim, heads, levels), nn.LayerNorm(dim)
        self.ffn, self.norm2 = Mlp(dim, hidden, "relu"), nn.LayerNorm(dim)

    def forward(self, x: Tensor, position: Tensor, shapes: Sequence[tuple[int, int]], places: Tensor) -> Tensor:
        """x (B N C), position (N C), places (1 N L 2) in 0..1 of every map."""
        x = self.norm1(x + self.attention(x + position, x, shapes, places))
        return self.norm2(x + self.ffn(x))  # type: ignore[no-any-return]


class ConvGroupNorm(nn.Module):
    """act(norm(conv(m))) on a map (B C H W), the norm over 32 groups of channels, or as many as divide them."""

    def __init__(self, dim: int, out: int, kernel: int = 1, bias: bool = False, relu: bool = False):
        super().__init__()
        self.conv = nn.Conv2d(dim, out, kernel, padding=kernel // 2, bias=bias)
        self.norm, self.act = nn.GroupNorm(math.gcd(32, out), out), nn.ReLU() if relu else nn.Identity()
        nn.init.xavier_uniform_(self.conv.weight) if bias else nn.init.kaiming_uniform_(self.conv.weight, a=1)
        if self.conv.bias is not None:
            nn.init.zeros_(self.conv.bias)

    def forward(self, m: Tensor) -> Tensor:
        return self.act(self.norm(self.conv(m)))  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Decoded:
    """`features` (B C H W) are what mask embeddings are multiplied with, on the finest map; `memories` the encoded maps
    (B C H_l W_l), the coarsest first."""

    features: Tensor
    memories: list[Tensor]


class PixelDecoder(nn.Module):
    """Maps (B C_i H_i W_i), from fine to coarse, of the given `channels` -> `Decoded` of `dim` channels.

    The coarsest `levels` maps, but not the finest of all, pass the encoder of `depth` layers together; each finer one
    is reached by a step: its 1x1 convolution plus what came before, resized, through a 3x3 convolution.
    """

    def __init__(self, channels: Sequence[int], dim: int = 256, depth: int = 6, hidden: int = 1024, heads: int = 8,
                 levels: int = 3):  # fmt: skip
        super().__init__()
        if not channels:
            raise ValueError("a pixel decoder takes at least one map; the backbone gives none")
        encoded = max(1, min(levels, len(channels) - 1))
        self.fine = len(channels) - encoded
        self.input_proj = nn.ModuleList(ConvGroupNorm(c, dim, bias=True) for c in reversed(channels[self.fine :]))
        self.level_embed = nn.Parameter(torch.randn(encoded, dim))
        self.layers = nn.ModuleList(EncoderLayer(dim, hidden, encoded, heads) for _ in range(depth))
        finer = list(reversed(channels[: self.fine]))
        self.lateral = nn.ModuleList(ConvGroupNorm(c, dim) for c in finer)
        self.output = nn.ModuleList(ConvGroupNorm(dim, dim, 3, relu=True) for _ in finer)
        self.mask_features = nn.Conv2d(dim, dim, 1)
        nn.init.kaiming_uniform_(self.mask_features.weight, a=1)
        nn.init.zeros_(self.mask_features.bias)  # type: ignore[arg-type]

    def forward(self, maps: Sequence[Tensor], depth: int | None = None) -> Decoded:
        """By the first `depth` layers of the encoder, None for all."""
        if depth is not None and not 1 <= depth <= len(self.layers):
            raise ValueError(f"depth {depth}: the encoder has 1 to {len(self.layers)} layers to run")
        for i, decoded in enumerate(self.exits(maps, None if depth is None else (depth,)), 1):
            if depth is not None or i == len(self.layers):
                return decoded
        raise AssertionError("the encoder has no layer")

    def exits(self, maps: Sequence[Tensor], depths: Sequence[int] | None = None) -> Iterator[Decoded]:
        """What comes out behind each number of encoder layers in `depths` (None: every one), in order."""
        projected = [p(m) for p, m in zip(self.input_proj, reversed(maps[self.fine :]), strict=True)]
        shapes = [(int(m.shape[2]), int(m.shape[3])) for m in projected]
        x = torch.cat([m.flatten(2).mT for m in projected], 1)  # B N C
        places = centres(shapes, x.device)[None, :, None].expand(-1, -1, len(shapes), -1)
        levels = zip(shapes, self.level_embed, strict=True)
        position = torch.cat([sine(h, w, e) + e for (h, w), e in levels])
        for i, layer in enumerate(self.layers, 1):
            x = layer(x, position, shapes, places)
            if depths is None or i in depths:
                yield self.finish(x, shapes, maps)
            if depths is not None and i >= max(depths):
                return

    def finish(self, x: Tensor, shapes: Sequence[tuple[int, int]], maps: Sequence[Tensor]) -> Decoded:
        parts = torch.split(x, [h * w for h, w in shapes], 1)
        memories = [p.mT.reshape(*p.mT.shape[:2], *s) for p, s in zip(parts, shapes, strict=True)]
        m = memories[-1]
        for lateral, output, finer in zip(self.lateral, self.output, reversed(maps[: self.fine]), strict=True):
            side = lateral(finer)
            m = output(side + F.interpolate(m, side.shape[-2:], mode="bilinear", align_corners=False))
        return Decoded(self.mask_features(m), memories)
