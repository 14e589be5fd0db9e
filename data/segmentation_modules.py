"""Data modules of pictures with a class for each pixel: image and mask folders, ADE20K, Cityscapes."""

from __future__ import annotations

from typing import Any

from .augment import Fit, SemanticCrop, Variation
from .dense_images import DenseImages
from .label_maps import Values, cityscapes_maps, classes_of, folder_maps


class SegmentationData(DenseImages):
    """Pictures with maps of class numbers: root/images/<split> and root/masks (annotations, labels)/<split>, the same
    names; the classes in root/classes.json, as CamVid's small set has it. auto: `SemanticCrop()`.

    classes, ignored, first   instead of that file: names in order, numbers that are neither trained nor judged, the
                              number of the first class
    """

    stacked = True

    def __init__(
        self,
        root: str,
        classes: list[str] | None = None,
        ignored: list[int] | None = None,
        first: int = 0,
        batch_size: int = 4,
        **settings: Any,
    ) -> None:
        super().__init__(batch_size, **settings)
        self.root, self.given, self.ignored, self.first = root, classes, ignored, first

    def values(self) -> Values:
        names, void = classes_of(self.root) if self.given is None else (self.given, None)
        ignored = self.ignored if self.ignored is not None else [void if void is not None else 255]
        return Values.of(names, ignored, self.first)

    def source(self, split: str) -> Any:
        return folder_maps(self.root, split, self.values(), self.on_error)


class Ade20kData(SegmentationData):
    """ADE20K's scene parsing: root/{images,annotations}/{training,validation}, 0 is ignored and class 0 written as 1.
    Names from root/objectInfo150.txt or classes.json. auto: `SemanticCrop(shortest=512, longest=2048)`."""

    def __init__(self, root: str, resize: Fit | None = None, **settings: Any) -> None:
        super().__init__(root, None, [0], 1, resize=resize or Fit(shortest=512, longest=2048), **settings)

    def suits(self) -> Variation:
        return SemanticCrop(shortest=512, longest=2048)


class CityscapesData(DenseImages):
    """Cityscapes: root/{leftImg8bit,gtFine}/{train,val,test}/<city>, its 19 judged classes. auto:
    `SemanticCrop(size=(512, 1024))`."""

    stacked = True

    def __init__(self, root: str, **settings: Any) -> None:
        super().__init__(**settings)
        self.root = root

    def suits(self) -> Variation:
        return SemanticCrop(size=(512, 1024))

    def source(self, split: str) -> Any:
        return (
            None if split == "test" else cityscapes_maps(self.root, split, self.on_error)
        )  # its truth is not published
