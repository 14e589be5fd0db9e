"""Class attention, https://arxiv.org/abs/2103.17239: layers behind the backbone in which a class token gathers what the
patches hold."""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..layers import Mlp
from ..mixers.talking_heads import ClassAttention
from ..norm import Norm
from ..residual import Add, add_mlp, join
from ..tokens import Tokens
from .classification import Neck


class ClassBlock(nn.Module):
    """norm1 -> attention to the patches as they are -> add1 -> norm2 -> ffn -> add2, on a class token (B 1 C)."""

    def __init__(self, attention: nn.Module, ffn: nn.Module, norms: tuple[nn.Module, nn.Module], adds: tuple[Add, Add]):
        super().__init__()
        (self.norm1, self.norm2), (self.add1, self.add2) = norms, adds
        self.attention, self.ffn = attention, ffn

    def forward(self, token: Tensor, t: Tokens) -> Tensor:
        token = self.add1(token, self.attention(self.norm1(token), t))
        return add_mlp(self.add2, self.ffn, token, self.norm2(token))


class ClassBlocks(nn.Module):
    """Tokens -> the same behind a class token that has passed all blocks."""

    def __init__(self, dim: int, blocks: list[nn.Module]):
        super().__init__()
        self.tokens = nn.ParameterList([nn.init.normal_(torch.empty(1, 1, dim), std=0.02)])
        self.blocks = nn.ModuleList(blocks)

    def forward(self, t: Tokens) -> Tokens:
        token = self.tokens[0].to(t.x.dtype).repeat(t.x.shape[0], 1, 1)
        for block in self.blocks:
            token = block(token, t)
        special = (0, *(p + 1 for p in t.special))
        size = None if t.size is None else F.pad(t.size, (0, 0, 1, 0), value=1.0)
        source = None if t.source is None else torch.where(t.source < 0, t.source, t.source + 1)
        return replace(t, x=torch.cat([token, t.x], 1), special=special, size=size, source=source)


@dataclass(frozen=True)
class ClassLayers(Neck):
    """`depth` layers of class attention with talking heads of `width` channels; `ratio` is the MLP's hidden width over
    the channels, `scale` the initial LayerScale. Their stochastic depth is left at 0: see `thin_class_layers`."""

    depth: int = 2
    heads: int = 4
    width: int = 64
    ratio: float = 4.0
    scale: float | None = None
    norm: Norm = Norm()

    @property
    def special(self) -> tuple[int, ...]:
        return (0,)

    def build(self, dim: int) -> nn.Module:
        def block() -> nn.Module:
            adds = join(dim, self.scale, False, 0.0), join(dim, self.scale, False, 0.0)
            norms = self.norm.build(dim), self.norm.build(dim)
            return ClassBlock(ClassAttention(dim, self.heads, self.width), Mlp(dim, int(dim * self.ratio)), norms, adds)

        return ClassBlocks(dim, [block() for _ in range(self.depth)])


def thin_class_layers(neck: nn.Module, drop_path: float) -> None:
    """Stochastic depth at one rate for all class layers."""
    for module in neck.modules():
        if isinstance(module, Add):
            module.drop = drop_path
