"""Several images in one canvas with a joint caption, as In-Context LoRA has it (https://arxiv.org/abs/2410.23775).

A network that makes pictures relates the panels of one picture; tuned on some dozens of such canvases it makes sets.
The names of panels and the choice of rows and columns are ChatDiT's (https://arxiv.org/abs/2412.12571).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from .centre_crop import CentreCrop, centre_crop, to_tensor
from .drawn import input_size
from .findings import OnError
from .folders import Source, existing, near
from .images import Images
from .loader import KeyedDataset
from .pictures import Captioned
from .read import read_image
from .splits import SPLIT_NAMES, Splits

GREY = 127  # of a panel that is to be made
ACROSS = {1: ("",), 2: ("LEFT", "RIGHT"), 3: ("LEFT", "MIDDLE", "RIGHT")}
DOWN = {1: ("",), 2: ("TOP", "BOTTOM"), 3: ("TOP", "MIDDLE", "BOTTOM")}


@dataclass(frozen=True)
class Layout:
    """`rows` x `columns` panels of one size, in raster order."""

    rows: int
    columns: int

    def __post_init__(self) -> None:
        if self.rows < 1 or self.columns < 1 or self.count < 2:
            raise ValueError(f"panels {self.rows} x {self.columns}: at least two")

    @property
    def count(self) -> int:
        return self.rows * self.columns

    @classmethod
    def of(cls, count: int, size: tuple[int, int] = (1, 1)) -> Layout:
        """Of `count` panels of `size` (H, W), the one whose canvas is nearest to a square; of equals the flattest."""
        if count < 2:
            raise ValueError(f"{count} panels: at least two")
        ways = [(rows, count // rows) for rows in range(1, count + 1) if count % rows == 0]

        def stretch(way: tuple[int, int]) -> float:
            height, width = way[0] * size[0], way[1] * size[1]
            return max(height / width, width / height)

        return cls(*min(ways, key=stretch))

    def tags(self) -> list[str]:
        """[LEFT], [TOP-RIGHT] … up to three a side, else [PANEL-1] …"""
        if self.rows > 3 or self.columns > 3:
            return [f"[PANEL-{i}]" for i in range(1, self.count + 1)]
        names = [(down, across) for down in DOWN[self.rows] for across in ACROSS[self.columns]]
        return [f"[{'-'.join(filter(None, pair))}]" for pair in names]

    def caption(self, captions: Sequence[str], whole: str = "") -> str:
        """What is said of the set, then of each panel behind its tag."""
        self._check(len(captions))
        said = [f"{tag} {text}".strip() for tag, text in zip(self.tags(), captions, strict=True)]
        return " ".join([whole.strip(), *said]).strip()

    def _check(self, given: int) -> None:
        if given != self.count:
            raise ValueError(f"{given} panels for a canvas of {self.rows} x {self.columns}")

    def panel(self, size: tuple[int, int]) -> tuple[int, int]:
        """(H, W) of a panel of a canvas of `size`."""
        if size[0] % self.rows or size[1] % self.columns:
            raise ValueError(
                f"a canvas of {size[0]} x {size[1]} cannot be cut into {self.rows} x {self.columns} panels"
            )
        return size[0] // self.rows, size[1] // self.columns

    def composed(self, panels: Sequence[Image.Image], size: tuple[int, int]) -> Image.Image:
        """One picture of `size` (H, W), each panel cropped to the middle of its own."""
        self._check(len(panels))
        height, width = self.panel(size)
        whole = Image.new("RGB", (size[1], size[0]))
        for i, picture in enumerate(panels):
            row, column = divmod(i, self.columns)
            whole.paste(centre_crop(picture, (height, width)), (column * width, row * height))
        return whole

    def canvas(self, given: Sequence[Image.Image], size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Picture (3, H, W) uint8 whose first panels are given and the rest grey, and keep (H, W) bool: True there."""
        height, width = self.panel(size)
        rest = [Image.new("RGB", (width, height), (GREY,) * 3)] * (self.count - len(given))
        keep = torch.ones(1, *size, dtype=torch.bool)
        for part in self.cut(keep)[len(given) :]:
            part.fill_(False)
        return to_tensor(self.composed([*given, *rest], size)), keep[0]

    def cut(self, x: Tensor) -> list[Tensor]:
        """(…, H, W) -> its panels, views of it."""
        height, width = self.panel((x.shape[-2], x.shape[-1]))
        places = [divmod(i, self.columns) for i in range(self.count)]
        return [x[..., r * height : (r + 1) * height, c * width : (c + 1) * width] for r, c in places]


@dataclass(frozen=True)
class PanelSet:
    """One line of panels.jsonl: files of images, what each shows, and what is said of the set."""

    images: tuple[str, ...]
    captions: tuple[str, ...]
    caption: str = ""


class PanelSource:
    """Sets of images as one canvas each -> (picture, caption)."""

    steady = True

    def __init__(self, file: Path, layout: Layout | None, size: tuple[int, int]) -> None:
        self.root, self.size, self.classes = file.parent, size, list[str]()
        self.sets = read_sets(file)
        counts = sorted({len(s.images) for s in self.sets})
        if len(counts) > 1 or (layout is not None and counts != [layout.count]):
            wanted = "one number" if layout is None else str(layout.count)
            raise ValueError(f"{file}: sets of {', '.join(map(str, counts))} images, and {wanted} is wanted for all")
        self.layout = layout or Layout.of(counts[0])
        self.layout.panel(size)

    def __len__(self) -> int:
        return len(self.sets)

    def name(self, index: int) -> str:
        return ", ".join(self.sets[index].images)

    def load(self, index: int, epoch: int = 0) -> tuple[Image.Image, str]:
        one = self.sets[index]
        pictures = [read_image(self.root / file) for file in one.images]
        return self.layout.composed(pictures, self.size), self.layout.caption(one.captions, one.caption)


def read_sets(file: Path) -> list[PanelSet]:
    """The lines of a panels.jsonl; an error names the line."""
    sets = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            content = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{file}:{number}: no JSON: {error}") from error
        known = ("images", "captions", "caption")
        for key in content if isinstance(content, dict) else ():
            if key not in known:
                raise ValueError(f"{file}:{number}: unknown {key!r}{near(key, known)}")
        if not isinstance(content, dict) or not isinstance(content.get("images"), list):
            raise ValueError(f"{file}:{number}: needs images, a list of files")
        images, captions = content["images"], content.get("captions") or [""] * len(content["images"])
        if len(images) < 2 or len(captions) != len(images):
            raise ValueError(
                f"{file}:{number}: {len(images)} images and {len(captions)} captions: as many, at least two"
            )
        sets.append(PanelSet(tuple(images), tuple(captions), content.get("caption", "")))
    if not sets:
        raise ValueError(f"{file}: no sets of images in it")
    return sets


class PanelsData(Images):
    """root/panels_train.jsonl, panels_val.jsonl, panels_test.jsonl, or panels.jsonl for training alone. A line: a set,
    {"images": [files], "captions": [of each], "caption": "of the set"}. Batches are (canvases, list of captions).

    rows, columns   of panels; null: as square as may be
    """

    def __init__(
        self,
        root: str,
        rows: int | None = None,
        columns: int | None = None,
        batch_size: int = 4,
        workers: int = 2,
        seed: int = 0,
        preprocessing: dict[str, Any] | None = None,
        on_error: OnError = "stop",
    ) -> None:
        super().__init__(batch_size, workers, seed, None, preprocessing, on_error, False)
        if (rows is None) != (columns is None):
            raise ValueError(f"rows = {rows}, columns = {columns}: give both or none")
        self.root, self.layout = root, None if rows is None or columns is None else Layout(rows, columns)

    def read(self) -> Splits:
        root = existing(self.root)
        size = input_size(self.preprocessing)
        named = {
            split: root / f"panels_{name}.jsonl"
            for split, names in SPLIT_NAMES.items()
            for name in names
            if (root / f"panels_{name}.jsonl").is_file()
        }
        if not named and (root / "panels.jsonl").is_file():
            named = {"train": root / "panels.jsonl"}
        if not named:
            raise FileNotFoundError(f"no panels in {root}: it has no panels.jsonl, nor panels_train.jsonl")
        made = {split: PanelSource(file, self.layout, size) for split, file in named.items()}
        return Splits.of([], made)

    def setup(self, stage: str | None = None) -> None:
        self._splits = None  # they are composed at the model's size
        super().setup(stage)

    def predictable(self) -> Source:
        raise ValueError(f"{self.root} holds sets of images: there is nothing to predict of them")

    def _needed(self, split: str) -> str:
        return f"a file panels_{split}.jsonl is needed"

    def _read_by(self, split: str, source: Source, train: bool) -> KeyedDataset:
        assert self.preprocessing is not None, "setup() comes first"
        pipeline = CentreCrop(hflip=0).pipeline(self.preprocessing)  # which leaves a canvas as it is
        return Captioned(source, pipeline, self.seed, self.on_error, refill=train)
