"""Bottleneck adapters with a convolution inside: Conformer, as for spectrograms (https://arxiv.org/abs/2312.03694), and
Convpass (https://arxiv.org/abs/2207.07039). Both start as the trunk alone.

Convpass is built from its paper's figure; no record holds it. The code for spectrograms has one whose convolution
nobody reads: two activations in a row, as in `mixture`.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..layers import QuickGELU
from ..mixers.convolution import convolve
from ..norm import BatchNorm
from ..plugins import Host, plugins_of
from ..tokens import Tokens
from . import AdapterError, Put
from .beside import Beside, Where, check_narrow
from .bottleneck import small


class ConformerBody(nn.Module):
    """up(silu(norm(conv(glu(enter(x)))))) of Tokens, (B N C): a depthwise convolution over `kernel` tokens in their
    order, special ones among them, and a batch norm."""

    def __init__(self, dim: int, width: int, kernel: int):
        super().__init__()
        self.enter, self.up = small(dim, 2 * width), small(width, dim, zero=True)
        self.conv = nn.Conv1d(width, width, kernel, padding=kernel // 2, groups=width, bias=False)  # the norm has one
        self.norm = BatchNorm(width)

    def forward(self, t: Tokens) -> Tensor:
        y = F.glu(self.enter(t.x), -1)
        return self.up(F.silu(self.norm(self.conv(y.mT).mT)))  # type: ignore[no-any-return]


class ConvpassBody(nn.Module):
    """up(act(conv(act(down(x))))) of Tokens, (B N C), act(x) = x sigmoid(1.702 x): a full convolution over the grid,
    the identity to begin with, to which each special token is an image of one pixel."""

    needs_grid = True

    def __init__(self, dim: int, width: int, kernel: int):
        super().__init__()
        self.down, self.up, self.act = small(dim, width), small(width, dim, zero=True), QuickGELU()
        self.conv = nn.Conv2d(width, width, kernel, padding=kernel // 2)
        nn.init.dirac_(self.conv.weight)
        nn.init.zeros_(self.conv.bias)  # type: ignore[arg-type]

    def forward(self, t: Tokens) -> Tensor:
        y = on_grid(partial(convolve, self.conv), replace(t, x=self.act(self.down(t.x))))
        return self.up(self.act(y))  # type: ignore[no-any-return]


def on_grid(layer: Callable[[Tensor], Tensor], t: Tokens) -> Tensor:
    """`layer` (B H W C -> the same shape) of the map and of each special token as an image of one pixel, (B N C)."""
    patches = layer(t.map()).flatten(1, 2)
    if not t.special:
        return patches
    ones = t.x[:, list(t.special)]
    both = torch.cat([layer(ones.flatten(0, 1)[:, None, None]).view(ones.shape), patches], 1)
    n, k = both.shape[1], len(t.special)
    if t.special == tuple(range(k)):
        return both
    places = [*t.special, *(i for i in range(n) if i not in set(t.special))]
    return both[:, sorted(range(n), key=places.__getitem__)]


def check_kernel(kernel: int) -> None:
    if kernel < 1 or kernel % 2 == 0:
        raise ValueError(f"kernel={kernel}: an odd number")


@dataclass(frozen=True)
class Conformer(Beside):
    """Bottlenecks with a convolution along the tokens.

    Beside the MLP, with a convolution over `kernel` neighbours in the order of the tokens. Its authors' best, on 768
    channels, is a reduction by 64, which leaves nothing of the first stages of small backbones."""

    parallel: bool = True
    reduction: float = 32
    width: int | None = None
    kernel: int = 7

    def __post_init__(self) -> None:
        super().__post_init__()
        check_narrow(self.width, self.reduction)
        check_kernel(self.kernel)

    def body(self, host: Host) -> nn.Module:
        return ConformerBody(host.dim, self.narrow(host, self.width, self.reduction), self.kernel)


@dataclass(frozen=True)
class Convpass(Beside):
    """Bottlenecks with a convolution over the map.

    Beside the mixer and beside the MLP, with a kernel x kernel convolution over the grid of patches.
    """

    where: Where = "both"
    parallel: bool = True
    width: int = 8
    kernel: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        check_narrow(self.width, 1)
        check_kernel(self.kernel)

    def place(self, model: nn.Module) -> list[Put]:
        if there := plugins_of(model):
            raise AdapterError(f"{self} convolves over a full grid, of which {there[0]} may leave fewer tokens")
        return super().place(model)

    def body(self, host: Host) -> nn.Module:
        return ConvpassBody(host.dim, self.narrow(host, self.width, 1), self.kernel)
