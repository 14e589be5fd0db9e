"""Where detectors look, by the strides that a pyramid declares: anchors on its maps, and what is pooled from them."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops.poolers import LevelMapper

RATIOS = (0.5, 1.0, 2.0)  # height / width


class Anchors(AnchorGenerator):  # type: ignore[misc]
    """For each place of each map `len(sizes) * len(ratios)` boxes, x0 y0 x1 y1 in pixels, float32 under any precision.

    sizes: sides of the square ones, in strides of their map; ratios: height / width, the area staying. offset: where in
        its cell a box is centred, in strides: 0 is its upper left corner (R-CNN, RetinaNet), 1/2 its middle (FCOS).
    torchvision's own finds strides as image // map, which is wrong where a map was rounded up.
    """

    def __init__(self, strides: Sequence[float], sizes: Sequence[float], ratios: Sequence[float] = RATIOS, *,
                 offset: float = 0.0):  # fmt: skip
        super().__init__(tuple(tuple(s * stride for s in sizes) for stride in strides), (tuple(ratios),) * len(strides))
        self.strides, self.offset = list(strides), offset

    def generate_anchors(self, scales: Sequence[float], aspect_ratios: Sequence[float], **_: Any) -> Tensor:
        """(ratios * sizes, 4) around 0; unlike torchvision's not rounded to pixels."""
        size, root = torch.tensor(scales, device="cpu"), torch.tensor(aspect_ratios, device="cpu").sqrt()
        high, wide = (root[:, None] * size).flatten(), (size / root[:, None]).flatten()
        return torch.stack([-wide, -high, wide, high], 1) / 2

    def forward(self, image_list: Any, feature_maps: Sequence[Tensor]) -> list[Tensor]:
        levels = []
        for m, stride, cell in zip(feature_maps, self.strides, self.cell_anchors, strict=True):
            y, x = ((torch.arange(n, device=m.device) + self.offset) * stride for n in m.shape[-2:])
            y, x = (v.flatten() for v in torch.meshgrid(y, x, indexing="ij"))
            levels.append((torch.stack([x, y, x, y], 1)[:, None] + cell.to(m.device)).flatten(0, 1).float())
        return [torch.cat(levels)] * len(image_list.image_sizes)


class RegionPool(MultiScaleRoIAlign):  # type: ignore[misc]
    """Maps by name, boxes of each image -> (n C size size) of all boxes, each from the map on which a box of 224 x 224
    would be at stride 16 (FPN's equation 1), computed in float32; the first `len(strides)` maps are pooled.

    channels_last: how the result lies in memory, for convolutions behind it (faster ones, on CPUs too).
    """

    def __init__(self, strides: Sequence[float], size: int, channels_last: bool = False):
        super().__init__([str(i) for i in range(len(strides))], size, 2)
        self.layout = torch.channels_last if channels_last else torch.contiguous_format
        self.scales = [1 / s for s in strides]
        self.map_levels = LevelMapper(0, len(strides) - 1, canonical_level=math.log2(16 / strides[0]))

    def forward(self, x: dict[str, Tensor], boxes: list[Tensor], image_shapes: list[tuple[int, int]]) -> Tensor:
        own = {name: x[name].float() for name in self.featmap_names}
        pooled: Tensor = super().forward(own, boxes, image_shapes)
        return pooled.to(x["0"].dtype, memory_format=self.layout)
