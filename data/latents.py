"""Precomputed latents of an autoencoder: how they lie on the disk, and the data module that reads them.

latents.json                {format, latents: of which autoencoder, size (C, h, w), dtype, flips, classes, splits}
train-00000.safetensors …   mean, std (n, C, h, w), labels (n,), and mean_flipped, std_flipped of the mirrored pictures
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .findings import OnError
from .folders import Source, existing
from .images import Images
from .keyed import key, uniform
from .loader import Batch, Key, KeyedDataset
from .pictures import Failure, Readable
from .read import UnreadableImage
from .splits import Splits

MANIFEST, FORMAT = "latents.json", 1
SALT = 0x1A7E  # sets these draws apart from those of the order


@dataclass(frozen=True)
class Manifest:
    """What `latents.json` says. `splits`: for each split its files in order, with how many rows each has."""

    latents: dict[str, Any]  # name, digest, channels, factor, scale, shift of the autoencoder
    size: tuple[int, int, int]  # C, h, w
    classes: list[str]
    dtype: str
    flips: bool
    splits: dict[str, list[tuple[str, int]]] = field(default_factory=dict)
    format: int = FORMAT

    @classmethod
    def read(cls, folder: str | Path) -> Manifest:
        path = existing(folder) / MANIFEST
        if not path.is_file():
            raise FileNotFoundError(
                f"no latents in {folder}: it has no {MANIFEST}; patchloom latents DATA OUT writes it"
            )
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{path}: no JSON: {error}") from error
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            found = content.get("format") if isinstance(content, dict) else None
            raise ValueError(f"{path}: is of format {found!r}, this patchloom reads {FORMAT}")
        splits = {name: [(file, int(n)) for file, n in files] for name, files in content.pop("splits").items()}
        return cls(**{**content, "size": tuple(content["size"]), "splits": splits})

    def text(self) -> str:
        return json.dumps(vars(self), indent=1, ensure_ascii=False) + "\n"


class Shards:
    """The rows of a split's files: index -> (mean, std (C, h, w) float32, label), as they are or mirrored."""

    steady = True

    def __init__(self, folder: Path, manifest: Manifest, split: str) -> None:
        self.folder, self.classes, self.flips = folder, manifest.classes, manifest.flips
        self.files = [folder / file for file, _ in manifest.splits[split]]
        self.ends = np.cumsum([count for _, count in manifest.splits[split]])
        self.size = manifest.size
        self._open: dict[int, Any] = {}  # of this process

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}}

    def name(self, index: int) -> str:
        file, row = self._place(index)
        return f"{self.files[file]}[{row}]"

    def _place(self, index: int) -> tuple[int, int]:
        file = int(np.searchsorted(self.ends, index, side="right"))
        return file, index - (int(self.ends[file - 1]) if file else 0)

    def row(self, index: int, flipped: bool = False) -> tuple[Tensor, Tensor, int]:
        """Raises UnreadableImage where the file is not there or damaged."""
        from safetensors import SafetensorError, safe_open

        number, row = self._place(index)
        path = self.files[number]
        suffix = "_flipped" if flipped else ""
        try:
            if number not in self._open:
                self._open[number] = safe_open(path, "pt")
            file = self._open[number]
            mean, std, label = (
                file.get_slice(n)[row : row + 1][0] for n in ("mean" + suffix, "std" + suffix, "labels")
            )
        except (SafetensorError, OSError, IndexError) as error:
            raise UnreadableImage(str(path), f"no file of latents, or a damaged one ({error})") from error
        return mean.float(), std.float(), int(label)

    def load(self, index: int, epoch: int = 0) -> Any:
        return self.row(index)


class LatentRows(Readable):
    """Keys -> Batch(latents (B, C, h, w) float32, labels (B,)). Each is mean + std * noise, mirrored half of the time
    where there are mirrored ones and `train`; noise and mirror are functions of (seed, epoch, index); evaluation has
    the same latents in each epoch. `sample` False: the means."""

    def __init__(self, source: Shards, seed: int, sample: bool, train: bool, on_error: OnError) -> None:
        super().__init__(source, on_error, refill=train)
        self.seed, self.sample, self.train = seed ^ SALT, sample, train

    def _picture(self, epoch: int, index: int) -> tuple[Tensor, int]:
        at = epoch if self.train else 0
        coin = uniform(self.seed, np.array([at]), np.array([index]), 1)[0, 0]
        mean, std, label = self.source.row(index, flipped=self.train and self.source.flips and coin < 0.5)
        if not self.sample:
            return mean, label
        noise = np.random.Generator(np.random.Philox(key(self.seed, at, index))).standard_normal(mean.shape, np.float32)
        return mean + std * torch.from_numpy(noise), label

    def __getitems__(self, keys: list[Key]) -> Batch | Failure:
        found = self._gather(keys)
        if isinstance(found, Failure):
            return found
        rows, _, skipped = found
        if not rows:
            return Batch(None, None, skipped)
        latents, labels = zip(*rows, strict=True)
        return Batch(torch.stack(latents), torch.tensor(labels), skipped)


class LatentsData(Images):
    """What `patchloom latents DATA OUT` wrote into `root`: latents drawn from the autoencoder's mean and standard
    deviation, anew in each epoch.

    autoencoder   name or digest (its beginning) of the autoencoder that the latents must be of; null: whichever it was
    sample        false: the means instead
    """

    def __init__(
        self,
        root: str,
        autoencoder: str | None = None,
        sample: bool = True,
        batch_size: int = 64,
        workers: int = 2,
        seed: int = 0,
        on_error: OnError = "stop",
    ) -> None:
        super().__init__(batch_size, workers, seed, None, None, on_error, False)
        self.root, self.autoencoder, self.sample = root, autoencoder, sample
        self._manifest: Manifest | None = None

    @property
    def manifest(self) -> Manifest:
        if self._manifest is None:
            self._manifest = Manifest.read(self.root)
            made, wanted = self._manifest.latents, self.autoencoder
            if wanted is not None and wanted != made["name"] and not made["digest"].startswith(wanted):
                raise ValueError(
                    f"{self.root} holds latents of autoencoder {made['name']} ({made['digest'][:12]}), and "
                    f"data.autoencoder asks for {wanted}: encode the pictures with that one (patchloom latents --vae)"
                )
        return self._manifest

    def setup(self, stage: str | None = None) -> None:
        made = self.manifest
        self.preprocessing = {"input_size": made.size, "latents": made.latents}
        if stage in ("fit", "validate", "test"):
            self._source({"fit": "train", "validate": "val"}.get(stage, stage))

    def read(self) -> Splits:
        made, root = self.manifest, existing(self.root)
        if not made.splits:
            raise ValueError(
                f"{self.root}: its latents are not complete; go on with patchloom latents DATA {self.root}"
            )
        sources = {split: Shards(root, made, split) for split in made.splits}
        return Splits.of(made.classes, sources)

    def predictable(self) -> Source:
        raise ValueError(f"{self.root} holds latents: there is nothing to predict of them")

    def _needed(self, split: str) -> str:
        return f"encode pictures that have a folder {split}/"

    def _read_by(self, split: str, source: Source, train: bool) -> KeyedDataset:
        assert isinstance(source, Shards)
        return LatentRows(source, self.seed, self.sample, train, self.on_error)
