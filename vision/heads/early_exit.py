"""ECO-M2F, https://arxiv.org/abs/2404.15244: a Mask2Former that runs as many layers of its encoder as an image needs.
No code of the authors is known; this is made from the paper.

A: `exit_losses` trains one decoder for every exit. B: the quality of each exit is measured on the training images
(`qualities`, by any measure, panoptic quality in the paper). C: `Gate` learns `best_exits` of them, all else frozen.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..layers import Linear
from .mask2former import Mask2Former, Predictions, batched, hw
from .mask_losses import MaskLosses
from .masked_decoder import MaskPrediction
from .segments import Segments


def rising(exits: int) -> list[float]:
    """Weights of 1..`exits` that grow with the depth and sum to 1."""
    return [2 * k / (exits * (exits + 1)) for k in range(1, exits + 1)]


def every_exit(model: Mask2Former, images: Tensor | Sequence[Tensor]) -> list[Predictions]:
    """What the model predicts behind each layer of its encoder, the backbone run once."""
    image, sizes = batched(images, model.stride)
    exits = model.pixel_decoder.exits(model.backbone(image))
    return [Predictions(model.decoder(d, every=model.training), hw(image), sizes) for d in exits]


def exit_losses(
    model: Mask2Former, losses: MaskLosses, images: Tensor | Sequence[Tensor], targets: Sequence[Segments],
    weights: Sequence[float] | None = None,
) -> dict[str, Tensor]:  # fmt: skip
    """Step A: sum_k a_k L_k over the exits k, with `weights` a, `rising` ones if not said."""
    count = len(model.pixel_decoder.layers)
    a = rising(count) if weights is None else list(weights)
    if len(a) != count:
        raise ValueError(f"{len(a)} weights for the {count} exits of the encoder")
    total: dict[str, Tensor] = {}
    for share, predictions in zip(a, every_exit(model, images), strict=True):
        for name, value in losses(predictions, targets).items():
            total[name] = total.get(name, value.new_zeros(())) + share * value
    return total


@torch.no_grad()
def qualities(
    model: Mask2Former, images: Tensor | Sequence[Tensor], measure: Callable[[Predictions], Sequence[float]]
) -> Tensor:
    """Step B: (images, exits); `measure` gives one number an image, more being better."""
    return torch.tensor([list(measure(p)) for p in every_exit(model, images)]).mT


def best_exits(quality: Tensor, beta: float) -> Tensor:
    """argmax_k q_k - beta k for quality (images, exits), k from 1: the exit, counted from 0. A large beta is cheap."""
    return (quality - beta * torch.arange(1, quality.shape[1] + 1)).argmax(1)


class Gate(nn.Module):
    """The coarsest map (B C H W), averaged, through a linear layer: logits over the exits (B exits)."""

    def __init__(self, dim: int, exits: int):
        super().__init__()
        self.choose = Linear(dim, exits)

    def forward(self, m: Tensor) -> Tensor:
        return self.choose(m.mean((2, 3)))  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Gated(Predictions):
    """With the number of encoder layers that each image took."""

    depths: list[int]


class EcoMask2Former(nn.Module):
    """A trained `Mask2Former`, which stays in evaluation mode, and a gate: each image leaves the encoder where the gate
    says."""

    def __init__(self, model: Mask2Former):
        super().__init__()
        self.model = model
        self.model.train(False)
        self.gate = Gate(list(model.backbone.channels)[-1], len(model.pixel_decoder.layers))  # type: ignore[arg-type]

    def train(self, mode: bool = True) -> "EcoMask2Former":
        super().train(mode)
        self.model.train(False)
        return self

    def gate_loss(self, images: Tensor | Sequence[Tensor], exits: Tensor) -> Tensor:
        """Step C: cross entropy with `best_exits` (B); only the gate has a gradient."""
        with torch.no_grad():
            coarsest = self.model.backbone(batched(images, self.model.stride)[0])[-1]
        return F.cross_entropy(self.gate(coarsest), exits.to(coarsest.device))

    def forward(self, images: Tensor | Sequence[Tensor]) -> Gated:
        image, sizes = batched(images, self.model.stride)
        maps = self.model.backbone(image)
        depths = (self.gate(maps[-1]).argmax(1) + 1).tolist()
        found: dict[int, tuple[Tensor, Tensor]] = {}
        for depth in sorted(set(depths)):
            rows = [i for i, d in enumerate(depths) if d == depth]
            last = self.model.decoder(self.model.pixel_decoder([m[rows] for m in maps], depth))[-1]
            found |= dict(zip(rows, zip(last.classes, last.masks, strict=True), strict=True))
        classes, masks = (torch.stack(t) for t in zip(*(found[i] for i in range(len(depths))), strict=True))
        return Gated([MaskPrediction(classes, masks)], hw(image), sizes, depths)
