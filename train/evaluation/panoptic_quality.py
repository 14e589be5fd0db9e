"""Panoptic quality (Kirillov et al., "Panoptic Segmentation", arXiv 1801.00868), counted as COCO does."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

VOID = 0  # the id of pixels that belong to no segment


@dataclass(frozen=True)
class Segment:
    category: int  # a position among the categories, from 0
    crowd: bool = False  # a region of many: neither found nor missed


@dataclass(frozen=True)
class Panorama:
    """A picture cut into segments: `ids` (H, W) integers, VOID where there is none; `segments` by id."""

    ids: np.ndarray
    segments: Mapping[int, Segment]

    def fault(self) -> str | None:
        """What doesn't fit between the two, or None."""
        drawn = set(np.unique(self.ids).tolist()) - {VOID}
        if stray := sorted(drawn - self.segments.keys()):
            return f"segments {stray[:3]} are drawn and not listed"
        if lacking := sorted(self.segments.keys() - drawn):
            return f"segments {lacking[:3]} are listed and not drawn"
        return None


def drawn(masks: np.ndarray, categories: Sequence[int], crowds: Sequence[bool] | None = None) -> Panorama:
    """Of masks (n, H, W), one a segment, and the category of each, from 0; of two that meet the later one is on top,
    and one that is nowhere seen is no segment."""
    ids = np.zeros(masks.shape[1:], np.int64)
    for number, mask in enumerate(masks, 1):
        ids[mask.astype(bool)] = number
    crowds = [False] * len(masks) if crowds is None else crowds
    there = set(np.unique(ids).tolist())
    listed = {n: Segment(int(c), bool(w)) for n, (c, w) in enumerate(zip(categories, crowds, strict=True), 1)}
    return Panorama(ids, {n: segment for n, segment in listed.items() if n in there})


@dataclass(frozen=True)
class Tally:
    """Sums over pictures, for each of K categories; tallies add up."""

    iou: np.ndarray  # (K,) float64, over the matched pairs
    matched: np.ndarray  # (K,) int64: true positives
    extra: np.ndarray  # (K,) int64: false positives
    missed: np.ndarray  # (K,) int64: false negatives

    def __add__(self, other: "Tally") -> "Tally":
        return Tally(*(a + b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))


@dataclass(frozen=True)
class Quality:
    """PQ = SQ · RQ, fractions of 1: SQ the mean overlap of the matched pairs, RQ = matched / (matched + extra / 2 +
    missed / 2)."""

    pq: float
    sq: float
    rq: float
    categories: int  # over which it is the mean


def nothing(categories: int) -> Tally:
    return Tally(np.zeros(categories), *(np.zeros(categories, np.int64) for _ in range(3)))


def compare(true: Panorama, found: Panorama, categories: int) -> Tally:
    """Counts of one picture.

    A pair of one category matches where its overlap, void pixels of the truth apart, is over 1/2; so nothing matches
    twice. A found segment that lies for more than half in void or in crowds of its category is neither right nor wrong.
    """
    if true.ids.shape != found.ids.shape:
        sizes = ["x".join(map(str, p.ids.shape)) for p in (found, true)]
        raise ValueError(f"the found segments are {sizes[0]} pixels, the true ones {sizes[1]}")
    (a, i), (b, j) = (np.unique(p.ids, return_inverse=True) for p in (true, found))
    both = np.bincount(i.ravel() * len(b) + j.ravel(), minlength=len(a) * len(b)).reshape(len(a), len(b))
    category_a, crowd = listed(a, true)
    category_b, _ = listed(b, found)
    area_a, area_b = both.sum(1), both.sum(0)
    in_void = both[category_a < 0].sum(0)  # of each found segment
    union = area_a[:, None] + area_b[None] - both - in_void[None]
    same = (category_a[:, None] == category_b[None]) & (category_a >= 0)[:, None]
    iou = np.where(same & ~crowd[:, None], both / np.maximum(union, 1), 0.0)
    match = iou > 0.5
    in_crowd = np.where(same & crowd[:, None], both, 0).sum(0)
    extra = (category_b >= 0) & ~match.any(0) & ~((in_void + in_crowd) / area_b > 0.5)
    missed = (category_a >= 0) & ~crowd & ~match.any(1)
    rows, columns = np.nonzero(match)
    return Tally(
        np.bincount(category_a[rows], iou[rows, columns], categories),
        *(
            np.bincount(which, minlength=categories)
            for which in (category_a[rows], category_b[extra], category_a[missed])
        ),
    )


def listed(ids: np.ndarray, panorama: Panorama) -> tuple[np.ndarray, np.ndarray]:
    """(category, crowd) of each id; -1 for VOID."""
    found = [panorama.segments[i] if i != VOID else Segment(-1) for i in ids.tolist()]
    return np.array([s.category for s in found], np.int64), np.array([s.crowd for s in found], bool)


def qualities(tally: Tally) -> list[Quality | None]:
    """Of each category; None for one that is neither annotated nor found."""
    out: list[Quality | None] = []
    for iou, matched, extra, missed in zip(*(v.tolist() for v in vars(tally).values()), strict=True):
        weight = matched + 0.5 * extra + 0.5 * missed
        out.append(Quality(iou / weight, iou / matched if matched else 0.0, matched / weight, 1) if weight else None)
    return out


def mean(each: Sequence[Quality | None]) -> Quality | None:
    """Over the categories that there are; None without any."""
    there = [q for q in each if q is not None]
    if not there:
        return None
    pq, sq, rq = (float(np.mean([getattr(q, name) for q in there])) for name in ("pq", "sq", "rq"))
    return Quality(pq, sq, rq, len(there))
