"""Global multi-head self-attention, https://arxiv.org/abs/1706.03762."""

from dataclasses import dataclass

from torch import Tensor, nn

from ...kernels.attend import attend
from ..block import Linear, Probe, Tokens


class SelfAttention(nn.Module):
    """softmax(q k' / sqrt(d)) v over all tokens; a token that stands for n patches counts n times."""

    needs_grid, offers, projections = False, ("keys",), ("qkv", "proj")

    def __init__(self, dim: int, heads: int, bias: bool = True, out_bias: bool = True, dropout: float = 0.0):
        super().__init__()
        if dim % heads:
            raise ValueError(f"dim {dim} does not divide into {heads} heads")
        self.heads, self.dropout = heads, dropout
        self.qkv, self.proj = Linear(dim, 3 * dim, bias), Linear(dim, dim, out_bias)

    def forward(self, t: Tokens, probe: Probe | None = None) -> Tensor:
        q, k, v = self.qkv(t.x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)  # B h N d
        if probe is not None:
            probe["keys"] = k.mean(1)  # B N d
        bias = None if t.size is None else t.size.log()[:, None, None, :, 0]
        y = attend(q, k, v, bias, dropout=self.dropout if self.training else 0.0)
        return self.proj(y.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]  # B N C


@dataclass(frozen=True)
class Global:
    """Attention of every token to every token; `heads` heads, or as many as heads of `width` channels make up dim."""

    heads: int | None = None
    bias: bool = True  # of the qkv projection
    out_bias: bool = True
    width: int | None = None  # channels of a head
    dropout: float = 0.0  # of the attention weights

    def build(self, dim: int, index: int) -> nn.Module:
        if (self.heads is None) == (self.width is None):
            raise ValueError(f"Global takes heads or width, one of them; got heads={self.heads}, width={self.width}")
        heads = self.heads or dim // (self.width or dim)
        return SelfAttention(dim, heads, self.bias, self.out_bias, self.dropout)
