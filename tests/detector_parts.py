"""Small detectors on tiny pyramids, and an image with its target."""

from functools import partial

import torch
from vision_tiny import tiny_pyramid

from patchloom.vision.heads.cascade import CascadeRCNN
from patchloom.vision.heads.detection import FCOS, FasterRCNN, MaskRCNN, RetinaNet

DETECTORS = {
    "retinanet": partial(RetinaNet, dim=32), "fcos": partial(FCOS, dim=32),
    "faster": partial(FasterRCNN, dim=32, hidden=32), "mask": partial(MaskRCNN, dim=32, hidden=32),
    "cascade": partial(CascadeRCNN, dim=32, hidden=32),
    "cascade mask": partial(CascadeRCNN, dim=32, hidden=32, masks=True),
}  # fmt: skip


def built(kind="mask", name="swin_tiny", classes=3, **options):
    torch.manual_seed(0)
    return DETECTORS[kind](tiny_pyramid(name), classes, **options)


def image(size=(160, 224), seed=0):
    return torch.randn(3, *size, generator=torch.Generator().manual_seed(seed))


def target(size=(160, 224), boxes=((10, 20, 70, 90), (30, 5, 90, 60)), labels=(1, 3), **more):
    masks = torch.zeros(len(boxes), *size, dtype=torch.bool)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes, strict=True):
        mask[y0:y1, x0:x1] = True
    boxes = torch.tensor(boxes, dtype=torch.float32).view(-1, 4)
    return {"boxes": boxes, "labels": torch.tensor(labels, dtype=torch.int64), "masks": masks, **more}
