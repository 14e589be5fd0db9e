"""FastV, https://arxiv.org/abs/2403.06764: image tokens that the last position attends to little leave a decoder."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from ...vision.tokens import Probe
from ..decoder import Layer
from ..stream import Stream
from . import Placed


@dataclass(frozen=True)
class FastV:
    """Before layer `k`, counted from 0, of each row's n image tokens the floor((1 - r) n) stay to which the last
    position attended most in layer k - 1 (mean over heads); text stays, and all keep their position ids.

    `masked`: nothing leaves; what would is hidden from the others from layer k on (for studies of accuracy).

    With a cache it acts once, on the prompt: later tokens see the set that was chosen then, in the layers from k on,
    where the original chooses anew at every step. In a batch each row is reduced by itself; the original takes one.
    """

    into: ClassVar[str] = "decoder"
    k: int = 2
    r: float = 0.5
    masked: bool = False

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ValueError(f"k={self.k}: FastV goes by the attention of the layer before k, so k is 1 or more")
        if not 0 <= self.r < 1:
            raise ValueError(f"r={self.r}: the share of image tokens that leave, from 0 to below 1")

    def place(self, hosts: Sequence[Layer]) -> list[Placed]:
        if self.k >= len(hosts):
            raise ValueError(f"k={self.k}: this decoder has {len(hosts)} layers, and FastV acts before one of them")
        return [Placed(hosts[self.k - 1], "after_block", Rank(self.r, self.masked))]


class Rank(nn.Module):
    """Stream, probe -> Stream without (or with hidden) the image tokens that were attended to least."""

    def __init__(self, r: float, masked: bool):
        super().__init__()
        self.r, self.masked = r, masked

    def forward(self, stream: Stream, probe: Probe) -> Stream:
        image = stream.image > 0 if stream.real is None else (stream.image > 0) & stream.real
        if stream.past or self.r == 0 or not bool(image.any()):
            return stream
        if stream.segment is not None:
            raise ValueError("FastV goes by the last position of a row, and several samples are packed into these")
        stays = kept(probe["last_attention"], image, self.r)
        if not self.masked:
            return stream.where(stays)
        return replace(stream, real=stays if stream.real is None else stays & stream.real, bias=None)


def kept(score: Tensor, image: Tensor, r: float) -> Tensor:
    """(B N): True for text, and for each row's floor((1 - r) n) of n image tokens with the highest score (B N)."""
    order = score.float().masked_fill(~image, -torch.inf).argsort(dim=1, descending=True, stable=True)
    count = torch.tensor([staying(n, r) for n in image.sum(1).tolist()], device=score.device)
    chosen = torch.zeros_like(image).scatter(
        1, order, torch.arange(image.shape[1], device=image.device) < count[:, None]
    )
    return ~image | chosen


def staying(n: int, r: float) -> int:
    """floor((1 - r) n), whatever the rounding of 1 - r."""
    return math.floor((1 - r) * n + 1e-6)
