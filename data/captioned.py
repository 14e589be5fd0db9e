"""Drawn pictures with what they show in words: two objects and how they stand to one another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .drawn import Drawn, DrawnSource, caption
from .folders import Source
from .images import Images
from .loader import KeyedDataset
from .pictures import Captioned
from .shapes import Pair, Shapes, Split
from .splits import Splits


class CaptionedShapes(Drawn, Images):
    """Drawn pictures of two objects at the model's input size; batches are (images (B, 3, H, W), list of captions such
    as "a red circle left of a blue square"). They are not varied: mirrored, left would be right.

    train_length, val_length, test_length   pictures an epoch
    fresh                                   draw new training pictures in every epoch, so that none is seen twice
    without                                 (kind, colour) pairs that training never shows, to ask for them later
    """

    def __init__(
        self,
        train_length: int = 10_000,
        val_length: int = 1_000,
        test_length: int = 2_000,
        fresh: bool = True,
        without: Sequence[Pair] = (),
        batch_size: int = 64,
        workers: int = 2,
        seed: int = 0,
        preprocessing: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(batch_size, workers, seed, None, preprocessing, cache=False)
        self.lengths: dict[Split, int] = {"train": train_length, "val": val_length, "test": test_length}
        self.fresh, self.without = fresh, [(kind, colour) for kind, colour in without]

    def read(self) -> Splits:
        made = {
            split: DrawnSource(
                Shapes(length, self.drawn_size, "caption", self.seed, split, self.without), self.anew(split), caption
            )
            for split, length in self.lengths.items()
        }
        return Splits.of([], made)

    def predictable(self) -> Source:
        raise ValueError("these pictures are drawn with their captions: there is nothing to predict of them")

    def _read_by(self, split: str, source: Source, train: bool) -> KeyedDataset:
        return Captioned(source, self._pipeline(train), self.seed, self.on_error, refill=train)
