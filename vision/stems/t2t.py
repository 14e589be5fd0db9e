"""Tokens to tokens (T2T-ViT, https://arxiv.org/abs/2101.11986): three overlapping splits of the image, with a small
attention layer behind each of the first two."""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...kernels.attend import attend
from ...kernels.linear_attention import exponential_features, linear_attention
from ...kernels.sizes import always, is_open
from ..layers import Linear, Mlp
from ..position import Position
from ..stem import Positioned
from ..tokens import Tokens

SPLITS = ((7, 4, 2), (3, 2, 1), (3, 2, 1))  # kernel, stride, padding


def soft_split(m: Tensor, kernel: int, stride: int, padding: int) -> Tensor:
    """m (B H W C) -> (B h w C*kernel*kernel), the overlapping patches in zero padding: channel, row, column, the last
    one fastest. A map smaller than the kernel is padded up to it."""
    more = [0 if always(n >= kernel) else max(0, kernel - n - 2 * padding) for n in m.shape[1:3]]
    m = F.pad(m, (0, 0, padding, padding + more[1], padding, padding + more[0]))
    h, w = m.shape[1:3]
    if is_open(h, w):
        y = F.unfold(m.permute(0, 3, 1, 2), kernel, stride=stride).mT  # B h*w C*kernel*kernel
        places = tuple((n - kernel) // stride + 1 for n in (h, w))
        return y.unflatten(1, places)  # type: ignore[no-untyped-call, no-any-return]
    h, w = ((n - kernel) // stride * stride + 1 for n in m.shape[1:3])
    taps = [m[:, i : i + h : stride, j : j + w : stride] for i in range(kernel) for j in range(kernel)]
    return torch.stack(taps, -1).flatten(3)


class Performer(nn.Module):
    """x (B N d) -> (v, proj(y)), (B N e) each: linear attention of random features,
    y_t = sum_s (phi(q_t) phi(k_s)) v_s / (sum_s phi(q_t) phi(k_s) + 1e-8), phi(u) = exp(w u - |u|²/2) / sqrt(m).

    Keys are long enough to bring that sum below its epsilon, and nothing keeps it from that, as published. w is drawn
    once and stays: it belongs to the weights.
    """

    projections = ("kqv", "proj")
    w: Tensor

    def __init__(self, dim: int, width: int):
        super().__init__()
        self.kqv, self.proj = Linear(dim, 3 * width), Linear(width, width)
        m = width // 2
        self.register_buffer("w", nn.init.orthogonal_(torch.empty(m, width)).mul_(m**0.5))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        k, q, v = self.kqv(x).chunk(3, -1)  # the keys come first
        y = linear_attention(exponential_features(q, self.w), exponential_features(k, self.w), v, 1e-8)
        return v, self.proj(y)


class Attention(nn.Module):
    """x (B N d) -> (v, proj(softmax(q k' / sqrt(d)) v)), (B N e) each, by one head; d is the width of what comes in."""

    projections = ("qkv", "proj")

    def __init__(self, dim: int, width: int):
        super().__init__()
        self.qkv, self.proj, self.scale = Linear(dim, 3 * width, bias=False), Linear(width, width), dim**-0.5

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        q, k, v = self.qkv(x).unsqueeze(1).chunk(3, -1)  # B 1 N e
        return v[:, 0], self.proj(attend(q, k, v, scale=self.scale)[:, 0])


class TokenLayer(nn.Module):
    """norm1 -> attention -> norm2 -> mlp, (B N d) -> (B N e). The input is too wide to be added back: v stands in its
    place."""

    def __init__(self, dim: int, width: int, attention: nn.Module, drop: float):
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(dim), attention
        self.norm2, self.mlp = nn.LayerNorm(width), Mlp(width, width, drop=drop)
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        v, y = self.attention(self.norm1(x))
        x = v + self.drop(y)
        return x + self.mlp(self.norm2(x))  # type: ignore[no-any-return]


class TokensToTokens(nn.Module):
    """image (B channels H W) -> split, layer1, split, layer2, split, project -> Tokens with their positions."""

    projections = ("project",)

    def __init__(self, layers: tuple[TokenLayer, TokenLayer], project: Linear, position: nn.Module):
        super().__init__()
        (self.layer1, self.layer2), self.project, self.position = layers, project, position

    def forward(self, image: Tensor) -> Tokens:
        m = soft_split(image.permute(0, 2, 3, 1), *SPLITS[0])
        for layer, split in ((self.layer1, SPLITS[1]), (self.layer2, SPLITS[2])):
            grid = m.shape[1:3]
            m = soft_split(layer(m.flatten(1, 2)).unflatten(1, grid), *split)
        t = Tokens(self.project(m.flatten(1, 2)), (m.shape[1], m.shape[2]))
        return self.position(t)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class TokensToToken(Positioned):
    """Tokens 16 pixels apart; `width` channels in the two layers, which attend by random features (`performer`, with
    dropout 0.1) or by a softmax (`transformer`)."""

    position: Position
    layer: Literal["performer", "transformer"] = "performer"
    width: int = 64

    @property
    def stride(self) -> int:
        return 16

    def build(self, channels: int, dim: int) -> nn.Module:
        if self.layer not in ("performer", "transformer"):
            raise ValueError(f"token layer {self.layer!r} is not known; there are performer and transformer")
        attention, drop = (Performer, 0.1) if self.layer == "performer" else (Attention, 0.0)
        first, second = (
            TokenLayer(d, self.width, attention(d, self.width), drop)
            for d in (channels * SPLITS[0][0] ** 2, self.width * SPLITS[1][0] ** 2)
        )
        last = Linear(self.width * SPLITS[2][0] ** 2, dim)
        return TokensToTokens((first, second), last, self.position.build(dim))
