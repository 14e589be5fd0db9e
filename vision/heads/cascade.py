"""Cascade R-CNN, https://arxiv.org/abs/1712.00726, on torchvision's parts: three box heads, each on the boxes of the
one before and with stricter matches.

Shapes: n regions of all images, K classes and the background.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.faster_rcnn import TwoMLPHead
from torchvision.models.detection.roi_heads import RoIHeads, fastrcnn_loss, maskrcnn_inference, maskrcnn_loss
from torchvision.ops import clip_boxes_to_image

from .anchors import RegionPool
from .detection import FasterRCNN, mask_parts

OVERLAPS = (0.5, 0.6, 0.7)  # IoU with an object from which a stage's region counts as it
CODES = tuple(tuple(k * v for v in (10.0, 10.0, 5.0, 5.0)) for k in (1, 2, 3))  # weights of shifts and of sizes
SHARES = (1.0, 0.5, 0.25)  # of each stage in the loss
Shape = tuple[int, int]


class OneBoxPredictor(nn.Module):
    """(n C) -> logits (n K+1) and one box for all classes, repeated for torchvision's sake: (n 4*(K+1)), in float32."""

    def __init__(self, dim: int, classes: int):
        super().__init__()
        self.cls_score, self.bbox_pred = nn.Linear(dim, classes + 1), nn.Linear(dim, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scores = self.cls_score(x).float()
        return scores, self.bbox_pred(x).float().repeat(1, scores.shape[1])


class CascadeHeads(nn.Module):
    """torchvision's `RoIHeads` three times, in its place.

    In training each stage matches and samples its regions anew, by its own IoU, among those that the stage before has
    refined and the objects themselves; its loss counts `SHARES`. In evaluation the boxes are the last stage's, the
    probabilities the mean of all three's. The mask branch, if any, learns from the first stage's regions, and gives
    masks of the boxes that are found.
    """

    def __init__(self, stages: Sequence[RoIHeads]):
        super().__init__()
        self.stages = nn.ModuleList(stages)

    def forward(
        self, features: dict[str, Tensor], proposals: list[Tensor], image_shapes: list[Shape],
        targets: list[dict[str, Tensor]] | None = None,
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:  # fmt: skip
        if self.training:
            return [], self.losses(features, proposals, image_shapes, targets)
        return self.found(features, proposals, image_shapes), {}

    def losses(self, features: Any, proposals: list[Tensor], shapes: list[Shape], targets: Any) -> dict[str, Tensor]:
        losses: dict[str, Tensor] = {}
        for k, (stage, share) in enumerate(zip(self.stages, SHARES, strict=True)):
            regions, matched, labels, wanted = stage.select_training_samples(proposals, targets)  # type: ignore[operator]
            scores, sides = predicted(stage, features, regions, shapes)
            by_class, by_box = fastrcnn_loss(scores, sides, labels, wanted)
            losses |= {f"loss_classifier_{k + 1}": share * by_class, f"loss_box_reg_{k + 1}": share * by_box}
            if k == 0 and stage.has_mask():  # type: ignore[operator]
                losses["loss_mask"] = mask_loss(stage, features, regions, matched, labels, shapes, targets)
            moved = refined(stage, sides.detach(), regions, shapes)
            # objects that were put among the regions say nothing of where a stage moves them
            own = [~((found > 0) & (w == 0).all(1)) for found, w in zip(labels, wanted, strict=True)]
            proposals = [boxes[keep & has_area(boxes)] for boxes, keep in zip(moved, own, strict=True)]
        return losses

    def found(self, features: Any, regions: list[Tensor], shapes: list[Shape]) -> list[dict[str, Tensor]]:
        total: Tensor | float = 0.0
        for k, stage in enumerate(self.stages):
            scores, sides = predicted(stage, features, regions, shapes)
            total = total + scores.softmax(-1)
            if k < len(self.stages) - 1:
                regions = refined(stage, sides, regions, shapes)
        assert isinstance(total, Tensor)
        mean = (total / len(self.stages)).log()  # whose softmax, which is taken of it, is the mean
        first, last = self.stages[0], self.stages[-1]
        boxes, best, labels = last.postprocess_detections(mean, sides, regions, shapes)  # type: ignore[operator]
        answers = [{"boxes": b, "labels": c, "scores": s} for b, c, s in zip(boxes, labels, best, strict=True)]
        if first.has_mask():  # type: ignore[operator]
            logits = first.mask_predictor(first.mask_head(first.mask_roi_pool(features, boxes, shapes)))  # type: ignore[operator]
            for answer, masks in zip(answers, maskrcnn_inference(logits, labels), strict=True):
                answer["masks"] = masks
        return answers


def predicted(stage: Any, features: Any, regions: list[Tensor], shapes: list[Shape]) -> tuple[Tensor, Tensor]:
    """Logits (n K+1) and codes of boxes (n 4*(K+1))."""
    answer: tuple[Tensor, Tensor] = stage.box_predictor(stage.box_head(stage.box_roi_pool(features, regions, shapes)))
    return answer


def refined(stage: Any, sides: Tensor, regions: list[Tensor], shapes: list[Shape]) -> list[Tensor]:
    """The regions of each image where `stage` moves them, inside the image; no gradient goes through them."""
    with torch.no_grad():
        boxes = stage.box_coder.decode_single(sides[:, :4], torch.cat(regions)).split([len(r) for r in regions])
        return [clip_boxes_to_image(b, shape) for b, shape in zip(boxes, shapes, strict=True)]


def has_area(boxes: Tensor) -> Tensor:
    return (boxes[:, 2:] > boxes[:, :2]).all(1)


def mask_loss(
    stage: Any, features: Any, regions: list[Tensor], matched: list[Tensor], labels: list[Tensor],
    shapes: list[Shape], targets: Sequence[dict[str, Tensor]],
) -> Tensor:  # fmt: skip
    """As torchvision's: of the regions that are objects."""
    hits = [found > 0 for found in labels]
    boxes, objects = ([v[h] for v, h in zip(values, hits, strict=True)] for values in (regions, matched))
    logits = stage.mask_predictor(stage.mask_head(stage.mask_roi_pool(features, boxes, shapes)))
    loss: Tensor = maskrcnn_loss(logits, boxes, [t["masks"] for t in targets], [t["labels"] for t in targets], objects)
    return loss


class CascadeRCNN(FasterRCNN):
    """Faster R-CNN with three box heads; with `masks` the mask branch of Mask R-CNN too (one, as detectron2 has it).
    Arguments and contract as in heads/detection.py; losses are named by their stage, `loss_box_reg_1`."""

    def __init__(self, backbone: nn.Module, classes: int, dim: int = 256, hidden: int = 1024, *, masks: bool = False,
                 score: float = 0.05, iou: float = 0.5, limit: int = 100):  # fmt: skip
        super().__init__(backbone, classes, dim, hidden, score=score, iou=iou, limit=limit)
        self.masks, maps = masks, self.backbone
        self.settings["masks"] = masks
        self.roi_heads = CascadeHeads([
            RoIHeads(RegionPool(maps.strides[: maps.own], 7), TwoMLPHead(dim * 7 * 7, hidden),
                     OneBoxPredictor(hidden, classes), overlap, overlap, 512, 0.25, code, score, iou, limit,
                     **(mask_parts(maps, dim, classes) if masks and k == 0 else {}))
            for k, (overlap, code) in enumerate(zip(OVERLAPS, CODES, strict=True))
        ])  # fmt: skip
