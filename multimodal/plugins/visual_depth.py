"""Truncated visual depth, https://arxiv.org/abs/2604.09425: a decoder's later layers no longer work on image tokens.

Of the paper only what it found is at hand, that what images say settles in early layers; this is a reading of it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import nn

from ..decoder import Layer
from ..stream import Stream
from . import Placed


@dataclass(frozen=True)
class VisualDepth:
    """Image tokens leave before layer `k`, counted from 0; as many as the decoder has layers: never; 0: it is blind.
    Text keeps its position ids. A prompt that ends with an image keeps its last token.

    `frozen`: they stay, but are from layer k on what they were before it; text reads them by each layer's own keys and
    values. Nothing is saved so (for studies of accuracy).
    """

    into: ClassVar[str] = "decoder"
    k: int
    frozen: bool = False

    def __post_init__(self) -> None:
        if self.k < 0:
            raise ValueError(f"k={self.k}: how many layers work on image tokens, 0 or more")

    def place(self, hosts: Sequence[Layer]) -> list[Placed]:
        if self.k > len(hosts):
            raise ValueError(f"k={self.k}: this decoder has {len(hosts)} layers")
        if not self.frozen:
            return [Placed(host, "before_block", Leave()) for host in hosts[self.k : self.k + 1]]
        first = [Placed(host, "before_block", Freeze()) for host in hosts[self.k : self.k + 1]]
        return first + [Placed(host, "before_block", Thaw()) for host in hosts[self.k + 1 :]]


class Leave(nn.Module):
    """Stream -> Stream without image tokens."""

    def forward(self, stream: Stream) -> Stream:
        return stream if stream.past else stream.where(stream.text_or_last())


class Freeze(nn.Module):
    """Stream -> the same, which remembers its tokens."""

    def forward(self, stream: Stream) -> Stream:
        return stream if stream.past else replace(stream, away=stream)


class Thaw(nn.Module):
    """Stream -> Stream whose image tokens are those that it remembers."""

    def forward(self, stream: Stream) -> Stream:
        if stream.past:
            return stream
        assert stream.away is not None
        return replace(stream, x=stream.x.where(stream.text_or_last()[..., None], stream.away.x))
