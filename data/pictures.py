"""`Pictures`: a source of pictures through a pipeline, a whole batch at a time, keyed by (epoch, index)."""

from __future__ import annotations

import mmap
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from .findings import OnError
from .folders import Source
from .keyed import key, preserved, seed_libraries
from .loader import Batch, Key
from .read import UnreadableImage
from .transforms import Pipeline

CacheRule = bool | Literal["auto"]
CACHE_LIMIT = 512 << 20  # bytes that "auto" may keep
SALT = 0x7C1D  # sets the draws of the picture half apart from those of the batch half


class Shelf:
    """Decoded pictures, (N, C, H, W) uint8, in anonymous shared memory: what one worker decodes, all have."""

    def __init__(self, length: int, shape: tuple[int, int, int]) -> None:
        self.length, self.shape = length, shape
        n = int(np.prod(shape))
        memory = mmap.mmap(-1, max(length * (n + 9), 1))
        self.targets = np.frombuffer(memory, np.int64, length)
        self.pictures = np.frombuffer(memory, np.uint8, length * n, 8 * length).reshape(length, *shape)
        self.filled = np.frombuffer(memory, np.uint8, length, length * (8 + n))

    def __reduce__(self) -> tuple[Any, ...]:
        """A spawned process cannot inherit the memory: it begins with an empty shelf."""
        return Shelf, (self.length, self.shape)

    def put(self, index: int, picture: Tensor, target: int) -> None:
        self.pictures[index], self.targets[index] = picture.numpy(), target
        self.filled[index] = 1  # last: whoever sees it may read the rest


@dataclass(frozen=True)
class Failure:
    """An unreadable picture that ends the run; a value, so that it crosses a process border as it is."""

    file: str
    reason: str

    def error(self) -> UnreadableImage:
        return UnreadableImage(self.file, self.reason)


class Readable(Dataset[Any], ABC):
    """Keys (epoch, index) -> what is made of the picture there, or what the rules on unreadable ones say.

    on_error "stop": an unreadable picture ends the run. "skip": it is reported, and in training (`refill`) the next
    readable picture of the source takes its place, so that batches keep their size; in evaluation the batch is smaller.
    """

    def __init__(self, source: Any, on_error: OnError, refill: bool) -> None:
        if on_error not in ("stop", "skip"):
            raise ValueError(f"on_error = {on_error!r}: stop or skip")
        self.source, self.on_error, self.refill = source, on_error, refill

    def __len__(self) -> int:
        return len(self.source)

    @abstractmethod
    def _picture(self, epoch: int, index: int) -> Any:
        """What is made of one picture; raises UnreadableImage."""

    def _gather(self, keys: list[Key]) -> tuple[list[Any], list[Key], dict[str, str]] | Failure:
        """What was readable, the keys of that, and file -> reason of the rest."""
        rows: list[Any] = []
        kept: list[Key] = []
        skipped: dict[str, str] = {}
        try:
            with preserved():
                for epoch, index in keys:
                    found = self._readable(epoch, index, skipped)
                    if found is not None:
                        rows.append(found)
                        kept.append((epoch, index))
        except UnreadableImage as error:
            return Failure(error.file, error.reason)
        return rows, kept, skipped

    def _readable(self, epoch: int, index: int, skipped: dict[str, str]) -> Any:
        """The picture, or by the rules of `on_error` and `refill` another or none."""
        for step in range(len(self.source) if self.refill else 1):
            try:
                return self._picture(epoch, (index + step) % len(self.source))
            except UnreadableImage as error:
                if self.on_error == "stop":
                    raise
                skipped[error.file] = error.reason
        if self.refill:
            raise UnreadableImage(self.source.name(index), "and so are all the others")
        return None


class Pictures(Readable):
    """Keys (epoch, index) -> Batch(images (B, C, H, W) float32, targets (B,) int64, unreadable ones).

    cache: keep decoded pictures in memory. "auto": if resized ones are reusable (not under Recrop) and all take at most
    512 MiB. True under Recrop keeps the decoded files, in each worker process.
    """

    def __init__(
        self,
        source: Source,
        pipeline: Pipeline,
        *,
        seed: int = 0,
        on_error: OnError = "stop",
        refill: bool = False,
        cache: CacheRule = "auto",
    ) -> None:
        super().__init__(source, on_error, refill)
        if cache is True and not source.steady:
            raise ValueError("cache = True, but these pictures are drawn anew in each epoch: nothing could be reused")
        self.pipeline, self.seed = pipeline, seed
        small = len(source) * int(np.prod(pipeline.shape)) <= CACHE_LIMIT
        keep = cache is True or (cache == "auto" and small and source.steady and not pipeline.random)
        self.shelf = Shelf(len(source), pipeline.shape) if keep and not pipeline.random else None
        self.originals: dict[int, tuple[Image.Image, int]] | None = {} if keep and pipeline.random else None

    def __getitem__(self, item: Key | int) -> tuple[Tensor, int]:
        """One picture, for looking at; a plain index means epoch 0."""
        batch = self.__getitems__([item if isinstance(item, tuple) else (0, item)])
        if isinstance(batch, Failure):
            raise batch.error()
        if batch.images is None or batch.targets is None:
            raise UnreadableImage(*next(iter(batch.skipped.items())))
        images = batch.images[0] if isinstance(batch.images, tuple) else batch.images  # of several views the first
        return images[0], int(batch.targets[0])

    def __getitems__(self, keys: list[Key]) -> Batch | Failure:
        found = self._gather(keys)
        if isinstance(found, Failure):
            return found
        rows, kept, skipped = found
        if not rows:
            return Batch(None, None, skipped)
        epochs, indices = np.array(kept, np.int64).T
        pictures, targets = zip(*rows, strict=True)
        images = self.pipeline.finish(torch.stack(pictures), self.seed, epochs, indices)
        return Batch(images, self._targets(targets), skipped)

    def _targets(self, found: Sequence[Any]) -> Any:
        """What the sources say of the pictures of a batch, together."""
        return torch.tensor(found)

    def _picture(self, epoch: int, index: int) -> tuple[Tensor, int]:
        shelf = self.shelf
        if shelf is not None and shelf.filled[index]:
            return torch.from_numpy(shelf.pictures[index]), int(shelf.targets[index])
        image, target = self._original(epoch, index)
        if self.pipeline.random:
            seed_libraries(key(self.seed ^ SALT, epoch, index))
        picture = self.pipeline.picture(image)
        if shelf is not None:
            shelf.put(index, picture, target)
        return picture, target

    def _original(self, epoch: int, index: int) -> tuple[Image.Image, int]:
        if self.originals is None:
            return self.source.load(index, epoch)
        if index not in self.originals:
            self.originals[index] = self.source.load(index, epoch)
        return self.originals[index]


class Captioned(Pictures):
    """Pictures of which the source says a text: Batch(images, list of texts, unreadable ones). None is cached."""

    def __init__(self, source: Source, pipeline: Pipeline, seed: int, on_error: OnError, refill: bool) -> None:
        super().__init__(source, pipeline, seed=seed, on_error=on_error, refill=refill, cache=False)

    def _targets(self, found: Sequence[str]) -> list[str]:
        return list(found)
