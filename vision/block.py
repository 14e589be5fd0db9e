"""The residual blocks that every family shares, and the state that runs through them.

Shapes: B images, N tokens, C channels, an H x W grid of patches.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..kernels.linear import linear
from ..kernels.mlp import mlp
from ..kernels.sizes import always
from ..kernels.star_relu import star_relu
from .affine import into_readers
from .norm import Norm as Norm
from .norm import OneGroupNorm as OneGroupNorm
from .spec import Spec, sized

Probe = dict[str, Tensor]


@dataclass(frozen=True)
class Tokens:
    """The tokens of one batch. Replaced, never mutated, never stored on a module."""

    x: Tensor  # B N C
    grid: tuple[int, int] | None  # H, W with H * W == N - len(special); None once tokens no longer fill a grid
    special: tuple[int, ...] = ()  # positions of class, register and prompt tokens, the class token's first
    size: Tensor | None = None  # B N 1: how many patches each token stands for; None: one each
    source: Tensor | None = None  # B H*W: the present token of each patch, -1 where it was dropped; None: all present
    inner: Tensor | None = None  # B*H*W n c: the n smaller tokens that a patch is made of (TNT); None: it has none
    turn: int = 0  # how often the block that computes has run right before (blocks.recursive)

    def patches(self) -> Tensor:
        """B H*W C: the tokens that stand for patches, in raster order."""
        if not self.special:
            return self.x
        n, k = self.x.shape[1], len(self.special)
        if sorted(self.special) == list(range(k)):
            return self.x[:, k:]
        if sorted(self.special) == list(range(n - k, n)):
            return self.x[:, : n - k]
        kept = [i for i in range(n) if i not in set(self.special)]
        return self.x[:, kept]

    def map(self) -> Tensor:
        """B H W C, a view where there are no special tokens; its `permute(0, 3, 1, 2)` is an NCHW tensor in
        channels_last memory."""
        if self.grid is None:
            raise ValueError("these tokens no longer fill a grid (some were merged or dropped); unmerge them first")
        return self.patches().unflatten(1, self.grid)  # type: ignore[no-untyped-call, no-any-return]

    def with_map(self, m: Tensor) -> "Tokens":
        """The same with the map m (B H W C) as its tokens; for tokens without special ones."""
        return replace(self, x=m.flatten(1, 2), grid=(m.shape[1], m.shape[2]))


# ---------------------------------------------------------------------------------------------------------- layers


class Linear(nn.Linear):
    """`nn.Linear` by the fastest product that this machine has (kernels/linear.py); normal weights of deviation 0.02
    and zero biases to begin with."""

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight, std=0.02)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, input: Tensor) -> Tensor:
        return linear(input, self.weight, self.bias)


def unhooked(module: nn.Module) -> bool:
    """Whether nobody looks at or changes what goes in and out of `module`."""
    m = module
    return not (m._forward_hooks or m._forward_pre_hooks or m._backward_hooks or m._backward_pre_hooks)


def is_plain(module: nn.Module) -> bool:
    """Whether `module` is our Linear as it was built: no adapter, quantiser or hook stands before, in or behind it, so
    that a kernel may take its weights instead of calling it."""
    return type(module) is Linear and unhooked(module)


def entries(module: nn.Module) -> list[nn.Module]:
    """The linear layers that alone read what goes into `module`, as it declares them; none where one of them has been
    replaced."""
    found = [getattr(module, name) for name in getattr(module, "entries", ())]
    return found if unhooked(module) and all(is_plain(layer) for layer in found) else []


class StarReLU(nn.Module):
    """s relu(x)² + b with learned scalars s and b, https://arxiv.org/abs/2210.13452."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.bias = nn.Parameter(torch.ones(1)), nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return star_relu(x, self.scale, self.bias)


class QuickGELU(nn.Module):
    """x sigmoid(1.702 x)."""

    def forward(self, x: Tensor) -> Tensor:
        return x * (1.702 * x).sigmoid()


class SquaredReLU(nn.Module):
    """relu(x)²."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x).square()


ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "gelu": nn.GELU, "quick_gelu": QuickGELU, "relu": nn.ReLU, "silu": nn.SiLU, "tanh": nn.Tanh,
    "star_relu": StarReLU, "squared_relu": SquaredReLU,
}  # fmt: skip


class Mlp(nn.Module):
    """fc2(act(fc1(x))), channels C -> hidden -> C."""

    projections, entries = ("fc1", "fc2"), ("fc1",)

    def __init__(self, dim: int, hidden: int, act: str = "gelu", bias: bool = True, drop: float = 0.0):
        super().__init__()
        if act not in ACTIVATIONS:
            raise ValueError(f"act {act!r} is not known; there are {', '.join(ACTIVATIONS)}")
        self.fc1, self.act, self.fc2 = Linear(dim, hidden, bias), ACTIVATIONS[act](), Linear(hidden, dim, bias)
        self.drop = nn.Dropout(drop) if drop else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        if self.whole():
            return self.at_once(x)
        return self.drop(self.fc2(self.drop(self.act(self.fc1(x)))))  # type: ignore[no-any-return]

    def whole(self) -> bool:
        """Whether all of it may be one kernel: nothing stands in place of or between its layers, no dropout acts."""
        plain = is_plain(self.fc1) and is_plain(self.fc2)
        known = type(self.act) in (nn.GELU, StarReLU) and unhooked(self.act)
        return plain and known and not (self.training and type(self.drop) is nn.Dropout)

    def at_once(self, x: Tensor, gamma: Tensor | None = None) -> Tensor:
        """gamma fc2(act(fc1(x)))."""
        star = (self.act.scale, self.act.bias) if isinstance(self.act, StarReLU) else None
        return mlp(x, (self.fc1.weight, self.fc1.bias), (self.fc2.weight, self.fc2.bias), star, gamma)


class SwiGLU(nn.Module):
    """fc2(silu(fc1(x)) * fc3(x)), channels C -> hidden -> C (https://arxiv.org/abs/2002.05202)."""

    projections, entries = ("fc1", "fc2", "fc3"), ("fc1", "fc3")

    def __init__(self, dim: int, hidden: int, bias: bool = False):
        super().__init__()
        self.fc1, self.fc3 = Linear(dim, hidden, bias), Linear(dim, hidden, bias)
        self.fc2 = Linear(hidden, dim, bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.silu(self.fc1(x)) * self.fc3(x))  # type: ignore[no-any-return]


# ---------------------------------------------------------------------------------------------------- residual joins


class Add(nn.Module):
    """x + droppath(y): y is left out for a whole image with probability `drop`, and scaled to make up for it
    (stochastic depth, https://arxiv.org/abs/1603.09382)."""

    def __init__(self, drop: float = 0.0):
        super().__init__()
        self.drop = drop

    def thinned(self, y: Tensor) -> Tensor:
        if not self.training or self.drop == 0:
            return y
        keep = y.new_empty((y.shape[0],) + (1,) * (y.ndim - 1)).bernoulli_(1 - self.drop)
        return y * keep.div_(1 - self.drop) if self.drop < 1 else y * keep

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x + self.thinned(y)

    def extra_repr(self) -> str:
        return f"drop={self.drop:g}" if self.drop else ""


class AddScaled(Add):
    """x + gamma droppath(y), one gamma per channel (LayerScale, https://arxiv.org/abs/2103.17239)."""

    def __init__(self, dim: int, init: float, drop: float = 0.0):
        super().__init__(drop)
        self.gamma = nn.Parameter(torch.full((dim,), init))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.addcmul(x, self.thinned(y), self.gamma)


def add_mlp(add: Add, ffn: nn.Module, x: Tensor, normed: Tensor) -> Tensor:
    """add(x, ffn(normed)), with a LayerScale folded into the MLP where nothing stands between them and the weights are
    fewer than the activations."""
    thins = add.training and add.drop > 0
    if (
        type(add) is AddScaled and type(ffn) is Mlp and unhooked(add) and unhooked(ffn) and not thins and ffn.whole()
        and always(normed.numel() >= ffn.fc2.weight.numel())
    ):  # fmt: skip
        return x + ffn.at_once(normed, add.gamma)
    return add(x, ffn(normed))  # type: ignore[no-any-return]


class ScaledAdd(Add):
    """scale x + droppath(y), one scale per channel on the residual (https://arxiv.org/abs/2110.09456)."""

    def __init__(self, dim: int, drop: float = 0.0):
        super().__init__(drop)
        self.scale = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.addcmul(self.thinned(y), x, self.scale)


# ------------------------------------------------------------------------------------------------------------ blocks


class Mixer(Protocol):
    """The spec of a token mixer; `index` counts the blocks of a stage."""

    def build(self, dim: int, index: int) -> nn.Module: ...


class Seams(nn.Module):
    """A block with the four places where a plugin may be put; each is None, or a module:

    before_block  Tokens -> Tokens
    after_norm    Tokens -> Tokens, on the normalised tokens that the mixer is about to take
    after_mixer   (Tokens, probe) -> Tokens, behind the mixer's residual; probe holds what the mixer `offers`
    after_block   Tokens -> Tokens
    """

    seams = ("before_block", "after_norm", "after_mixer", "after_block")
    mixer: nn.Module

    def __init__(self) -> None:
        super().__init__()
        self.before_block: nn.Module | None = None
        self.after_norm: nn.Module | None = None
        self.after_mixer: nn.Module | None = None
        self.after_block: nn.Module | None = None

    def mix(self, t: Tokens, normed: Tensor) -> tuple[Tensor, Probe | None]:
        """What the mixer makes of the normalised tokens, and what it showed on the way (None if nobody looks)."""
        n = replace(t, x=normed)
        if self.after_norm is not None:
            n = self.after_norm(n)
        probe: Probe | None = None if self.after_mixer is None else {}
        return self.mixer(n, probe), probe

    def forward(self, t: Tokens) -> Tokens:
        if self.before_block is not None:
            t = self.before_block(t)
        t = self.run(t)
        return t if self.after_block is None else self.after_block(t)

    def run(self, t: Tokens) -> Tokens:
        raise AssertionError(f"{type(self).__name__} does not say what it computes")


class Block(Seams):
    """norm1 -> mixer -> add1 -> [after_mixer] -> norm2 -> ffn -> add2."""

    def __init__(self, mixer: nn.Module, ffn: nn.Module, norms: tuple[nn.Module, nn.Module], adds: tuple[Add, Add]):
        super().__init__()
        (self.norm1, self.norm2), (self.add1, self.add2) = norms, adds
        self.mixer, self.ffn = mixer, ffn

    def run(self, t: Tokens) -> Tokens:
        y, probe = self.mix(t, self.norm1(t.x))
        t = replace(t, x=self.add1(t.x, y))
        if self.after_mixer is not None:
            t = self.after_mixer(t, probe)
        return replace(t, x=add_mlp(self.add2, self.ffn, t.x, self.norm2(t.x)))

    def fold_(self) -> None:
        if self.after_norm is None:  # what stands there looks at normalised tokens
            self.norm1 = into_readers(self.norm1, entries(self.mixer))
        self.norm2 = into_readers(self.norm2, entries(self.ffn))


class InvertedBlock(Seams):
    """mixer -> norm -> ffn -> add: one residual around both, as in ConvNeXt."""

    def __init__(self, mixer: nn.Module, ffn: nn.Module, norm: nn.Module, add: Add):
        super().__init__()
        self.mixer, self.norm, self.ffn, self.add = mixer, norm, ffn, add

    def run(self, t: Tokens) -> Tokens:
        y, probe = self.mix(t, t.x)
        t = replace(t, x=add_mlp(self.add, self.ffn, t.x, self.norm(y)))
        return t if self.after_mixer is None else self.after_mixer(t, probe)


class StreamNormBlock(Seams):
    """norm1 -> mixer -> add1 -> norm2 on the stream itself -> ffn -> add2, as in the compact transformers (CCT)."""

    def __init__(self, mixer: nn.Module, ffn: nn.Module, norms: tuple[nn.Module, nn.Module], adds: tuple[Add, Add]):
        super().__init__()
        (self.norm1, self.norm2), (self.add1, self.add2) = norms, adds
        self.mixer, self.ffn = mixer, ffn

    def run(self, t: Tokens) -> Tokens:
        y, probe = self.mix(t, self.norm1(t.x))
        t = replace(t, x=self.norm2(self.add1(t.x, y)))
        if self.after_mixer is not None:
            t = self.after_mixer(t, probe)
        return replace(t, x=self.add2(t.x, self.ffn(t.x)))


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


def join(dim: int, scale: float | None, scale_residual: bool, drop_path: float) -> Add:
    """The residual that these settings ask for."""
    if scale is not None and scale_residual:
        raise ValueError(f"scale={scale} and scale_residual=True exclude each other: scale the branch or the residual")
    if not 0 <= drop_path <= 1:
        raise ValueError(f"drop_path {drop_path} is no probability")
    if scale_residual:
        return ScaledAdd(dim, drop_path)
    return Add(drop_path) if scale is None else AddScaled(dim, scale, drop_path)
