"""What an evaluating batch norm is: a x + b for each channel, which the layer beside it can take over.

A norm that is one says so by `scale_and_shift() -> (a, b)`, each (C) in float32, as `BatchNorm` and the norms of
vision/prepbn.py do. Whoever holds it beside a layer calls one of the two functions below in its own `fold_`.
"""

from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor, nn


class Affine(nn.Module):
    """a x + b for each channel, the last dimension of x (... C)."""

    def __init__(self, scale: Tensor, shift: Tensor):
        super().__init__()
        self.scale, self.shift = nn.Parameter(scale), nn.Parameter(shift)

    def forward(self, x: Tensor) -> Tensor:
        return torch.addcmul(self.shift, x, self.scale)


def constants(norm: nn.Module) -> tuple[Tensor, Tensor] | None:
    """(a, b) of an affine norm; None for any other."""
    if not hasattr(norm, "scale_and_shift"):
        return None
    with torch.no_grad():
        return cast(Callable[[], tuple[Tensor, Tensor]], norm.scale_and_shift)()


@torch.no_grad()
def into_readers(norm: nn.Module, readers: Sequence[nn.Module]) -> nn.Module:
    """What stands in place of `norm` once the linear layers `readers`, the only ones that read what it gives, have
    taken it over: W' = W diag(a), c' = c + W b; a layer without a bias gains one. Where there are none, `Affine`; a
    norm that is no a x + b stays."""
    found = constants(norm)
    if found is None:
        return norm
    a, b = found
    like = next(norm.parameters())
    for linear in readers:
        assert isinstance(linear, nn.Linear)
        w, bias = linear.weight.double(), cast(Tensor | None, linear.bias)
        shift = w @ b.double() + (0 if bias is None else bias.double())
        linear.bias = nn.Parameter(shift.to(linear.weight.dtype))
        linear.weight.copy_(w * a.double())
    return nn.Identity() if readers else Affine(a.to(like.dtype), b.to(like.dtype))


@torch.no_grad()
def into_convolution(norm: nn.Module, conv: nn.Conv2d) -> nn.Module:
    """What stands in place of `norm` once the convolution before it has taken it over: W' = diag(a) W, c' = a c + b."""
    found = constants(norm)
    if found is None:
        return norm
    a, b = (t.double() for t in found)
    bias = b if conv.bias is None else conv.bias.double() * a + b
    conv.weight.copy_(conv.weight.double() * a[:, None, None, None])
    conv.bias = nn.Parameter(bias.to(conv.weight.dtype))
    return nn.Identity()
