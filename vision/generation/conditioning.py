"""What a denoiser is told beside the image: the time, a class, a caption, as vectors.

Shapes: B samples, D condition width, L tokens of a caption of width d.
"""

import math

import torch
from torch import Tensor, nn

from ..layers import ACTIVATIONS, Linear


def time_features(t: Tensor, dim: int = 256, period: float = 10000.0) -> Tensor:
    """(B) -> (B dim) in float32: [cos(t f), sin(t f)] with f_k = period^(-2k / dim)."""
    half = dim // 2
    f = torch.exp(-math.log(period) / half * torch.arange(half, dtype=torch.float32, device=t.device))
    angle = t.float()[:, None] * f
    return torch.cat([angle.cos(), angle.sin()], 1)


class TimeEmbedding(nn.Module):
    """(B) -> (B D): fc2(act(fc1(`time_features`))), whatever the time counts."""

    projections = ("fc1", "fc2")

    def __init__(self, dim: int, features: int = 256, act: str = "silu"):
        super().__init__()
        self.features = features
        self.fc1, self.act, self.fc2 = Linear(features, dim), ACTIVATIONS[act](), Linear(dim, dim)

    def forward(self, t: Tensor, dtype: torch.dtype) -> Tensor:
        """`dtype` is that of the network, which the features, computed in float32, are brought to."""
        return self.fc2(self.act(self.fc1(time_features(t, self.features).to(dtype))))  # type: ignore[no-any-return]


class Labels(nn.Module):
    """Labels (B) -> (B D), in the place of which others may be put for other classes."""

    def resized(self, num_classes: int) -> "Labels":
        raise AssertionError(f"{type(self).__name__} does not say what it is for other classes")


class LabelEmbedding(Labels):
    """(B) -> (B D): a row for each class, and one more, the last, for none."""

    def __init__(self, num_classes: int, dim: int, null: bool = True):
        super().__init__()
        self.null = null
        self.table = nn.Embedding(num_classes + null, dim)
        nn.init.normal_(self.table.weight, std=0.02)

    def forward(self, y: Tensor) -> Tensor:
        return self.table(y)  # type: ignore[no-any-return]

    def resized(self, num_classes: int) -> "LabelEmbedding":
        """The same for other classes, each of which begins as no class does; without that row as their mean."""
        old = self.table.weight
        new = LabelEmbedding(num_classes, old.shape[1], self.null).to(old)
        with torch.no_grad():
            new.table.weight.copy_((old[-1] if self.null else old.mean(0)).expand_as(new.table.weight))
        return new.train(self.training)


class CaptionEmbedding(nn.Module):
    """Captions (B L d) -> (their mean as a vector (B D), their tokens (B L D)): norm and linear layer for the tokens,
    and a two-layer MLP behind their mean. The norm comes first, so that no gradient passes through that of zeros."""

    projections = ("tokens", "fc1", "fc2")

    def __init__(self, width: int, dim: int):
        super().__init__()
        self.norm, self.tokens = nn.LayerNorm(width, eps=1e-6), Linear(width, dim)
        self.fc1, self.act, self.fc2 = Linear(dim, dim), nn.SiLU(), Linear(dim, dim)

    def forward(self, y: Tensor) -> tuple[Tensor, Tensor]:
        tokens = self.tokens(self.norm(y))
        return self.fc2(self.act(self.fc1(tokens.mean(1)))), tokens
