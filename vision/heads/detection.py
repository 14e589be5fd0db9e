"""RetinaNet, FCOS, Faster and Mask R-CNN: torchvision's on our pyramids, with the published anchors, thresholds and
weights of the losses. Cascade R-CNN is in heads/cascade.py.

All take a pyramid (or any backbone that says its `channels` and `strides`), give it the neck that its strides ask for
(heads/necked.py), and keep torchvision's contract:

- images: a list of (3, H, W) of any sizes, or (B 3 H W), normalised and brought to size by the `default_cfg` of the
  model: mean and std of the backbone's weights, and the published 800 pixels of the shorter side, at most 1333 of the
  longer. They are padded here.
- in training mode, with targets {"boxes" (n 4) x0 y0 x1 y1 in pixels, "labels" (n) from 1, "masks" (n H W)}: a dict of
  losses, whose sum is learnt from; objects marked in "iscrowd" are left out. Wrong ones raise ValueError.
- in evaluation mode: of each image {"boxes", "labels" from 1, "scores", "masks" (n 1 H W) probabilities}, the best
  first.

`score`: what is less likely is no detection; `iou`: of two of a class that overlap more the better one stays; `limit`:
the most for an image; `dim`: channels of neck and heads; `hidden`: width of the box heads.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torchvision.models.detection import FCOS as TorchvisionFCOS
from torchvision.models.detection import FasterRCNN as TorchvisionFasterRCNN
from torchvision.models.detection import RetinaNet as TorchvisionRetinaNet
from torchvision.models.detection.faster_rcnn import TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads

from .anchors import RATIOS, Anchors, RegionPool
from .detection_input import Padded, Target, check_images, checked
from .necked import Necked
from .region_parts import AnchoredHead, BoxPredictor, CentredHead, MaskPredictor, ProposalHead

SIZES = {"shortest": 800, "longest": 1333}  # of the images, in pixels, as published
OCTAVES = (4.0, 4 * 2 ** (1 / 3), 4 * 2 ** (2 / 3))  # RetinaNet's anchors, in strides: 32 to 813 pixels


class OnPyramid:
    """What all of these detectors share; stands before torchvision's class."""

    masks = False
    backbone: Necked
    training: bool

    def describe(self, pyramid: nn.Module, classes: int, **settings: Any) -> None:
        """Behind torchvision's constructor: the way in, and what the model says of itself."""
        self.transform, self.classes, self.settings = Padded(self.backbone.multiple), classes, settings
        self.name, self.family = getattr(pyramid, "name", None), getattr(pyramid, "family", None)
        self.default_cfg: dict[str, Any] = {**getattr(pyramid, "default_cfg", {}), **SIZES}

    def arguments(self) -> dict[str, Any]:
        """What it was made of, by the names of the constructor."""
        return {"backbone": self.pyramid, "classes": self.classes, **self.settings}

    @property
    def pyramid(self) -> nn.Module:
        """The backbone below the neck."""
        return self.backbone.pyramid

    def forward(self, images: Tensor | Sequence[Tensor], targets: Sequence[Target] | None = None) -> Any:
        check_images(list(images), getattr(self.pyramid, "in_chans", 3))
        known = checked(list(images), targets, self.classes, self.masks) if self.training else None
        return super().forward(list(images), known)  # type: ignore[misc]

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """In the pyramid."""
        self.pyramid.set_grad_checkpointing(enable)  # type: ignore[operator]

    def no_weight_decay(self) -> set[str]:
        """The names of what is embedded in the pyramid."""
        if not hasattr(self.pyramid, "no_weight_decay"):
            return set()
        return {f"backbone.pyramid.{n}" for n in self.pyramid.no_weight_decay()}  # type: ignore[operator]


class FromZero:
    """torchvision's dense detectors count classes from 0; their labels are from 1, as everywhere."""

    def compute_loss(self, targets: Sequence[Target], *rest: Any) -> dict[str, Tensor]:
        counted = [{**t, "labels": t["labels"] - 1} for t in targets]
        return super().compute_loss(counted, *rest)  # type: ignore[misc,no-any-return]

    def postprocess_detections(self, *given: Any) -> list[dict[str, Tensor]]:
        found = super().postprocess_detections(*given)  # type: ignore[misc]
        return [{**one, "labels": one["labels"] + 1} for one in found]


def checked_classes(classes: int) -> int:
    if classes < 1:
        raise ValueError(f"classes {classes}: a detector tells at least 1 apart")
    return classes


class RetinaNet(OnPyramid, FromZero, TorchvisionRetinaNet):  # type: ignore[misc]
    """https://arxiv.org/abs/1708.02002, on strides 8 to 128: nine anchors a place, focal loss, and L1 for boxes."""

    def __init__(self, backbone: nn.Module, classes: int, dim: int = 256, *, score: float = 0.05, iou: float = 0.5,
                 limit: int = 100):  # fmt: skip
        maps = Necked(backbone, dim, 8, 128, learned=True)
        anchors = Anchors(maps.strides, OCTAVES)
        head = AnchoredHead(dim, len(OCTAVES) * len(RATIOS), checked_classes(classes))
        super().__init__(maps, classes, anchor_generator=anchors, head=head, score_thresh=score, nms_thresh=iou,
                         detections_per_img=limit)  # fmt: skip
        self.describe(backbone, classes, dim=dim, score=score, iou=iou, limit=limit)


class FCOS(OnPyramid, FromZero, TorchvisionFCOS):  # type: ignore[misc]
    """https://arxiv.org/abs/1904.01355, on strides 8 to 128: a box for each place, as distances to its sides, learnt
    from the middle of objects (within 1.5 strides) of the map's sizes; focal loss, GIoU and centerness."""

    def __init__(self, backbone: nn.Module, classes: int, dim: int = 256, *, score: float = 0.05, iou: float = 0.6,
                 limit: int = 100):  # fmt: skip
        if dim % 32:
            raise ValueError(f"dim {dim}: FCOS normalises 32 groups of channels, a multiple of 32 is wanted")
        maps = Necked(backbone, dim, 8, 128, learned=True)
        anchors = Anchors(maps.strides, (1.0,), (1.0,), offset=0.5)
        head = CentredHead(dim, 1, checked_classes(classes))
        super().__init__(maps, classes, anchor_generator=anchors, head=head, score_thresh=score, nms_thresh=iou,
                         detections_per_img=limit)  # fmt: skip
        self.describe(backbone, classes, dim=dim, score=score, iou=iou, limit=limit)


class FasterRCNN(OnPyramid, TorchvisionFasterRCNN):  # type: ignore[misc]
    """https://arxiv.org/abs/1506.01497 with an FPN, on strides 4 to 64: three anchors a place, eight strides wide; a
    thousand proposals; regions of 7 x 7 from the maps of the neck, two layers of `hidden`."""

    def __init__(self, backbone: nn.Module, classes: int, dim: int = 256, hidden: int = 1024, *, score: float = 0.05,
                 iou: float = 0.5, limit: int = 100):  # fmt: skip
        maps = Necked(backbone, dim, 4, 64, learned=False)
        super().__init__(
            maps,
            rpn_anchor_generator=Anchors(maps.strides, (8.0,)),
            rpn_head=ProposalHead(dim, len(RATIOS)),
            box_roi_pool=RegionPool(maps.strides[: maps.own], 7),
            box_head=TwoMLPHead(dim * 7 * 7, hidden),
            box_predictor=BoxPredictor(hidden, checked_classes(classes) + 1),
            box_score_thresh=score, box_nms_thresh=iou, box_detections_per_img=limit,
        )  # fmt: skip
        self.describe(backbone, classes, dim=dim, hidden=hidden, score=score, iou=iou, limit=limit)


class MaskRCNN(FasterRCNN):
    """https://arxiv.org/abs/1703.06870: Faster R-CNN, and masks of 28 x 28 from regions of 14 x 14."""

    masks = True

    def __init__(self, backbone: nn.Module, classes: int, dim: int = 256, hidden: int = 1024, *, score: float = 0.05,
                 iou: float = 0.5, limit: int = 100):  # fmt: skip
        super().__init__(backbone, classes, dim, hidden, score=score, iou=iou, limit=limit)
        for name, part in mask_parts(self.backbone, dim, classes).items():
            setattr(self.roi_heads, name, part)


def mask_parts(maps: Necked, dim: int, classes: int) -> Mapping[str, nn.Module]:
    """The mask branch, by the names of torchvision's `RoIHeads`."""
    return {
        "mask_roi_pool": RegionPool(maps.strides[: maps.own], 14, channels_last=True),
        "mask_head": MaskRCNNHeads(dim, (dim,) * 4, 1),
        "mask_predictor": MaskPredictor(dim, dim, classes + 1),
    }
