"""Pascal VOC: JPEGImages, Annotations (an XML file a picture, with boxes), ImageSets/Main/<split>.txt."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal
from xml.etree import ElementTree

from .coco import clip
from .findings import Findings, Kind, OnError
from .folders import existing, near
from .scene import Category, Scene, objects
from .scene_files import Packed, read_sized

VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip

Found = tuple[str, list[float], bool, str]  # class, x0 y0 x1 y1 as written, difficult, where it stands
Row = tuple[str, int, int, list[Found]]  # picture file, height, width, objects


class VocScenes:
    """The pictures that root/ImageSets/Main/<split>.txt lists (all that have an XML file, where there is no such list)
    -> scenes with boxes; objects that are marked difficult count as crowds: neither trained nor judged.

    classes   their order; None: VOC's twenty if the files name only those, else all that this split names, sorted
    first     number of a picture's first pixel: 1, as VOC counts, both ends of a box included; or 0, the ends being
              edges, as many other tools write
    """

    steady, notes = True, ()

    def __init__(
        self,
        root: str | Path,
        split: str | None,
        *,
        classes: Sequence[str] | None = None,
        first: Literal[0, 1] = 1,
        on_error: OnError = "stop",
    ) -> None:
        if first not in (0, 1):
            raise ValueError(f"first = {first}: pixels are counted from 0 or from 1")
        self.root, self.first, self.findings = existing(root), first, Findings()
        read = [row for name in self._listed(split) if (row := self._parsed(name)) is not None]
        said = sorted({label for row in read for label, *_ in row[3]})
        if classes is None:
            classes = VOC_CLASSES if set(said) <= set(VOC_CLASSES) else said
        self.classes = list(classes)
        self.categories = [Category(i, name) for i, name in enumerate(self.classes, 1)]
        self.images = [row[:3] for row in read]
        self.rows = Packed([self._objects(*row) for row in read])
        self.findings.settle(self.root, on_error)
        if not self.images:
            raise ValueError(f"{self.root}: no picture with an annotation to read (split {split or 'none'})")

    def _listed(self, split: str | None) -> list[str]:
        folder = self.root / "ImageSets" / "Main"
        if split is None:
            return sorted(p.stem for p in existing(self.root / "Annotations").glob("*.xml"))
        file = folder / f"{split}.txt"
        if not file.is_file():
            there = sorted(p.stem for p in folder.glob("*.txt")) if folder.is_dir() else []
            raise FileNotFoundError(f"no {file}{near(split, there)}")
        return [line.split()[0] for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]

    def _parsed(self, name: str) -> Row | None:
        file = self.root / "Annotations" / f"{name}.xml"
        if not file.is_file():
            self.findings.add(Kind.XML_MISSING, f"{name}.xml")
            return None
        try:
            tree = ElementTree.parse(file).getroot()
            height, width = (int(float(tree.findtext(f"size/{side}", ""))) for side in ("height", "width"))
            rows = []
            for i, item in enumerate(tree.iter("object"), 1):
                ends = [float(item.findtext(f"bndbox/{end}", "")) for end in ("xmin", "ymin", "xmax", "ymax")]
                label = (item.findtext("name") or "").strip()
                rows.append((label, ends, item.findtext("difficult", "0").strip() == "1", f"object {i} of {name}"))
        except (ElementTree.ParseError, UnicodeDecodeError, ValueError) as error:
            raise ValueError(f"{file}: not as VOC writes it ({error})") from error
        picture = self._picture(tree.findtext("filename"), name)
        return None if picture is None else (picture, height, width, rows)

    def _picture(self, said: str | None, name: str) -> str | None:
        """The file of a picture: JPEGImages/<name> with a usual ending, else as the XML file says."""
        tried = [f"{name}{ending}" for ending in (".jpg", ".jpeg", ".png")] + ([said] if said else [])
        found = next((file for file in tried if (self.root / "JPEGImages" / file).is_file()), None)
        if found is None:
            self.findings.add(Kind.MISSING, tried[0])
        return found

    def _objects(self, file: str, height: int, width: int, rows: list[Found]) -> list[tuple[Any, int, bool]]:
        """(box, label, difficult) of each object that is right."""
        made = []
        for label, (x0, y0, x1, y1), difficult, where in rows:
            if label not in self.classes:
                self.findings.add(Kind.CATEGORY, f"{label!r} ({where}){near(label, self.classes)}")
                continue
            box = (x0 - self.first, y0 - self.first, x1 - x0 + self.first, y1 - y0 + self.first)
            if (inside := clip(box, height, width, where, self.findings)) is not None:
                made.append((inside, self.classes.index(label) + 1, difficult))
        return made

    def __len__(self) -> int:
        return len(self.images)

    def load(self, index: int, epoch: int = 0) -> Scene:
        _, height, width = self.images[index]
        image = read_sized(self.name(index), height, width)
        rows = self.rows[index]
        boxes, labels, crowd = zip(*rows, strict=True) if rows else ([],) * 3
        return Scene(image, index, objects(boxes, labels, crowd))

    def name(self, index: int) -> str:
        return os.path.join(self.root, "JPEGImages", self.images[index][0])

    def names(self) -> list[str]:
        return [file for file, *_ in self.images]
