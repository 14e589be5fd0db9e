"""A folder of images on which a saved model is judged, whatever data it was trained on."""

from typing import Any

from ...data.folders import Files, Folder, Source, class_folders, existing
from ...data.images import Images
from ...data.splits import Splits, split_folders


class Judged(Images):
    """A folder of class folders to be judged on: its val/ and test/, or all of it where it isn't split.

    Folders named as the classes `order` get its numbers; others their own, and the model refuses them.
    """

    def __init__(
        self,
        root: str,
        order: list[str] | None = None,
        batch_size: int = 64,
        workers: int = 2,
        preprocessing: dict[str, Any] | None = None,
    ):
        super().__init__(batch_size, workers, preprocessing=preprocessing)
        self.root, self.order = root, order

    def read(self) -> Splits:
        root = existing(self.root)
        places = split_folders(root) or {"test": root}
        order = (
            self.order
            if self.order is not None and all(sorted(self.order) == class_folders(place) for place in places.values())
            else None
        )
        made = {split: Folder(place, order) for split, place in places.items()}
        val, test = made.get("val") or made.get("test"), made.get("test") or made.get("val")
        return Splits(next(iter(made.values())).classes, made.get("train"), val, test)

    def predictable(self) -> Source:
        return Files([self.root])
