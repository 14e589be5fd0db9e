"""Stems of several convolutions, each with a norm and an activation behind it."""

from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor, nn

from ..conv import ConvNorm
from ..layers import ACTIVATIONS
from ..norm import Norm
from ..position import Position
from ..stem import Convolution, Positioned
from ..tokens import Tokens


class Convolutions(nn.Module):
    """image (B 3 H W) -> Tokens, through `layers` on maps B H W C one behind the other, and positions or none."""

    def __init__(self, layers: list[nn.Module], position: nn.Module | None = None):
        super().__init__()
        self.layers = nn.Sequential(*layers)
        self.position = nn.Identity() if position is None else position

    def forward(self, image: Tensor) -> Tokens:
        m = self.layers(image.contiguous(memory_format=torch.channels_last).permute(0, 2, 3, 1))
        return self.position(Tokens(m.flatten(1, 2), (m.shape[1], m.shape[2])))  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Layer:
    """act(norm(convolution)), padded by kernel // 2; batch norms fold into it."""

    width: int | None = None  # channels that come out; None: those of the stage
    kernel: int = 3
    stride: int = 1
    act: str | None = None
    bias: bool = True
    norm: Norm = Norm("batch")

    def build(self, dim: int, out: int) -> nn.Module:
        if self.norm.kind == "batch":
            return ConvNorm(dim, out, self.kernel, self.stride, bias=self.bias, act=self.act, eps=self.norm.eps)
        conv = nn.Conv2d(dim, out, self.kernel, self.stride, self.kernel // 2, bias=self.bias)
        made = Convolution(conv, None, self.norm.build(out))
        return made if self.act is None else nn.Sequential(made, ACTIVATIONS[self.act]())


@dataclass(frozen=True)
class ConvLayers(Positioned):
    """A stem of `layers`, with special tokens and positions or none."""

    layers: tuple[Layer, ...]
    position: Position | None = None

    @property
    def stride(self) -> int:
        return prod(layer.stride for layer in self.layers)

    def build(self, channels: int, dim: int) -> nn.Module:
        made = []
        for layer in self.layers:
            out = layer.width or dim
            made.append(layer.build(channels, out))
            channels = out
        return Convolutions(made, None if self.position is None else self.position.build(dim))
