"""Causal attention behind a soft mask with rotary positions, iLLaMA's: https://arxiv.org/abs/2404.06773."""

from dataclasses import dataclass

from torch import Tensor, nn

from ...kernels.rotary import rotate
from ...kernels.sizes import table as of_sizes
from ...kernels.soft_mask import soft_masked
from ..layers import Linear
from ..tokens import Probe, Tokens
from .rotary import turns_of


class SoftMaskAttention(nn.Module):
    """(softmax(q k' / sqrt(d)) * mask) v with q and k turned by their place in the sequence; mask = 1 for this and
    earlier tokens, `rate` for later ones, without making rows sum to 1 again.

    `rate` is 0 (a causal mask) but while a schedule sets it in training (`set_soft_mask`). The place of a token is its
    number in the whole sequence, so none may be missing.
    """

    needs_grid, offers, projections, entries, takes_special = True, ("keys",), ("qkv", "proj"), ("qkv",), True

    def __init__(self, dim: int, heads: int):
        super().__init__()
        if dim % heads or dim // heads % 2:
            raise ValueError(f"dim {dim} does not divide into {heads} heads of an even width")
        self.heads, self.rate = heads, 0.0
        self.qkv, self.proj = Linear(dim, 3 * dim), Linear(dim, dim)

    def forward(self, t: Tokens, probe: Probe | None = None) -> Tensor:
        qkv = self.qkv(t.x).unflatten(-1, (3 * self.heads, -1))  # B N 3h d
        n, d = qkv.shape[1], qkv.shape[3]
        turns = of_sizes(turns_of, n, d).to(qkv.device)[:, None]  # N 1 d/2 2
        q, k = rotate(qkv[:, :, : 2 * self.heads], turns).transpose(1, 2).chunk(2, 1)  # B h N d
        v = qkv[:, :, 2 * self.heads :].transpose(1, 2)
        if probe is not None:
            probe["keys"] = k  # B h N d
        y = soft_masked(q, k, v, self.rate)
        return self.proj(y.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]  # B N C

    def extra_repr(self) -> str:
        return f"rate={self.rate:g}"


@dataclass(frozen=True)
class SoftMask:
    """Causal attention of `heads` heads behind a soft mask."""

    heads: int

    def build(self, dim: int, index: int) -> nn.Module:
        return SoftMaskAttention(dim, self.heads)


def set_soft_mask(model: nn.Module, rate: float) -> None:
    """How much each attention of `model` weighs later tokens: 0 causal, 1 all alike."""
    found = [m for m in model.modules() if isinstance(m, SoftMaskAttention)]
    if not found:
        raise ValueError(f"{type(model).__name__} has no attention with a soft mask; the variants of iLLaMA do")
    if not 0 <= rate <= 1:
        raise ValueError(f"soft mask rate {rate}: from 0 (causal) to 1 (every token sees all)")
    for m in found:
        m.rate = rate
