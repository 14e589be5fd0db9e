"""Blocks whose norms are conditioned: adaLN-Zero, https://arxiv.org/abs/2212.09748.

Shapes: B samples, N tokens, C channels, D condition width, L tokens of a caption of width d.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from ...kernels.attend import attend
from ..block import BlockSpec, Seams
from ..layers import ACTIVATIONS, Linear, Mlp
from ..residual import Add, join
from ..tokens import Tokens


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """x (B N C) (1 + scale) + shift, each (B 1 C)."""
    return torch.addcmul(shift, x, 1 + scale)


def bare_norm(dim: int, eps: float = 1e-6) -> nn.LayerNorm:
    """A layer norm without scale and shift."""
    return nn.LayerNorm(dim, eps, elementwise_affine=False)


class Modulation(nn.Module):
    """(B D) -> `count` tensors (B 1 C): linear(act(c)), which begins at zero."""

    projections = ("linear",)

    def __init__(self, condition: int, dim: int, count: int, act: str = "silu"):
        super().__init__()
        self.count, self.act, self.linear = count, ACTIVATIONS[act](), Linear(condition, count * dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, c: Tensor) -> tuple[Tensor, ...]:
        return self.linear(self.act(c))[:, None].chunk(self.count, -1)  # type: ignore[no-any-return]


class CrossAttention(nn.Module):
    """proj(softmax(q k' / sqrt(d)) v) with queries of x (B N C), keys and values of a caption's tokens (B L d). The
    output layer begins at zero."""

    projections = ("q", "kv", "proj")

    def __init__(self, dim: int, context: int, heads: int):
        super().__init__()
        if dim % heads:
            raise ValueError(f"dim {dim} does not divide into {heads} heads")
        self.heads = heads
        self.q, self.kv, self.proj = Linear(dim, dim), Linear(context, 2 * dim), Linear(dim, dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.proj.weight)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        q = self.q(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # B h N d
        k, v = self.kv(context).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)  # B h L d
        return self.proj(attend(q, k, v).transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class ModulatedBlock(Seams):
    """x + gate1 mixer(norm1(x) (1 + scale1) + shift1), [then + cross(norm(x), caption)], then
    x + gate2 ffn(norm2(x) (1 + scale2) + shift2); shifts, scales and gates are `modulation` of the condition."""

    seams = (*Seams.seams, "around_ffn")

    def __init__(self, mixer: nn.Module, ffn: nn.Module, norms: tuple[nn.Module, nn.Module], adds: tuple[Add, Add],
                 modulation: Modulation, cross: tuple[nn.Module, nn.Module] | None = None):  # fmt: skip
        super().__init__()
        self.modulation = modulation
        (self.norm1, self.norm2), (self.add1, self.add2) = norms, adds
        self.mixer, self.ffn = mixer, ffn
        self.norm_cross: nn.Module = nn.Identity() if cross is None else cross[0]
        self.cross: nn.Module | None = None if cross is None else cross[1]

    def run(self, t: Tokens) -> Tokens:
        if t.condition is None:
            raise ValueError("this block is modulated by a condition, and the tokens have none: it is for denoisers")
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(t.condition)
        y, probe = self.mix(t, modulate(self.norm1(t.x), shift1, scale1))
        t = replace(t, x=self.gated(self.add1, t.x, gate1, y))
        if self.after_mixer is not None:
            t = self.after_mixer(t, probe)
        if self.cross is not None:
            t = replace(t, x=t.x + self.cross(self.norm_cross(t.x), t.context))
        normed = modulate(self.norm2(t.x), shift2, scale2)
        if self.around_ffn is None:
            return replace(t, x=self.gated(self.add2, t.x, gate2, self.ffn(normed)))

        def then(x: Tensor, normed: Tensor, back: Callable[[Tensor], Tensor] | None = None) -> Tensor:
            y = self.ffn(normed)
            return self.gated(self.add2, x, gate2, y if back is None else back(y))

        return replace(t, x=self.around_ffn(t, t.x, normed, then))

    @staticmethod
    def gated(add: Add, x: Tensor, gate: Tensor, y: Tensor) -> Tensor:
        return torch.addcmul(x, gate, add.thinned(y))


@runtime_checkable
class Conditioned(Protocol):
    """The spec of a block that wants to know how wide conditions are."""

    def conditioned(self, condition: int, context: int | None) -> BlockSpec:
        """The same for conditions (B condition) and captions (B L context), or none."""


@dataclass(frozen=True)
class AdaLNZero(BlockSpec):
    """The block of DiT around any mixer: its norms have no parameters, and shift, scale and gate come from the
    condition. `cross_heads`: attention to a caption's tokens between mixer and MLP (None: the caption acts through the
    condition alone). `condition` and `context` are the widths of both, which the denoiser fills in."""

    eps: float = 1e-6
    act: str = "gelu_tanh"
    cross_heads: int | None = None
    condition: int | None = None
    context: int | None = None

    def conditioned(self, condition: int, context: int | None) -> "AdaLNZero":
        return replace(self, condition=condition, context=context)

    def build(self, dim: int, index: int, mixer: nn.Module, ratio: float, scale: float | None,
              drop_path: float) -> nn.Module:  # fmt: skip
        if self.condition is None:
            raise ValueError("AdaLNZero is a block of denoisers, which say how wide the condition is: condition=None")
        if scale is not None:
            raise ValueError(f"scale={scale}: the gates of AdaLNZero scale its branches; leave scale out")
        cross = None
        if self.cross_heads is not None:
            if self.context is None:
                raise ValueError(
                    f"cross_heads={self.cross_heads}: attention to captions, of which this denoiser has none"
                )
            cross = bare_norm(dim, self.eps), CrossAttention(dim, self.context, self.cross_heads)
        adds = join(dim, None, False, drop_path), join(dim, None, False, drop_path)
        norms = bare_norm(dim, self.eps), bare_norm(dim, self.eps)
        ffn = Mlp(dim, int(dim * ratio), self.act)
        return ModulatedBlock(mixer, ffn, norms, adds, Modulation(self.condition, dim, 6), cross)


class FinalLayer(nn.Module):
    """Tokens (B N C) on a grid (h w), and c (B D) -> image (B out h*p w*p): linear(norm(x) (1 + scale) + shift), each
    token's vector read as (p, p, out). Both its layers begin at zero."""

    projections = ("linear",)

    def __init__(self, dim: int, condition: int, patch: int, out: int, eps: float = 1e-6):
        super().__init__()
        self.patch, self.norm = patch, bare_norm(dim, eps)
        self.modulation, self.linear = Modulation(condition, dim, 2), Linear(dim, patch * patch * out)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: Tensor, c: Tensor, grid: tuple[int, int]) -> Tensor:
        shift, scale = self.modulation(c)
        return unpatchify(self.linear(modulate(self.norm(x), shift, scale)), grid, self.patch)


def unpatchify(x: Tensor, grid: tuple[int, int], patch: int) -> Tensor:
    """(B h*w p*p*c), the channel fastest -> (B c h*p w*p)."""
    m = x.unflatten(1, grid).unflatten(-1, (patch, patch, -1))  # type: ignore[no-untyped-call]  # B h w p q c
    return m.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)  # type: ignore[no-any-return]
