"""The feature pyramid network, https://arxiv.org/abs/1612.03144, and the coarser maps that detectors put on top."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn


class FPN(nn.Module):
    """Maps (B C_i H_i W_i) from fine to coarse -> as many of `dim` channels, of the same sizes:
    p_i = 3x3(t_i), t_i = 1x1(m_i) + nearest(t_{i+1}), of any ratio of sizes. `channels` and `strides` describe them.

    Raises ValueError for strides that do not rise.
    """

    def __init__(self, channels: Sequence[int], strides: Sequence[float], dim: int = 256):
        super().__init__()
        if not strides or len(channels) != len(strides) or list(strides) != sorted(set(strides)):
            raise ValueError(
                f"an FPN takes maps from fine to coarse; these have strides {list(strides)} and channels "
                f"{list(channels)} (a model of one resolution takes a SimplePyramid)"
            )
        self.lateral = nn.ModuleList(nn.Conv2d(c, dim, 1) for c in channels)
        self.output = nn.ModuleList(nn.Conv2d(dim, dim, 3, padding=1) for _ in channels)
        self.channels, self.strides = [dim] * len(channels), [float(s) for s in strides]
        for conv in (*self.lateral, *self.output):
            nn.init.kaiming_uniform_(conv.weight, a=1)
            nn.init.zeros_(conv.bias)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        if len(maps) != len(self.lateral):
            raise ValueError(f"{len(maps)} maps, and this FPN is made for {len(self.lateral)}")
        tops: list[Tensor] = []
        for conv, m in zip(reversed(self.lateral), reversed(maps), strict=True):
            side = conv(m)
            tops.append(side + F.interpolate(tops[-1], side.shape[-2:]) if tops else side)
        return [conv(t) for conv, t in zip(self.output, reversed(tops), strict=True)]


class Coarser(nn.Module):
    """Behind a neck, the maps that follow its coarsest, each half as fine (rounded up), until there is one of `stride`.

    learned: by 3x3 convolutions of stride 2 with relu between them, the first on the neck's coarsest map (as FCOS has
        it, https://arxiv.org/abs/1904.01355, and RetinaNet's later form); else every second place of it (as Faster
        R-CNN with an FPN has it).
    """

    def __init__(self, dim: int, finest: float, stride: float, learned: bool):
        super().__init__()
        self.strides: list[float] = []
        while 2 * finest <= stride:
            finest *= 2
            self.strides.append(finest)
        count = len(self.strides) if learned else 0
        self.learned, self.convs = learned, nn.ModuleList(nn.Conv2d(dim, dim, 3, 2, 1) for _ in range(count))
        for conv in self.convs:
            nn.init.kaiming_uniform_(conv.weight, a=1)  # type: ignore[arg-type]
            nn.init.zeros_(conv.bias)  # type: ignore[arg-type]

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        found = list(maps)
        for i in range(len(self.strides)):
            if self.learned:
                found.append(self.convs[i](found[-1] if i == 0 else found[-1].relu()))
            else:
                found.append(found[-1][..., ::2, ::2])
        return found
