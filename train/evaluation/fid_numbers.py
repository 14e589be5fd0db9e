"""Numbers of two sets of features: Fréchet distance, inception score, precision and recall. All in float64."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

SPLITS, SHUFFLE, NEIGHBOURS = 10, 2020, 3  # as the reference evaluations have them
ROWS = 1024  # of a matrix of distances at a time


@dataclass(frozen=True)
class Moments:
    """Mean (C,) and covariance (C, C), divided by count - 1, of `count` feature vectors; float64. Where there are no
    more vectors than features, `root` (count, C) has root' root = cov: them less their mean."""

    count: int
    mean: Tensor
    cov: Tensor
    root: Tensor | None = None

    @property
    def width(self) -> int:
        return len(self.mean)

    @classmethod
    def of(cls, features: Tensor | Iterable[Tensor]) -> "Moments":
        """Of (N, C), or of its parts one after the other: each is merged with those before it (Chan et al. 1979), so
        that no difference of large sums is taken."""
        count, mean, scatter = 0, torch.zeros(0), torch.zeros(0)
        for part in features.split(ROWS) if isinstance(features, Tensor) else features:
            x = part.double()
            own = x.mean(0)
            centred = x - own
            n, total = len(x), count + len(x)
            if not count:
                mean, scatter = own, centred.T @ centred
            else:
                shift = own - mean
                scatter = scatter + centred.T @ centred + torch.outer(shift, shift) * (count * n / total)
                mean = mean + shift * (n / total)
            count = total
        if count < 2:
            raise ValueError(f"{count} feature vectors have no covariance: two or more images are needed")
        root = None
        if isinstance(features, Tensor) and count <= len(mean):
            root = (features.double() - mean) / (count - 1) ** 0.5
        return cls(count, mean, scatter / (count - 1), root)


def frechet_distance(a: Moments, b: Moments) -> float:
    """|m - m'|² + tr(S + S' - 2 (S S')^(1/2)), https://arxiv.org/abs/1706.08500.

    The trace of the root is the sum of the square roots of the eigenvalues of R S' R', where R' R = S: a symmetric
    matrix. R is `Moments.root` (they are the singular values of R times the other's R', if both have one: exact and
    quick), else the symmetric root of S. What rounding leaves below zero is zero.
    """
    if a.width != b.width:
        raise ValueError(f"features of {a.width} and of {b.width} numbers: both must be of one extractor")
    if not (a.cov.isfinite().all() and b.cov.isfinite().all()):
        raise ValueError("the features are not finite numbers: the extractor overflowed, or the images are not images")
    if a.root is not None and b.root is not None:
        cross = torch.linalg.svdvals(a.root @ b.root.T).sum()
    else:
        few, other = (b, a) if a.root is None and b.root is not None else (a, b)
        root = symmetric_root(few.cov) if few.root is None else few.root
        product = root @ other.cov @ root.T
        cross = torch.linalg.eigvalsh((product + product.T) / 2).clamp(min=0).sqrt().sum()
    distance = (a.mean - b.mean).square().sum() + a.cov.trace() + b.cov.trace() - 2 * cross
    return max(distance.item(), 0.0)


def symmetric_root(cov: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(cov)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T


def inception_score(logits: Tensor, splits: int = SPLITS, seed: int = SHUFFLE) -> tuple[float, float]:
    """(mean, deviation) over `splits` of exp(E KL(p(y|x) || p(y))), https://arxiv.org/abs/1606.03498; logits (N, K).

    The images are shuffled first (by `seed`, as torch-fidelity does): generated class by class, a split of them would
    hold few classes.
    """
    count = len(logits)
    if count < splits:
        raise ValueError(f"{count} images are fewer than the {splits} splits of the inception score: leave it out")
    order = np.random.RandomState(seed).permutation(count)
    log_p = logits[torch.from_numpy(order)].double().log_softmax(1)
    scores = []
    for i in range(splits):
        part = log_p[i * count // splits : (i + 1) * count // splits]
        marginal = part.exp().mean(0).log()
        scores.append(float((part.exp() * (part - marginal)).nan_to_num(nan=0.0).sum(1).mean().exp()))
    return float(np.mean(scores)), float(np.std(scores))


def precision_recall(generated: Tensor, real: Tensor, neighbours: int = NEIGHBOURS) -> tuple[float, float]:
    """Improved precision and recall, https://arxiv.org/abs/1904.06991: the part of the generated (G, C) that lies
    within the distance of a real one (R, C) to its k-th neighbour, and the reverse."""
    for name, x in (("generated", generated), ("real", real)):
        if len(x) <= neighbours:
            raise ValueError(f"{len(x)} {name} images: precision and recall need more than {neighbours}")
    if generated.shape[1] != real.shape[1]:
        raise ValueError(f"features of {generated.shape[1]} and of {real.shape[1]} numbers: both of one extractor")
    middle = real.double().mean(0)  # distances are of matrix products: what is far from zero loses digits
    g, r = generated.double() - middle, real.double() - middle
    return covered(g, r, radii(r, neighbours)), covered(r, g, radii(g, neighbours))


def radii(x: Tensor, neighbours: int) -> Tensor:
    """(N,) the distance of each to its k-th neighbour (itself not counted)."""
    return torch.cat([torch.cdist(part, x).kthvalue(neighbours + 1, 1).values for part in x.split(ROWS)])


def covered(x: Tensor, centres: Tensor, radius: Tensor) -> float:
    """The part of x that lies within the radius of some centre."""
    inside = torch.cat([(torch.cdist(part, centres) <= radius).any(1) for part in x.split(ROWS)])
    return inside.double().mean().item()
