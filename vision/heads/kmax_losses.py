"""The losses of kMaX-DeepLab, https://arxiv.org/abs/2207.04044, which follow panoptic quality as MaX-DeepLab's do
(https://arxiv.org/abs/2012.00759).

Shapes: B images, N clusters, n segments of an image, K classes, H W the map of the final masks. A pixel of no segment
is void, and counts nowhere. There is no record of the authors' losses: what the facts leave open is said where it is
settled.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from .kmax import KMaxPredictions
from .kmax_decoder import KMaxPrediction
from .matching import assign
from .segments import Segments, ready

LEAST = 1e-5


@dataclass(frozen=True)
class Matched:
    """Of one image: `owner` (H W), each pixel's segment, -1 where it is void; `queries` and `which` (m), the clusters
    and the segments that they stand for; `dice` and `chance` (m), how well mask and class of each fit."""

    owner: Tensor
    labels: Tensor
    queries: Tensor
    which: Tensor
    dice: Tensor
    chance: Tensor


@dataclass(frozen=True)
class KMaxLosses:
    """The weighted losses `class`, `mask`, `dice`, `pixels` (which are together), summed over all layers, and
    `semantic` of the head beside them.

    positive: what clusters with a segment count in the class and dice losses; the others count 1 - positive. sampled:
    pixels of an image that `pixels` compares, and that `semantic` reads (None: all). rare: a pixel is drawn with
    probability ~ area of its segment to the power -rare; rare_semantic the same of its class."""

    classification: float = 3.0
    mask: float = 0.3
    dice: float = 3.0
    pixels: float = 1.0
    semantic: float = 1.0
    positive: float = 0.75
    temperature: float = 0.3
    sampled: int = 4096
    sampled_semantic: int | None = 4096
    rare: float = 1.5
    rare_semantic: float = 2.0

    def __call__(self, predictions: KMaxPredictions, targets: Sequence[Segments]) -> dict[str, Tensor]:
        last = predictions.last
        size = (int(last.masks.shape[2]), int(last.masks.shape[3]))
        padded = ready(targets, predictions.sizes, predictions.size, last.classes)
        owners = [owner_of(t, size) for t in padded]
        with torch.autocast(last.masks.device.type, enabled=False):
            layers = [fitted(p, size) for p in predictions.layers]
            matched = [
                self.match(c, m.softmax(0), o, t.labels)
                for c, m, o, t in zip(layers[-1].classes, layers[-1].masks, owners, padded, strict=True)
            ]
            total = {name: last.masks.new_zeros(()).float() for name in ("class", "mask", "dice", "pixels")}
            for layer in layers:
                for name, value in self.of(layer, matched).items():
                    total[name] = total[name] + value
            weights = {"class": self.classification, "mask": self.mask, "dice": self.dice, "pixels": self.pixels}
            total = {name: weights[name] * value for name, value in total.items()}
            if predictions.semantic is not None:
                total["semantic"] = self.semantic * self.of_semantic(predictions.semantic.float(), matched)
        return total

    @torch.no_grad()
    def match(self, classes: Tensor, chances: Tensor, owner: Tensor, labels: Tensor) -> Matched:
        """classes (N K+1), chances (N H W) that a pixel is a cluster's, owner (H W), labels (n)."""
        seen = (owner >= 0).flatten()
        wanted = (
            F.one_hot(owner.flatten()[seen], len(labels)).float()
            if len(labels)
            else chances.new_zeros((int(seen.sum()), 0))
        )
        p = chances.flatten(1)[:, seen]
        dice = 2 * (p @ wanted) / (p.sum(1, keepdim=True) + wanted.sum(0) + LEAST)  # N n
        chance = classes.softmax(-1)[:, labels]
        queries, which = assign(-dice * chance)
        there = wanted.sum(0)[which] > 0  # a segment may have no pixel on this map
        queries, which = queries[there], which[there]
        return Matched(owner, labels, queries, which, dice[queries, which], chance[queries, which])

    def of(self, layer: KMaxPrediction, matched: Sequence[Matched]) -> dict[str, Tensor]:
        """The losses of one layer, whose masks lie on the final map; not weighted."""
        found = [self.of_image(*parts) for parts in zip(layer.classes, layer.masks, layer.pixels, matched, strict=True)]
        return {
            "class": weighed_mean([f[0] for f in found], [f[1] for f in found]),
            "mask": weighed_mean([f[2] for f in found], [torch.ones_like(f[2]) for f in found]),
            "dice": torch.stack([f[3] for f in found]).mean(),
            "pixels": weighed_mean([f[4] for f in found], [torch.ones_like(f[4]) for f in found]),
        }

    def of_image(self, classes: Tensor, masks: Tensor, pixels: Tensor, t: Matched) -> tuple[Tensor, ...]:
        """Class losses (N) and their weights, cross entropies of the pixels, the dice loss, and the contrast of pixels.

        A cluster without a segment counts by how much of its mask is not void: where it covers only what nobody
        labelled, nothing says that it is wrong."""
        n, void = len(classes), t.owner.flatten() < 0
        logits = masks.flatten(1)
        chances = logits.softmax(0)
        wanted = torch.full((n,), classes.shape[1] - 1, device=classes.device)
        wanted[t.queries] = t.labels[t.which]
        weight = (1 - self.positive) * (1 - share(chances.detach(), void)).clamp(min=LEAST)
        weight[t.queries] = self.positive * t.dice.clamp(min=LEAST)
        entropy = weight * F.cross_entropy(classes, wanted, reduction="none")
        target = torch.full(
            (len(t.labels) + 1,), -1, device=classes.device
        )  # of each segment its cluster; void at the end
        target[t.which] = t.queries
        goal = target[t.owner.flatten()]
        by_pixel = F.cross_entropy(logits.mT[goal >= 0], goal[goal >= 0], reduction="none")
        p, owner = chances[t.queries][:, ~void], t.owner.flatten()[~void]
        true = (owner == t.which[:, None]).float()
        apart = 1 - (2 * (p * true).sum(1) + 1) / (p.sum(1) + true.sum(1) + 1)
        dice = (apart * t.chance).sum() * self.positive / n
        return entropy, weight, by_pixel, dice, self.contrast(pixels.flatten(1), t.owner.flatten())

    def contrast(self, pixels: Tensor, owner: Tensor) -> Tensor:
        """Of each drawn pixel: the cross entropy between the softmax over all drawn pixels of feature' feature /
        temperature and an equal share for those of its segment. pixels (128 HW), owner (HW) -> (drawn)."""
        drawn = draw(owner, self.sampled, self.rare)
        g, mine = F.normalize(pixels[:, drawn].mT, dim=1), owner[drawn]
        same = (mine == mine[:, None]).float()
        likely = (g @ g.mT / self.temperature).log_softmax(1)
        return -(likely * same).sum(1) / same.sum(1)

    def of_semantic(self, logits: Tensor, matched: Sequence[Matched]) -> Tensor:
        """logits (B K' h w), resized to the final map."""
        found = []
        for image, t in zip(resized(logits, t_size(matched)), matched, strict=True):
            wanted = F.pad(t.labels, (0, 1), value=-1)[t.owner.flatten()]
            if self.sampled_semantic is None:
                chosen = (wanted >= 0).nonzero()[:, 0]
            else:
                chosen = draw(wanted, self.sampled_semantic, self.rare_semantic)
            found.append(F.cross_entropy(image.flatten(1).mT[chosen], wanted[chosen], reduction="none"))
        return weighed_mean(found, [torch.ones_like(f) for f in found])


def t_size(matched: Sequence[Matched]) -> tuple[int, int]:
    return int(matched[0].owner.shape[0]), int(matched[0].owner.shape[1])


def weighed_mean(values: Sequence[Tensor], weights: Sequence[Tensor]) -> Tensor:
    """The sum of the values of all images over how many have a weight other than 0 (at least 1)."""
    v, w = torch.cat(list(values)), torch.cat(list(weights))
    return v.sum() / (w != 0).sum().clamp(min=1)


def share(chances: Tensor, where: Tensor) -> Tensor:
    """chances (N HW), where (HW) bool -> (N): which part of each mask lies there."""
    return chances[:, where].sum(1) / chances.sum(1).clamp(min=LEAST)


@torch.no_grad()
def draw(group: Tensor, count: int, rare: float) -> Tensor:
    """At most `count` places of `group` (P) that are in a group (>= 0), without repetition, each with a probability
    ~ size of its group to the power -rare (Gumbel top-k)."""
    inside = (group >= 0).nonzero()[:, 0]
    if not len(inside):
        return inside
    sizes = torch.bincount(group[inside])
    score = -rare * sizes[group[inside]].float().log()
    noise = -torch.empty_like(score).exponential_().clamp(min=torch.finfo(score.dtype).tiny).log()
    return inside[(score + noise).topk(min(count, len(inside))).indices]


def owner_of(target: Segments, size: tuple[int, int]) -> Tensor:
    """(H W) of the given size: the number of each pixel's segment, the first where several meet, or -1."""
    h, w = target.masks.shape[1:]
    if not len(target.labels):
        return torch.full(size, -1, device=target.masks.device)
    y, x = (nearest(n, to, target.masks.device) for n, to in ((int(h), size[0]), (int(w), size[1])))
    masks = target.masks[:, y[:, None], x]
    return torch.where(masks.any(0), masks.to(torch.uint8).argmax(0), -1)


def nearest(length: int, to: int, device: torch.device) -> Tensor:
    """The places among `length` that `to` places stand on: with aligned ends where the length is odd."""
    place = torch.arange(to, device=device)
    if length % 2 and to > 1:
        return (place * (length - 1) / (to - 1)).round().long()
    return ((place + 0.5) * length / to).long().clamp(max=length - 1)


def resized(m: Tensor, size: tuple[int, int]) -> Tensor:
    """(B C h w) resized bilinearly, the corners aligned where the height is odd (published, of all but the decoder)."""
    if tuple(m.shape[-2:]) == size:
        return m
    return F.interpolate(m, size, mode="bilinear", align_corners=m.shape[-2] % 2 == 1)


def fitted(p: KMaxPrediction, size: tuple[int, int]) -> KMaxPrediction:
    """In float32, on the final map."""
    masks, pixels = (resized(m.float(), size) for m in (p.masks, p.pixels))
    return replace(p, classes=p.classes.float(), masks=masks, pixels=pixels)
