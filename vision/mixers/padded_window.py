"""Attention inside windows that never shift, as in ViTDet (https://arxiv.org/abs/2203.16527), without positions."""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from ...kernels.sizes import missing
from ...kernels.windows import unwindow, windows
from ..layers import Linear
from ..tokens import Probe, Tokens
from .attention import attend_in


class PaddedWindowAttention(nn.Module):
    """softmax(q k' / sqrt(d)) v inside size x size windows. A map whose sides are no multiples is padded at right and
    bottom BEHIND the projection: padded places take part with q = k = v = 0, without the bias."""

    needs_grid, offers, projections = True, (), ("qkv", "proj")
    seams: tuple[str, ...] = ("attending",)

    def __init__(self, dim: int, heads: int, size: int):
        super().__init__()
        if dim % heads:
            raise ValueError(f"dim {dim} does not divide into {heads} heads")
        if size < 1:
            raise ValueError(f"window size {size}: it takes at least 1")
        self.heads, self.size = heads, size
        self.qkv, self.proj = Linear(dim, 3 * dim), Linear(dim, dim)
        self.attending: nn.Module | None = None

    def forward(self, t: Tokens, probe: Probe | None = None) -> Tensor:
        m = self.qkv(t.map())  # B H W 3C
        (h, w), s = m.shape[1:3], self.size
        m = F.pad(m, (0, 0, 0, missing(w, s), 0, missing(h, s)))
        x = windows(m, s).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # type: ignore[no-untyped-call]
        q, k, v = x.unbind(0)  # B*n h s*s d
        y = attend_in(self.attending, q, k, v, None, t).transpose(1, 2).flatten(2)
        return self.proj(unwindow(y, m.shape[1], m.shape[2], s)[:, :h, :w].flatten(1, 2))  # type: ignore[no-any-return]

    def extra_repr(self) -> str:
        return f"heads={self.heads}, size={self.size}"


@dataclass(frozen=True)
class PaddedWindow:
    """Attention inside size x size windows that never shift; zeros beside the map take part."""

    heads: int
    size: int = 14

    def build(self, dim: int, index: int) -> nn.Module:
        return PaddedWindowAttention(dim, self.heads, self.size)
