"""Pictures with their captions, for learning what belongs together: drawn ones, and files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from .dialogue_files import Entry, held_out, read_dialogues
from .dialogues import HELD
from .drawn import Drawn, DrawnSource, caption
from .findings import OnError
from .folders import Source, existing
from .images import Augment, Images
from .loader import KeyedDataset
from .pictures import Captioned
from .questions import Pair, named
from .read import read_image
from .sample import Sample
from .shapes import Shapes, Split
from .splits import Splits


def alone(sample: Sample) -> str:
    """What stands in front: "a red circle"."""
    return named((sample.kinds[0], sample.colours[0]))


class InTurn:
    """Pictures of two sources in turn, as many of each."""

    def __init__(self, first: Any, second: Any) -> None:
        self.sources, self.steady, self.classes = (first, second), first.steady and second.steady, list[str]()

    def __len__(self) -> int:
        return 2 * min(map(len, self.sources))

    def load(self, index: int, epoch: int = 0) -> tuple[Image.Image, str]:
        return self.sources[index % 2].load(index // 2, epoch)  # type: ignore[no-any-return]

    def name(self, index: int) -> str:
        return f"{'single ' * (index % 2)}{self.sources[index % 2].name(index // 2)}"


class PairedShapes(Drawn, Images):
    """Drawn pictures at the model's input size with their captions: of two objects ("a red circle left of a blue
    square") and of one ("a red circle") in turn. They are not varied: mirrored, left would be right.

    train_length, val_length, test_length   pictures an epoch
    without   (kind, colour) pairs that training and validation never show nor name; each test picture has one
    fresh     draw new training pictures in every epoch, so that none is seen twice
    """

    def __init__(
        self,
        train_length: int = 20_000,
        val_length: int = 400,
        test_length: int = 400,
        without: Sequence[Pair] = HELD,
        fresh: bool = True,
        batch_size: int = 128,
        workers: int = 2,
        seed: int = 0,
        preprocessing: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(batch_size, workers, seed, None, preprocessing, cache=False)
        self.lengths: dict[Split, int] = {"train": train_length, "val": val_length, "test": test_length}
        if min(self.lengths.values()) < 2:
            raise ValueError(f"lengths of {self.lengths}: at least 2, one picture of each sort")
        self.without, self.fresh = [(kind, colour) for kind, colour in without], fresh

    def read(self) -> Splits:
        return Splits.of([], {split: self._source_of(split) for split in self.lengths})

    def _source_of(self, split: Split) -> InTurn:
        half, size, anew = self.lengths[split] // 2, self.drawn_size, self.anew(split)
        held, featured = ([], self.without) if split == "test" else (self.without, [])
        two = Shapes(half, size, "caption", self.seed, split, held, featured)
        one = Shapes(half, size, "class", self.seed, split, held, featured)
        return InTurn(DrawnSource(two, anew, caption), DrawnSource(one, anew, alone))

    def predictable(self) -> Source:
        raise ValueError("these pictures are drawn with their captions: there is nothing to predict of them")

    def _read_by(self, split: str, source: Source, train: bool) -> KeyedDataset:
        return Captioned(source, self._pipeline(train), self.seed, self.on_error, refill=train)


class CaptionSource:
    """Picture files with captions; `one`: a picture's captions are told one an epoch, else all of them."""

    steady = True

    def __init__(self, entries: Sequence[Entry], folder: Path, one: bool) -> None:
        self.entries, self.folder, self.one, self.classes = list(entries), folder, one, list[str]()

    def __len__(self) -> int:
        return len(self.entries)

    def load(self, index: int, epoch: int = 0) -> tuple[Image.Image, str | list[str]]:
        entry = self.entries[index]
        said = [turn.answer for turn in entry.dialogue.turns]
        return read_image(self.folder / entry.images[0]), said[(epoch + index) % len(said)] if self.one else said

    def name(self, index: int) -> str:
        return str(self.folder / self.entries[index].images[0])


class CaptionFiles(Images):
    """Pictures with captions: COCO's captions_*.json, or JSON lines {"image", "captions"}.

    root               where the files below, and the pictures, are looked for
    train, val, test   files of captions. Without val a part of train is held out, without test it is val
    images             the folder of the pictures below root
    val_fraction       of the pictures of train, chosen by the hash of their names
    augment            of the pictures alone: a mirrored one keeps its captions. auto: `Recrop()`
    """

    def __init__(
        self,
        root: str,
        train: str | None = None,
        val: str | None = None,
        test: str | None = None,
        images: str = ".",
        val_fraction: float = 0.1,
        batch_size: int = 64,
        workers: int = 2,
        seed: int = 0,
        augment: Augment = "auto",
        preprocessing: dict[str, Any] | None = None,
        on_error: OnError = "stop",
    ) -> None:
        super().__init__(batch_size, workers, seed, augment, preprocessing, on_error, cache=False)
        self.root, self.images, self.val_fraction = root, images, val_fraction
        self.files = {"train": train, "val": val, "test": test}

    def read(self) -> Splits:
        root = existing(self.root)
        found = {split: read_captions(root / file) for split, file in self.files.items() if file is not None}
        if not found:
            raise ValueError(f"{self.root}: no file of captions is named (train, val, test)")
        notes: tuple[str, ...] = ()
        if "train" in found and "val" not in found and self.val_fraction:
            found["train"], found["val"] = held_out(found["train"], self.val_fraction)
            notes = (f"{len(found['val'])} pictures of {self.root} are held out for validation, by hash",)
        made = {s: CaptionSource(entries, root / self.images, s == "train") for s, entries in found.items() if entries}
        return Splits.of([], made, notes=notes)

    def predictable(self) -> Source:
        raise ValueError(
            f"{self.root} holds captions: patchloom eval retrieval judges them, there is nothing to predict"
        )

    def _needed(self, split: str) -> str:
        return f"name the file of its captions ({split}: FILE)"

    def _read_by(self, split: str, source: Source, train: bool) -> KeyedDataset:
        return Captioned(source, self._pipeline(train), self.seed, self.on_error, refill=train)


def read_captions(file: Path) -> list[Entry]:
    """Entries of pictures with captions alone; raises for other dialogues."""
    entries = read_dialogues(file)
    for entry in entries:
        questions = {turn.question for turn in entry.dialogue.turns}
        if len(entry.images) != 1 or len(questions) > 1:
            raise ValueError(
                f"{file}: {', '.join(entry.images) or 'an entry'} has questions: captions of a picture are due"
            )
    if not entries:
        raise ValueError(f"{file}: holds no captions")
    return entries
