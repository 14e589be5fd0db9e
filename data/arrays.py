"""Sets that come as files of numbers: CIFAR's batches, and the IDX files of MNIST and Fashion-MNIST."""

from __future__ import annotations

import gzip
import os
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from .read import to_rgb

IDX_FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}


class Arrays:
    """(N, H, W) or (N, H, W, 3) uint8 and (N,) targets -> (RGB picture, target)."""

    steady = True

    def __init__(
        self, images: np.ndarray, targets: Sequence[int] | np.ndarray, classes: Sequence[str], origin: str
    ) -> None:
        if len(images) != len(targets):
            raise ValueError(f"{origin}: {len(images)} pictures but {len(targets)} labels")
        self.images, self.targets, self.classes, self.origin = images, [int(t) for t in targets], list(classes), origin
        if self.targets and not 0 <= min(self.targets) <= max(self.targets) < len(self.classes):
            low, high = min(self.targets), max(self.targets)
            raise ValueError(f"{origin}: labels from {low} to {high}, but there are {len(self.classes)} classes")

    def __len__(self) -> int:
        return len(self.targets)

    def load(self, index: int, epoch: int = 0) -> tuple[Image.Image, int]:
        return to_rgb(Image.fromarray(self.images[index])), self.targets[index]

    def name(self, index: int) -> str:
        return f"{self.origin}[{index}]"

    def names(self) -> list[str]:
        return [str(index) for index in range(len(self))]


def read_idx(path: Path) -> np.ndarray:
    """An IDX file of unsigned bytes, plain or gzipped: 0 0 8 rank, rank big-endian sizes, the values."""
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: damaged gzip file ({error}): fetch it again") from error
    if len(data) < 4 or data[:3] != b"\0\0\x08":
        raise ValueError(f"{path}: not an IDX file of bytes (it begins with {data[:4]!r})")
    shape = np.frombuffer(data, ">i4", count=min(data[3], (len(data) - 4) // 4), offset=4)
    if len(shape) < data[3] or len(data) - 4 - 4 * data[3] != int(np.prod(shape, dtype=np.int64)):
        announced = " x ".join(map(str, shape.tolist()))
        raise ValueError(f"{path}: {len(data)} bytes do not hold the {announced} values announced: fetch it again")
    return np.frombuffer(data, np.uint8, offset=4 + 4 * data[3]).reshape(shape)


def idx_folder(root: Path) -> Path | None:
    """Where under root the IDX files lie: root itself, root/raw, root/<set>/raw."""
    if not root.is_dir():
        return None
    for place in (root, root / "raw", *(root / name / "raw" for name in sorted(os.listdir(root)))):
        if idx_file(place, IDX_FILES["train"][0]) or idx_file(place, IDX_FILES["test"][0]):
            return place
    return None


def idx_file(folder: Path, stem: str) -> Path | None:
    return next((folder / name for name in (stem, stem + ".gz") if (folder / name).is_file()), None)


def read_idx_split(folder: Path, split: str, classes: Sequence[str]) -> Arrays:
    """The pictures and labels of "train" or "test"."""
    found = [idx_file(folder, stem) for stem in IDX_FILES[split]]
    for file, stem in zip(found, IDX_FILES[split], strict=True):
        if file is None:
            raise FileNotFoundError(
                f"no {stem} or {stem}.gz in {folder}: both pictures and labels of {split} are needed"
            )
    images, labels = (read_idx(file) for file in found if file is not None)
    if images.ndim != 3 or labels.ndim != 1:
        raise ValueError(
            f"{found[0]}: pictures of rank {images.ndim} and labels of rank {labels.ndim}, 3 and 1 are needed"
        )
    return Arrays(images, labels, classes, str(found[0]))
