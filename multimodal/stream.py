"""The state that runs through a language model: embedded text and image tokens, where they stand, what may be seen."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..vision.tokens import rows

IGNORED = -100  # the label of a token that is not learned


@dataclass(frozen=True)
class Stream:
    """B sequences of N tokens of C channels. Replaced, never mutated, never stored on a module."""

    x: Tensor  # B N C
    place: Tensor  # B N: position ids; tokens that stay when others go keep theirs
    image: Tensor  # B N: 0 for text, i for a token of the row's i-th image
    real: Tensor | None = None  # B N: False for padding and for what is hidden from the others; None: all are real
    segment: Tensor | None = None  # B N: which of the samples packed into a row a token is of; None: one a row
    target: Tensor | None = None  # B N: the id that each token is to be followed by, IGNORED where none is learned
    past: int = 0  # how many tokens the caches held already when these came; 0: a whole prompt
    rotary: tuple[Tensor, Tensor] | None = None  # cos and sin (B N d) of `place`; the decoder sets them
    bias: Tensor | None = None  # B 1 N N: True = may be seen; the decoder sets it where causality alone is not enough
    away: "Stream | None" = None  # tokens that left the sequence, for a later layer that wants them back
    coming: Tensor | None = None  # B L C: tokens that are to join the sequence in later layers (ep_alm.py)

    def last(self) -> Tensor:
        """(B): where the last real token of each row stands."""
        b, n = self.place.shape
        if self.real is None:
            return torch.full((b,), n - 1, device=self.place.device)
        return n - 1 - self.real.flip(1).int().argmax(1)

    def text_or_last(self) -> Tensor:
        """(B N): True for text, and for each row's last real token, which the next word is made of."""
        return (self.image == 0) | (torch.arange(self.image.shape[1], device=self.image.device) == self.last()[:, None])

    def at(self, kept: Tensor, real: Tensor | None = None) -> "Stream":
        """The tokens `kept` (B K) alone, in that order; `real` (B K) in place of their own."""

        def own(y: Tensor | None) -> Tensor | None:
            return None if y is None else y.gather(1, kept)

        rotary = None if self.rotary is None else self.rotated(kept)
        real = own(self.real) if real is None else real
        return replace(
            self, x=rows(self.x, kept), place=self.place.gather(1, kept), image=self.image.gather(1, kept), real=real,
            segment=own(self.segment), target=own(self.target), rotary=rotary, bias=None,
        )  # fmt: skip

    def rotated(self, kept: Tensor) -> tuple[Tensor, Tensor]:
        assert self.rotary is not None
        cos, sin = (r.expand(len(kept), -1, -1) for r in self.rotary)
        return rows(cos, kept), rows(sin, kept)

    def where(self, stays: Tensor) -> "Stream":
        """The real tokens for which `stays` (B N) is True alone, in their order. Rows with fewer than others are padded
        on the left, so that each ends with its last token."""
        if self.real is not None:
            stays = stays & self.real
        count = stays.sum(1)
        n, most = stays.shape[1], int(count.max())
        order = torch.where(stays, torch.arange(1, n + 1, device=stays.device), 0).sort(1).values  # first those that go
        kept = (order[:, n - most :] - 1).clamp(min=0)
        real = torch.arange(most, device=stays.device) >= (most - count)[:, None]
        return self.at(kept, None if bool(real.all()) else real).whole(bool(real.all()))

    def whole(self, whole: bool) -> "Stream":
        """The same, without `real` where all of it is."""
        return replace(self, real=None) if whole else self

    def sight(self) -> Tensor | None:
        """B 1 N N: which tokens of the same whole prompt each may see; None: all before it and itself."""
        if self.real is None and self.segment is None:
            return None
        n = self.x.shape[1]
        seen = torch.ones(n, n, dtype=torch.bool, device=self.x.device).tril()[None]
        if self.real is not None:
            seen = seen & self.real[:, None]
        if self.segment is not None:
            seen = seen & (self.segment[:, None] == self.segment[:, :, None])
        return seen[:, None]


def placed(real: Tensor) -> Tensor:
    """Position ids (B N) of sequences with padding anywhere: real tokens are counted from 0, padding stands at 0."""
    return (real.long().cumsum(1) - 1).clamp(min=0)
