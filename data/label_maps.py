"""Semantic segmentation as pairs of files, a picture and a map of class numbers, in the layouts that sets come in."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from .findings import Findings, OnError
from .folders import existing, near, pictures_below, quoted
from .read import BROKEN, UnreadableImage, read_image
from .scene import IGNORE, Category, Scene
from .scene_files import check_size, matched
from .splits import SPLIT_NAMES

UNKNOWN = -1
CITYSCAPES = {  # label id in the files -> class
    7: "road", 8: "sidewalk", 11: "building", 12: "wall", 13: "fence", 17: "pole", 19: "traffic light",
    20: "traffic sign", 21: "vegetation", 22: "terrain", 23: "sky", 24: "person", 25: "rider", 26: "car", 27: "truck",
    28: "bus", 31: "train", 32: "motorcycle", 33: "bicycle",
}  # fmt: skip


@dataclass(frozen=True)
class Values:
    """What the numbers of a map mean: `table` (256,), a class index, IGNORE, or UNKNOWN: such a number is an error."""

    classes: tuple[str, ...]
    table: np.ndarray

    @classmethod
    def of(cls, classes: Sequence[str], ignored: Sequence[int], first: int = 0) -> Values:
        """Class 0 is written as `first`; the `ignored` numbers are neither trained nor judged."""
        return cls.mapped(classes, {first + i: i for i in range(len(classes))}, ignored)

    @classmethod
    def mapped(cls, classes: Sequence[str], numbers: Mapping[int, int], ignored: Sequence[int]) -> Values:
        if not 1 <= len(classes) <= IGNORE:
            raise ValueError(f"{len(classes)} classes: a map of bytes tells 1 to {IGNORE} apart")
        table = np.full(256, UNKNOWN, np.int16)
        table[list(ignored)] = IGNORE
        for number, index in numbers.items():
            if not 0 <= number < 256 or number in ignored:
                raise ValueError(f"class {classes[index]!r} is written as {number}: a byte that is not also ignored")
            table[number] = index
        return cls(tuple(classes), table)

    def read(self, file: str) -> np.ndarray:
        """A file of class numbers -> (H, W) uint8, class index or IGNORE."""
        numbers = read_numbers(file)
        if numbers.max(initial=0) > 255:
            raise UnreadableImage(file, f"it holds the number {numbers.max()}: at most 255 are told apart")
        found = self.table[numbers]
        if (wrong := found == UNKNOWN).any():
            stray = ", ".join(map(str, np.unique(numbers[wrong]).tolist()))
            raise UnreadableImage(
                file, f"{wrong.sum()} pixels are {stray}, which is none of the {len(self.classes)} classes nor ignored"
            )
        return found.astype(np.uint8)


def read_numbers(file: str) -> np.ndarray:
    """A grey or palette picture -> (H, W) of its plain numbers (of a palette the places in it), not turned upright."""
    try:
        with Image.open(file) as image:
            image.load()
            if image.mode not in ("1", "L", "P", "I", "I;16", "I;16B", "I;16L"):
                raise UnreadableImage(file, f"it has mode {image.mode}: one number a pixel is needed, not colours")
            return np.asarray(image).astype(np.int64 if image.mode.startswith("I") else np.uint8)
    except UnreadableImage:
        raise
    except BROKEN as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise UnreadableImage(file, " ".join(reason.split()).lower() or type(error).__name__) from error


class LabelMaps:
    """(picture, map) files -> scenes with a semantic map. Pictures without a map, and maps without a picture, are
    found, counted and named: they stop the run, or are left out (on_error)."""

    steady, notes = True, ()

    def __init__(
        self, images: Mapping[str, str], maps: Mapping[str, str], values: Values, origin: Path, on_error: OnError
    ) -> None:
        self.values, self.classes, self.origin, self.findings = values, list(values.classes), origin, Findings()
        self.categories: list[Category] = []
        self.pairs = matched(images, maps, self.findings)
        if not self.pairs:
            raise ValueError(
                f"{origin}: no picture with a mask of the same name (pictures: {quoted(sorted(images)) or 'none'}; "
                f"masks: {quoted(sorted(maps)) or 'none'})"
            )
        self.findings.settle(origin, on_error)

    def __len__(self) -> int:
        return len(self.pairs)

    def load(self, index: int, epoch: int = 0) -> Scene:
        picture, file = self.pairs[index]
        image, semantic = np.asarray(read_image(picture)), self.values.read(file)
        check_size(file, semantic, picture, image)
        return Scene(image, index, semantic=semantic)

    def name(self, index: int) -> str:
        return self.pairs[index][0]

    def names(self) -> list[str]:
        return [os.path.relpath(picture, self.origin) for picture, _ in self.pairs]


def stems(folder: Path, ending: str = "") -> dict[str, str]:
    """name below the folder, without `ending` and suffix -> file, of the pictures that have that ending."""
    found: dict[str, str] = {}
    for file in pictures_below(folder):
        stem = os.path.splitext(os.path.relpath(file, folder))[0]
        if not stem.endswith(ending):
            continue
        name = stem.removesuffix(ending)
        if name in found:
            raise ValueError(f"both {found[name]} and {file} are there: which one is {name}? Keep one")
        found[name] = file
    return found


def paired(root: Path, names: Sequence[str], split: str) -> Path | None:
    """root/<one of names>/<a usual name of the split>, or None."""
    places = [root / name / s for name in names for s in SPLIT_NAMES[split]]
    return next((place for place in places if place.is_dir()), None)


IMAGE_FOLDERS, MAP_FOLDERS = ("images", "JPEGImages", "img"), ("masks", "annotations", "labels", "SegmentationClass")


def folder_maps(root: str | Path, split: str, values: Values, on_error: OnError = "stop") -> LabelMaps | None:
    """root/images/<split> and root/masks (or annotations, labels)/<split>, as CamVid and ADE20K have it; without splits
    root/images and root/masks are val. None where the split is not there."""
    base = existing(root)
    images, maps = paired(base, IMAGE_FOLDERS, split), paired(base, MAP_FOLDERS, split)
    split_at_all = any(paired(base, IMAGE_FOLDERS, s) for s in SPLIT_NAMES)
    if images is None and maps is None and split == "val" and not split_at_all:
        images = next((base / n for n in IMAGE_FOLDERS if (base / n).is_dir()), None)
        maps = next((base / n for n in MAP_FOLDERS if (base / n).is_dir()), None)
        if images is None:
            raise FileNotFoundError(f"{base}: no folder of pictures{near('images', os.listdir(base))}")
    if images is None and maps is None:
        return None
    if images is None or maps is None:
        raise FileNotFoundError(
            f"{base}: {split} has {'masks' if images is None else 'pictures'} only, both are needed"
        )
    return LabelMaps(stems(images), stems(maps), values, base, on_error)


def cityscapes_maps(root: str | Path, split: str, on_error: OnError = "stop") -> LabelMaps | None:
    """root/leftImg8bit/<split>/<city>/*_leftImg8bit.png with gtFine/.../*_gtFine_labelIds.png (or labelTrainIds), the
    19 judged classes; None where the split is not there."""
    base = existing(root)
    images, maps = base / "leftImg8bit" / split, base / "gtFine" / split
    if not images.is_dir():
        return None
    names = list(CITYSCAPES.values())
    found = stems(existing(maps), "_gtFine_labelIds")
    values = Values.mapped(names, {n: i for i, n in enumerate(CITYSCAPES)}, [*{*range(34), 255} - CITYSCAPES.keys()])
    if not found:
        found, values = stems(maps, "_gtFine_labelTrainIds"), Values.of(names, [255])
    return LabelMaps(stems(images, "_leftImg8bit"), found, values, base, on_error)


def classes_of(root: str | Path) -> tuple[list[str], int | None]:
    """Names, and the number that is ignored, from root/classes.json ({"classes": [...], "ignore_index": n} or a list)
    or from objectInfo150.txt, as ADE20K has it."""
    base = existing(root)
    table, listing = base / "classes.json", base / "objectInfo150.txt"
    if table.is_file():
        try:
            made = json.loads(table.read_text(encoding="utf-8"))
            names = made["classes"] if isinstance(made, dict) else made
            return [str(name) for name in names], made.get("ignore_index") if isinstance(made, dict) else None
        except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
            raise ValueError(f'{table}: expected {{"classes": [...], "ignore_index": 255}} ({error})') from error
    if listing.is_file():
        rows = [line.split("\t") for line in listing.read_text(encoding="utf-8").splitlines()[1:]]
        return [row[-1].strip() for row in rows if len(row) > 1], None
    raise FileNotFoundError(
        f"{base}: no classes.json with the names of the classes{near('classes.json', os.listdir(base))}"
    )
