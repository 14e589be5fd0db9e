"""Blocks that run several times in a row with the same weights: recursion, as in https://arxiv.org/abs/2111.05297."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ..block import Block, BlockSpec, PreNorm
from ..layers import Mlp
from ..norm import Norm
from ..residual import Add
from ..spec import Spec, sized
from ..tokens import Tokens


class RecursiveBlock(nn.Module):
    """t -> own_n(block(… own_1(block(t)))): `block` has one set of weights, and a layer of its own follows each turn.

    The block sees in `t.turn` how often it has run; plugins attach to it, and work at every turn.
    """

    def __init__(self, block: nn.Module, own: Sequence[nn.Module]):
        super().__init__()
        self.block, self.own = block, nn.ModuleList(own)

    def forward(self, t: Tokens) -> Tokens:
        for turn, own in enumerate(self.own):
            t = own(self.block(replace(t, turn=turn)))
        return replace(t, turn=0)


class WeighedAdd(Add):
    """a x + b droppath(y) with learned scalars a and b."""

    def __init__(self, drop: float = 0.0):
        super().__init__(drop)
        self.stream, self.branch = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.addcmul(x * self.stream, self.thinned(y), self.branch)


class MlpLayer(nn.Module):
    """add(x, mlp(norm(x))) on every token."""

    def __init__(self, norm: nn.Module, ffn: nn.Module, add: Add):
        super().__init__()
        self.norm, self.ffn, self.add = norm, ffn, add

    def forward(self, t: Tokens) -> Tokens:
        return replace(t, x=self.add(t.x, self.ffn(self.norm(t.x))))


@dataclass(frozen=True)
class Weighed(BlockSpec):
    """norm, mixer, norm and MLP as in `PreNorm`, joined by a x + b y with learned scalars."""

    norm: Norm = Norm()
    act: str = "gelu"

    def build(self, dim: int, index: int, mixer: nn.Module, ratio: float, scale: float | None,
              drop_path: float) -> nn.Module:  # fmt: skip
        if scale is not None:
            raise ValueError(f"scale={scale}: this block has learned scalars of its own; leave it None")
        norms, ffn = (self.norm.build(dim), self.norm.build(dim)), Mlp(dim, int(dim * ratio), self.act)
        return Block(mixer, ffn, norms, (WeighedAdd(drop_path), WeighedAdd(drop_path)))


@dataclass(frozen=True)
class WeighedMlp(Spec):
    """a x + b mlp(norm(x)), the layer of a turn's own in SReT; `ratio` is its hidden width over dim."""

    ratio: float = 1.0
    norm: Norm = Norm()
    act: str = "gelu"

    def build(self, dim: int) -> nn.Module:
        return MlpLayer(self.norm.build(dim), Mlp(dim, int(dim * self.ratio), self.act), WeighedAdd())


@dataclass(frozen=True)
class Recursive(BlockSpec):
    """Any block, run `times` times in a row with the same weights; behind each turn a layer of that turn's own, or
    none."""

    block: BlockSpec = PreNorm()
    times: int = 2
    own: WeighedMlp | None = None

    def __post_init__(self) -> None:
        if self.times < 1:
            raise ValueError(f"times={self.times}: a block runs at least once")

    def build(self, dim: int, index: int, mixer: nn.Module, ratio: float, scale: float | None,
              drop_path: float) -> nn.Module:  # fmt: skip
        block = self.block.build(dim, index, mixer, ratio, scale, drop_path)
        own = [nn.Identity() if self.own is None else self.own.build(dim) for _ in range(self.times)]
        return RecursiveBlock(block, own)

    def sized(self, grid: tuple[int, int]) -> "Recursive":
        return replace(self, block=sized(self.block, grid))


__all__ = ["Recursive", "RecursiveBlock", "Weighed", "WeighedAdd", "WeighedMlp"]
