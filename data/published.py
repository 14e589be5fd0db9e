"""Published sets: CIFAR-10 and -100, MNIST, Fashion-MNIST, ImageNet; in their own files, or as class folders."""

from __future__ import annotations

import os
from abc import abstractmethod
from pathlib import Path
from typing import Any

from .arrays import Arrays, idx_folder, read_idx_split
from .findings import OnError
from .folders import Files, Folder, Source, existing
from .images import Augment, Images
from .pictures import CacheRule
from .splits import Numbered, Splits, folder_splits, hold_out, split_folders
from .synsets import human_names, imagenet_synsets
from .transforms import Augmentation, Jostle, Recrop


def datasets_folder() -> Path:
    """Where downloaded sets lie: $PATCHLOOM_HOME/datasets, else ~/.cache/patchloom/datasets."""
    return Path(os.environ.get("PATCHLOOM_HOME") or Path("~/.cache/patchloom").expanduser()) / "datasets"


class _Published(Images):
    """A published set: torchvision's files under root, or class folders; `download` fetches the former."""

    title: str
    published: str  # the name of torchvision's class

    def __init__(
        self,
        root: str | None = None,
        download: bool = False,
        val_fraction: float = 0.1,
        batch_size: int = 128,
        workers: int = 2,
        seed: int = 0,
        augment: Augment = "auto",
        preprocessing: dict[str, Any] | None = None,
        on_error: OnError = "stop",
        cache: CacheRule = "auto",
    ) -> None:
        super().__init__(batch_size, workers, seed, augment, preprocessing, on_error, cache)
        self.root, self.download, self.val_fraction = str(root or datasets_folder()), download, val_fraction

    def suits(self) -> Augmentation:
        return Jostle()

    @abstractmethod
    def files(self) -> dict[str, Arrays] | None:
        """train and test out of torchvision's files, or None where they are not there."""

    def fetch(self, train: bool) -> Any:
        """torchvision's data set, downloaded if need be and allowed."""
        import torchvision

        if self.download and os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0"):
            raise ValueError(
                f"{self.title} cannot be downloaded offline: unset HF_HUB_OFFLINE, or put it into {self.root}"
            )
        try:
            return getattr(torchvision.datasets, self.published)(self.root, train=train, download=self.download)
        except RuntimeError as error:  # torchvision's word for files that are missing or have the wrong sum
            raise ValueError(f"{self.title} in {self.root}: {' '.join(str(error).split())}") from error

    def prepare_data(self) -> None:
        if self.download:
            self.fetch(train=True)

    def read(self) -> Splits:
        made = self.files()
        if made is not None:
            source = made["train"]
            return hold_out(source, source.names(), made["test"], self.val_fraction, f"{self.title} in {self.root}")
        if self.root == str(datasets_folder()) and not self.download:
            hint = "give --data.root a folder with torchvision's files or class folders, or --data.download true"
            raise FileNotFoundError(f"no {self.title} in {self.root}: {hint}")
        return folder_splits(existing(self.root), self.val_fraction, 0.1)

    def predictable(self) -> Source:
        return Files(self.root) if self.files() is None else Numbered(self._source("test"))


class Cifar10Data(_Published):
    """CIFAR-10: root/cifar-10-batches-py (torchvision's), or class folders. auto: `Jostle()`, pad by 4 and crop,
    mirror.
    """

    title, published, base = "CIFAR-10", "CIFAR10", "cifar-10-batches-py"

    def files(self) -> dict[str, Arrays] | None:
        if not (Path(self.root).expanduser() / self.base).is_dir():
            return None
        sets = {"train": self.fetch(train=True), "test": self.fetch(train=False)}
        return {split: Arrays(s.data, s.targets, s.classes, f"{self.title} {split}") for split, s in sets.items()}


class Cifar100Data(Cifar10Data):
    """CIFAR-100: root/cifar-100-python (torchvision's), or class folders. auto: `Jostle()`."""

    title, published, base = "CIFAR-100", "CIFAR100", "cifar-100-python"


class FashionMnistData(_Published):
    """Fashion-MNIST: IDX files (plain or gzipped) in root, root/raw or root/<set>/raw, or class folders. auto:
    `Jostle(padding=2)`.
    """

    title, published = "Fashion-MNIST", "FashionMNIST"
    idx_classes: tuple[str, ...] = (
        "T-shirt/top",
        "Trouser",
        "Pullover",
        "Dress",
        "Coat",
        "Sandal",
        "Shirt",
        "Sneaker",
        "Bag",
        "Ankle boot",
    )

    def suits(self) -> Augmentation:
        return Jostle(padding=2)

    def files(self) -> dict[str, Arrays] | None:
        folder = idx_folder(Path(self.root).expanduser())
        return (
            None
            if folder is None
            else {split: read_idx_split(folder, split, self.idx_classes) for split in ("train", "test")}
        )


class MnistData(FashionMnistData):
    """MNIST, as `FashionMnistData`. auto: `Jostle(padding=2, hflip=0)`: a mirrored digit is none."""

    title, published = "MNIST", "MNIST"
    idx_classes = tuple("0123456789")

    def suits(self) -> Augmentation:
        return Jostle(padding=2, hflip=0.0)


class ImageNetData(Images):
    """ImageNet's layout: root/{train,val}/<synset>/picture. Classes are the 1000 synsets, sorted, whichever of them are
    there.

    `.names` are readable (root/classes.json or LOC_synset_mapping.txt, else timm's). Without test/ test is val; val is
    never taken out of train. auto: `Recrop()` with RandAugment (rand-m9-mstd0.5-inc1) and erasing (0.25), as DeiT and
    Swin train.
    """

    def __init__(
        self,
        root: str,
        batch_size: int = 128,
        workers: int = 2,
        seed: int = 0,
        augment: Augment = "auto",
        preprocessing: dict[str, Any] | None = None,
        on_error: OnError = "stop",
        cache: CacheRule = "auto",
    ) -> None:
        super().__init__(batch_size, workers, seed, augment, preprocessing, on_error, cache)
        self.root = root

    def suits(self) -> Augmentation:
        return Recrop(auto_augment="rand-m9-mstd0.5-inc1", re_prob=0.25)

    def read(self) -> Splits:
        root, synsets = existing(self.root), imagenet_synsets()
        there = split_folders(root) or {"val": root}
        made = {split: Folder(place, synsets) for split, place in there.items()}
        return Splits.of(synsets, made, human_names(root, synsets))

    def predictable(self) -> Source:
        return Files(self.root)
