"""What tokens gain from their neighbours on the map: a depthwise convolution beside them."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..kernels.convolution import Act, convolution
from ..kernels.linear import eager_float32
from .layers import unhooked
from .mixers.convolution import convolve

ACTS: dict[Act, nn.Module] = {"none": nn.Identity(), "gelu": nn.GELU()}


def filtered(conv: nn.Module, m: Tensor, act: Act = "none") -> Tensor:
    """act(conv(m)) on a map B H W C -> B H' W' C', as one kernel where the convolution is as it was built. That one
    also serves a single small map, for which torch takes a slow loop."""
    if type(conv) is not nn.Conv2d or not unhooked(conv):
        return ACTS[act](convolve(conv, m))  # type: ignore[no-any-return]
    x, step, border = m.permute(0, 3, 1, 2), conv.stride[0], int(conv.padding[0])
    return convolution(x, conv.weight, conv.bias, step, border, conv.groups, act).permute(0, 2, 3, 1)


class ResidualDepthwise(nn.Module):
    """m + conv(m) with a depthwise 3x3 convolution, on a map B H W C; folds into one convolution."""

    def __init__(self, dim: int):
        super().__init__()
        self.conv, self.residual = nn.Conv2d(dim, dim, 3, padding=1, groups=dim), True

    def forward(self, m: Tensor) -> Tensor:
        if not self.residual:
            return filtered(self.conv, m)
        c = self.conv
        if type(c) is not nn.Conv2d or not unhooked(c) or not eager_float32(m, c.weight):
            return m + filtered(c, m)
        weight = c.weight + F.pad(c.weight.new_ones(1, 1, 1, 1), (1, 1, 1, 1))  # m itself: no pass over the map for it
        return convolution(m.permute(0, 3, 1, 2), weight, c.bias, 1, 1, c.groups).permute(0, 2, 3, 1)

    def fold_(self) -> None:
        if self.residual and type(self.conv) is nn.Conv2d:
            with torch.no_grad():
                self.conv.weight[:, 0, 1, 1] += 1
            self.residual = False
