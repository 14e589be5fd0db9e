"""Attention whose heads are mixed before and after the softmax, https://arxiv.org/abs/2003.02436, as in CaiT,
https://arxiv.org/abs/2103.17239: among patches, and of a class token to them."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ...kernels.masked import attend_masked
from ..layers import Linear
from ..spec import Spec
from ..tokens import Probe, Tokens
from .gaussian_mask import Mask
from .masked import place_mask, split_heads


class TalkingAttention(nn.Module):
    """softmax_h(sum_g before[g, h] mask q_g k_g' / sqrt(d)) mixed by `after`, times v; heads of `width` channels,
    whatever dim is. `mask`: of the tokens' places, or none, in which case a token that stands for n patches counts n
    times."""

    offers, projections, entries, takes_special = ("keys",), ("qkv", "proj"), ("qkv",), True

    def __init__(self, dim: int, heads: int, width: int, mask: nn.Module | None = None):
        super().__init__()
        self.heads, self.mask, self.needs_grid = heads, mask, mask is not None
        self.qkv, self.proj = Linear(dim, 3 * heads * width, bias=False), Linear(heads * width, dim)
        self.before, self.after = (nn.Parameter(torch.randn(heads, heads)) for _ in range(2))

    def forward(self, t: Tokens, probe: Probe | None = None) -> Tensor:
        q, k, v = split_heads(self.qkv(t.x), self.heads)
        if probe is not None:
            probe["keys"] = k  # B h N d
        mask = None if self.mask is None else place_mask(self.mask, t)
        bias = None if t.size is None else t.size.log()[:, None, None, :, 0]
        y = attend_masked(q, k, v, mask, bias, mix=(self.before, self.after))
        return self.proj(y.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]  # B N C


class ClassAttention(nn.Module):
    """The same attention from class tokens (B 1 C) to tokens (B N C), which are not normalised."""

    projections = ("q", "kv", "proj")

    def __init__(self, dim: int, heads: int, width: int):
        super().__init__()
        self.heads = heads
        self.q, self.kv = Linear(dim, heads * width, bias=False), Linear(dim, 2 * heads * width, bias=False)
        self.proj = Linear(heads * width, dim)
        self.before, self.after = (nn.Parameter(torch.randn(heads, heads)) for _ in range(2))

    def forward(self, token: Tensor, t: Tokens) -> Tensor:
        q = self.q(token).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # B h 1 d
        k, v = self.kv(t.x).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)  # B h N d
        bias = None if t.size is None else t.size.log()[:, None, None, :, 0]
        y = attend_masked(q, k, v, None, bias, mix=(self.before, self.after))
        return self.proj(y.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]  # B 1 C


@dataclass(frozen=True)
class TalkingGlobal(Spec):
    """Talking heads of `width` channels among all tokens, behind a mask or none."""

    heads: int
    width: int = 64
    mask: Mask | None = None

    def sized(self, grid: tuple[int, int]) -> "TalkingGlobal":
        return self if self.mask is None else replace(self, mask=self.mask.sized(grid))

    def build(self, dim: int, index: int) -> nn.Module:
        return TalkingAttention(dim, self.heads, self.width, None if self.mask is None else self.mask.build(self.heads))
