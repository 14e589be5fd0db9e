"""What normalises tokens: over their channels, over an image, or over a batch.

Shapes: B images, N tokens, C channels, an H x W grid; the channels come last everywhere.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .spec import Spec


class OneGroupNorm(nn.Module):
    """(x - mean) / std * weight + bias with mean and variance over all tokens and channels of an image together."""

    def __init__(self, dim: int, eps: float, bias: bool = True):
        super().__init__()
        self.eps, self.weight = eps, nn.Parameter(torch.ones(dim))
        self.bias: nn.Parameter | None
        self.register_parameter("bias", nn.Parameter(torch.zeros(dim)) if bias else None)

    def forward(self, x: Tensor) -> Tensor:  # B N C
        m = x[:, :, None].permute(0, 3, 1, 2)  # B C N 1 in channels_last memory, for which torch has a kernel
        return F.group_norm(m, 1, self.weight, self.bias, self.eps).permute(0, 2, 3, 1).flatten(1, 2)


class BatchNorm(nn.BatchNorm1d):
    """Batch normalisation of channels that come last, over all that stands before them: (B N C) or (B H W C)."""

    def forward(self, input: Tensor) -> Tensor:
        m = input.reshape(-1, 1, 1, input.shape[-1]).permute(0, 3, 1, 2)  # channels_last memory
        if self.training and m.shape[0] == 1:
            raise ValueError("batch normalisation cannot be trained on a single token: use a larger image or batch")
        return super().forward(m).permute(0, 2, 3, 1).reshape(input.shape)

    def _check_input_dim(self, input: Tensor) -> None:
        """`forward` makes four dimensions of any number."""

    def scale_and_shift(self) -> tuple[Tensor, Tensor]:
        """(a, b), each (C), with which the evaluating norm is a x + b."""
        return scale_and_shift(self)


def scale_and_shift(norm: nn.BatchNorm1d | nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """(a, b), each (C) in float32, with which an evaluating batch norm is a x + b."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    a = (norm.running_var.float() + norm.eps).rsqrt() * norm.weight.float()
    return a, norm.bias.float() - norm.running_mean.float() * a


class RMSNorm(nn.Module):
    """x / sqrt(mean(x²) + eps) * weight over the channels, in float32 (https://arxiv.org/abs/1910.07467)."""

    def __init__(self, dim: int, eps: float):
        super().__init__()
        self.eps, self.weight = eps, nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        y = F.rms_norm(x.float(), (x.shape[-1],), None, self.eps)
        return y.to(x.dtype) * self.weight


@dataclass(frozen=True)
class Norm(Spec):
    """What normalises: each token over its channels (`layer`, `rms`), all tokens of an image together (`group`), or
    each channel over the batch (`batch`)."""

    kind: Literal["layer", "group", "batch", "rms"] = "layer"
    eps: float = 1e-5
    bias: bool = True

    def build(self, dim: int) -> nn.Module:
        if self.kind == "layer":
            return nn.LayerNorm(dim, eps=self.eps, bias=self.bias)
        if self.kind == "group":
            return OneGroupNorm(dim, self.eps, self.bias)
        if self.kind == "batch":
            return BatchNorm(dim, eps=self.eps)
        if self.kind == "rms":
            return RMSNorm(dim, self.eps)
        raise ValueError(f"norm kind {self.kind!r} is not known; there are layer, group, batch and rms")
