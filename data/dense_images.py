"""`DenseImages`, the data module under those of detection and segmentation."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections import Counter
from typing import Any, Literal

from .augment import Albumented, Fit, LargeScaleJitter, SemanticCrop, Variation
from .findings import OnError
from .folders import quoted
from .images import Images
from .loader import KeyedDataset
from .scene import Category
from .scenes import Scenes
from .splits import Part, Splits, portion
from .transforms import Preprocessing

log = logging.getLogger("patchloom.data")
Vary = Variation | Albumented | Literal["auto"] | None


class DenseImages(Images):
    """Pictures with objects, or with a class for each pixel; loaders yield what `Scenes` says: lists of images and of
    target dicts, or (`stacked`, for semantic segmentation) images (B, 3, H, W) with classes (B, H, W).

    batch_size     pictures a step and process
    workers        processes that read and vary pictures; results do not depend on it
    seed           of order and variation, both functions of (seed, epoch, index)
    augment        how training pictures are varied; auto: what suits the task; null: brought to size as in evaluation
    resize         how pictures are brought to size in evaluation; null: they are as they are
    preprocessing  mean and std, as in a `default_cfg`; null: the model's
    on_error       files and annotations that are missing or wrong stop the run, or (skip) are left out, counted, named
    val_fraction   hold out this part of the training pictures, by the hash of their names, to choose by (val); test is
                   then the set's own val, which nothing was chosen by

    After setup: `.classes`; `.categories`, whose number i has label i + 1 (its own `id` is that of the annotations);
    `.dropped`, {reason: objects that varying took out of the pictures}; and what `Images` has.
    """

    stacked = False

    def __init__(
        self,
        batch_size: int = 2,
        workers: int = 2,
        seed: int = 0,
        augment: Vary = "auto",
        resize: Fit | None = None,
        preprocessing: dict[str, Any] | None = None,
        on_error: OnError = "stop",
        val_fraction: float = 0.0,
    ) -> None:
        super().__init__(batch_size, workers, seed, augment, preprocessing, on_error, cache=False)
        self.resize, self.val_fraction = resize or Fit(), val_fraction

    @abstractmethod
    def source(self, split: str) -> Any:
        """The scenes of train, val or test; None where the set has none."""

    def suits(self) -> Variation:
        return SemanticCrop() if self.stacked else LargeScaleJitter()

    @property
    def categories(self) -> list[Category]:
        found = (getattr(self.splits, split) for split in ("train", "val", "test"))
        source = next((s.source if isinstance(s, Part) else s for s in found if s is not None), None)
        return [] if source is None else list(source.categories)

    @property
    def dropped(self) -> dict[str, int]:
        return dict(sum((loader.dropped for loader in self.loaders.values()), start=Counter[str]()))

    def read(self) -> Splits:
        train, val, test = (self.source(split) for split in ("train", "val", "test"))
        notes = [note for source in (train, val, test) if source is not None for note in source.notes]
        if self.val_fraction and train is not None:
            held, rest = (Part(train, p) for p in portion(train.names(), [0] * len(train), self.val_fraction))
            notes.append(f"{len(held)} of the {len(train)} training pictures are held out for validation, by hash")
            train, val, test = rest, held, test or val
        named = next((s for s in (train, val, test) if s is not None), None)
        if named is None:
            raise FileNotFoundError(
                f"{getattr(self, 'root', type(self).__name__)}: none of train, val and test is there"
            )
        for other in (val, test):
            if other is not None and other.classes != named.classes:
                raise ValueError(
                    f"the splits have different classes: {quoted(named.classes)}, and {quoted(other.classes)}: "
                    f"name them in one order for all"
                )
        return Splits(list(named.classes), train, val or test, test or val, notes=tuple(notes))

    def predictable(self) -> Any:
        return self._source("test")

    def teardown(self, stage: str | None = None) -> None:
        super().teardown(stage)
        if self.dropped:
            told = ", ".join(f"{count} {reason}" for reason, count in self.dropped.items())
            log.info("objects that training went without, in this run: %s", told)

    def _needed(self, split: str) -> str:
        return "its annotations were not found"

    def _read_by(self, split: str, source: Any, train: bool) -> KeyedDataset:
        assert self.preprocessing is not None, "setup() comes first"
        augment = self.suits() if isinstance(self.augment, str) else self.augment
        how = self.resize if augment is None or not train else augment
        preprocessing = Preprocessing.of(self.preprocessing)
        if preprocessing.channels != 3:
            raise ValueError(f"the model takes {preprocessing.channels} channel: pictures of scenes are RGB")
        return Scenes(
            source, how.build(self.categories), preprocessing, stacked=self.stacked,
            crowds=not train, seed=self.seed, on_error=self.on_error, refill=train,
        )  # fmt: skip
