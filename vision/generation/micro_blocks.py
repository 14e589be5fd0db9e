"""What MicroDiT is made of: attention with normalised queries and keys, to the tokens and to a caption.

Shapes: B samples, N tokens, C channels, h heads of d channels, L tokens of a caption, D condition width.
"""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...kernels.attend import attend
from ..block import Seams
from ..layers import Linear, SwiGLU
from ..mixers.attention import SelfAttention, attend_in
from ..tokens import Probe, Tokens
from .adaln import Modulation, modulate
from .expert_choice import ExpertChoice

EPS = 1e-6


def bare_norm(x: Tensor) -> Tensor:
    """Layer normalisation of the last dimension, without weight and bias."""
    return F.layer_norm(x, x.shape[-1:], eps=EPS)


def weight_norm(dim: int) -> nn.LayerNorm:
    return nn.LayerNorm(dim, eps=EPS, bias=False)


def attention_width(dim: int, head: int, ratio: float) -> int:
    """Channels of the queries for a share `ratio` of dim: two heads at a time, rounded up."""
    return dim if ratio == 1 else 2 * head * -(-int(dim * ratio) // (2 * head))


def hidden_width(dim: int, ratio: float, experts: bool) -> int:
    """Hidden channels of an MLP, a multiple of 256: of a gated one two thirds, as it has three matrices."""
    hidden = int(dim * ratio) if experts else int(2 * int(dim * ratio) / 3)
    return 256 * -(-hidden // 256)


class NormedAttention(SelfAttention):
    """Self-attention of `width` channels in heads of `head`, whose queries and keys are normalised over all channels
    before they are split into heads; no biases."""

    def __init__(self, dim: int, width: int, head: int):
        if width % head:
            raise ValueError(f"width {width} does not divide into heads of {head} channels")
        super().__init__(dim, width // head, bias=False, out_bias=False, width=head)

    def forward(self, t: Tokens, probe: Probe | None = None) -> Tensor:
        q, k, v = self.qkv(t.x).chunk(3, -1)
        q, k, v = (y.unflatten(-1, (self.heads, -1)).transpose(1, 2) for y in (bare_norm(q), bare_norm(k), v))
        if probe is not None:
            probe["queries"], probe["keys"] = q, k  # B h N d
        bias = None if t.size is None else t.size.log()[:, None, None, :, 0]
        y = attend_in(self.attending, q, k, v, bias, t)
        return self.proj(y.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]  # B N C


class CrossAttention(nn.Module):
    """Attention of the tokens (B N C) to a caption (B L C), with normalised queries and keys as in `NormedAttention`;
    no biases."""

    projections, entries = ("q", "kv", "proj"), ("q",)

    def __init__(self, dim: int, head: int):
        super().__init__()
        self.heads = dim // head
        self.q, self.kv = Linear(dim, dim, bias=False), Linear(dim, 2 * dim, bias=False)
        self.proj = Linear(dim, dim, bias=False)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        k, v = self.kv(context).chunk(2, -1)
        q, k, v = (y.unflatten(-1, (self.heads, -1)).transpose(1, 2) for y in (bare_norm(self.q(x)), bare_norm(k), v))
        return self.proj(attend(q, k, v).transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class MicroBlock(Seams):
    """Self-attention, attention to the caption and MLP, each with a norm before and a residual around it; the first and
    the last are shifted, scaled and gated by what the condition (B D) says."""

    seams = (*Seams.seams, "on_ffn")

    def __init__(self, dim: int, condition: int, head: int, qkv_ratio: float, ratio: float, experts: int = 0):
        """`experts`: how many choose their tokens in place of one gated MLP for all; 0: none."""
        super().__init__()
        self.dim, hidden = dim, hidden_width(dim, ratio, experts > 0)
        self.modulation = Modulation(condition, dim, 6, "gelu_tanh")
        self.norm1, self.norm2, self.norm3 = (weight_norm(dim) for _ in range(3))
        self.mixer = NormedAttention(dim, attention_width(dim, head, qkv_ratio), head)
        self.cross = CrossAttention(dim, head)
        self.ffn = ExpertChoice(dim, hidden, experts) if experts else SwiGLU(dim, hidden)

    def run(self, t: Tokens) -> Tokens:
        assert t.condition is not None
        assert t.context is not None
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(t.condition)
        y, probe = self.mix(t, modulate(self.norm1(t.x), shift1, scale1))
        x = torch.addcmul(t.x, gate1, y)
        t = replace(t, x=x + self.cross(self.norm2(x), t.context))
        if self.after_mixer is not None:
            t = self.after_mixer(t, probe)
        y = self.ffn(modulate(self.norm3(t.x), shift2, scale2))
        if self.on_ffn is not None:
            y = self.on_ffn(t, y)
        return replace(t, x=torch.addcmul(t.x, gate2, y))


class MicroFinal(nn.Module):
    """Tokens (B N C) and c (B D) -> (B N out): linear(norm(x) (1 + scale) + shift), all of it 0 to begin with."""

    projections = ("linear",)

    def __init__(self, dim: int, condition: int, out: int):
        super().__init__()
        self.modulation = Modulation(condition, dim, 2, "gelu_tanh")
        self.norm, self.linear = weight_norm(dim), Linear(dim, out)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift, scale = self.modulation(c)
        return self.linear(modulate(self.norm(x), shift, scale))  # type: ignore[no-any-return]


class CaptionMlp(nn.Module):
    """fc2(norm(gelu(fc1(y)))), widths `width` -> dim -> dim, on tokens of a caption or on their mean."""

    projections, entries = ("fc1", "fc2"), ("fc1",)

    def __init__(self, width: int, dim: int):
        super().__init__()
        self.fc1, self.norm, self.fc2 = Linear(width, dim), weight_norm(dim), Linear(dim, dim)

    def forward(self, y: Tensor) -> Tensor:
        return self.fc2(self.norm(F.gelu(self.fc1(y), approximate="tanh")))  # type: ignore[no-any-return]


class CaptionBlock(nn.Module):
    """One transformer block among the tokens of a caption (B L C), without a condition."""

    def __init__(self, dim: int, head: int):
        super().__init__()
        self.norm1, self.mixer = weight_norm(dim), NormedAttention(dim, dim, head)
        self.norm2, self.ffn = weight_norm(dim), SwiGLU(dim, hidden_width(dim, 4.0, False))

    def forward(self, y: Tensor) -> Tensor:
        y = y + self.mixer(Tokens(self.norm1(y), None))
        return y + self.ffn(self.norm2(y))  # type: ignore[no-any-return]
