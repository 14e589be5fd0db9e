"""A class token that is made behind the last stage, and attends to the patches there (as in CaiT,
https://arxiv.org/abs/2103.17239)."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ...kernels.attend import attend
from ..layers import Linear, Mlp
from ..norm import Norm
from ..tokens import Tokens
from .classification import Neck


class ClassAttention(nn.Module):
    """softmax(q k' / sqrt(d)) v with the first token's query only: (B N C) -> (B 1 C)."""

    projections = ("q", "kv", "proj")

    def __init__(self, dim: int, heads: int):
        super().__init__()
        if dim % heads:
            raise ValueError(f"dim {dim} does not divide into {heads} heads")
        self.heads = heads
        self.q, self.kv, self.proj = Linear(dim, dim), Linear(dim, 2 * dim), Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        q = self.q(x[:, :1]).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # B h 1 d
        k, v = self.kv(x).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)  # B h N d
        return self.proj(attend(q, k, v).transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class ClassBlock(nn.Module):
    """Tokens -> a class token before them: their mean, then attention to all of them and an MLP, each with a norm
    before and a residual around it. The patches stay as they are."""

    def __init__(self, dim: int, heads: int, ratio: float, norm: Norm):
        super().__init__()
        self.norm1, self.mixer = norm.build(dim), ClassAttention(dim, heads)
        self.norm2, self.ffn = norm.build(dim), Mlp(dim, int(dim * ratio))

    def forward(self, t: Tokens) -> Tokens:
        token = t.x.mean(1, keepdim=True)
        token = token + self.mixer(self.norm1(torch.cat([token, t.x], 1)))
        token = token + self.ffn(self.norm2(token))
        return replace(t, x=torch.cat([token, t.x], 1), special=(0, *(p + 1 for p in t.special)))


@dataclass(frozen=True)
class ClassToken(Neck):
    """A class token with heads of `width` channels."""

    width: int = 32
    ratio: float = 4.0
    norm: Norm = Norm(eps=1e-6)

    @property
    def special(self) -> tuple[int, ...]:
        return (0,)

    def build(self, dim: int) -> nn.Module:
        return ClassBlock(dim, dim // self.width, self.ratio, self.norm)
