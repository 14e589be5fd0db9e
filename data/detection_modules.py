"""Data modules of pictures with objects: COCO, Pascal VOC, Penn-Fudan, drawn scenes; and loose pictures."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

from .augment import Fit, LargeScaleJitter, Variation
from .coco import CocoScenes
from .coco_panoptic import PanopticScenes
from .dense_images import DenseImages, Vary
from .findings import OnError
from .folders import existing, near, quoted
from .instance_masks import InstanceMasks
from .plain_scenes import DrawnScenes, LooseScenes
from .shapes import Shapes
from .splits import Splits
from .voc import VocScenes

Task = Literal["detection", "instance", "keypoints", "panoptic"]
FILES: dict[str, str] = {
    "detection": "instances",
    "instance": "instances",
    "keypoints": "person_keypoints",
    "panoptic": "panoptic",
}


class CocoData(DenseImages):
    """COCO's layout: root/annotations/{instances,person_keypoints,panoptic}_<split>.json, the pictures in
    root/images/<split>, root/<split> or root/images. auto: `LargeScaleJitter()`.

    task               detection: boxes; instance: masks as well; keypoints; panoptic: a mask for each segment and a map
    train, val, test   names of the splits (train2017); null: the one whose name begins so, if it is the only one
    empty              train on pictures without an object too
    """

    def __init__(
        self,
        root: str,
        task: Task = "detection",
        train: str | None = None,
        val: str | None = None,
        test: str | None = None,
        empty: bool = True,
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        if task not in FILES:
            raise ValueError(f"no task {task!r} of COCO: one of {', '.join(FILES)}")
        self.root, self.task, self.empty = root, task, empty
        self.named = {"train": train, "val": val, "test": test}

    def file(self, split: str) -> Path | None:
        """The annotation file of a split; what evaluation takes."""
        return annotation_file(existing(self.root) / "annotations", FILES[self.task], split, self.named[split])

    def source(self, split: str) -> CocoScenes | PanopticScenes | None:
        file = self.file(split)
        if file is None:
            return None
        folder = picture_folder(existing(self.root), file.stem.removeprefix(f"{FILES[self.task]}_"))
        if self.task == "panoptic":
            return PanopticScenes(file, folder, on_error=self.on_error)
        return CocoScenes(
            file, folder, masks=self.task == "instance", keypoints=self.task == "keypoints",
            empty=self.empty or split != "train", on_error=self.on_error,
        )  # fmt: skip


def annotation_file(folder: Path, kind: str, split: str, name: str | None) -> Path | None:
    """folder/<kind>_<name>.json; without a name the only one whose name begins with the split."""
    folder = existing(folder)
    there = {p.stem.removeprefix(f"{kind}_"): p for p in sorted(folder.glob(f"{kind}_*.json"))}
    if name is not None:
        if name not in there:
            raise FileNotFoundError(f"no {folder / f'{kind}_{name}.json'}{near(name, list(there))}")
        return there[name]
    fit = [n for n in there if re.fullmatch(rf"{split}(\d*)", n)]
    if len(fit) > 1:
        raise ValueError(f"{folder}: {quoted(fit)} are there for {split}: name one of them")
    return there[fit[0]] if fit else None


def picture_folder(root: Path, split: str) -> Path:
    """Where the pictures of a split lie."""
    tried = [root / "images" / split, root / split, root / "images"]
    found = next((place for place in tried if place.is_dir()), None)
    if found is None:
        raise FileNotFoundError(f"{root}: no folder of pictures for {split}: looked for {quoted([*map(str, tried)])}")
    return found


class PennFudanData(DenseImages):
    """Penn-Fudan pedestrians with masks: COCO's layout (root/annotations), or the published one (root/PNGImages and
    root/PedMasks), of which val_fraction, by hash, is val, and test too. auto: `LargeScaleJitter(size=(400, 400),
    scale=(0.5, 1.5))`."""

    def __init__(self, root: str, **settings: Any) -> None:
        super().__init__(**settings)
        self.root = root

    def suits(self) -> Variation:
        return LargeScaleJitter(size=(400, 400), scale=(0.5, 1.5))

    def source(self, split: str) -> Any:
        root = existing(self.root)
        if (root / "PNGImages").is_dir():
            if split != "train":
                return None
            return InstanceMasks(root / "PNGImages", root / "PedMasks", ["person"], self.on_error)
        file = annotation_file(root / "annotations", "instances", split, None)
        if file is None:
            return None
        folder = picture_folder(root, file.stem.removeprefix("instances_"))
        return CocoScenes(file, folder, masks=True, on_error=self.on_error)


class VocData(DenseImages):
    """Pascal VOC's layout: root/{JPEGImages,Annotations,ImageSets/Main}, boxes. auto: `LargeScaleJitter()`.

    train, val, test   the lists in ImageSets/Main; one that is not there is left out unless it was named
    classes            in order; null: VOC's twenty, or else all that the training list names, sorted
    first              the number of a picture's first pixel: 1 as VOC counts, 0 as many tools do
    """

    def __init__(
        self,
        root: str,
        train: str | None = None,
        val: str | None = None,
        test: str | None = None,
        classes: list[str] | None = None,
        first: Literal[0, 1] = 1,
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        self.root, self.first = root, first
        self.named, self.given = {"train": train, "val": val, "test": test}, classes

    def read(self) -> Splits:
        self.order = self.given  # what the first split says goes for the others
        return super().read()

    def source(self, split: str) -> VocScenes | None:
        listed = (existing(self.root) / "ImageSets" / "Main" / f"{split}.txt").is_file()
        name = self.named[split] or (split if listed else None)
        if name is None:
            return None
        made = VocScenes(self.root, name, classes=self.order, first=self.first, on_error=self.on_error)
        self.order = made.classes
        return made


class DrawnData(DenseImages):
    """Drawn pictures of 2 to 6 objects of ten kinds (see `Shapes`): boxes and masks, or with `semantic` a map of the
    ground and the kinds. Not varied: every epoch draws new training pictures.

    size                                    height and width
    train_length, val_length, test_length   pictures an epoch
    """

    def __init__(
        self,
        size: tuple[int, int] = (128, 160),
        semantic: bool = False,
        masks: bool = True,
        train_length: int = 2_000,
        val_length: int = 200,
        test_length: int = 500,
        batch_size: int = 8,
        workers: int = 2,
        seed: int = 0,
        augment: Vary = None,
        preprocessing: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(batch_size, workers, seed, augment, None, preprocessing)
        self.size, self.stacked, self.masks = size, semantic, masks
        self.lengths = {"train": train_length, "val": val_length, "test": test_length}

    def source(self, split: Any) -> DrawnScenes:
        drawn = Shapes(self.lengths[split], self.size, "boxes", self.seed, split)
        return DrawnScenes(drawn, masks=self.masks, semantic=self.stacked, fresh=split == "train")


class LooseData(DenseImages):
    """Only for prediction: picture files, and folders searched to any depth; `.predicted` lists them. Targets say
    image_id, the place in that list, and original_size."""

    def __init__(
        self,
        paths: list[str],
        batch_size: int = 1,
        workers: int = 0,
        resize: Fit | None = None,
        preprocessing: dict[str, Any] | None = None,
        on_error: OnError = "stop",
    ) -> None:
        super().__init__(batch_size, workers, 0, None, resize, preprocessing, on_error)
        self.paths = paths

    def source(self, split: str) -> None:
        return None

    def read(self) -> Splits:
        return Splits([])

    def predictable(self) -> LooseScenes:
        return LooseScenes(self.paths)
