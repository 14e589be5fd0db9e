"""NTK-attention, https://arxiv.org/abs/2406.14036: a prefix of any length, as d² + d numbers a head."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...kernels.ntk_attention import ntk_attention
from ..tokens import Tokens
from . import Put
from .prefix import attentions, widths


@dataclass(frozen=True)
class Ntk:
    """NTK-attention: a prefix of any length as d² + d numbers a head.

    The states of a learned prefix in every block whose mixer has the seam `attending`, inside windows in each of
    them; other blocks stay as they are. They begin at zero, which is attention without a prefix."""

    def place(self, model: nn.Module) -> list[Put]:
        return [Put(name, "attending", NtkAttention(m.heads, *widths(m))) for name, m in attentions(model)]  # type: ignore[arg-type]


class NtkAttention(nn.Module):
    """Attention beside a prefix with the states k (h d 1) and Z (h d d), (B h N d); `key` and `value` are the channels
    of all heads together."""

    def __init__(self, heads: int, key: int, value: int):
        super().__init__()
        d = key // heads
        self.sum_k = nn.Parameter(torch.zeros(heads, d, 1))
        self.sum_kv = nn.Parameter(torch.zeros(heads, d, value // heads))

    def forward(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, t: Tokens) -> Tensor:
        return ntk_attention(q, k, v, self.sum_k[None], self.sum_kv[None], bias)

    def extra_repr(self) -> str:
        return "{} heads of {} channels".format(*self.sum_kv.shape[:2])
