"""The residual blocks that every family shares, and how they are described.

Shapes: B images, N tokens, C channels, an H x W grid of patches.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

from torch import Tensor, nn

from .affine import into_readers
from .layers import Mlp, entries
from .norm import Norm
from .residual import Add, add_mlp, join
from .spec import Spec, sized
from .tokens import Probe, Tokens


class Mixer(Protocol):
    """The spec of a token mixer; `index` counts the blocks of a stage."""

    def build(self, dim: int, index: int) -> nn.Module: ...


class Seams(nn.Module):
    """A block with the places where a plugin may be put; each is None, or a module:

    before_block  Tokens -> Tokens
    after_norm    Tokens -> Tokens, on the normalised tokens that the mixer is about to take
    on_mixer      (Tokens, y) -> y: what the mixer makes (B N C) of the tokens it took, before its residual
    after_mixer   (Tokens, probe) -> Tokens, behind the mixer's residual; probe holds what the mixer `offers`
    around_ffn    (Tokens, y, normed, then) -> B N C: the stream behind the MLP, in blocks with one after the mixer;
                  y is what the norm before the MLP took; then(x, normed) computes the stream of the rows that it is
                  given; then(x, normed, back) makes rows of x out of what the MLP says to those of normed
    on_ffn        (Tokens, y) -> y: what the MLP makes (B N C) of the tokens it took, before its residual; in blocks
                  whose MLP takes the whole grid, which have this in place of `around_ffn`
    after_block   Tokens -> Tokens

    Mixers that attend have one more, `attending`: (q, k, v, bias, Tokens) -> B h N d, in place of `attend`.
    """

    seams: tuple[str, ...] = ("before_block", "after_norm", "on_mixer", "after_mixer", "after_block")
    needs_grid = False  # whether something beside its mixer and its MLP does
    dim = 0  # channels of its tokens, which a block says that stands in no stage of a backbone
    mixer: nn.Module

    def __init__(self) -> None:
        super().__init__()
        self.before_block: nn.Module | None = None
        self.after_norm: nn.Module | None = None
        self.on_mixer: nn.Module | None = None
        self.after_mixer: nn.Module | None = None
        self.around_ffn: nn.Module | None = None
        self.on_ffn: nn.Module | None = None
        self.after_block: nn.Module | None = None

    def mix(self, t: Tokens, normed: Tensor) -> tuple[Tensor, Probe | None]:
        """What the mixer makes of the normalised tokens, and what it showed on the way (None if nobody looks)."""
        n = replace(t, x=normed)
        if self.after_norm is not None:
            n = self.after_norm(n)
        probe: Probe | None = None if self.after_mixer is None else {}
        y = self.mixer(n, probe)
        return y if self.on_mixer is None else self.on_mixer(n, y), probe

    def feed(self, t: Tokens, y: Tensor, normed: Tensor, add: Add, ffn: nn.Module) -> Tokens:
        """add(t.x, ffn(normed)), where normed is the norm of y; for blocks whose seams include `around_ffn`."""
        if self.around_ffn is None:
            return replace(t, x=add_mlp(add, ffn, t.x, normed))

        def then(x: Tensor, normed: Tensor, back: Callable[[Tensor], Tensor] | None = None) -> Tensor:
            return add_mlp(add, ffn, x, normed) if back is None else add(x, back(ffn(normed)))

        return replace(t, x=self.around_ffn(t, y, normed, then))

    def forward(self, t: Tokens) -> Tokens:
        if self.before_block is not None:
            t = self.before_block(t)
        t = self.run(t)
        return t if self.after_block is None else self.after_block(t)

    def run(self, t: Tokens) -> Tokens:
        raise AssertionError(f"{type(self).__name__} does not say what it computes")


class Block(Seams):
    """norm1 -> mixer -> add1 -> [after_mixer] -> norm2 -> ffn -> add2."""

    seams = (*Seams.seams, "around_ffn")

    def __init__(self, mixer: nn.Module, ffn: nn.Module, norms: tuple[nn.Module, nn.Module], adds: tuple[Add, Add]):
        super().__init__()
        (self.norm1, self.norm2), (self.add1, self.add2) = norms, adds
        self.mixer, self.ffn = mixer, ffn

    def run(self, t: Tokens) -> Tokens:
        y, probe = self.mix(t, self.norm1(t.x))
        t = replace(t, x=self.add1(t.x, y))
        if self.after_mixer is not None:
            t = self.after_mixer(t, probe)
        return self.feed(t, t.x, self.norm2(t.x), self.add2, self.ffn)

    def fold_(self) -> None:
        if self.after_norm is None and self.on_mixer is None:  # what stands there looks at normalised tokens
            self.norm1 = into_readers(self.norm1, entries(self.mixer))
        if self.around_ffn is None and self.on_ffn is None:
            self.norm2 = into_readers(self.norm2, entries(self.ffn))


class InvertedBlock(Seams):
    """mixer -> norm -> ffn -> add: one residual around both, as in ConvNeXt."""

    seams = (*Seams.seams, "around_ffn")

    def __init__(self, mixer: nn.Module, ffn: nn.Module, norm: nn.Module, add: Add):
        super().__init__()
        self.mixer, self.norm, self.ffn, self.add = mixer, norm, ffn, add

    def run(self, t: Tokens) -> Tokens:
        y, probe = self.mix(t, t.x)
        t = self.feed(t, y, self.norm(y), self.add, self.ffn)
        return t if self.after_mixer is None else self.after_mixer(t, probe)


class StreamNormBlock(Seams):
    """norm1 -> mixer -> add1 -> norm2 on the stream itself -> ffn -> add2, as in the compact transformers (CCT)."""

    seams = (*Seams.seams, "around_ffn")

    def __init__(self, mixer: nn.Module, ffn: nn.Module, norms: tuple[nn.Module, nn.Module], adds: tuple[Add, Add]):
        super().__init__()
        (self.norm1, self.norm2), (self.add1, self.add2) = norms, adds
        self.mixer, self.ffn = mixer, ffn

    def run(self, t: Tokens) -> Tokens:
        y, probe = self.mix(t, self.norm1(t.x))
        t = replace(t, x=self.norm2(self.add1(t.x, y)))
        if self.after_mixer is not None:
            t = self.after_mixer(t, probe)
        return self.feed(t, t.x, t.x, self.add2, self.ffn)


class BlockSpec(Spec):
    """How mixer and MLP are joined. `ratio` is the MLP's hidden width over dim, `scale` the initial LayerScale,
    `index` counts the blocks of a stage."""

    def build(self, dim: int, index: int, mixer: nn.Module, ratio: float, scale: float | None,
              drop_path: float) -> nn.Module:  # fmt: skip
        raise AssertionError(f"{type(self).__name__} does not say which block it builds")


@dataclass(frozen=True)
class PreNorm(BlockSpec):
    """The MetaFormer block: mixer and MLP, each with a norm before and a residual around it."""

    norm: Norm = Norm()
    act: str = "gelu"
    bias: bool = True  # of the MLP's layers
    scale_residual: bool = False  # scale the residual instead of the branch
    drop: float = 0.0  # dropout in the MLP

    def build(self, dim: int, index: int, mixer: nn.Module, ratio: float, scale: float | None,
              drop_path: float) -> nn.Module:  # fmt: skip
        ffn = Mlp(dim, int(dim * ratio), self.act, self.bias, self.drop)
        add = (join(dim, scale, self.scale_residual, drop_path), join(dim, scale, self.scale_residual, drop_path))
        return Block(mixer, ffn, (self.norm.build(dim), self.norm.build(dim)), add)


@dataclass(frozen=True)
class Inverted(BlockSpec):
    """The ConvNeXt block."""

    norm: Norm = Norm(eps=1e-6)
    act: str = "gelu"

    def build(self, dim: int, index: int, mixer: nn.Module, ratio: float, scale: float | None,
              drop_path: float) -> nn.Module:  # fmt: skip
        ffn = Mlp(dim, int(dim * ratio), self.act)
        return InvertedBlock(mixer, ffn, self.norm.build(dim), join(dim, scale, False, drop_path))


@dataclass(frozen=True)
class StreamNorm(BlockSpec):
    """The block of the compact transformers: its second norm stands on the stream, with no residual around it."""

    norm: Norm = Norm()

    def build(self, dim: int, index: int, mixer: nn.Module, ratio: float, scale: float | None,
              drop_path: float) -> nn.Module:  # fmt: skip
        adds = (join(dim, scale, False, drop_path), join(dim, scale, False, drop_path))
        return StreamNormBlock(mixer, Mlp(dim, int(dim * ratio)), (self.norm.build(dim), self.norm.build(dim)), adds)


@dataclass(frozen=True)
class EachBlock(BlockSpec):
    """A kind of block for each block of the stage."""

    blocks: tuple[BlockSpec, ...]

    def build(self, dim: int, index: int, mixer: nn.Module, ratio: float, scale: float | None,
              drop_path: float) -> nn.Module:  # fmt: skip
        return self.blocks[index].build(dim, index, mixer, ratio, scale, drop_path)

    def sized(self, grid: tuple[int, int]) -> "EachBlock":
        return EachBlock(tuple(sized(b, grid) for b in self.blocks))


def exact_ratio(hidden: int, dim: int) -> float:
    """The ratio with which int(dim * ratio) is `hidden`, which hidden / dim may miss by rounding."""
    ratio = hidden / dim
    return ratio if int(dim * ratio) == hidden else math.nextafter(ratio, math.inf)
