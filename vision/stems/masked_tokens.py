"""Tokens to tokens as Gaussian mixture masks (https://arxiv.org/abs/2309.05375) have it for small images: overlapping
3x3 splits by 2, and a small attention layer, which may weigh its scores by a mask, between one and the next."""

from dataclasses import dataclass, replace

from torch import Tensor, nn

from ...kernels.masked import attend_masked
from ..layers import Linear, Mlp
from ..mixers.gaussian_mask import Mask
from ..position import Position
from ..stem import Positioned
from ..tokens import Tokens
from .t2t import soft_split

SPLIT = (3, 2, 1)  # kernel, stride, padding


class TokenAttention(nn.Module):
    """m (B H W d) -> v + proj(softmax(mask * q k' / sqrt(d)) v), (B H*W e), by one head. The input is too wide to
    be added back: v stands in its place."""

    projections = ("qkv", "proj")

    def __init__(self, dim: int, width: int, mask: nn.Module | None):
        super().__init__()
        self.qkv, self.proj, self.scale = Linear(dim, 3 * width, bias=False), Linear(width, width), dim**-0.5
        self.mask = mask

    def forward(self, m: Tensor) -> Tensor:
        q, k, v = self.qkv(m.flatten(1, 2)).unsqueeze(1).chunk(3, -1)  # B 1 N e
        mask = None if self.mask is None else self.mask((m.shape[1], m.shape[2]))
        y = attend_masked(q, k, v, mask, scale=self.scale)
        return v[:, 0] + self.proj(y[:, 0])  # type: ignore[no-any-return]


class MaskedTokenLayer(nn.Module):
    """norm1 -> attention -> norm2 -> mlp with a residual, a map B H W d -> B H W e."""

    def __init__(self, dim: int, width: int, mask: nn.Module | None):
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(dim), TokenAttention(dim, width, mask)
        self.norm2, self.mlp = nn.LayerNorm(width), Mlp(width, width)

    def forward(self, m: Tensor) -> Tensor:
        x = self.attention(self.norm1(m))
        return (x + self.mlp(self.norm2(x))).unflatten(1, m.shape[1:3])  # type: ignore[no-any-return]


class MaskedTokens(nn.Module):
    """image (B channels H W) -> split -> (layer -> split) n times -> project -> Tokens, with their positions."""

    projections = ("project",)

    def __init__(self, layers: list[nn.Module], project: Linear, position: nn.Module):
        super().__init__()
        self.layers, self.project, self.position = nn.ModuleList(layers), project, position

    def forward(self, image: Tensor) -> Tokens:
        m = soft_split(image.permute(0, 2, 3, 1), *SPLIT)
        for layer in self.layers:
            m = soft_split(layer(m), *SPLIT)
        t = Tokens(self.project(m.flatten(1, 2)), (m.shape[1], m.shape[2]))
        return self.position(t)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class MaskedTokensToToken(Positioned):
    """Splits with `layers` attention layers of `width` channels between them; `mask` is for the tokens that come out,
    and each layer takes it for its own, finer grid."""

    position: Position
    layers: int = 1
    mask: Mask | None = None
    width: int = 64

    @property
    def stride(self) -> int:
        return int(2 ** (self.layers + 1))

    def sized(self, grid: tuple[int, int]) -> "MaskedTokensToToken":
        mask = None if self.mask is None else self.mask.sized(grid)
        return replace(self, position=replace(self.position, grid=grid), mask=mask)

    def build(self, channels: int, dim: int) -> nn.Module:
        h, w = self.position.grid
        layers: list[nn.Module] = []
        for i in range(self.layers):
            finer = 2 ** (self.layers - i)
            mask = None if self.mask is None else self.mask.sized((finer * h, finer * w)).build(1)
            layers.append(MaskedTokenLayer(9 * (self.width if i else channels), self.width, mask))
        return MaskedTokens(layers, Linear(9 * self.width, dim), self.position.build(dim))
