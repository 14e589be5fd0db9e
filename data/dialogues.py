"""Pictures that are talked about: dialogues, their data modules, and questions on drawn pictures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .drawn import Drawn
from .findings import OnError
from .images import Augment, Images
from .keyed import key, seed_libraries
from .loader import Batch, Key, KeyedDataset
from .pictures import SALT, Failure, Readable
from .questions import Pair, Turn, more_turns, own_turn
from .sample import COLOURS, KINDS
from .shapes import Shapes, Split
from .splits import Splits
from .transforms import Pipeline, Preprocessing

HELD: tuple[Pair, ...] = tuple(zip(KINDS, COLOURS, strict=True))  # a red circle, an orange square …: one of each kind
ABOUT = ("colour", "count", "relation", "caption")
Tensors = tuple[Tensor, ...]


class Dialogue(NamedTuple):
    """Questions and answers about the same pictures, which stand before the first question unless that says where
    (`<image>`)."""

    turns: tuple[Turn, ...]
    system: str = ""
    id: str = ""


class DialogueSource(Protocol):
    """What `Spoken` reads from. `texts`: all that is said in it, for whoever makes words of it."""

    classes: list[str]
    steady: bool

    def __len__(self) -> int: ...
    def load(self, index: int, epoch: int) -> tuple[tuple[Image.Image, ...], Dialogue]: ...
    def name(self, index: int) -> str: ...
    def texts(self) -> Iterator[str]: ...


class Spoken(Readable):
    """Keys (epoch, index) -> Batch([a tuple of images (C, H, W) for each], [Dialogue]).

    keep: pictures keep their size, to be cut into tiles by whoever takes them.
    """

    def __init__(self, source: DialogueSource, pipeline: Pipeline, preprocessing: Preprocessing, *, keep: bool = False,
                 seed: int = 0, on_error: OnError = "stop", refill: bool = False) -> None:  # fmt: skip
        super().__init__(source, on_error, refill)
        self.pipeline, self.preprocessing, self.keep, self.seed = pipeline, preprocessing, keep, seed

    def _picture(self, epoch: int, index: int) -> tuple[Tensors, Dialogue]:
        pictures, dialogue = self.source.load(index, epoch)
        if self.keep:
            return tuple(self.normalised(p) for p in pictures), dialogue
        if self.pipeline.random:
            seed_libraries(key(self.seed ^ SALT, epoch, index))
        return tuple(self.pipeline.picture(p) for p in pictures), dialogue

    def normalised(self, picture: Image.Image) -> Tensor:
        x = torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1)
        return self.preprocessing.normalise(x[None])[0]

    def __getitems__(self, keys: list[Key]) -> Batch | Failure:
        found = self._gather(keys)
        if isinstance(found, Failure):
            return found
        rows, kept, skipped = found
        if not rows:
            return Batch(None, None, skipped)
        images, dialogues = zip(*rows, strict=True)
        if not self.keep:
            images = self._finished(images, kept)
        return Batch(list(images), list(dialogues), skipped)

    def _finished(self, images: Sequence[Tensors], kept: Sequence[Key]) -> list[Tensors]:
        """The batch half of the pipeline, over the pictures of all dialogues together."""
        where = [k for k, own in zip(kept, images, strict=True) for _ in own]
        if not where:
            return list(images)
        epochs, indices = np.array(where, np.int64).T
        made = self.pipeline.finish(torch.stack([x for own in images for x in own]), self.seed, epochs, indices)
        assert isinstance(made, Tensor)
        rest = iter(made)
        return [tuple(next(rest) for _ in own) for own in images]


class Dialogues(Images):
    """The data module under those of dialogues; batches are ([a tuple of images a dialogue], [Dialogue]).

    keep   pictures keep their size and are only normalised (for towers that look at tiles)

    After setup: `.kinds`, the kinds of questions that are judged apart; `.texts()`, all that training says.
    Training gets whole dialogues; validation and test are judged by the first answer of each.
    """

    kinds: tuple[str, ...] = ()

    def __init__(
        self,
        batch_size: int = 32,
        workers: int = 2,
        seed: int = 0,
        augment: Augment = None,
        preprocessing: dict[str, Any] | None = None,
        on_error: OnError = "stop",
        keep: bool = False,
    ) -> None:
        super().__init__(batch_size, workers, seed, augment, preprocessing, on_error, cache=False)
        self.keep = keep

    def texts(self) -> Iterator[str]:
        train: Any = self._source("train")
        return train.texts()  # type: ignore[no-any-return]

    def predictable(self) -> Any:
        return self._source("test")

    def _needed(self, split: str) -> str:
        return f"name the file of its dialogues ({split}: FILE)"

    def _read_by(self, split: str, source: Any, train: bool) -> KeyedDataset:
        assert self.preprocessing is not None, "setup() comes first"
        return Spoken(
            source, self._pipeline(train), Preprocessing.of(self.preprocessing), keep=self.keep, seed=self.seed,
            on_error=self.on_error, refill=train,
        )  # fmt: skip


class DrawnDialogues:
    """`Shapes` with questions and captions as dialogues: of every four pictures one has a caption, and a dialogue has
    up to `turns` questions, the picture's own at any place. With `fresh` every epoch draws new pictures."""

    classes: ClassVar[list[str]] = []

    def __init__(self, questions: Shapes, captions: Shapes, turns: int, fresh: bool) -> None:
        self.questions, self.captions, self.turns, self.steady = questions, captions, turns, not fresh

    def __len__(self) -> int:
        return len(self.questions)

    def load(self, index: int, epoch: int = 0) -> tuple[tuple[Image.Image, ...], Dialogue]:
        at = index if self.steady else epoch * len(self) + index
        shapes = self.captions if at % 4 == 3 else self.questions
        sample = shapes.draw(at)
        turns = [own_turn(sample)]
        if self.turns > 1:
            r = np.random.Generator(np.random.PCG64([shapes.seed, 17, at]))
            turns += more_turns(sample, r, self.turns - 1, shapes.held)
            turns = [turns[int(i)] for i in r.permutation(len(turns))]
        return (Image.fromarray(sample.image),), Dialogue(tuple(turns), id=self.name(index))

    def name(self, index: int) -> str:
        return f"{self.questions.split}[{index}]"

    def texts(self) -> Iterator[str]:
        """Of the first 2,000 dialogues: every word comes in them many times."""
        for index in range(min(len(self), 2000)):
            for turn in self.load(index)[1].turns:
                yield f"{turn.question} {turn.answer}"


class ShapesDialogues(Drawn, Dialogues):
    """Drawn pictures at the model's input size with questions on colour, count and relation, and captions.

    train_length, val_length, test_length   pictures an epoch
    turns     how many questions a training picture has, at most
    without   (kind, colour) pairs that training never shows nor names; the object that a test picture is asked about,
              or the first of its caption, is always one of them. Validation has neither of both.
    fresh     draw new training pictures in every epoch, so that none is seen twice
    """

    kinds = ABOUT

    def __init__(
        self,
        train_length: int = 10_000,
        val_length: int = 400,
        test_length: int = 2_000,
        turns: int = 6,
        without: Sequence[Pair] = HELD,
        fresh: bool = True,
        batch_size: int = 32,
        workers: int = 2,
        seed: int = 0,
        preprocessing: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(batch_size, workers, seed, None, preprocessing)
        if turns < 1:
            raise ValueError(f"turns = {turns}: at least one question is asked of a picture")
        self.lengths: dict[Split, int] = {"train": train_length, "val": val_length, "test": test_length}
        self.turns, self.fresh = turns, fresh
        self.without = [(kind, colour) for kind, colour in without]

    def read(self) -> Splits:
        return Splits.of([], {split: self._source_of(split) for split in self.lengths})

    def _source_of(self, split: Split) -> Any:
        held, featured = ([], self.without) if split == "test" else (self.without, [])
        length, size, seed = self.lengths[split], self.drawn_size, self.seed
        questions = Shapes(length, size, "question", seed, split, held, featured)
        captions = Shapes(length, size, "caption", seed, split, held, featured)
        return DrawnDialogues(questions, captions, self.turns if split == "train" else 1, self.anew(split))
