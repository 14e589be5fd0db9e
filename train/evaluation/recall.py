"""Recall at k between pictures and texts, and what chance would give."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import comb
from zlib import crc32

import torch
from torch import Tensor
from torchmetrics import Metric

from .means import Means

DEPTHS = (1, 5, 10)
GATHERED = ("image", "number", "text", "owner", "same")
ROWS = 512  # queries at a time, against all


@dataclass(frozen=True)
class Recall:
    """Of one direction: the share of queries with a right answer among the first k (fractions), the median of the
    ranks of the first right one, and what guessing gives."""

    at: Mapping[int, float]
    median_rank: float
    queries: int
    chance: Mapping[int, float]


@dataclass(frozen=True)
class Retrieval:
    image_to_text: Recall
    text_to_image: Recall

    @property
    def mean(self) -> float:
        """The mean of both directions' recalls, at 1, 5 and 10."""
        both = [*self.image_to_text.at.values(), *self.text_to_image.at.values()]
        return sum(both) / len(both)


def retrieval(image: Tensor, text: Tensor, of: Tensor, same: Tensor | None = None) -> Retrieval:
    """Of vectors of pictures (N d) and of texts (M d) by their inner product; `of` (M): the picture of each text.

    same (M): equal numbers mark the same words, which are one candidate and right for all their pictures (None: all
    differ). Where a wrong candidate scores as high as the best right one, it goes before it: equal vectors for all find
    nothing.
    """
    if len(of) != len(text) or image.shape[1:] != text.shape[1:] or not len(text) or not len(image):
        raise ValueError(
            f"pictures {tuple(image.shape)}, texts {tuple(text.shape)} of {len(of)} pictures: (N d), (M d), M"
        )
    number = torch.arange(len(text)) if same is None else same.cpu().unique(return_inverse=True)[1]
    first = torch.full((int(number.max()) + 1,), len(text)).scatter_reduce(0, number, torch.arange(len(text)), "amin")
    right = torch.zeros(len(image), len(first), dtype=torch.bool)
    right[of.cpu(), number] = True
    image, single, right = image.double(), text[first.to(text.device)].double(), right.to(image.device)
    asked = right.any(1)  # a picture without a text is a candidate, and no query
    found = ranks(image[asked], single, right[asked])
    other = ranks(single, image, right.mT)[number.to(image.device)]
    count = right.sum(0)[number.to(image.device)]
    return Retrieval(recall(found, right[asked].sum(1), len(single)), recall(other, count, len(image)))


def ranks(query: Tensor, among: Tensor, right: Tensor) -> Tensor:
    """(Q): 1 + the wrong ones that do not score below the best right one; NaN is below nothing."""
    found = []
    for q, r in zip(query.split(ROWS), right.split(ROWS), strict=True):
        score = q @ among.mT  # Q M
        best = score.masked_fill(~r, -torch.inf).amax(1, keepdim=True)
        found.append(1 + (~(score < best) & ~r).sum(1))
    return torch.cat(found)


def recall(rank: Tensor, right: Tensor, candidates: int) -> Recall:
    at = {k: float((rank <= k).double().mean()) for k in DEPTHS}
    chance = {k: sum(guessed(int(c), candidates, k) for c in right) / len(right) for k in DEPTHS}
    return Recall(at, float(rank.double().median()), len(rank), chance)


def guessed(right: int, candidates: int, k: int) -> float:
    """The probability that k of the candidates, drawn at random, hold one of the right ones."""
    return 1 - comb(candidates - right, k) / comb(candidates, k) if k < candidates else 1.0


class Matches(Metric):
    """`retrieval` and the mean loss over all batches and processes: recall (the mean of both directions at 1, 5, 10),
    i2t_r1, i2t_r5, t2i_r1, t2i_r5, loss."""

    full_state_update = False
    image: list[Tensor]
    number: list[Tensor]
    text: list[Tensor]
    owner: list[Tensor]
    same: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        for name in GATHERED:
            self.add_state(name, [], dist_reduce_fx="cat")
        self.losses = Means(("loss",))
        self.pictures = 0

    def update(self, image: Tensor, text: Tensor, of: Tensor, captions: Sequence[str], loss: Tensor, rank: int = 0,
               world: int = 1) -> None:  # fmt: skip
        """`of` (M): the picture of each caption, counted within the batch, of which the loss is; `rank` of `world`
        processes."""
        number = (self.pictures + torch.arange(len(image), device=image.device)) * world + rank
        self.image.append(image.detach())
        self.number.append(number)
        self.text.append(text.detach())
        self.owner.append(number[of])
        self.same.append(torch.tensor([numbered(c) for c in captions], device=image.device))
        self.pictures += len(image)
        self.losses.update({"loss": loss.expand(len(image))})

    def compute(self) -> dict[str, Tensor]:
        image, number, text, owner, same = (joined(getattr(self, name)) for name in GATHERED)
        number, order = number.sort()
        found = retrieval(image[order], text, torch.searchsorted(number, owner), same)
        a, b = found.image_to_text.at, found.text_to_image.at
        numbers = {"recall": found.mean, "i2t_r1": a[1], "i2t_r5": a[5], "t2i_r1": b[1], "t2i_r5": b[5]}
        return {name: torch.tensor(value) for name, value in numbers.items()} | self.losses.compute()

    def reset(self) -> None:
        super().reset()
        self.losses.reset()
        self.pictures = 0


def joined(parts: list[Tensor] | Tensor) -> Tensor:
    return (parts if isinstance(parts, Tensor) else torch.cat(parts)).cpu()


def numbered(caption: str) -> int:
    """The same for the same words on every machine."""
    return crc32(caption.encode()) << 16 ^ crc32(caption[::-1].encode()) & 0xFFFF
