"""Dual-path routing of image tokens with late fusion (DPVR-LF), https://arxiv.org/abs/2606.09131.

Of the paper these facts are at hand: in LLaVA-1.5, of 32 layers, text hardly attends to image tokens after layer 18;
they leave the decoder, pass a trainable side branch of one layer while the language path runs thirteen layers on text
alone, and are fused again in the last layer; about 3% of all parameters are trained. The rest is a reading of them: the
branch is a layer of the decoder's own kind (one of 32 is 3%), which begins as a copy of the first one that is skipped;
image tokens see those of images before them in it, not the text; fusion is the last layer's own attention, in which
they stand where they stood.
"""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..attention import Look
from ..decoder import Layer, run
from ..stream import Stream
from . import Placed


@dataclass(frozen=True)
class DualPath:
    """Image tokens leave before layer `k`, pass the branch, and are back before layer `fuse`, both counted from 0, or
    from the end (-1: the last). k = fuse: none leaves, and there is no branch.

    The branch learns also where the decoder is frozen, if it is attached after an adapter. It acts on prompts; words
    that are made later read image tokens in the layers that had them.
    """

    into: ClassVar[str] = "decoder"
    k: int = 18
    fuse: int = -1

    def place(self, hosts: Sequence[Layer]) -> list[Placed]:
        n = len(hosts)
        k, fuse = (i + n if i < 0 else i for i in (self.k, self.fuse))
        if not 0 <= k <= fuse < n:
            raise ValueError(f"k={self.k}, fuse={self.fuse}: this decoder has {n} layers, and image tokens leave "
                             "before one of them and are back before a later one")  # fmt: skip
        if k == fuse:
            return []
        leave = Branch(deepcopy(hosts[k].layer).requires_grad_())
        return [Placed(hosts[k], "before_block", leave), Placed(hosts[fuse], "before_block", Fuse())]


class Branch(nn.Module):
    """Stream -> Stream of text, which has the image tokens, one layer further, `away`."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer

    def forward(self, stream: Stream) -> Stream:
        image = stream.image > 0 if stream.real is None else (stream.image > 0) & stream.real
        if stream.past or not bool(image.any()):
            return stream
        away = stream.where(image)
        away = replace(away, bias=away.sight())
        away = replace(away, x=run(self.layer, away.x, Look(away)))
        return replace(stream.where(~image), away=away)


class Fuse(nn.Module):
    """Stream -> Stream with what is `away` where it stood."""

    def forward(self, stream: Stream) -> Stream:
        return stream if stream.past or stream.away is None else together(stream, stream.away)


def together(one: Stream, other: Stream) -> Stream:
    """The tokens of both, by the samples that they are of and by their places; rows are padded on the left."""

    def both(a: Tensor, b: Tensor) -> Tensor:
        return torch.cat([a, b], 1)

    def either(a: Tensor | None, b: Tensor | None) -> Tensor | None:
        return None if a is None or b is None else both(a, b)

    real = both(there(one), there(other))
    place, segment = both(one.place, other.place), either(one.segment, other.segment)
    order = place if segment is None else segment * (place.max() + 1) + place
    turns = None
    if one.rotary is not None and other.rotary is not None:
        turns = both(one.rotary[0], other.rotary[0]), both(one.rotary[1], other.rotary[1])
    whole = replace(
        one, x=both(one.x, other.x), place=place, image=both(one.image, other.image), real=real, segment=segment,
        target=either(one.target, other.target), rotary=turns, bias=None, away=None,
    )  # fmt: skip
    whole = whole.at(order.masked_fill(~real, -1).argsort(dim=1, stable=True))
    return whole.where(torch.ones_like(real))


def there(stream: Stream) -> Tensor:
    return torch.ones_like(stream.image, dtype=torch.bool) if stream.real is None else stream.real
