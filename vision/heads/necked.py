"""A pyramid with the neck that its strides ask for: maps of one width, from fine to coarse, as detectors take them."""

from torch import Tensor, nn

from .fpn import FPN, Coarser
from .mask2former import described
from .simple_pyramid import SimplePyramid


class Necked(nn.Module):
    """image (B 3 H W) -> {"0": (B dim H/s W/s), "1": …}, from fine to coarse, of the `strides` that it declares.

    A pyramid of several strides gets an FPN on its maps from `finest` on (of each stride the last one); one of a single
    stride, as plain ViTs have, ViTDet's simple pyramid. `neck` makes the first `own` maps, further ones follow until
    `coarsest` (see `Coarser`). H and W are multiples of `multiple`.
    """

    def __init__(self, pyramid: nn.Module, dim: int, finest: int, coarsest: int, learned: bool):
        super().__init__()
        channels, strides = described(pyramid)
        last = {s: i for i, s in enumerate(strides)}
        plain = len(last) == 1
        self.used = list(last.values()) if plain else [i for s, i in sorted(last.items()) if s >= finest]
        if not self.used:
            raise ValueError(f"maps of strides {strides}: none is {finest} or coarser, which this detector starts at")
        self.pyramid, self.multiple = pyramid, 2 * max(strides) if plain else max(strides)
        own = [channels[i] for i in self.used], [strides[i] for i in self.used], dim
        self.neck = SimplePyramid(*own, finest) if plain else FPN(*own)
        self.coarser = Coarser(dim, self.neck.strides[-1], coarsest, learned)
        self.own, self.out_channels = len(self.neck.strides), dim
        self.strides = [*self.neck.strides, *self.coarser.strides]

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        maps = self.pyramid(image)
        found = self.coarser(self.neck([maps[i] for i in self.used]))
        return {str(i): m for i, m in enumerate(found)}
