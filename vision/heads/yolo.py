"""Mamba YOLO's detector (https://arxiv.org/abs/2406.05835): a pyramid, its neck, and the decoupled, anchor-free head of
YOLOv8's layout, whose boxes are distributions of distances (https://arxiv.org/abs/2006.04388).

Shapes: B images, A places of all maps together, K classes, S bins for each side of a box.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..blocks.local_scan import EPS, slow
from ..conv import ConvNorm
from ..families.mamba_yolo import DETECTOR, SCALES, initialise, repeats
from ..layers import Linear
from ..pyramid import Pyramid
from ..weights import Report
from ..zoo import create_model, resolve
from .loading import attempt
from .mask2former import embedded
from .yolo_loss import Places, YoloLoss
from .yolo_neck import PathAggregation

FINEST = 8  # the stride of the finest map that objects are found on


class DecoupledHead(nn.Module):
    """Maps (B H W C_i) -> for each the distributions of four sides (B H W 4*S) and the logits of K classes, by branches
    of two 3x3 convolutions. It begins expecting five objects in an image of 640 x 640."""

    def __init__(self, channels: Sequence[int], strides: Sequence[int], classes: int, bins: int = 16):
        super().__init__()
        self.strides, self.classes, self.bins = list(strides), classes, bins
        box, score = max(16, channels[0] // 4, 4 * bins), max(channels[0], min(classes, 100))
        self.boxes = nn.ModuleList(branch(c, box, 4 * bins) for c in channels)
        self.scores = nn.ModuleList(branch(c, score, classes) for c in channels)
        for i, stride in enumerate(strides):
            for part, begin in ((self.boxes, 1.0), (self.scores, math.log(5 / classes / (640 / stride) ** 2))):
                last = cast(nn.Sequential, part[i])[-1]
                assert isinstance(last, Linear)
                nn.init.constant_(last.bias, begin)

    def forward(self, maps: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
        return [(b(m), s(m)) for b, s, m in zip(self.boxes, self.scores, maps, strict=True)]

    def places(self, raw: Sequence[tuple[Tensor, Tensor]]) -> Places:
        """All maps together, from fine to coarse, row by row."""
        centres, strides = [], []
        for (m, _), stride in zip(raw, self.strides, strict=True):
            y, x = ((torch.arange(n, device=m.device) + 0.5) * stride for n in m.shape[1:3])
            centres.append(torch.stack(torch.meshgrid(y, x, indexing="ij"), -1).flip(-1).flatten(0, 1))
            strides.append(centres[-1].new_full((len(centres[-1]),), stride))
        sides = torch.cat([b.flatten(1, 2) for b, _ in raw], 1).unflatten(-1, (4, self.bins))  # type: ignore[no-untyped-call]
        scores = torch.cat([s.flatten(1, 2) for _, s in raw], 1)
        return Places(torch.cat(centres), torch.cat(strides), sides, scores)


def branch(dim: int, width: int, out: int) -> nn.Module:
    convs = [slow(ConvNorm(c, width, 3, act="silu", eps=EPS)) for c in (dim, width)]
    return nn.Sequential(*convs, Linear(width, out))


class Yolo(nn.Module):
    """A detector on the maps of `backbone` at strides from 8 on, for `classes` classes.

    images: a list of (3, H, W) of any sizes, or (B 3 H W) -> in evaluation mode a list of {"boxes" (n 4) x0 y0 x1 y1 in
    the image's pixels, "scores" (n), "labels" (n), from 1}, the best first; in training mode, which takes `targets` as
    torchvision's detectors do, {"box", "classes", "sides"}, whose sum is the loss (`loss`).

    `score`: what is less likely is no detection; `iou`: of two of a class that overlap more, the better one stays;
    `limit`: the most for an image.
    """

    def __init__(self, backbone: Pyramid, classes: int, repeats: int = 1, *, bins: int = 16,
                 loss: YoloLoss | None = None, score: float = 0.001, iou: float = 0.7, limit: int = 300):  # fmt: skip
        super().__init__()
        self.used = [i for i, s in enumerate(backbone.strides) if s >= FINEST]
        channels, strides = ([values[i] for i in self.used] for values in (backbone.channels, backbone.strides))
        if len(strides) < 2 or any(b != 2 * a for a, b in pairwise(strides)):
            raise ValueError(
                f"maps at strides {FINEST}, {2 * FINEST}, … are wanted; this backbone has {backbone.strides}"
            )
        if classes < 1:
            raise ValueError(f"classes {classes}: a detector tells at least 1 apart")
        self.backbone, self.neck, self.repeats = backbone, PathAggregation(channels, repeats), repeats
        self.branches = DecoupledHead(channels, strides, classes, bins)
        initialise(self.neck)
        self.loss, self.score, self.iou, self.limit = loss or YoloLoss(), score, iou, limit
        self.classes, self.name, self.family = classes, backbone.name, backbone.family

    def forward(
        self, images: Tensor | Sequence[Tensor], targets: Sequence[Mapping[str, Tensor]] | None = None
    ) -> list[dict[str, Tensor]] | dict[str, Tensor]:
        batch, sizes = stacked(images, self.branches.strides[-1])
        if self.training and targets is None:
            raise ValueError("a detector in training mode takes targets: boxes and labels of each image")
        places = self.branches.places(self.raw(batch))
        if self.training:
            return self.loss(places, cast(Sequence[Mapping[str, Tensor]], targets))
        pairs = zip(places.boxes, places.scores.float().sigmoid(), sizes, strict=True)
        return [self.chosen(boxes, scores, size) for boxes, scores, size in pairs]

    def arguments(self) -> dict[str, Any]:
        """What it was made of, by the names of the constructor."""
        names = ("backbone", "classes", "repeats", "loss", "score", "iou", "limit")
        return {**{name: getattr(self, name) for name in names}, "bins": self.branches.bins}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """In the backbone."""
        self.backbone.set_grad_checkpointing(enable)

    def no_weight_decay(self) -> set[str]:
        """The names of what the backbone does not want decayed."""
        return embedded(self.backbone)

    def raw(self, image: Tensor) -> list[tuple[Tensor, Tensor]]:
        """What the head says on each map: (B H W 4*S) and (B H W K)."""
        maps = self.backbone(image)
        return self.branches(self.neck([maps[i].permute(0, 2, 3, 1) for i in self.used]))  # type: ignore[no-any-return]

    def chosen(self, boxes: Tensor, scores: Tensor, size: tuple[int, int]) -> dict[str, Tensor]:
        """The detections of an image of `size` (H, W) among its places: every class of a place counts by itself."""
        from torchvision.ops import batched_nms, clip_boxes_to_image

        place, label = (scores > self.score).nonzero(as_tuple=True)
        score, box = scores[place, label], clip_boxes_to_image(boxes[place], size)
        kept = batched_nms(box, score, label, self.iou)[: self.limit]
        return {"boxes": box[kept], "scores": score[kept], "labels": label[kept] + 1}

    def load_published(self, state: Mapping[str, Tensor]) -> Report:
        """Weights under the names of the authors' code, strictly; raises ValueError, and changes nothing, where a name
        has no place, a tensor of ours stays empty, or a shape differs."""
        found = attempt(self, state, DETECTOR)
        found.apply()
        return found.report


def stacked(images: Tensor | Sequence[Tensor], multiple: int) -> tuple[Tensor, list[tuple[int, int]]]:
    """(B 3 H W) with zeros at right and bottom of smaller images, sides that are multiples, and each image's own
    (H, W); so that boxes in the batch are boxes in the images."""
    sizes = [(int(i.shape[-2]), int(i.shape[-1])) for i in images]
    if not sizes:
        raise ValueError("no images: at least one is wanted")
    high, wide = (-(-max(s[k] for s in sizes) // multiple) * multiple for k in (0, 1))
    padded = [F.pad(i, (0, wide - w, 0, high - h)) for i, (h, w) in zip(images, sizes, strict=True)]
    return torch.stack(padded), sizes


def mamba_yolo(name: str = "mamba_yolo_tiny", classes: int = 80, *, in_chans: int = 3, drop_path_rate: float = 0.0,
               **options: Any) -> Yolo:  # fmt: skip
    """The published detector on the backbone of that name; `options` are those of `Yolo`."""
    found = resolve(name).name
    if found not in SCALES:
        raise ValueError(f"{name!r} is no Mamba YOLO; there are {', '.join(SCALES)}")
    backbone = create_model(found, features_only=True, in_chans=in_chans, drop_path_rate=drop_path_rate)
    assert isinstance(backbone, Pyramid)
    return Yolo(backbone, classes, repeats(3, SCALES[found]), **options)
