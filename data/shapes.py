"""`Shapes`: pictures drawn on the fly, the same for the same (seed, split, index), with a task's truth beside them."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import replace
from math import pi, radians
from typing import Literal, get_args

import numpy as np
from torch.utils.data import Dataset

from .draw import Random, ground, lump, paint, strokes
from .questions import Pair, colour_question, count_question, relation_question, told
from .sample import ANSWERS, COLOURS, KINDS, QUESTIONS, RELATIONS, SIZES, Sample
from .scene import tight_boxes

Task = Literal["class", "boxes", "caption", "question"]
Split = Literal["train", "val", "test"]
SPLITS: tuple[str, ...] = get_args(Split)
TURN = {
    "circle": pi,
    "ring": pi,
    "square": radians(22),
    "cross": radians(22),
}  # how far a kind may be turned; the rest:
TURN_OTHERS = radians(30)
TRIES = 24  # places thought of for each object before all of them shrink


class Shapes(Dataset[Sample]):
    """Drawn pictures of `size` (a number, or (H, W)): index -> Sample, any index >= 0; `length` is only how many there
    are.

    task      class: one object among lumps and strokes; boxes: 2 to 6 objects; caption: two objects and their relation;
              question: 3 to 6 objects and a question on colour, count or relation.
    without   (kind, colour) pairs that are never drawn.
    featured  (kind, colour) pairs of which the asked-about object (the first) is one. Hold combinations out by training
              `without` them and testing with them `featured`. The split is part of the key: no picture of "train" is
              drawn again in "val" or "test".
    """

    def __init__(
        self,
        length: int,
        size: int | tuple[int, int] = 64,
        task: Task = "class",
        seed: int = 0,
        split: Split = "train",
        without: Collection[Pair] = (),
        featured: Collection[Pair] = (),
    ) -> None:
        if task not in get_args(Task):
            raise ValueError(f"no task {task!r} of drawn pictures: one of {', '.join(get_args(Task))}")
        if split not in SPLITS:
            raise ValueError(f"no split {split!r} of drawn pictures: one of {', '.join(SPLITS)}")
        self.size = (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
        if min(self.size) < 32:
            raise ValueError(f"drawn pictures of size {self.size}: at least 32 x 32 pixels tell the kinds apart")
        if length < 1:
            raise ValueError(f"{length} drawn pictures: at least 1")
        self.length, self.task, self.seed, self.split = length, task, seed, split
        self.held = held = pairs(without)
        self.pairs = [(kind, colour) for kind in KINDS for colour in COLOURS if (kind, colour) not in held]
        self.featured = sorted(pairs(featured)) or self.pairs
        if clash := held & set(self.featured):
            raise ValueError(f"{sorted(clash)} cannot be both held out and featured")
        if missing := set(KINDS) - {kind for kind, _ in self.pairs}:
            raise ValueError(f"every colour of {sorted(missing)} is held out: leave at least one")
        self.colours_of = {kind: [c for k, c in self.pairs if k == kind] for kind in KINDS}

    @property
    def classes(self) -> list[str]:
        return list(KINDS)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < self.length:
            raise IndexError(f"picture {index} of {self.length}")
        return self.draw(index)

    def draw(self, index: int) -> Sample:
        """The picture of any index, also beyond `length`."""
        r = np.random.Generator(np.random.PCG64([self.seed, SPLITS.index(self.split), index]))
        match self.task:
            case "class":
                return self._one(r)
            case "boxes":
                return self._scene(r, self._things(r, int(r.integers(2, 7))))
            case "caption":
                return self._caption(r)
            case _:
                return self._question(r)

    # what is in the picture

    def _first(self, r: Random) -> Pair:
        """The kind evenly, then a colour that it may have."""
        if self.featured is not self.pairs:
            return self.featured[int(r.integers(len(self.featured)))]
        return self._pair(r, KINDS[int(r.integers(len(KINDS)))])

    def _pair(self, r: Random, kind: str) -> Pair:
        colours = self.colours_of[kind]
        return kind, colours[int(r.integers(len(colours)))]

    def _things(self, r: Random, count: int) -> list[Pair]:
        return [self._first(r), *(self._pair(r, KINDS[int(i)]) for i in r.integers(len(KINDS), size=count - 1))]

    def _one(self, r: Random) -> Sample:
        """One object of a kind; lumps of any colour behind it, strokes across the ground."""
        h, w = self.size
        picture, short = ground(r, h, w), min(h, w)
        if r.random() < 0.5:
            strokes(picture, r, int(r.integers(1, 4)))
        for _ in range(int(r.integers(1, 5))):
            lump(
                picture,
                r,
                list(COLOURS)[int(r.integers(len(COLOURS)))],
                r.random() * w,
                r.random() * h,
                short * r.uniform(0.08, 0.2),
            )
        radius = short * r.uniform(0.19, 0.36)
        place = np.array([[r.uniform(radius, w - radius), r.uniform(radius, h - radius), radius]])
        return self._finish(r, picture, [self._first(r)], place)

    def _caption(self, r: Random) -> Sample:
        """Two objects that differ in kind and colour, one of them beside or over the other."""
        first = self._first(r)
        others = [p for p in self.pairs if p[0] != first[0] and p[1] != first[1]]
        if not others:
            raise ValueError(f"no pair beside {first} differs from it in kind and colour: hold out fewer")
        things, relation = [first, others[int(r.integers(len(others)))]], RELATIONS[int(r.integers(4))]
        sample = self._scene(r, things, relation)
        return _with(sample, caption=told(things[0], relation, things[1]))

    def _question(self, r: Random) -> Sample:
        about = QUESTIONS[int(r.integers(3))]
        things = self._things(r, int(r.integers(3, 7)))
        first = things[0]
        if about == "count":
            return self._count(r, things)
        if about == "colour":  # the kind asked about is there once
            things = [first, *(t for t in things[1:] if t[0] != first[0])]
            sample = self._scene(r, things)
            return _with(sample, about=about, question=colour_question(first[0]), answer=first[1])
        others = [p for p in self.pairs if p[0] != first[0]]
        second = others[int(r.integers(len(others)))]
        things = [first, second, *(t for t in things[1:] if t[0] not in (first[0], second[0]))]
        true, says = RELATIONS[int(r.integers(4))], bool(r.integers(2))
        asked = true if says else RELATIONS[RELATIONS.index(true) ^ 1]
        sample = self._scene(r, things, true)
        return _with(
            sample, about=about, question=relation_question(first, asked, second), answer="yes" if says else "no"
        )

    def _count(self, r: Random, things: list[Pair]) -> Sample:
        """How many of a kind, a colour or both; the asked-about objects come first, 0 to 6 of them."""
        (kind, colour), mode = things[0], int(r.integers(3))
        wanted = {0: lambda p: p[0] == kind, 1: lambda p: p[1] == colour, 2: lambda p: p == (kind, colour)}[mode]
        question = count_question(None if mode == 1 else kind, None if mode == 0 else colour)
        matching = [p for p in self.pairs if wanted(p)]
        count = int(r.integers(0 if self.featured is self.pairs else 1, 6))
        rest = [p for p in things[1:] if not wanted(p)][: max(0, 6 - count)]
        if count + len(rest) == 0:
            others = [p for p in self.pairs if not wanted(p)]
            rest = [others[int(r.integers(len(others)))]]
        asked = (
            [(kind, colour), *(matching[int(i)] for i in r.integers(len(matching), size=count - 1))] if count else []
        )
        sample = self._scene(r, asked + rest)
        true = sum(wanted(pair) for pair in zip(sample.kinds, sample.colours, strict=True))
        return _with(sample, about="count", question=question, answer=str(true))

    # where it is, and drawing it

    def _scene(self, r: Random, things: list[Pair], relation: str | None = None) -> Sample:
        """Things that hardly touch one another, on a ground; with a relation the first two stand so."""
        h, w = self.size
        picture = ground(r, h, w)
        return self._finish(r, picture, things, places(r, len(things), h, w, relation))

    def _finish(self, r: Random, picture: np.ndarray, things: list[Pair], place: np.ndarray) -> Sample:
        covers = []
        for (kind, colour), (x, y, radius) in zip(things, place, strict=True):
            turn = TURN.get(kind, TURN_OTHERS)
            covers.append(paint(picture, r, kind, colour, float(x), float(y), float(radius), r.uniform(-turn, turn)))
        masks = np.stack(
            [cover > 0.5 * cover.max() for cover in covers]
        )  # of its own maximum: a bolt of two pixels still has a mask
        for i in range(len(masks) - 1):
            masks[i] &= ~masks[i + 1 :].any(0)
        return Sample(
            image=(picture + 0.5).clip(0, 255).astype(np.uint8),
            labels=np.array([KINDS.index(kind) for kind, _ in things], np.int64),
            boxes=tight_boxes(masks),
            masks=masks,
            colours=tuple(colour for _, colour in things),
            sizes=tuple(size_name(radius / min(self.size)) for radius in place[:, 2]),
        )


def pairs(given: Iterable[Pair]) -> set[Pair]:
    """The (kind, colour) pairs as a set, each name checked."""
    found = {(str(kind), str(colour)) for kind, colour in given}
    for kind, colour in found:
        if kind not in KINDS or colour not in COLOURS:
            raise ValueError(
                f"no pair ({kind}, {colour}): kinds are {', '.join(KINDS)}; colours are {', '.join(COLOURS)}"
            )
    return found


def places(r: Random, count: int, height: int, width: int, relation: str | None = None) -> np.ndarray:
    """(count, 3) x, y, radius: circles inside the picture that overlap by at most a tenth of their radii.

    With a relation the first stands so to the second: clearly further along its axis than across it.
    """
    short = min(height, width)
    top = 0.235 if count <= 3 else 0.17
    shrink = 1.0
    while True:  # ends: circles that shrink by a tenth each round fit at some point
        radius = short * shrink * r.uniform(SIZES["small"][0] + 0.015, top, count)
        x, y = (radius[:, None] + r.random((count, TRIES)) * (side - 2 * radius[:, None]) for side in (width, height))
        if (place := _fit(x, y, radius, relation)) is not None:
            return place
        shrink *= 0.95


def _fit(x: np.ndarray, y: np.ndarray, radius: np.ndarray, relation: str | None) -> np.ndarray | None:
    """Candidates x, y (n, TRIES) one by one: the first that is free of those before it; None where there is none."""
    place = np.stack([x[:, 0], y[:, 0], radius], 1)
    for i in range(1, len(radius)):
        before = place[:i]
        free = (np.hypot(x[i] - before[:, :1], y[i] - before[:, 1:2]) >= 0.9 * (radius[i] + before[:, 2:])).all(0)
        if i == 1 and relation is not None:
            along, across = np.abs(x[1] - x[0, 0]), np.abs(y[1] - y[0, 0])
            free &= along > 1.3 * across if relation in RELATIONS[:2] else across > 1.3 * along
        found = int(free.argmax())
        if not free[found]:
            return None
        place[i, :2] = x[i, found], y[i, found]
        if i == 1 and relation is not None:
            axis = RELATIONS.index(relation) // 2  # 0: x, 1: y
            if (place[0, axis] < place[1, axis]) != (relation in ("left of", "above")):
                place[[0, 1]] = place[[1, 0]]
    return place


def size_name(part: float) -> str:
    """The name of a radius, given as a part of the picture's shorter side."""
    return next((name for name, (low, high) in SIZES.items() if part < high), "large") if part >= 0 else "small"


def _with(sample: Sample, **said: str) -> Sample:
    assert "answer" not in said or said["answer"] in ANSWERS
    return replace(sample, **said)
