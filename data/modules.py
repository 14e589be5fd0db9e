"""The data modules that a recipe names: drawn shapes, class folders, loose files, and those of published.py."""

from __future__ import annotations

from typing import Any

from .drawn import Drawn, DrawnSource, label
from .findings import OnError
from .folders import Files, Source, existing
from .images import Augment, Images
from .pictures import CacheRule
from .published import Cifar10Data, Cifar100Data, FashionMnistData, ImageNetData, MnistData
from .sample import KINDS
from .shapes import Shapes, Split
from .splits import Numbered, Splits, folder_splits
from .transforms import Augmentation, Jostle, Recrop

__all__ = [
    "Augmentation",
    "Cifar10Data",
    "Cifar100Data",
    "FashionMnistData",
    "FilesData",
    "FolderData",
    "ImageNetData",
    "Images",
    "Jostle",
    "MnistData",
    "Recrop",
    "ShapesData",
    "Splits",
]  # fmt: skip


class ShapesData(Drawn, Images):
    """Drawn pictures of ten kinds (see `Shapes`) at the model's input size. Not varied; auto: `Jostle(padding=2)`.

    train_length, val_length, test_length   pictures an epoch
    fresh                                   draw new training pictures in every epoch, so that none is seen twice
    """

    def __init__(
        self,
        train_length: int = 10_000,
        val_length: int = 1_000,
        test_length: int = 2_000,
        fresh: bool = True,
        batch_size: int = 64,
        workers: int = 2,
        seed: int = 0,
        augment: Augment = None,
        preprocessing: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(batch_size, workers, seed, augment, preprocessing)
        self.lengths: dict[Split, int] = {"train": train_length, "val": val_length, "test": test_length}
        self.fresh = fresh

    def suits(self) -> Augmentation:
        return Jostle(padding=2)

    def read(self) -> Splits:
        made = {
            split: DrawnSource(
                Shapes(length, self.drawn_size, "class", self.seed, split), self.anew(split), label, KINDS
            )
            for split, length in self.lengths.items()
        }
        return Splits.of(list(KINDS), made)

    def predictable(self) -> Source:
        return Numbered(self._source("test"))


class FolderData(Images):
    """Class folders: root/{train,val,test}/class/picture, or root/class/picture; see `folder_splits` for missing ones.

    val_fraction, test_fraction   parts of each class to hold out where there is no such folder. auto: `Recrop()`.
    """

    def __init__(
        self,
        root: str,
        val_fraction: float = 0.1,
        test_fraction: float = 0.1,
        batch_size: int = 64,
        workers: int = 2,
        seed: int = 0,
        augment: Augment = "auto",
        preprocessing: dict[str, Any] | None = None,
        on_error: OnError = "stop",
        cache: CacheRule = "auto",
    ) -> None:
        super().__init__(batch_size, workers, seed, augment, preprocessing, on_error, cache)
        self.root, self.val_fraction, self.test_fraction = root, val_fraction, test_fraction

    def read(self) -> Splits:
        return folder_splits(existing(self.root), self.val_fraction, self.test_fraction)

    def predictable(self) -> Source:
        return Files(self.root)


class FilesData(Images):
    """Only for prediction: picture files, and folders searched to any depth. `.predicted` lists them."""

    def __init__(
        self,
        paths: list[str],
        batch_size: int = 64,
        workers: int = 0,
        preprocessing: dict[str, Any] | None = None,
        on_error: OnError = "stop",
    ) -> None:
        super().__init__(batch_size, workers, 0, None, preprocessing, on_error)
        self.paths = paths

    def read(self) -> Splits:
        return Splits([])

    def predictable(self) -> Source:
        return Files(self.paths)
