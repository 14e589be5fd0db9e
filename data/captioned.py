"""Drawn pictures with what they show in words: two objects and how they stand to one another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from PIL import Image

from .folders import Source
from .images import Images
from .loader import KeyedDataset
from .pictures import Captioned
from .shapes import Pair, Shapes, Split
from .splits import Splits
from .transforms import evaluation_pipeline


class CaptionedSource:
    """`Shapes` with task "caption" as (picture, caption); with `fresh` every epoch draws pictures never seen before."""

    def __init__(self, shapes: Shapes, fresh: bool) -> None:
        if shapes.task != "caption":
            raise ValueError(f"captions are of task caption, not {shapes.task!r}")
        self.shapes, self.steady, self.classes = shapes, not fresh, list[str]()

    def __len__(self) -> int:
        return len(self.shapes)

    def load(self, index: int, epoch: int = 0) -> tuple[Image.Image, str]:
        sample = self.shapes.draw(index if self.steady else epoch * len(self.shapes) + index)
        assert sample.caption is not None
        return Image.fromarray(sample.image), sample.caption

    def name(self, index: int) -> str:
        return f"{self.shapes.split}[{index}]"


class CaptionedShapes(Images):
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

    def setup(self, stage: str | None = None) -> None:
        self._splits = None  # they are drawn at the model's size
        super().setup(stage)

    def read(self) -> Splits:
        size = (self.preprocessing or {"input_size": (3, 64, 64)})["input_size"]
        made = {
            split: CaptionedSource(
                Shapes(length, (size[1], size[2]), "caption", self.seed, split, self.without),
                fresh=self.fresh and split == "train",
            )
            for split, length in self.lengths.items()
        }
        return Splits([], **made)

    def predictable(self) -> Source:
        raise ValueError("these pictures are drawn with their captions: there is nothing to predict of them")

    def _read_by(self, split: str, source: Source, train: bool) -> KeyedDataset:
        assert self.preprocessing is not None, "setup() comes first"
        return Captioned(source, evaluation_pipeline(self.preprocessing), self.seed, self.on_error, refill=train)
