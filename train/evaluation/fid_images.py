"""The two sets of a Fréchet distance: pictures of a folder or an array, pictures that a run makes, or statistics."""

import hashlib
import json
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from ...data.folders import quoted
from ...data.read import BROKEN, ORIENTATION
from ..saved.judge import find_images, prepared
from ..tables import write_whole
from .fid_extract import Extractor, Sized
from .fid_numbers import Moments

TURNED = (5, 6, 7, 8)  # EXIF orientations that swap the sides
Sides = tuple[int, int]  # H, W


@dataclass(frozen=True)
class Features:
    """What an extractor told of a set. A file of statistics may have no more than the moments."""

    moments: Moments
    features: Tensor | None = None  # (N, C)
    logits: Tensor | None = None  # (N, K)


class FolderImages:
    """The pictures of a folder, searched to the bottom; of `count`, evenly spaced over the sorted list."""

    def __init__(self, folder: Path, count: int | None = None) -> None:
        files = find_images(folder)
        if count is not None and count > len(files):
            raise ValueError(f"--count {count}: {folder} holds {len(files)} pictures")
        self.name = str(folder)
        self.files = files if count is None else [files[i * len(files) // count] for i in range(count)]
        lines = (f"{file.relative_to(folder).as_posix()} {file.stat().st_size}\n" for file in self.files)
        self.digest = hashlib.sha256("".join(lines).encode()).hexdigest()[:12]

    def __len__(self) -> int:
        return len(self.files)

    def sizes(self) -> list[Sides]:
        """Every size that there is, as the files' heads say; a file that cannot be read is left to the reader."""
        found = set()
        for file in self.files:
            try:
                with Image.open(file) as image:
                    w, h = image.size
                    found.add((w, h) if image.getexif().get(ORIENTATION, 1) in TURNED else (h, w))
            except BROKEN:
                continue
        return sorted(found)

    def batches(
        self, transform: Callable[[Image.Image], Tensor], *, batch: int, workers: int, on_error: str
    ) -> Iterator[Tensor]:
        for _, images in prepared(
            self.files, transform, batch=batch, workers=workers, on_error=on_error, title=Path(self.name).name
        ):
            yield torch.stack(images)


class MadeImages:
    """Pictures uint8 (b, 3, H, W) that come by batches, in order; each is seen once."""

    def __init__(self, name: str, count: int, size: Sides, images: Iterator[Tensor], digest: str = "") -> None:
        self.name, self.count, self.size, self.images, self.digest = name, count, size, images, digest

    def __len__(self) -> int:
        return self.count

    def sizes(self) -> list[Sides]:
        return [self.size]

    def batches(
        self, transform: Callable[[Image.Image], Tensor], *, batch: int, workers: int, on_error: str
    ) -> Iterator[Tensor]:
        with tqdm(total=self.count, unit="img", desc=Path(self.name).name, disable=None) as bar:
            for group in self.images:
                arrays = group.permute(0, 2, 3, 1).cpu().numpy()
                for part in np.array_split(arrays, -(-len(arrays) // batch)):
                    yield torch.stack([transform(Image.fromarray(picture)) for picture in part])
                bar.update(len(arrays))


Pictures = FolderImages | MadeImages


def array_images(path: Path, array: np.ndarray, count: int | None = None) -> MadeImages:
    """(N, H, W, 3) uint8 of a file, as ADM and DiT write samples (arr_0); all of them or the first `count`."""
    if array.dtype != np.uint8 or array.ndim != 4 or array.shape[3] != 3:
        raise ValueError(f"{path}: arr_0 is {array.dtype} {array.shape}; pictures are uint8 (N, H, W, 3)")
    if count is not None and count > len(array):
        raise ValueError(f"--count {count}: {path} holds {len(array)} pictures")
    array = array[:count]
    images = (torch.from_numpy(array[i : i + 64].copy()).permute(0, 3, 1, 2) for i in range(0, len(array), 64))
    return MadeImages(str(path), len(array), (array.shape[1], array.shape[2]), images, file_digest(path))


def file_digest(path: Path) -> str:
    sha = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            sha.update(chunk)
    return sha.hexdigest()[:12]


def one_size(sets: Sequence[Pictures], size: Sides | None, extractor: Extractor) -> str:
    """The words for the pictures' size. An extractor that takes pictures as they are wants all of one; raises else."""
    if size is not None:
        return f"{size[0]}x{size[1]}, the middle of each"
    found = {each.name: each.sizes() for each in sets}
    every = sorted({s for sizes in found.values() for s in sizes})
    if len(every) > 1 and extractor.whole:
        told = "; ".join(f"{name} has {quoted([f'{h}x{w}' for h, w in sizes], 3)}" for name, sizes in found.items())
        raise ValueError(
            f"pictures of several sizes ({told}): {extractor.name} takes them as they are, so all must be of one; "
            "--size N takes the middle of each at that size"
        )
    return f"{every[0][0]}x{every[0][1]}" if len(every) == 1 else "as they are"


def extract(
    extractor: Extractor, pictures: Pictures, size: Sides | None, *, batch: int, workers: int, on_error: str
) -> Features:
    """The features of all pictures; those that cannot be read stop it, or are left out (`skip`)."""
    features, logits = [], []
    transform = Sized(extractor.transform, size)
    for images in pictures.batches(transform, batch=batch, workers=workers, on_error=on_error):
        f, y = extractor(images)
        features.append(f)
        logits.append(y)
    every = torch.cat(features)
    return Features(Moments.of(every), every, torch.cat(logits))


# ---- files of statistics


def open_archive(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an .npz file; nothing in it is run."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (ValueError, OSError, zipfile.BadZipFile, EOFError) as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise ValueError(f"{path}: is no .npz file of plain arrays, or a damaged one ({error})") from error


def save_statistics(path: Path, found: Features, about: dict[str, Any]) -> None:
    """mu, sigma (as pytorch-fid names them), count, features, and how they came about."""
    import io

    if path.suffix != ".npz":
        raise ValueError(f"--save-statistics {path}: they are written as .npz")
    arrays: dict[str, Any] = {
        "mu": found.moments.mean.numpy(),
        "sigma": found.moments.cov.numpy(),
        "count": np.array(found.moments.count),
        "about": np.array(json.dumps(about)),
    }
    if found.features is not None:
        arrays["features"] = found.features.numpy()
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    write_whole(path, buffer.getvalue())


def read_statistics(path: Path, content: dict[str, np.ndarray]) -> tuple[Features, dict[str, Any]]:
    """(moments and, where they are there, features; what the file says of how they came about, {} of another's)."""
    mean, cov = (torch.from_numpy(content[name].astype(np.float64)) for name in ("mu", "sigma"))
    if mean.ndim != 1 or tuple(cov.shape) != (len(mean), len(mean)):
        raise ValueError(f"{path}: mu is {tuple(mean.shape)} and sigma {tuple(cov.shape)}: (C,) and (C, C) are needed")
    about = json.loads(str(content["about"])) if "about" in content else {}
    features = torch.from_numpy(content["features"]) if "features" in content else None
    return Features(Moments(int(content.get("count", 0)), mean, cov), features), about
