"""`Images`, the data module under all others: from sources of pictures to loaders, in the model's preprocessing."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from typing import Any, Literal

from lightning.pytorch import LightningDataModule

from .findings import OnError
from .folders import Source, quoted
from .loader import KeyedDataset, Loader, report
from .pictures import CacheRule, Pictures
from .splits import Splits
from .transforms import Augmentation, Pipeline, Recrop, evaluation_pipeline

log = logging.getLogger("patchloom.data")
Augment = Augmentation | Literal["auto"] | None


class Images(LightningDataModule, ABC):
    """Pictures with class numbers; loaders yield (images (B, C, H, W) float32, targets (B,) int64).

    batch_size     pictures a step and process
    workers        processes that read and vary pictures (0: the training process itself); results do not depend on it
    seed           of order and variation, both functions of (seed, epoch, index)
    augment        how training pictures are varied; auto: what suits the data set (said there); null: not at all
    preprocessing  input_size, mean, std, interpolation, crop_pct, crop_mode as in a `default_cfg`; null: the model's
    on_error       an unreadable picture stops the run, or (skip) is counted and reported after the epoch and the run
    cache          keep decoded pictures in memory; auto: resized ones, up to 512 MiB a split

    After setup: `.classes` (names by index), `.names` (the same as people say them), `.preprocessing`. Always:
    `.skipped` {file: reason}. After predict_dataloader(): `.predicted`, the files.
    """

    # evaluation is not padded, so one of several processes may get nothing
    allow_zero_length_dataloader_with_multiple_devices = True

    def __init__(
        self,
        batch_size: int = 64,
        workers: int = 2,
        seed: int = 0,
        augment: Augment = "auto",
        preprocessing: dict[str, Any] | None = None,
        on_error: OnError = "stop",
        cache: CacheRule = "auto",
    ) -> None:
        super().__init__()
        if isinstance(augment, str) and augment != "auto":
            raise ValueError(
                f"augment = {augment!r}: auto, null, or a class such as Jostle or Recrop with its arguments"
            )
        if on_error not in ("stop", "skip"):
            raise ValueError(f"on_error = {on_error!r}: stop or skip")
        self.batch_size, self.workers, self.seed, self.augment = batch_size, workers, seed, augment
        self.preprocessing, self._given = preprocessing, preprocessing
        self.on_error, self.cache = on_error, cache
        self.loaders: dict[str, Loader] = {}
        self.predicted: list[str] = []
        self._splits: Splits | None = None

    # what a data set defines

    @abstractmethod
    def read(self) -> Splits:
        """Look at the data: its splits and classes."""

    @abstractmethod
    def predictable(self) -> Source:
        """What the verb predict goes through."""

    def suits(self) -> Augmentation:
        """What augment = auto stands for."""
        return Recrop()

    # what follows from it

    @property
    def splits(self) -> Splits:
        if self._splits is None:
            self._splits = self.read()
            for note in self._splits.notes:
                log.info("%s", note)
        return self._splits

    @property
    def classes(self) -> list[str]:
        return self.splits.classes

    @property
    def names(self) -> list[str]:
        return self.splits.names or self.splits.classes

    @property
    def skipped(self) -> dict[str, str]:
        return {file: reason for loader in self.loaders.values() for file, reason in loader.skipped.items()}

    def setup(self, stage: str | None = None) -> None:
        trainer = self.trainer
        if self._given is None and trainer is not None:
            self.preprocessing = dict(trainer.lightning_module.preprocessing)
        if self.preprocessing is None:
            raise ValueError(
                "the data has no preprocessing: give it one (input_size, mean, std), or a trainer whose model names it"
            )
        if stage in ("fit", "validate", "test"):
            self._source({"fit": "train", "validate": "val"}.get(stage, stage))
        elif stage is None:
            self.splits  # noqa: B018 (errors in the data belong here); predict needs files only

    def _source(self, split: str) -> Source:
        source = getattr(self.splits, split)
        if source is None:
            place = getattr(self, "root", type(self).__name__)
            raise FileNotFoundError(f"{place} has no {split} pictures: {self._needed(split)}")
        return source

    def _needed(self, split: str) -> str:
        """What would make a split be there."""
        return f"a folder {split}/ of class folders is needed"

    def _pipeline(self, train: bool) -> Pipeline:
        """How pictures become images: varied in training."""
        assert self.preprocessing is not None, "setup() comes first"
        augment = self.suits() if isinstance(self.augment, str) else self.augment
        return augment.pipeline(self.preprocessing) if train and augment else evaluation_pipeline(self.preprocessing)

    def _read_by(self, split: str, source: Source, train: bool) -> KeyedDataset:
        """The data set that makes batches of a source."""
        cache = self.cache if split in ("train", "val") else False  # others are gone through once
        return Pictures(
            source, self._pipeline(train), seed=self.seed, on_error=self.on_error, refill=train, cache=cache
        )

    def _loader(self, split: str, source: Source, *, train: bool = False) -> Loader:
        pictures = self._read_by(split, source, train)
        trainer = self.trainer
        world, rank = (1, 0) if trainer is None else (trainer.world_size, trainer.global_rank)
        overfit = trainer is not None and trainer.overfit_batches > 0  # means the same batches in each epoch
        if split in self.loaders:
            self.loaders[split].close()
        self.loaders[split] = Loader(
            pictures, self.batch_size, shuffle=train and not overfit, seed=self.seed, workers=self.workers,
            even=train, world=world, rank=rank, arrange=getattr(source, "arrange", None),
        )  # fmt: skip
        return self.loaders[split]

    def train_dataloader(self) -> Loader:
        return self._loader("train", self._source("train"), train=True)

    def val_dataloader(self) -> Loader | list[Any]:
        return [] if self.splits.val is None else self._loader("val", self.splits.val)

    def test_dataloader(self) -> Loader:
        return self._loader("test", self._source("test"))

    def predict_dataloader(self) -> Loader:
        """(images, indices into `.predicted`), in order."""
        source = self.predictable()
        self.predicted = [source.name(index) for index in range(len(source))]
        return self._loader("predict", source)

    def on_exception(self, exception: BaseException) -> None:
        for loader in self.loaders.values():
            loader.close()

    def teardown(self, stage: str | None = None) -> None:
        """End the worker processes and say what was skipped in all."""
        for loader in self.loaders.values():
            loader.close()
        if self.skipped:
            log.warning("%s", report(self.skipped, "in this run"))

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run must find again. The place in the data is in Lightning's own state, through `Loader`."""
        return {} if self._splits is None else {"classes": list(self.classes)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        was, now = state_dict.get("classes", self.classes), self.classes
        if was != now:
            lacking, new = [c for c in was if c not in now], [c for c in now if c not in was]
            says = [f"lacks {quoted(lacking)}"] * bool(lacking) + [f"has {quoted(new)} besides"] * bool(new)
            raise ValueError(
                f"the data is not the checkpoint's: it {' and '.join(says) or 'has the classes in another order'}; "
                f"give the data of then, or start from weights alone"
            )
