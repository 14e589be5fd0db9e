"""What turns the tokens of a tower into tokens of a language model."""

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from ..kernels.attend import attend
from ..vision.layers import ACTIVATIONS, Linear
from ..vision.position import sinusoid
from .tower import Seen


class Connector(Protocol):
    """The spec of a connector; what it builds is a module Seen -> (B n out)."""

    def build(self, dim: int, out: int) -> nn.Module: ...

    def count(self, grid: tuple[int, int], special: int = 0) -> int:
        """How many tokens an image becomes of which the tower saw such a grid and so many special tokens."""
        ...


class Perceptron(nn.Module):
    """layers[n](act(… layers[0](x))) of each token."""

    def __init__(self, dim: int, out: int, depth: int, act: str, bias: bool):
        super().__init__()
        self.layers = nn.ModuleList(Linear(dim if i == 0 else out, out, bias) for i in range(depth))
        self.act = ACTIVATIONS[act]()

    projections = ("layers",)

    def forward(self, seen: Seen) -> Tensor:
        x = seen.x
        for i, layer in enumerate(self.layers):
            x = layer(self.act(x) if i else x)
        return x


@dataclass(frozen=True)
class Project:
    """`depth` linear layers with an activation between: 1 is LLaVA's (https://arxiv.org/abs/2304.08485), 2 LLaVA-1.5's
    (https://arxiv.org/abs/2310.03744)."""

    depth: int = 2
    act: str = "gelu"
    bias: bool = True

    def __post_init__(self) -> None:
        if self.depth < 1:
            raise ValueError(f"depth={self.depth}: a connector has at least one layer")
        if self.act not in ACTIVATIONS:
            raise ValueError(f"act {self.act!r} is not known; there are {', '.join(ACTIVATIONS)}")

    def build(self, dim: int, out: int) -> nn.Module:
        return Perceptron(dim, out, self.depth, self.act, self.bias)

    def count(self, grid: tuple[int, int], special: int = 0) -> int:
        return grid[0] * grid[1] + special


class Shuffled(nn.Module):
    """s x s neighbours side by side in the channels, then a perceptron. Sides that do not divide get rows and columns
    of zeros at the bottom and right; special tokens stand before, each s² times side by side."""

    def __init__(self, mlp: nn.Module, s: int):
        super().__init__()
        self.mlp, self.s = mlp, s

    def forward(self, seen: Seen) -> Tensor:
        if seen.grid is None:
            raise ValueError(
                "PixelShuffle needs a full grid, and the tower's tokens were made fewer: fewer=False restores it"
            )
        s, k, (h, w) = self.s, seen.special, seen.grid
        m = seen.x[:, k:].unflatten(1, (h, w))  # type: ignore[no-untyped-call]
        if h % s or w % s:
            m = nn.functional.pad(m, (0, 0, 0, -w % s, 0, -h % s))
        b, h, w, c = m.shape
        x = m.view(b, h // s, s, w // s, s, c).transpose(2, 3).reshape(b, h * w // s**2, s * s * c)
        if k:
            x = torch.cat([seen.x[:, :k].repeat(1, 1, s * s), x], 1)
        return self.mlp(Seen(x, (h // s, w // s), k))  # type: ignore[no-any-return]


@dataclass(frozen=True)
class PixelShuffle:
    """side x side neighbouring tokens become one, side² times as wide, before `depth` linear layers (InternVL's,
    https://arxiv.org/abs/2404.16821)."""

    side: int = 2
    depth: int = 2
    act: str = "gelu"

    def __post_init__(self) -> None:
        if self.side < 1:
            raise ValueError(f"side={self.side}: at least one token becomes one")
        Project(self.depth, self.act)  # which says what is wrong with these

    def build(self, dim: int, out: int) -> nn.Module:
        return Shuffled(Project(self.depth, self.act).build(dim * self.side**2, out), self.side)

    def count(self, grid: tuple[int, int], special: int = 0) -> int:
        return -(-grid[0] // self.side) * -(-grid[1] // self.side) + special


class Reader(nn.Module):
    """norm(queries) attend to norm(tokens and queries), then an MLP, each with a residual: a layer of Resampler."""

    projections = ("q", "kv", "proj", "fc1", "fc2")

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm, self.norm_kv, self.norm_mlp = nn.LayerNorm(dim), nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.q, self.kv, self.proj = Linear(dim, dim), Linear(dim, 2 * dim), Linear(dim, dim)
        self.fc1, self.act, self.fc2 = Linear(dim, 4 * dim), nn.GELU(), Linear(4 * dim, dim)

    def forward(self, y: Tensor, x: Tensor) -> Tensor:
        n = self.norm(y)
        q = self.q(n).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        kv = self.kv(torch.cat([self.norm_kv(x), n], 1))
        k, v = kv.unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        y = y + self.proj(attend(q, k, v).transpose(1, 2).flatten(2))
        return y + self.fc2(self.act(self.fc1(self.norm_mlp(y))))  # type: ignore[no-any-return]


class Resampled(nn.Module):
    """Seen -> as many tokens as there are learned queries, whatever the image's size."""

    def __init__(self, dim: int, out: int, queries: int, depth: int, heads: int):
        super().__init__()
        self.queries = nn.Parameter(torch.randn(1, queries, dim) * 0.02)
        self.layers = nn.ModuleList(Reader(dim, heads) for _ in range(depth))
        self.norm, self.out = nn.LayerNorm(dim), Linear(dim, out)

    def forward(self, seen: Seen) -> Tensor:
        x = seen.x
        if seen.grid is not None:
            patches = x[:, seen.special :] + places(seen.grid, x.shape[-1]).to(x)
            x = torch.cat([x[:, : seen.special], patches], 1) if seen.special else patches
        y = self.queries.expand(len(x), -1, -1).to(x.dtype)
        for layer in self.layers:
            y = layer(y, x)
        return self.out(self.norm(y))  # type: ignore[no-any-return]


def places(grid: tuple[int, int], dim: int) -> Tensor:
    """(1 H*W C): sines of the row in the first half of the channels, of the column in the rest."""
    (h, w), half = grid, dim // 2
    y, x = sinusoid(h, half)[0], sinusoid(w, dim - half)[0]
    return torch.cat([y[:, None].expand(h, w, -1), x[None].expand(h, w, -1)], -1).flatten(0, 1)[None]


@dataclass(frozen=True)
class Resampler:
    """`queries` learned tokens read the image's in `depth` layers of cross-attention (a perceiver resampler,
    https://arxiv.org/abs/2204.14198); where the tokens stand is told by sines."""

    queries: int = 64
    depth: int = 2
    heads: int = 8

    def __post_init__(self) -> None:
        if min(self.queries, self.depth, self.heads) < 1:
            raise ValueError(f"queries={self.queries}, depth={self.depth}, heads={self.heads}: each is at least 1")

    def build(self, dim: int, out: int) -> nn.Module:
        if dim % self.heads:
            raise ValueError(f"heads={self.heads} of a Resampler do not divide the tower's {dim} channels; "
                             f"{math.gcd(dim, self.heads)} would")  # fmt: skip
        return Resampled(dim, out, self.queries, self.depth, self.heads)

    def count(self, grid: tuple[int, int], special: int = 0) -> int:
        return self.queries
