"""The losses of the YOLO family's anchor-free detectors: places are assigned to objects by how well they agree on class
and box (task alignment, https://arxiv.org/abs/2108.07755); boxes learn by complete IoU
(https://arxiv.org/abs/1911.08287) and by the distribution of their sides (https://arxiv.org/abs/2006.04388).

Shapes: B images, A places of all maps together, K classes, n objects, S bins for each side of a box.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Places:
    """What a head says of every place: `centres` (A 2) and `strides` (A) in pixels, `sides` (B A 4 S) logits of the
    distances to a box's left, top, right and bottom in strides, `scores` (B A K) logits of the classes."""

    centres: Tensor
    strides: Tensor
    sides: Tensor
    scores: Tensor

    @property
    def boxes(self) -> Tensor:
        """(B A 4) x0 y0 x1 y1 in pixels: each side at its expected distance; in float32."""
        bins = torch.arange(self.sides.shape[-1], device=self.sides.device, dtype=torch.float32)
        distance = (self.sides.float().softmax(-1) @ bins) * self.strides[:, None]  # B A 4
        return torch.cat([self.centres - distance[..., :2], self.centres + distance[..., 2:]], -1)


@dataclass(frozen=True)
class Assigned:
    """For the places of one image: the object of each, -1 for none, and how well it suits, 0 to 1."""

    of: Tensor  # A
    worth: Tensor  # A


@dataclass(frozen=True)
class YoloLoss:
    """box (1 - complete IoU), classes (binary cross-entropy with the worth of places as targets) and sides, weighed
    `box`, `classes` and `sides`, each a sum over places over the sum of all worths in the batch.

    An object takes the `top` best of the places whose centres lie in it, by score^alpha · IoU^beta; a place that two
    objects want goes to that of higher IoU. IoU is the complete one, not below 0.
    """

    box: float = 7.5
    classes: float = 0.5
    sides: float = 1.5
    top: int = 10
    alpha: float = 0.5
    beta: float = 6.0

    def __call__(self, places: Places, targets: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """targets: for each image `boxes` (n 4) in pixels and `labels` (n), from 1; those marked in `iscrowd` are no
        targets. -> {"box", "classes", "sides"}, whose sum is the loss."""
        from torchvision.ops import complete_box_iou_loss

        boxes, scores = places.boxes, places.scores.float()
        if len(targets) != len(boxes):
            raise ValueError(f"{len(boxes)} images, but targets for {len(targets)}")
        wanted = torch.zeros_like(scores)
        found, truth, worths, sides = [], [], [], []
        for i, target in enumerate(targets):
            objects, labels = single(target, scores.shape[-1])
            given = self.assign(boxes[i].detach(), scores[i].detach().sigmoid(), places.centres, objects, labels)
            at = (given.of >= 0).nonzero()[:, 0]
            of, worth = given.of[at], given.worth[at]
            wanted[i, at, labels[of]] = worth
            found.append(boxes[i, at])
            truth.append(objects[of])
            worths.append(worth)
            sides.append(side_loss(places, i, at, objects[of]))
        total = wanted.sum().clamp(min=1)
        worth = torch.cat(worths)
        overlap = complete_box_iou_loss(torch.cat(found), torch.cat(truth))  # 1 - IoU and penalties
        entropy = F.binary_cross_entropy_with_logits(scores, wanted, reduction="sum")
        return {
            "box": self.box * (overlap * worth).sum() / total,
            "classes": self.classes * entropy / total,
            "sides": self.sides * (torch.cat(sides) * worth).sum() / total,
        }

    @torch.no_grad()
    def assign(self, boxes: Tensor, scores: Tensor, centres: Tensor, objects: Tensor, labels: Tensor) -> Assigned:
        """boxes (A 4), scores (A K) in 0..1, centres (A 2); objects (n 4) of classes `labels` (n), from 0."""
        from torchvision.ops import complete_box_iou

        if not len(objects):
            return Assigned(labels.new_full((len(boxes),), -1), boxes.new_zeros(len(boxes)))
        inside = ((centres > objects[:, None, :2]) & (centres < objects[:, None, 2:])).all(-1)  # n A
        iou = complete_box_iou(objects, boxes).clamp(min=0).where(inside, 0)
        fit = (scores[:, labels].mT ** self.alpha * iou**self.beta).where(inside, 0)
        best = fit.topk(min(self.top, fit.shape[1]), 1).indices
        mine = torch.zeros_like(inside).scatter_(1, best, True) & inside
        keenest = iou.where(mine, -1).argmax(0)  # A
        taken = mine.any(0)
        of = keenest.where(taken, -1)
        mine &= torch.arange(len(objects), device=of.device)[:, None] == of
        fit, iou = fit.where(mine, 0), iou.where(mine, 0)
        worth = fit * iou.amax(1, keepdim=True) / (fit.amax(1, keepdim=True) + 1e-9)
        return Assigned(of, worth.amax(0))


def single(target: Mapping[str, Tensor], classes: int) -> tuple[Tensor, Tensor]:
    """Boxes and labels, from 0, of the objects that are no crowds; raises ValueError for a label beyond `classes`."""
    boxes, labels = target["boxes"].float(), target["labels"].long() - 1
    if "iscrowd" in target:
        one = target["iscrowd"] == 0
        boxes, labels = boxes[one], labels[one]
    strange = (labels < 0) | (labels >= classes)
    if bool(strange.any()):
        wrong = int(labels[strange][0]) + 1
        raise ValueError(f"label {wrong} of a target: this head tells {classes} classes apart, 1 to {classes}")
    return boxes, labels


def side_loss(places: Places, image: int, at: Tensor, objects: Tensor) -> Tensor:
    """(m): for the m places `at` and their objects (m 4), the cross-entropy of the two bins around each side's true
    distance, the mean of the four sides. Distances beyond the last bin count as just below it."""
    logits = places.sides[image, at].float()  # m 4 S
    centre = places.centres[at]
    distance = torch.cat([centre - objects[:, :2], objects[:, 2:] - centre], -1) / places.strides[at, None]
    distance = distance.clamp(0, logits.shape[-1] - 1 - 0.01)
    low = distance.floor().long()
    part = distance - low
    logs = -logits.log_softmax(-1)
    below, above = (logs.gather(-1, (low + k)[..., None])[..., 0] for k in (0, 1))
    return (below * (1 - part) + above * part).mean(-1)
