"""Global multi-head self-attention, https://arxiv.org/abs/1706.03762."""

from dataclasses import dataclass

from torch import Tensor, nn

from ...kernels.attend import attend
from ...kernels.policy import attend_policy
from ..layers import Linear
from ..tokens import Probe, Tokens


class SelfAttention(nn.Module):
    """softmax(q k' / sqrt(d)) v over all tokens; a token that stands for n patches counts n times, one that is
    only masked (`Tokens.policy`) for nobody but itself."""

    needs_grid, projections, entries = False, ("qkv", "proj"), ("qkv",)
    offers: tuple[str, ...] = ("queries", "keys")
    seams: tuple[str, ...] = ("attending",)

    def __init__(self, dim: int, heads: int, bias: bool = True, out_bias: bool = True, dropout: float = 0.0,
                 width: int | None = None):  # fmt: skip
        super().__init__()
        if width is None and dim % heads:
            raise ValueError(f"dim {dim} does not divide into {heads} heads")
        inner = dim if width is None else heads * width
        self.heads, self.dropout = heads, dropout
        self.qkv, self.proj = Linear(dim, 3 * inner, bias), Linear(inner, dim, out_bias)
        self.attending: nn.Module | None = None

    def forward(self, t: Tokens, probe: Probe | None = None) -> Tensor:
        q, k, v = self.qkv(t.x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)  # B h N d
        if probe is not None:
            probe["queries"], probe["keys"] = q, k  # B h N d
        bias = None if t.size is None else t.size.log()[:, None, None, :, 0]
        if self.attending is not None:
            y = self.attending(q, k, v, bias, t)
        elif t.policy is not None:
            y = attend_policy(q, k, v, t.policy, bias, dropout=self.dropout if self.training else 0.0)
        else:
            y = attend(q, k, v, bias, dropout=self.dropout if self.training else 0.0)
        return self.proj(y.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]  # B N C


def attend_in(seam: nn.Module | None, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, t: Tokens) -> Tensor:
    """`attend`, or what stands in the seam `attending` of a mixer."""
    return attend(q, k, v, bias) if seam is None else seam(q, k, v, bias, t)


@dataclass(frozen=True)
class Global:
    """Attention of every token to every token; `heads` heads that share dim, as many heads of `width` channels as make
    up dim, or `heads` of `width` channels, whatever dim is."""

    heads: int | None = None
    bias: bool = True  # of the qkv projection
    out_bias: bool = True
    width: int | None = None  # channels of a head
    dropout: float = 0.0  # of the attention weights

    def build(self, dim: int, index: int) -> nn.Module:
        if self.heads is None and self.width is None:
            raise ValueError("Global takes heads, width or both; got neither")
        heads, width = self.heads or dim // (self.width or dim), self.width if self.heads else None
        return SelfAttention(dim, heads, self.bias, self.out_bias, self.dropout, width)
