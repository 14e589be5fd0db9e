"""`PanopticSegment`: a network that cuts pictures into segments with its losses, judged by panoptic quality."""

from collections.abc import Iterator, Sequence
from typing import Any

from PIL import Image
from torch import Tensor, nn

from ..vision.heads.mask_tasks import PanopticSegmenter
from ..vision.heads.segments import Panoptic
from .dense import Dense
from .drawing import with_segments
from .evaluation.dense_metrics import PanopticScores
from .evaluation.panoptic_quality import Panorama, drawn
from .evaluation.segmenter import panorama

Batch = tuple[list[Tensor], list[dict[str, Tensor]]]


class PanopticSegment(Dense):
    """Trains and judges `model`, a `PanopticSegmenter`, on lists of images (3, H, W) and of targets with the mask of
    each segment, as `CocoData(task="panoptic")` gives them; which classes are things the data says.

    Logged: train/ loss and its parts; val/ and test/ pq, sq, rq, pq_things and pq_stuff as fractions of 1, in the
    pixels of the pictures as they are brought to size (`patchloom eval panoptic` judges in their own). Optimiser,
    schedule, rates, `ema` and `adapter` as in `Trained`.
    """

    headline = ("pq", "pq_things", "pq_stuff")

    def check_network(self, model: nn.Module) -> None:
        if not isinstance(model, PanopticSegmenter):
            raise ValueError(
                f"{type(model).__name__} cuts no picture into segments: PanopticSegmenter (of a Mask2Former, say) does"
            )

    def meet(self, named: list[str], stage: str) -> list[str]:
        classes = super().meet(named, stage)
        categories = getattr(getattr(self.trainer, "datamodule", None), "categories", None)
        things = tuple(i for i, c in enumerate(categories) if c.thing) if categories else self.model.things
        if things is None:
            raise ValueError("the data does not say which classes are things: give the network things: […]")
        if self.model.things not in (None, things):
            other = min(set(things) ^ set(self.model.things))
            kinds = ("a thing", "no thing") if other in things else ("no thing", "a thing")
            raise ValueError(
                f"class {classes[other]} is {kinds[0]} in the data and {kinds[1]} to the network: leave its things out"
            )
        self.model.things = things
        return classes

    def adopt(self, classes: list[str]) -> None:
        if not self.judges or classes != self.classes:
            things = [k in self.model.things for k in range(len(classes))]
            self.judges = nn.ModuleDict({kind: PanopticScores(things) for kind in ("val", "test")}).to(self.device)
        super().adopt(classes)

    def forward(self, images: list[Tensor]) -> list[Panoptic]:
        """What the network that is judged makes of them."""
        return self.judged(images)

    def training_step(self, batch: Batch, index: int) -> Tensor:
        images, targets = batch
        return self.learnt(self.model(images, targets), len(images))

    def judge_step(self, kind: str, batch: Batch) -> list[Panorama]:
        images, targets = batch
        found = [panorama(one) for one in self(images)]
        for target, one in zip(targets, found, strict=True):
            self.judges[kind].update(truth(target), one)
        return found

    def predict_step(self, batch: Any, index: int) -> list[Panoptic]:
        return self(batch[0] if isinstance(batch, tuple) else batch)

    def pictured(self, batch: Batch, outputs: Sequence[Panorama]) -> Iterator[tuple[Image.Image, Image.Image]]:
        for image, target, found in zip(*batch, outputs, strict=True):
            picture = self.seen(image)
            yield tuple(with_segments(picture, p.ids, categories(p)) for p in (truth(target), found))


def truth(target: dict[str, Tensor]) -> Panorama:
    """A target as it is judged; raises ValueError where it has no masks."""
    if "masks" not in target:
        raise ValueError("the data has no mask of each segment: take panoptic data (task: panoptic)")
    crowds = target["iscrowd"].tolist() if "iscrowd" in target else None
    return drawn(target["masks"].cpu().numpy(), [k - 1 for k in target["labels"].tolist()], crowds)


def categories(one: Panorama) -> dict[int, int]:
    """The class of each segment that is no crowd."""
    return {number: s.category for number, s in one.segments.items() if not s.crowd}
