"""Networks of mask classification (Mask2Former, kMaX-DeepLab) as what is trained and judged: detectors with masks, or
segmenters, by the contracts of heads/detection.py and heads/semantic.py; or cutters of pictures into segments."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .early_exit import exit_losses
from .kmax import KMax
from .kmax_inference import Thresholds
from .kmax_inference import panoptic as kmax_panoptic
from .kmax_inference import semantic as kmax_semantic
from .kmax_losses import KMaxLosses
from .mask2former import Mask2Former
from .mask_inference import instances, panoptic, semantic
from .mask_losses import MaskLosses
from .segments import Panoptic, Segments, of_instances, of_semantic

Losses = MaskLosses | KMaxLosses


class ByMasks(nn.Module):
    """What both have in common: `network`, whose backbone adapters find as `backbone`, and its losses.

    `losses`: None for the published ones of the network. `exits`: train one decoder for every exit of the encoder, as
    ECO-M2F does it (https://arxiv.org/abs/2404.15244).
    """

    def __init__(self, network: Mask2Former | KMax, losses: Losses | None = None, exits: bool = False):
        super().__init__()
        fitting: type[Losses] = MaskLosses if isinstance(network, Mask2Former) else KMaxLosses
        if losses is not None and not isinstance(losses, fitting):
            raise ValueError(f"losses {type(losses).__name__}: a {type(network).__name__} learns by {fitting.__name__}")
        if exits and not isinstance(network, Mask2Former):
            raise ValueError(f"exits: the encoder of {type(network).__name__} has none; a Mask2Former's has")
        self.network, self.losses, self.exits = network, fitting() if losses is None else losses, exits
        self.classes = network.classes

    @property
    def pyramid(self) -> nn.Module:
        """The backbone of the network."""
        return self.network.backbone

    def arguments(self) -> dict[str, Any]:
        """What it was made of, by the names of the constructor."""
        return {"network": self.network, "losses": self.losses, "exits": self.exits}

    def learnt(self, images: Tensor | Sequence[Tensor], targets: Sequence[Segments]) -> dict[str, Tensor]:
        """The losses, whose sum is learnt from."""
        if self.exits:
            assert isinstance(self.network, Mask2Former)
            assert isinstance(self.losses, MaskLosses)
            return exit_losses(self.network, self.losses, images, targets)
        return self.losses(self.network(images), targets)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """In the backbone."""
        self.network.set_grad_checkpointing(enable)

    def no_weight_decay(self) -> set[str]:
        """The names of what is embedded."""
        return {f"network.{name}" for name in self.network.no_weight_decay()}


class InstanceSegmenter(ByMasks):
    """A Mask2Former as a detector with masks, by torchvision's contract: images and, in training mode, targets
    {"masks" (n H W), "labels" (n) from 1} -> losses, or of each image {"boxes", "scores", "labels" from 1, "masks"
    (n H W) bool}, the `limit` best ones."""

    masks = True

    def __init__(
        self, network: Mask2Former, losses: MaskLosses | None = None, exits: bool = False, limit: int = 100
    ):  # fmt: skip
        if not isinstance(network, Mask2Former):
            raise ValueError(f"{type(network).__name__} gives a whole picture's segments, no objects by score")
        super().__init__(network, losses, exits)
        self.limit = limit

    def arguments(self) -> dict[str, Any]:
        return {**super().arguments(), "limit": self.limit}

    def forward(
        self, images: Tensor | Sequence[Tensor], targets: Sequence[Mapping[str, Tensor]] | None = None
    ) -> Any:  # fmt: skip
        if not self.training:
            return [found.as_target() for found in instances(self.network(images), limit=self.limit)]
        if targets is None or any("masks" not in t for t in targets):
            raise ValueError("a detector by masks in training mode takes targets with masks and labels of each image")
        return self.learnt(images, [of_instances(t) for t in targets])


class SemanticSegmenter(ByMasks):
    """A Mask2Former or kMaX-DeepLab as a segmenter: images (B 3 H W) -> (B K H W), the logarithm of how much each class
    has of a pixel; in training mode, with a map of classes (B H W), the losses. `ignore`: no class."""

    def __init__(
        self, network: Mask2Former | KMax, losses: Losses | None = None, exits: bool = False, ignore: int = 255
    ):  # fmt: skip
        super().__init__(network, losses, exits)
        self.ignore = ignore

    def arguments(self) -> dict[str, Any]:
        return {**super().arguments(), "ignore": self.ignore}

    def forward(self, image: Tensor, target: Tensor | None = None) -> Any:
        if self.training and target is None:
            raise ValueError("a segmenter by masks in training mode takes a map of classes (B H W) too")
        if target is not None:
            return self.learnt(image, [of_semantic(each, self.ignore) for each in target])
        predictions = self.network(image)
        found = (semantic if isinstance(self.network, Mask2Former) else kmax_semantic)(predictions)
        return torch.stack(found).clamp(min=torch.finfo(torch.float32).tiny).log()


@dataclass(frozen=True)
class Sure:
    """score: over which a query's class must be; overlap: the part of its mask that no other query may take."""

    score: float = 0.8
    overlap: float = 0.8


class PanopticSegmenter(ByMasks):
    """A Mask2Former or kMaX-DeepLab that cuts pictures into segments: images (B 3 H W), or of any sizes in a list, and,
    in training mode, targets {"masks" (n H W), "labels" (n) from 1} -> losses, or of each image a `Panoptic`.

    `things`: the classes, from 0, of which each object is a segment of its own; those of another class are one. None:
    whoever trains it says so (`things` is an attribute) from its data. `limits`: `Sure` of a Mask2Former, `Thresholds`
    of a kMaX; None for those published for COCO.
    """

    def __init__(
        self,
        network: Mask2Former | KMax,
        things: Sequence[int] | None = None,
        losses: Losses | None = None,
        exits: bool = False,
        limits: Sure | Thresholds | None = None,
    ):
        super().__init__(network, losses, exits)
        fitting: type[Sure | Thresholds] = Sure if isinstance(network, Mask2Former) else Thresholds
        if limits is not None and not isinstance(limits, fitting):
            given = type(limits).__name__
            raise ValueError(f"limits {given}: a {type(network).__name__} is held to {fitting.__name__}")
        wrong = [k for k in things or () if not 0 <= k < self.classes]
        if wrong:
            raise ValueError(f"things: {wrong[0]} is no class, they are 0 to {self.classes - 1}")
        self.things = None if things is None else tuple(things)
        self.limits = fitting() if limits is None else limits

    def arguments(self) -> dict[str, Any]:
        return {**super().arguments(), "things": self.things, "limits": self.limits}

    def forward(
        self, images: Tensor | Sequence[Tensor], targets: Sequence[Mapping[str, Tensor]] | None = None
    ) -> Any:  # fmt: skip
        if self.training:
            if targets is None or any("masks" not in t for t in targets):
                raise ValueError("a panoptic segmenter in training mode takes targets with masks and labels of each")
            return self.learnt(images, [of_instances(t) for t in targets])
        return self.cut(self.network(images))

    def cut(self, predictions: Any, to: Sequence[tuple[int, int]] | None = None) -> list[Panoptic]:
        """The segments of each image, in its pixels or resized to `to` (H, W)."""
        if self.things is None:
            raise ValueError("which classes are things is not said: give the segmenter things=[…]")
        if isinstance(self.limits, Sure):
            return panoptic(predictions, self.things, to, **asdict(self.limits))
        return kmax_panoptic(predictions, self.things, to, self.limits)
