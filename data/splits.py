"""Which pictures are for training, validation and test: by folder, or by the hash of their names."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from PIL import Image

from .arrays import Arrays
from .folders import Folder, Source, near, quoted

SPLIT_NAMES = {"train": ("train", "training"), "val": ("val", "valid", "validation"), "test": ("test", "testing")}


@dataclass(frozen=True)
class Splits:
    """The sources of a data set; None where the data has none. `names`: what to show for each class."""

    classes: list[str]
    train: Source | None = None
    val: Source | None = None
    test: Source | None = None
    names: list[str] | None = None
    notes: tuple[str, ...] = ()

    @classmethod
    def of(
        cls, classes: list[str], made: Mapping[str, Source], names: list[str] | None = None, notes: tuple[str, ...] = ()
    ) -> Splits:
        """Of the sources that there are, by "train", "val", "test": val and test stand for one another."""
        val, test = made.get("val"), made.get("test")
        return cls(classes, made.get("train"), val or test, test or val, names, notes)


def folder_splits(root: Path, val_fraction: float, test_fraction: float) -> Splits:
    """train/, val/ (or validation/), test/ of class folders under root; what is missing is found by rule:

    - no val/: val_fraction of each class of train/, chosen by the hash of the file names, is taken out of it;
    - no test/: test is val;   no train/: there is no training (val and test stand for one another);
    - none of the three: root's class folders are split by hash, val_fraction and test_fraction of each class.
    """
    there = split_folders(root)
    if not there:
        whole = Folder(root)
        val, test, train = (Part(whole, p) for p in portion(whole.names(), whole.targets, val_fraction, test_fraction))
        note = f"{root}: split by hash into {len(train)} for training, {len(val)} for validation, {len(test)} for test"
        return Splits(whole.classes, train, val if len(val) else test, test if len(test) else val, notes=(note,))
    folders = {split: Folder(place) for split, place in there.items()}
    first = next(iter(folders.values()))
    for other in folders.values():
        same_classes(first, other)
    train_folder, val_folder, test_folder = (folders.get(split) for split in ("train", "val", "test"))
    if train_folder is None or val_folder is not None:
        return Splits.of(first.classes, folders)
    return hold_out(train_folder, train_folder.names(), test_folder, val_fraction, str(train_folder.root))


def hold_out(
    source: Folder | Arrays, names: Sequence[str], test: Source | None, val_fraction: float, origin: str
) -> Splits:
    """A part of the training pictures becomes val, by the hash of their names; with val_fraction 0 val is test."""
    val, train = (Part(source, part) for part in portion(names, source.targets, val_fraction))
    note = f"{origin}: {len(val)} of the {len(source)} training pictures are held out for validation, by hash"
    return Splits(source.classes, train, val if len(val) else test, test or val, notes=(note,) * bool(len(val)))


def split_folders(root: Path) -> dict[str, Path]:
    """Which of train, val, test there are as folders of root, each under any of its usual names."""
    found = {}
    for split, names in SPLIT_NAMES.items():
        there = [root / name for name in names if (root / name).is_dir()]
        if len(there) > 1:
            raise ValueError(f"{root}: both {there[0].name}/ and {there[1].name}/ are there: keep one for {split}")
        if there:
            found[split] = there[0]
    return found


def same_classes(first: Folder, second: Folder) -> None:
    """Raise where two splits do not have the same classes."""
    missing = [name for name in first.classes if name not in second.classes]
    extra = [name for name in second.classes if name not in first.classes]
    if missing or extra:
        parts = [f"lacks {quoted(missing)}"] * bool(missing) + [f"has {quoted(extra)} besides"] * bool(extra)
        hint = (
            near(extra[0], missing)
            if missing and extra and get_close_matches(extra[0], missing, 1, 0.5)
            else ": make them the same"
        )
        raise ValueError(f"classes differ: {second.root} {' and '.join(parts)}, compared with {first.root}{hint}")


def portion(names: Sequence[str], targets: Sequence[int], *fractions: float) -> list[list[int]]:
    """Indices in len(fractions) + 1 parts, class by class: the first parts hold those fractions of each class, the last
    the rest.

    Within a class names are ordered by their sha256, so the parts depend on names only, not on seed, order or other
    classes. The rest keeps at least one of each class; a class of two or more gives at least one to each part while
    that holds.
    """
    if any(f < 0 for f in fractions) or sum(fractions) >= 1:
        raise ValueError(f"fractions {fractions}: none below 0, and less than 1 together")
    parts: list[list[int]] = [[] for _ in range(len(fractions) + 1)]
    by_class: dict[int, list[int]] = {}
    for index, target in enumerate(targets):
        by_class.setdefault(target, []).append(index)
    for members in by_class.values():
        members.sort(key=lambda i: hashlib.sha256(names[i].encode()).digest())
        start = 0
        for part, fraction in zip(parts, fractions, strict=False):
            count = min(max(round(fraction * len(members)), fraction > 0), max(len(members) - 1 - start, 0))
            part += members[start : start + count]
            start += count
        parts[-1] += members[start:]
    return [sorted(part) for part in parts]


class Part:
    """Some pictures of a source, in the given order."""

    def __init__(self, source: Source, indices: Sequence[int]) -> None:
        self.source, self.indices = source, list(indices)
        self.classes, self.steady = source.classes, source.steady

    def __len__(self) -> int:
        return len(self.indices)

    def load(self, index: int, epoch: int = 0) -> tuple[Image.Image, int]:
        return self.source.load(self.indices[index], epoch)

    def name(self, index: int) -> str:
        return self.source.name(self.indices[index])


class Numbered:
    """A source whose targets are its indices."""

    def __init__(self, source: Source) -> None:
        self.source, self.classes, self.steady = source, source.classes, source.steady

    def __len__(self) -> int:
        return len(self.source)

    def load(self, index: int, epoch: int = 0) -> tuple[Image.Image, int]:
        return self.source.load(index, epoch)[0], index

    def name(self, index: int) -> str:
        return self.source.name(index)
