"""Mask2Former's transformer decoder, https://arxiv.org/abs/2112.01527: queries that each predict a class and a mask,
and attend to where their last mask was.

Shapes: B images, N queries, C channels, M places of a memory, K classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...kernels.attend import attend
from ..layers import Linear, Mlp
from .pixel_decoder import Decoded, sine


@dataclass(frozen=True)
class MaskPrediction:
    """`classes` (B N K+1): logits, the last one for "no object"; `masks` (B N H W): logits on the finest map."""

    classes: Tensor
    masks: Tensor


class Attention(nn.Module):
    """softmax(q k' / sqrt(d)) v, with queries, keys and values of places of their own."""

    projections = ("q", "k", "v", "proj")

    def __init__(self, dim: int, heads: int):
        super().__init__()
        if dim % heads:
            raise ValueError(f"dim {dim} does not divide into {heads} heads")
        self.heads = heads
        self.q, self.k, self.v, self.proj = (Linear(dim, dim) for _ in range(4))

    def forward(self, query: Tensor, key: Tensor, value: Tensor, allowed: Tensor | None = None) -> Tensor:
        """query (B N C), key and value (B M C), allowed (B 1 N M) or None -> (B N C)."""
        parts = (self.q(query), self.k(key), self.v(value))
        q, k, v = (p.unflatten(-1, (self.heads, -1)).transpose(1, 2) for p in parts)  # B h N d
        return self.proj(attend(q, k, v, allowed).transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class DecoderLayer(nn.Module):
    """Attention to a memory, then among the queries, then an MLP; a norm behind each."""

    def __init__(self, dim: int, hidden: int, heads: int):
        super().__init__()
        self.cross, self.norm1 = Attention(dim, heads), nn.LayerNorm(dim)
        self.among, self.norm2 = Attention(dim, heads), nn.LayerNorm(dim)
        self.ffn, self.norm3 = Mlp(dim, hidden, "relu"), nn.LayerNorm(dim)

    def forward(self, x: Tensor, place: Tensor, memory: Tensor, position: Tensor, allowed: Tensor) -> Tensor:
        """x (B N C) with places (N C), memory (B M C) with places (M C), allowed (B 1 N M) -> (B N C)."""
        x = self.norm1(x + self.cross(x + place, memory + position, memory, allowed))
        q = x + place
        x = self.norm2(x + self.among(q, q, x))
        return self.norm3(x + self.ffn(x))  # type: ignore[no-any-return]


class MaskEmbedding(nn.Module):
    """Three linear layers with ReLU between them."""

    def __init__(self, dim: int, out: int):
        super().__init__()
        self.layers = nn.ModuleList(Linear(dim, o) for o in (dim, dim, out))

    def forward(self, x: Tensor) -> Tensor:
        first, second, last = self.layers
        return last(F.relu(second(F.relu(first(x)))))  # type: ignore[no-any-return]


class MaskedDecoder(nn.Module):
    """`Decoded` of `dim` channels -> predictions of `queries` queries: of the learned ones, and behind each of `depth`
    layers, which go round the memories from coarse to fine."""

    def __init__(self, classes: int, queries: int = 100, dim: int = 256, depth: int = 9, hidden: int = 2048,
                 heads: int = 8, levels: int = 3):  # fmt: skip
        super().__init__()
        if classes < 1 or queries < 1 or depth < 1:
            raise ValueError(f"classes {classes}, queries {queries}, depth {depth}: all take at least 1")
        self.layers = nn.ModuleList(DecoderLayer(dim, hidden, heads) for _ in range(depth))
        self.query_feat, self.query_embed = (nn.Parameter(torch.randn(queries, dim)) for _ in range(2))
        self.level_embed = nn.Parameter(torch.randn(levels, dim))
        self.norm, self.class_embed, self.mask_embed = (
            nn.LayerNorm(dim), Linear(dim, classes + 1), MaskEmbedding(dim, dim),
        )  # fmt: skip
        for p in self.layers.parameters():
            if p.ndim > 1:
                nn.init.xavier_uniform_(p)

    def forward(self, decoded: Decoded, every: bool = False) -> list[MaskPrediction]:
        """The last prediction, or `every` one, the last at the end."""
        memories = decoded.memories
        shapes = [(int(m.shape[2]), int(m.shape[3])) for m in memories]
        rows = [m.flatten(2).mT + e for m, e in zip(memories, self.level_embed, strict=True)]  # B M C
        positions = [sine(*s, rows[0]) for s in shapes]
        # a mask on a memory's map, resized, is the product with the features resized: the same, for less
        coarse = [resized(decoded.features.detach(), s) for s in shapes]
        x = self.query_feat.expand(rows[0].shape[0], -1, -1)
        found = []
        for i, layer in enumerate(self.layers):
            level = i % len(rows)
            d = self.norm(x)
            embedding = self.mask_embed(d)
            if every:
                found.append(self.predict(d, embedding, decoded.features))
            allowed = self.allowed(embedding.detach(), coarse[level])
            x = layer(x, self.query_embed, rows[level], positions[level], allowed)
        d = self.norm(x)
        return [*found, self.predict(d, self.mask_embed(d), decoded.features)]

    def predict(self, d: Tensor, embedding: Tensor, features: Tensor) -> MaskPrediction:
        return MaskPrediction(self.class_embed(d), product(embedding, features))

    @staticmethod
    def allowed(embedding: Tensor, features: Tensor) -> Tensor:
        """(B 1 N M): where the masks are; everywhere for a query whose mask is empty."""
        inside = (product(embedding, features) >= 0).flatten(2)
        return (inside | ~inside.any(-1, keepdim=True))[:, None]


def product(embedding: Tensor, features: Tensor) -> Tensor:
    """(B N C), (B C H W) -> (B N H W)."""
    return (embedding @ features.flatten(2)).unflatten(2, features.shape[-2:])  # type: ignore[no-untyped-call, no-any-return]


def resized(m: Tensor, size: Sequence[int]) -> Tensor:
    """A map (B C H W) resized bilinearly."""
    if tuple(m.shape[-2:]) == tuple(size):
        return m
    return F.interpolate(m, tuple(size), mode="bilinear", align_corners=False)
