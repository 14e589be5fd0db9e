"""What sources and data modules of drawn pictures share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from PIL import Image

from .sample import Sample
from .shapes import Shapes, Split

if TYPE_CHECKING:
    from .images import Images as Module
else:
    Module = object


class DrawnSource:
    """`Shapes` as (picture, what `tell` says of its sample); with `fresh` every epoch draws pictures never seen
    before."""

    def __init__(self, shapes: Shapes, fresh: bool, tell: Callable[[Sample], Any], classes: Sequence[str] = ()) -> None:
        self.shapes, self.tell, self.classes, self.steady = shapes, tell, list(classes), not fresh

    def __len__(self) -> int:
        return len(self.shapes)

    def load(self, index: int, epoch: int = 0) -> tuple[Image.Image, Any]:
        sample = self.shapes.draw(index if self.steady else epoch * len(self.shapes) + index)
        return Image.fromarray(sample.image), self.tell(sample)

    def name(self, index: int) -> str:
        return f"{self.shapes.split}[{index}]"


def label(sample: Sample) -> int:
    return sample.label


def caption(sample: Sample) -> str:
    """ "a red circle left of a blue square" """
    if sample.caption is None:
        raise ValueError("this picture was drawn without a caption: Shapes of task caption have one")
    return sample.caption


def input_size(preprocessing: Mapping[str, Any] | None) -> tuple[int, int]:
    """(H, W) of a preprocessing; of none 64 x 64."""
    _, h, w = (preprocessing or {"input_size": (3, 64, 64)})["input_size"]
    return h, w


class Drawn(Module):
    """Stands before `Images` among the bases: pictures are drawn at the model's size, so anew for each; `lengths` says
    how many, `fresh` whether training never sees one twice."""

    lengths: dict[Split, int]
    fresh: bool

    def setup(self, stage: str | None = None) -> None:
        self._splits = None
        super().setup(stage)

    @property
    def drawn_size(self) -> tuple[int, int]:
        """(H, W)"""
        return input_size(self.preprocessing)

    def anew(self, split: Split) -> bool:
        return self.fresh and split == "train"
