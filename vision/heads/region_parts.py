"""torchvision's box, mask and dense heads with what they say in float32, so that boxes keep their pixels under
autocast and in half precision."""

from collections.abc import Sequence

from torch import Tensor
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor
from torchvision.models.detection.fcos import FCOSHead
from torchvision.models.detection.mask_rcnn import MaskRCNNPredictor
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.models.detection.rpn import RPNHead


class ProposalHead(RPNHead):  # type: ignore[misc]
    def forward(self, x: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        scores, sides = super().forward(x)
        return [s.float() for s in scores], [s.float() for s in sides]


class BoxPredictor(FastRCNNPredictor):  # type: ignore[misc]
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scores, sides = super().forward(x)
        return scores.float(), sides.float()


class MaskPredictor(MaskRCNNPredictor):  # type: ignore[misc]
    def forward(self, input: Tensor) -> Tensor:
        logits: Tensor = super().forward(input)
        return logits.float()


class AnchoredHead(RetinaNetHead):  # type: ignore[misc]
    def forward(self, x: list[Tensor]) -> dict[str, Tensor]:
        return {name: value.float() for name, value in super().forward(x).items()}


class CentredHead(FCOSHead):  # type: ignore[misc]
    def forward(self, x: list[Tensor]) -> dict[str, Tensor]:
        return {name: value.float() for name, value in super().forward(x).items()}
