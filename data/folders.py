"""Pictures in class folders (root/class/**/picture); whatever is wrong with the layout is one line that names it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Protocol

from PIL import Image

from .read import EXTENSIONS, read_image


class Source(Protocol):
    """What the loaders read from: pictures by index. `steady` is False where a picture changes from epoch to epoch."""

    classes: list[str]
    steady: bool

    def __len__(self) -> int: ...
    def load(self, index: int, epoch: int) -> tuple[Image.Image, int]: ...
    def name(self, index: int) -> str: ...


class Folder:
    """root/class/**/picture -> (RGB picture, class index); classes in sorted order, or as `classes` lists them.

    With `classes`, folders may be missing (a part of ImageNet keeps its 1000 indices) but none may be unknown.
    """

    steady = True

    def __init__(self, root: str | Path, classes: Sequence[str] | None = None) -> None:
        self.root = existing(root)
        found = class_folders(self.root)
        self.classes = list(classes) if classes is not None else found
        if unknown := [name for name in found if name not in set(self.classes)]:
            raise ValueError(f"{self.root}: unknown class folder {quoted(unknown)}{near(unknown[0], self.classes)}")
        self.samples: list[tuple[str, int]] = []
        for target, name in enumerate(self.classes):
            files = pictures_below(self.root / name) if (self.root / name).is_dir() else []
            if not files and name in found:
                looked = f"looked for {kinds_of_file()}"
                raise ValueError(f"{self.root / name}: class folder without pictures ({looked}): fill it or remove it")
            self.samples += [(file, target) for file in files]
        self.targets = [target for _, target in self.samples]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return self.load(index)

    def load(self, index: int, epoch: int = 0) -> tuple[Image.Image, int]:
        file, target = self.samples[index]
        return read_image(file), target

    def name(self, index: int) -> str:
        return self.samples[index][0]

    def names(self) -> list[str]:
        """The files relative to the root, in order."""
        return [os.path.relpath(file, self.root) for file, _ in self.samples]


class Files:
    """Picture files, and folders searched to any depth -> (RGB picture, its index in `files`), for prediction."""

    steady = True

    def __init__(self, paths: str | Path | Sequence[str | Path]) -> None:
        self.files: list[str] = []
        self.classes: list[str] = []
        for path in [paths] if isinstance(paths, str | Path) else paths:
            place = existing(path)
            if place.is_file():
                self.files.append(str(place))
                continue
            found = pictures_below(place)
            if not found:
                raise ValueError(f"{place}: no pictures in it or below (looked for {kinds_of_file()})")
            self.files += found
        if not self.files:
            raise ValueError("no picture files given: name files or folders")

    def __len__(self) -> int:
        return len(self.files)

    def load(self, index: int, epoch: int = 0) -> tuple[Image.Image, int]:
        return read_image(self.files[index]), index

    def name(self, index: int) -> str:
        return self.files[index]


def existing(path: str | Path) -> Path:
    """The path, or a FileNotFoundError that names what lies nearby."""
    path = Path(path).expanduser()
    if path.exists():
        return path
    parent = next((p for p in path.parents if p.is_dir()), Path("."))
    missing = path.relative_to(parent).parts[0] if parent in path.parents else path.name
    here = sorted(entry.name for entry in parent.iterdir())
    raise FileNotFoundError(f"no file or folder {path}{near(missing, here, str(parent))}")


def near(name: str, known: Sequence[str], place: str = "") -> str:
    """A clause that offers what `name` may have meant, or what there is."""
    where = f" in {place}" if place else ""
    if close := get_close_matches(name, known, 3, 0.5):
        return f": did you mean {' or '.join(close)}{where}?"
    return f": there is {quoted(known)}{where}" if known else f": there is nothing{where}"


def quoted(names: Sequence[str], most: int = 5) -> str:
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest


def kinds_of_file() -> str:
    return " ".join(sorted(EXTENSIONS))


def class_folders(root: Path) -> list[str]:
    """The sorted names of the folders in root; an error where there are none."""
    if not root.is_dir():
        raise NotADirectoryError(f"{root} is a file: a folder of class folders is needed")
    found = sorted(entry.name for entry in os.scandir(root) if entry.is_dir() and not entry.name.startswith("."))
    if found:
        return found
    if not any(root.iterdir()):
        raise ValueError(f"{root}: the folder is empty: it needs one folder of pictures for each class")
    loose = len(pictures_below(root))
    raise ValueError(f"{root}: no class folders in it, {loose} loose pictures: put them into one folder for each class")


def pictures_below(folder: Path) -> list[str]:
    """All picture files of a folder and the folders below, sorted; hidden ones are left out."""
    found = []
    for place, folders, files in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [
            os.path.join(place, f)
            for f in sorted(files)
            if os.path.splitext(f)[1].lower() in EXTENSIONS and not f.startswith(".")
        ]
    return found
