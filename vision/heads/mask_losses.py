"""The losses of mask classification on sampled points, https://arxiv.org/abs/2112.01527.

Shapes: B images, N queries, n targets of an image, K classes, P points, H W a map.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .mask2former import Predictions
from .masked_decoder import MaskPrediction
from .matching import assign, mean_over_workers
from .segments import Segments, ready

Draw = Callable[[tuple[int, ...]], Tensor]  # shape -> uniform numbers in 0..1
Pairs = list[tuple[Tensor, Tensor]]  # of each image: queries, and the targets that they stand for


def sample(maps: Tensor, points: Tensor) -> Tensor:
    """maps (n H W), points (n or 1, P, 2), (x, y) in 0..1 -> (n P), bilinear, 0 outside."""
    grid = (2 * points - 1).expand(len(maps), -1, -1)[:, None]  # n 1 P 2
    return F.grid_sample(maps[:, None], grid, align_corners=False)[:, 0, 0]


def dice(masks: Tensor, targets: Tensor) -> Tensor:
    """1 - (2 sum p t + 1) / (sum p + sum t + 1) of logits and targets (n P) -> (n)."""
    p = masks.sigmoid()
    return 1 - (2 * (p * targets).sum(-1) + 1) / (p.sum(-1) + targets.sum(-1) + 1)


@dataclass(frozen=True)
class MaskLosses:
    """The weighted losses `class`, `mask` and `dice`, summed over all predictions.

    classification, mask, dice: their weights, in the cost of a match too. points: compared of each mask. no_object:
    what an unmatched query counts in the cross entropy. oversample, importance: of oversample · points candidates the
    importance · points least certain are kept, the rest is drawn anew.
    """

    classification: float = 2.0
    mask: float = 5.0
    dice: float = 5.0
    points: int = 112 * 112
    no_object: float = 0.1
    oversample: float = 3.0
    importance: float = 0.75

    def __call__(
        self, predictions: Predictions, targets: Sequence[Segments], draw: Draw | None = None
    ) -> dict[str, Tensor]:
        """`draw`: where uniform numbers come from, torch's generator if not said."""
        device = predictions.last.classes.device
        padded = ready(targets, predictions.sizes, predictions.size, predictions.last.classes)
        draw = draw or (lambda shape: torch.rand(shape, device=device))
        count = mean_over_workers(sum(len(t.labels) for t in padded), device)
        total: dict[str, Tensor] = {}
        for prediction in predictions.layers:
            pairs = self.match(prediction, padded, draw)
            for name, value in self.of(prediction, padded, pairs, count, draw).items():
                total[name] = total[name] + value if name in total else value
        weights = {"class": self.classification, "mask": self.mask, "dice": self.dice}
        return {name: weights[name] * value for name, value in total.items()}

    @torch.no_grad()
    def match(self, prediction: MaskPrediction, targets: Sequence[Segments], draw: Draw) -> Pairs:
        rows = zip(prediction.classes, prediction.masks, targets, strict=True)
        return [assign(self.cost(classes, masks, t, draw((self.points, 2)))) for classes, masks, t in rows]

    def cost(self, classes: Tensor, masks: Tensor, target: Segments, points: Tensor) -> Tensor:
        """(N n), for one image: classes (N K+1), masks (N H W); all masks are compared on the same points (P 2)."""
        with torch.autocast(classes.device.type, enabled=False):
            found, wanted = (sample(m.float(), points[None]) for m in (masks, target.masks))
            chance = classes.float().softmax(-1)[:, target.labels]
            p, count = found.sigmoid(), found.shape[1]
            entropy = (F.softplus(found).sum(-1, keepdim=True) - found @ wanted.mT) / count
            sums = p.sum(-1, keepdim=True) + wanted.sum(-1)
            apart = 1 - (2 * p @ wanted.mT + 1) / (sums + 1)
            return self.mask * entropy - self.classification * chance + self.dice * apart

    def of(self, prediction: MaskPrediction, targets: Sequence[Segments], pairs: Pairs, count: float,
           draw: Draw) -> dict[str, Tensor]:  # fmt: skip
        """The losses of one prediction, not weighted: class, mask, dice."""
        with torch.autocast(prediction.classes.device.type, enabled=False):
            logits = prediction.classes.float()
            none = logits.shape[-1] - 1
            wanted = torch.full(logits.shape[:2], none, device=logits.device)
            for i, ((queries, which), target) in enumerate(zip(pairs, targets, strict=True)):
                wanted[i, queries] = target.labels[which]
            weight = torch.ones(none + 1, device=logits.device)
            weight[none] = self.no_object
            losses = {"class": F.cross_entropy(logits.mT, wanted, weight)}
            found = torch.cat([m[q] for m, (q, _) in zip(prediction.masks, pairs, strict=True)]).float()
            true = torch.cat([t.masks[which] for t, (_, which) in zip(targets, pairs, strict=True)])
            if not len(found):
                nothing = prediction.masks.sum() * 0  # so that every parameter has a gradient
                return losses | {"mask": nothing, "dice": nothing}
            points = self.uncertain(found.detach(), draw)
            values, masks = sample(true.float(), points), sample(found, points)
            entropy = F.binary_cross_entropy_with_logits(masks, values, reduction="none").mean(1)
            return losses | {"mask": entropy.sum() / count, "dice": dice(masks, values).sum() / count}

    def uncertain(self, masks: Tensor, draw: Draw) -> Tensor:
        """(n P 2): points where the logits (n H W) are near 0, and some anywhere."""
        n = len(masks)
        candidates = draw((n, int(self.points * self.oversample), 2))
        kept = int(self.points * self.importance)
        nearest = sample(masks, candidates).abs().topk(kept, 1, largest=False).indices
        chosen = candidates.gather(1, nearest[..., None].expand(-1, -1, 2))
        return torch.cat([chosen, draw((n, self.points - kept, 2))], 1)
