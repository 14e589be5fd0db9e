"""Training with labels for the patches too, as ViT-ResNAS does (https://arxiv.org/abs/2109.00642): images are mixed on
a grid of cells, each of which has its label, and a head for the patches learns these."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from .losses import CrossEntropy


@dataclass(frozen=True)
class PatchMixing:
    """The first half of a batch gets a box of cells from another of its images, at the same place; the second half is
    mixed up with another image as a whole.

    cell: pixels of a cell's side, the stride of the model's last stage. mixup: alpha of the Beta distribution of that
    share. box: alpha of that of a box's area, whose sides are then rounded to cells (the paper does not say how boxes
    are drawn: this is CutMix's way, in cells). From epoch `off_epoch` (counted from 0) on nothing is mixed.
    """

    cell: int
    mixup: float = 0.8
    box: float = 1.0
    off_epoch: int | None = None

    def build(self, classes: int, many: bool) -> "PatchMixer":
        return PatchMixer(self, classes)


class PatchMixer:
    """image (B 3 H W), target (B) or (B C) -> both mixed, target (B 1+N C): the label of the whole image, then those of
    its N cells in raster order. An image is mixed with its counterpart from the end of the batch."""

    def __init__(self, spec: PatchMixing, classes: int):
        if min(spec.mixup, spec.box) <= 0 or spec.cell < 1:
            raise ValueError(f"{spec}: mixup and box must be above 0, cell at least 1")
        self.spec, self.classes = spec, classes

    def __call__(self, image: Tensor, target: Tensor, draw: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        (b, _, h, w), cell = image.shape, self.spec.cell
        if h % cell or w % cell:
            raise ValueError(f"images of {h}x{w} do not divide into cells of {cell}x{cell} pixels: set mixing.cell")
        label = target.float() if target.ndim == 2 else F.one_hot(target, self.classes).float()
        share = torch.from_numpy(self.shares(b, h // cell, w // cell, draw)).to(image.device)  # B h w
        fine = share.repeat_interleave(cell, 1).repeat_interleave(cell, 2)[:, None].to(image.dtype)
        mixed = torch.lerp(image, image.flip(0), fine)
        part = share.flatten(1)[..., None]
        cells = label[:, None] * (1 - part) + label.flip(0)[:, None] * part  # B N C
        return mixed, torch.cat([cells.mean(1, keepdim=True), cells], 1)

    def shares(self, batch: int, rows: int, columns: int, draw: tuple[int, ...]) -> np.ndarray:
        """(B h w): how much of each cell is the other image's."""
        generator = np.random.default_rng([n % 2**32 for n in draw])
        share = np.full((batch, rows, columns), generator.beta(self.spec.mixup, self.spec.mixup), np.float32)
        side = generator.beta(self.spec.box, self.spec.box) ** 0.5
        high, wide = round(side * rows), round(side * columns)
        top, left = generator.integers(rows - high + 1), generator.integers(columns - wide + 1)
        share[: batch // 2] = 0
        share[: batch // 2, top : top + high, left : left + wide] = 1
        return share


class PatchCrossEntropy(CrossEntropy):
    """CrossEntropy of the image plus that of its patches: for (logits (B C), those of N patches (B N C)) and targets
    of PatchMixing; one label an image counts for all its patches. In evaluation, of the logits alone."""

    needs_patches = True

    def forward(self, output: Tensor | tuple[Tensor, Tensor], target: Tensor) -> Tensor:
        if not isinstance(output, tuple):
            if target.ndim == 3:
                raise ValueError("patches have labels here, but the model gives no logits of them: no head_patches")
            return super().forward(output, target)
        logits, patches = output
        n = patches.shape[1]
        if target.ndim == 3:
            whole, cells = target[:, 0], target[:, 1:]
            if (count := cells.shape[1]) != n:
                raise ValueError(f"the labels are for {count} cells, the model has {n} patches: set mixing.cell")
        else:
            whole, cells = target, target.unsqueeze(1).expand(-1, n, *target.shape[1:])
        return super().forward(logits, whole) + super().forward(patches.flatten(0, 1), cells.flatten(0, 1))
